"""The strong messages as bytes: each decoder takes what its encoder makes, however it is cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import ballots as b
from services.core.errors import PeerError
from services.core.paxos import Seen

versions = st.binary(min_size=12, max_size=12)
epochs = st.integers(0, (1 << 64) - 1)
keys = st.binary(max_size=60)
records = st.binary(max_size=60)


@given(epochs, versions, keys, st.booleans())
def test_a_prepare_comes_out_as_it_went_in(
    epoch: int, ballot: bytes, key: bytes, grows: bool
) -> None:
    body = b.encode_prepare(epoch, ballot, key, grows=grows)
    assert b.decode_prepare(body) == (ballot, grows, key)
    assert body[: b.epoch_bytes] == epoch.to_bytes(8, "big")


@given(epochs, versions, versions, keys, records)
def test_an_accept_comes_out_as_it_went_in(
    epoch: int, ballot: bytes, operation: bytes, key: bytes, record: bytes
) -> None:
    body = b.encode_accept(epoch, ballot, operation, key, record)
    assert b.decode_accept(body) == (ballot, operation, key, record)
    assert body[: b.epoch_bytes] == epoch.to_bytes(8, "big")


@given(epochs, versions, keys, records)
def test_a_learn_comes_out_as_it_went_in(
    epoch: int, ballot: bytes, key: bytes, record: bytes
) -> None:
    assert b.decode_learn(b.encode_learn(epoch, ballot, key, record)) == (ballot, key, record)


@given(epochs, keys)
def test_a_read_is_its_epoch_and_its_key(epoch: int, key: bytes) -> None:
    body = b.encode_read(epoch, key)
    assert (int.from_bytes(body[: b.epoch_bytes], "big"), body[b.epoch_bytes :]) == (epoch, key)


@given(versions, versions, versions, records, records)
def test_what_is_seen_comes_out_as_it_went_in(
    ballot: bytes, operation: bytes, floor: bytes, record: bytes, cell: bytes
) -> None:
    seen = Seen(ballot, operation, floor, record, cell)
    assert b.decode_seen(b.encode_seen(*seen)) == seen


@given(st.binary(min_size=23, max_size=60))
def test_a_record_that_is_the_cell_travels_once(record: bytes) -> None:
    body = b.encode_seen(bytes(12), bytes(12), bytes(12), record, bytes(record))
    assert len(body) == b.seen_head_bytes + len(record)
    assert b.decode_seen(body)[3:] == (record, record)


def test_how_old_and_how_many_come_out_as_they_went_in() -> None:
    assert b.decode_unlearned(b.encode_unlearned(3_000, b.unlearned_max)) == (
        3_000,
        b.unlearned_max,
    )
    for limit in (0, b.unlearned_max + 1):
        with pytest.raises(PeerError):
            b.decode_unlearned(b.encode_unlearned(1, limit))


def test_a_record_longer_than_its_message_is_refused() -> None:
    body = b.encode_seen(bytes(12), bytes(12), bytes(12), b"record", b"cell")
    for end in range(b.seen_head_bytes, b.seen_head_bytes + len(b"record")):
        with pytest.raises(PeerError):
            b.decode_seen(body[:end])


heads: list[tuple[Callable[[bytes], object], bytes, int]] = [
    (b.decode_prepare, b.encode_prepare(1, bytes(12), b"key", grows=True), 21),
    (b.decode_accept, b.encode_accept(1, bytes(12), bytes(12), b"key", b"record"), 34 + 3),
    (b.decode_learn, b.encode_learn(1, bytes(12), b"key", b"record"), 22 + 3),
    (b.decode_seen, b.encode_seen(bytes(12), bytes(12), bytes(12), b"rec", b"cell"), 40),
    (b.decode_unlearned, b.encode_unlearned(1, 1), 6),
]


@pytest.mark.parametrize(("decode", "body", "head"), heads)
def test_a_message_cut_within_its_head_or_its_key_is_refused_and_elsewhere_another_one(
    decode: Callable[[bytes], object], body: bytes, head: int
) -> None:
    whole = decode(body)
    for end in range(len(body)):
        if end < head:
            with pytest.raises(PeerError):
                decode(body[:end])
        else:
            try:
                assert decode(body[:end]) != whole
            except PeerError:
                continue


@pytest.mark.parametrize("decode", [decode for decode, _, _ in heads])
@given(data=st.binary(max_size=120))
def test_garbage_is_refused_or_understood_and_nothing_else(
    decode: Callable[[bytes], object], data: bytes
) -> None:
    try:
        decode(data)
    except PeerError:
        return
