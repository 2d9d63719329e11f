"""Records and the metadata inside of them."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import record as records
from services.core.errors import FixRequest, PeerError
from services.core.hlc import pack_version, time_ms_max
from services.core.record import (
    Metadata,
    Record,
    content_type_bytes_max,
    meta_bytes_max,
    metadata_name_bytes_max,
    record_bytes_max,
    tombstone_body,
    user_metadata_bytes_max,
    value_body,
    value_bytes_max,
)

now_ms = 1_767_225_600_000
version = pack_version(now_ms << 16, 3)

versions = st.binary(min_size=12, max_size=12)
times = st.integers(0, time_ms_max)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
texts = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)
metadatas = st.builds(
    Metadata,
    created_at_ms=times,
    content_type=texts.map(str.encode),
    user=st.dictionaries(names.map(str.encode), texts.map(str.encode), max_size=6).map(
        lambda pairs: tuple(pairs.items())
    ),
)
values = st.builds(
    Record,
    version=versions,
    value=st.binary(max_size=100),
    expires_at_ms=times,
    metadata=st.one_of(st.just(Metadata()), metadatas),
)
tombstones = versions.map(lambda v: Record(v, tombstone=True))
some_records = st.one_of(values, tombstones)
# Few versions and few contents, so that equal versions with different contents come up often.
encoded = st.builds(
    lambda v, body: v + body,
    st.sampled_from([bytes(11) + b"\1", bytes(11) + b"\2", version]),
    st.sampled_from(
        [tombstone_body, value_body(b""), value_body(b"a"), value_body(b"b"), value_body(b"a", 9)]
    ),
)

full = Record(
    version=version,
    value=b"the value",
    expires_at_ms=now_ms + 1_000,
    metadata=Metadata(now_ms - 5, b"text/plain", ((b"colour", b"red"), (b"size", b""))),
)


def test_the_layout_of_a_record_is_fixed() -> None:
    meta = b"\x01" + struct.pack(">QB", now_ms - 5, 10) + b"text/plain"
    meta += b"\x06colour\x00\x03red" + b"\x04size\x00\x00"
    head = struct.pack(">BQH", 0, now_ms + 1_000, len(meta))
    assert full.encode() == version + head + meta + b"the value"
    assert Record(version, tombstone=True).encode() == version + b"\x01" + bytes(10)


@given(some_records)
def test_a_record_is_decoded_as_it_was_encoded(record: Record) -> None:
    assert Record.decode(record.encode()) == record


@given(some_records, times)
def test_the_functions_on_bytes_agree_with_the_record(record: Record, at_ms: int) -> None:
    data = record.encode()
    assert records.check(data) is data
    assert records.version(data) == record.version
    assert records.is_tombstone(data) == record.tombstone
    assert records.expires_at_ms(data) == record.expires_at_ms
    assert records.value(data) == record.value
    assert records.value_bytes(data) == len(record.value)
    assert records.meta(data) == record.metadata.encode()
    expired = record.expires_at_ms != 0 and record.expires_at_ms <= at_ms
    assert records.expired(data, at_ms) == expired
    assert records.visible(data, at_ms) == (not record.tombstone and not expired)


def test_a_value_expires_in_the_very_millisecond_it_names() -> None:
    data = version + value_body(b"v", now_ms)
    assert not records.expired(data, now_ms - 1)
    assert records.expired(data, now_ms)
    assert not records.expired(version + value_body(b"v"), time_ms_max)


def test_a_plain_value_costs_twenty_three_bytes() -> None:
    assert len(Record(version, b"x" * 100).encode()) == 123


def test_a_restamped_record_keeps_its_contents() -> None:
    later = pack_version(now_ms + 1 << 16, 4)
    data = records.restamp(full.encode(), later)
    restamped = Record.decode(data)
    assert restamped.version == later
    assert (restamped.value, restamped.metadata) == (full.value, full.metadata)


@given(encoded, encoded)
def test_merge_is_commutative(one: bytes, other: bytes) -> None:
    assert records.merge(one, other) == records.merge(other, one)


@given(encoded, encoded, encoded)
def test_merge_is_associative(a: bytes, b: bytes, c: bytes) -> None:
    assert records.merge(records.merge(a, b), c) == records.merge(a, records.merge(b, c))


@given(encoded)
def test_merge_is_idempotent(one: bytes) -> None:
    assert records.merge(one, one) == one


@given(st.lists(encoded, min_size=1, max_size=8), st.randoms())
def test_replicas_that_merge_in_any_order_hold_the_same_bytes(
    written: list[bytes], rng: random.Random
) -> None:
    def merged(order: list[bytes]) -> bytes:
        held = order[0]
        for data in order[1:]:
            held = records.merge(held, data)
        return held

    # Another order, and some deliveries twice.
    delivered = written + rng.sample(written, len(written) // 2)
    rng.shuffle(delivered)
    assert merged(written) == merged(delivered)
    assert merged(written)[:12] == max(data[:12] for data in written)


@given(some_records, some_records)
def test_the_later_version_wins_whatever_the_contents(one: Record, other: Record) -> None:
    winner = records.merge(one.encode(), other.encode())
    assert winner[:12] == max(one.version, other.version)


def test_of_one_version_a_tombstone_beats_a_value() -> None:
    value = version + value_body(b"\xff" * 50, time_ms_max)
    tombstone = version + tombstone_body
    assert records.merge(value, tombstone) == records.merge(tombstone, value) == tombstone


def test_creation_is_the_version_s_own_time_unless_the_metadata_says_otherwise() -> None:
    assert Record(version).created_at_ms == now_ms
    assert full.created_at_ms == now_ms - 5
    assert full.updated_at_ms == now_ms


def test_a_record_cut_within_head_or_metadata_is_the_peers_fault() -> None:
    data = full.encode()
    end_of_meta = len(data) - len(full.value)
    for size in range(end_of_meta):
        with pytest.raises(PeerError):
            records.check(data[:size])
        with pytest.raises(PeerError):
            Record.decode(data[:size])
    # Beyond the metadata a record has no length of its own: its frame does.
    assert Record.decode(data[:end_of_meta]).value == b""


def test_metadata_cut_at_any_byte_is_the_peers_fault_or_ends_between_pairs() -> None:
    data = full.metadata.encode()
    whole_pairs = {0: Metadata()}
    for count in range(3):
        shorter = Metadata(now_ms - 5, b"text/plain", full.metadata.user[:count])
        whole_pairs[len(shorter.encode())] = shorter
    for size in range(len(data) + 1):
        if size in whole_pairs:
            assert Metadata.decode(data[:size]) == whole_pairs[size]
        else:
            with pytest.raises(PeerError, match="ends inside of a field"):
                Metadata.decode(data[:size])


def test_every_byte_of_a_record_may_be_any_other_without_an_exception_from_inside() -> None:
    data = full.encode()
    for position in range(len(data)):
        for byte in range(256):
            corrupt = data[:position] + bytes((byte,)) + data[position + 1 :]
            try:
                record = Record.decode(corrupt)
            except PeerError:
                continue
            assert record.encode() == corrupt


@pytest.mark.parametrize("meta_len", [1, 35, 37, 255, 4_097, meta_bytes_max + 1, 0xFFFF])
def test_a_corrupted_metadata_length_is_a_clean_error(meta_len: int) -> None:
    data = full.encode()
    corrupt = data[:21] + meta_len.to_bytes(2, "big") + data[23:]
    with pytest.raises(PeerError):
        Record.decode(corrupt)


@pytest.mark.parametrize("length", range(256))
def test_corrupted_lengths_inside_of_metadata_are_clean_errors(length: int) -> None:
    data = full.metadata.encode()
    for position, intended in ((9, 10), (20, 6), (27, 0), (28, 3), (32, 4), (38, 0)):
        assert data[position] == intended
        if length != intended:
            corrupt = data[:position] + bytes((length,)) + data[position + 1 :]
            with pytest.raises(PeerError):
                Metadata.decode(corrupt)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_clean_error(data: bytes) -> None:
    for candidate in (data, version + b"\0" + bytes(8) + data):
        try:
            record = Record.decode(candidate)
        except PeerError:
            continue
        assert record.encode() == candidate


@given(st.binary(max_size=80))
def test_any_bytes_are_metadata_or_a_clean_error(data: bytes) -> None:
    for candidate in (data, b"\x01" + bytes(8) + data):
        try:
            metadata = Metadata.decode(candidate)
        except PeerError:
            continue
        assert metadata.encode() == candidate


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (version + b"\x02" + bytes(10), "unknown flags 0x2"),
        (version + b"\xff" + bytes(10), "unknown flags 0xff"),
        (version + tombstone_body + b"v", "tombstone carries"),
        (version + b"\x01" + bytes(7) + b"\x01" + bytes(2), "tombstone carries"),
        (version + value_body(b"", time_ms_max + 1), "later than any time"),
        (version + value_body(bytes(value_bytes_max + 1)), "above 1048576"),
        (version + value_body(b"", 0, bytes(meta_bytes_max + 1)), "of metadata"),
    ],
)
def test_what_no_record_may_be_is_named(data: bytes, complaint: str) -> None:
    with pytest.raises(PeerError, match=complaint):
        records.check(data)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x02" + bytes(9), "unknown format 2"),
        (b"\x01" + bytes(9), "canonical"),
        (b"\x01" + bytes(9) + b"\x01b\0\0\x01a\0\0", "canonical"),
        (b"\x01" + bytes(9) + b"\x01a\0\0\x01a\0\0", "more than once"),
        (b"\x01" + bytes(9) + b"\x01A\0\0", "lower case"),
        (b"\x01" + bytes(9) + b"\0\0\0", "1 to 255"),
        (b"\x01" + bytes(9) + b"\x01a\0\x02\r\n", "control character"),
        (b"\x01" + bytes(8) + b"\x01\n", "control character"),
        (b"\x01" + b"\xff" * 8 + b"\0", "no time"),
        (b"\x01" + bytes(9) + b"\x01a\x04\x00" + b"v" * 1024, "1025 bytes"),
    ],
)
def test_what_no_metadata_may_be_is_named(data: bytes, complaint: str) -> None:
    with pytest.raises(PeerError, match=complaint):
        Metadata.decode(data)


def test_the_limits_themselves_are_allowed() -> None:
    largest = Metadata(time_ms_max, b"t" * content_type_bytes_max, ((b"n", b"v" * 1023),))
    record = Record(version, bytes(value_bytes_max), time_ms_max, largest)
    assert Record.decode(record.encode()) == record
    longest_name = Metadata(user=((b"n" * metadata_name_bytes_max, b"v" * 769),))
    assert Metadata.decode(longest_name.encode()) == longest_name


def test_the_bulkiest_metadata_that_clients_may_store_fits_its_bound() -> None:
    alphabet = b"abcdefghijklmnopqrstuvwxyz0123456789-_."
    two = [bytes((a, b)) for a in alphabet for b in alphabet]
    # 39 names of one byte and 492 of two are 1023 bytes: hardly any more pairs would fit.
    user = tuple((name, b"") for name in [bytes((a,)) for a in alphabet] + two[:492])
    bulky = Metadata(1, b"t" * content_type_bytes_max, user)
    assert len(bulky.encode()) <= meta_bytes_max
    data = Record(version, bytes(value_bytes_max), 1, bulky).encode()
    assert len(data) <= record_bytes_max
    assert Record.decode(data).metadata == bulky


@pytest.mark.parametrize(
    ("content_type", "user", "code"),
    [
        (b"t" * (content_type_bytes_max + 1), (), "invalid_header"),
        (b"text/plain\r\nSet-Cookie: a=b", (), "invalid_header"),
        (b" text/plain", (), "invalid_header"),
        (b"", ((b"", b"v"),), "invalid_header"),
        (b"", ((b"Upper", b"v"),), "invalid_header"),
        (b"", ((b"a b", b"v"),), "invalid_header"),
        (b"", ((b"n" * 256, b"v"),), "invalid_header"),
        (b"", ((b"a", b"1"), (b"a", b"2")), "invalid_header"),
        (b"", ((b"a", b"x\nInjected: yes"),), "invalid_header"),
        (b"", ((b"a", b"\x00"),), "invalid_header"),
        (b"", ((b"a", b"tail "),), "invalid_header"),
        (b"", ((b"a", b"v" * user_metadata_bytes_max),), "metadata_too_large"),
        (b"", tuple((b"%d" % n, b"v" * 10) for n in range(100)), "metadata_too_large"),
    ],
)
def test_metadata_that_clients_may_not_store_names_its_code(
    content_type: bytes, user: tuple[tuple[bytes, bytes], ...], code: str
) -> None:
    with pytest.raises(FixRequest) as caught:
        Metadata(0, content_type, user)
    assert caught.value.code == code


def test_the_order_in_which_metadata_is_given_does_not_matter() -> None:
    one = Metadata(user=((b"b", b"2"), (b"a", b"1")))
    other = Metadata(user=((b"a", b"1"), (b"b", b"2")))
    assert one == other
    assert one.encode() == other.encode()


def test_a_value_above_a_mebibyte_is_too_large() -> None:
    with pytest.raises(FixRequest) as caught:
        Record(version, bytes(value_bytes_max + 1))
    assert caught.value.code == "value_too_large"


def test_a_record_that_contradicts_itself_cannot_be_made() -> None:
    for arguments in (
        {"value": b"v"},
        {"expires_at_ms": 1},
        {"metadata": Metadata(content_type=b"text/plain")},
    ):
        with pytest.raises(ValueError, match="a tombstone carries nothing"):
            Record(version, tombstone=True, **arguments)
    with pytest.raises(ValueError, match="12 bytes"):
        Record(version[:11])
    with pytest.raises(ValueError, match="no time"):
        Record(version, expires_at_ms=time_ms_max + 1)
