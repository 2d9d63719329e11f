"""What gateways and replicators tell each other, as bytes: each decoder takes what its encoder
makes, and refuses everything else in one way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import operations as o
from services.core.errors import CATALOGUE, PeerError
from services.core.hlc import time_ms_max, version_bytes
from services.core.key import namespace_prefix
from services.core.record import meta_bytes_max, value_body, value_bytes_max

prefix = namespace_prefix(7, b"default")
key = prefix + b"key"
keys = st.binary(min_size=1, max_size=40).map(lambda name: prefix + name)
versions = st.binary(min_size=version_bytes, max_size=version_bytes)
ttls = st.integers(0, o.ttl_ms_max)
change = o.ChangeRequest(
    o.Action.PUT, key, b"value", 5, b"meta", -1, (bytes(12), b"\xff" * 12), if_present=True
)


@given(keys, st.binary(max_size=100), ttls, st.binary(max_size=100))
def test_the_record_of_a_put_is_that_of_its_parts(
    key: bytes, value: bytes, ttl: int, meta: bytes
) -> None:
    expires_at_ms = 1_000 + ttl if ttl else 0
    body = o.encode_put(key, value, ttl, meta)
    assert o.put_record(body, 1_000) == (key, value_body(value, expires_at_ms, meta))


@given(
    st.builds(
        o.ChangeRequest,
        st.sampled_from(o.Action),
        keys,
        st.binary(max_size=50),
        ttls,
        st.binary(max_size=50),
        st.integers(o.integer_min, o.integer_max),
        st.none() | st.lists(versions, max_size=o.versions_max).map(tuple),
        st.sampled_from((None, True, False)),
    )
)
def test_a_change_comes_out_as_it_went_in(request: o.ChangeRequest) -> None:
    decoded = o.decode_change(o.encode_change(request))
    assert decoded == request
    assert type(decoded.action) is o.Action


def test_no_versions_are_another_thing_than_no_matter_which() -> None:
    def back(versions: tuple[bytes, ...] | None) -> tuple[bytes, ...] | None:
        request = o.ChangeRequest(o.Action.DELETE, key, versions=versions)
        return o.decode_change(o.encode_change(request)).versions

    assert back(()) == ()
    assert back(None) is None


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50)), max_size=30))
def test_a_batch_comes_out_as_it_went_in(items: list[o.Item]) -> None:
    assert o.decode_batch(o.encode_batch(items)) == items


@given(versions, st.integers(0, time_ms_max), st.none() | st.integers(o.integer_min, o.integer_max))
def test_what_was_changed_comes_out_as_it_went_in(
    version: bytes, expiry: int, value: int | None
) -> None:
    body = o.changed_answer(version, expiry) + (b"" if value is None else o.i64.pack(value))
    assert o.decode_changed(body) == (version, expiry, value)


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_a_refusal_has_its_code_and_text(code: str) -> None:
    assert o.decode_refused(o.refused_answer(code, "wäre möglich")) == (code, "wäre möglich")


def test_texts_are_cut_to_what_somebody_reads() -> None:
    assert len(o.decode_refused(o.refused_answer("overloaded", "x" * 9_999))[1]) == 512
    assert len(o.decode_unknown(o.unknown_answer(bytes(12), "ä" * 9_999))[1]) == 256
    operation, text = o.decode_unknown(o.unknown_answer(b"\1" * 12, "why"))
    assert (operation, text) == (b"\1" * 12, "why")


# What is no message.


@pytest.mark.parametrize(
    "body",
    [
        o.encode_put(b"short", b""),
        o.encode_put(key, b"", o.ttl_ms_max + 1),
        o.encode_put(key, b"", 0, bytes(meta_bytes_max + 1)),
        o.encode_put(key, bytes(value_bytes_max + 1)),
    ],
    ids=["key", "ttl", "metadata", "value"],
)
def test_a_put_beyond_a_limit_is_refused(body: bytes) -> None:
    with pytest.raises(PeerError):
        o.put_record(body, 1_000)


@pytest.mark.parametrize(
    "request_",
    [
        change._replace(key=b"short"),
        change._replace(ttl_ms=o.ttl_ms_max + 1),
        change._replace(meta=bytes(meta_bytes_max + 1)),
        change._replace(value=bytes(value_bytes_max + 1)),
        change._replace(versions=(bytes(12),) * (o.versions_max + 1)),
    ],
    ids=["key", "ttl", "metadata", "value", "versions"],
)
def test_a_change_beyond_a_limit_is_refused(request_: o.ChangeRequest) -> None:
    with pytest.raises(PeerError):
        o.decode_change(o.encode_change(request_))


@pytest.mark.parametrize(
    "head", [b"\0\0\0", b"\5\0\0", b"\1\3\0", b"\1\7\0", b"\1\x08\0", b"\1\0\1"]
)
def test_a_change_that_asks_for_what_there_is_not_is_refused(head: bytes) -> None:
    with pytest.raises(PeerError):
        o.decode_change(head + o.encode_change(change._replace(versions=()))[3:])


def test_a_batch_of_too_many_is_refused_by_its_count() -> None:
    with pytest.raises(PeerError, match="at most 1000"):
        o.decode_batch((o.batch_items_max + 1).to_bytes(2, "big"))


@pytest.mark.parametrize("size", [0, 1, 19, 21, 27, 29])
def test_a_change_answer_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(PeerError):
        o.decode_changed(bytes(size))
    with pytest.raises(PeerError):
        o.decode_changed(bytes(12) + b"\xff" * 8)


decoders: list[tuple[Callable[[bytes], object], bytes]] = [
    (partial(o.put_record, now_ms=1_000), o.encode_put(key, b"value", 5, b"meta")),
    (o.decode_change, o.encode_change(change)),
    (o.decode_batch, o.encode_batch([(o.PUT, b"one"), (o.FETCH, b"two")])),
    (o.decode_changed, o.changed_answer(bytes(12), 5) + o.i64.pack(9)),
    (o.decode_refused, o.refused_answer("no_quorum", "why")),
    (o.decode_unknown, o.unknown_answer(bytes(12), "why")),
]


@pytest.mark.parametrize(("decode", "body"), decoders)
def test_a_message_cut_anywhere_is_refused_or_is_a_shorter_one(
    decode: Callable[[bytes], object], body: bytes
) -> None:
    whole = decode(body)
    for end in range(len(body)):
        try:
            assert decode(body[:end]) != whole
        except PeerError:
            continue


@pytest.mark.parametrize("decode", [decode for decode, _ in decoders])
@given(data=st.binary(max_size=200))
def test_garbage_is_refused_or_understood_and_nothing_else(
    decode: Callable[[bytes], object], data: bytes
) -> None:
    try:
        decode(data)
    except PeerError:
        return


@pytest.mark.parametrize(("decode", "body"), decoders)
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_understood_and_nothing_else(
    decode: Callable[[bytes], object], body: bytes, data: st.DataObject
) -> None:
    flipped = bytearray(body)
    flipped[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decode(bytes(flipped))
    except PeerError:
        return


def test_kinds_are_distinct_and_on_their_sides() -> None:
    asked = [o.PUT, o.DELETE, o.FETCH, o.CHANGE, o.BATCH, o.DELETE_PREFIX, o.MAP]
    answered = [
        o.CHANGED,
        o.ABSENT,
        o.PRECONDITION_FAILED,
        o.NOT_AN_INTEGER,
        o.UNKNOWN,
        o.REFUSED,
        o.TOO_LARGE,
    ]
    assert len({*asked, *answered}) == len(asked) + len(answered)
    assert max(asked) < 128
    assert 144 <= min(answered) <= max(answered) < 240
