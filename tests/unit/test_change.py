"""What each operation does to a record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.change import (
    Condition,
    Delete,
    Expire,
    Increment,
    Put,
    exists,
    no_condition,
    read,
)
from services.core.hlc import pack_version, version_ms, version_zero
from services.core.operations import (
    ABSENT,
    CHANGED,
    NOT_AN_INTEGER,
    PRECONDITION_FAILED,
    decode_changed,
    integer_max,
    integer_min,
)
from services.core.paxos import Change
from services.core.record import (
    Metadata,
    check,
    created_at_ms,
    expires_at_ms,
    is_tombstone,
    meta,
    tombstone_body,
    value,
    value_body,
)
from services.core.wire import OK

first = pack_version(1_000 << 16, 1)
ballot = pack_version(2_000 << 16, 2)
typed = Metadata(content_type=b"text/plain").encode()
there = first + value_body(b"5", 9_000, typed)
gone = first + tombstone_body
absent = (b"", gone)


def applied(change: Change, current: bytes) -> bytes:
    """The record that a change makes, which must be a good one, stamped with the ballot."""
    record, (kind, body) = change(current, ballot)
    assert record is not None
    assert check(record)[:12] == ballot
    assert kind == CHANGED
    answer = decode_changed(body)
    assert (answer.version, answer.expires_at_ms) == (ballot, expires_at_ms(record))
    return record


def test_a_read_shows_a_value_and_neither_a_tombstone_nor_nothing() -> None:
    assert read(there, ballot) == (None, (OK, there))
    assert [read(current, ballot) for current in absent] == [(None, (OK, b""))] * 2


def test_a_put_replaces_everything_but_when_the_key_came_to_be() -> None:
    record = applied(Put(b"new", 7_000), there)
    assert (value(record), expires_at_ms(record)) == (b"new", 7_000)
    assert created_at_ms(record) == 1_000
    assert Metadata.decode(meta(record)) == Metadata(created_at_ms=1_000)
    again = ballot[:11] + b"\xff" + record[12:]
    assert created_at_ms(applied(Put(b"newer", 0, typed), again)) == 1_000


@pytest.mark.parametrize("current", absent)
def test_a_put_where_nothing_is_begins_the_key_anew(current: bytes) -> None:
    record = applied(Put(b"new", 0, typed), current)
    assert created_at_ms(record) == version_ms(ballot) == 2_000
    assert meta(record) == typed


@pytest.mark.parametrize("current", [*absent, there])
def test_a_delete_leaves_a_tombstone_whatever_was_there(current: bytes) -> None:
    assert applied(Delete(), current) == ballot + tombstone_body


def test_another_expiry_changes_nothing_else() -> None:
    for expiry_ms in (0, 1, 12_345):
        record = applied(Expire(expiry_ms), there)
        assert expires_at_ms(record) == expiry_ms
        assert value(record) == b"5"
        assert created_at_ms(record) == 1_000
        assert Metadata.decode(meta(record)).content_type == b"text/plain"
    for current in absent:
        assert Expire(5)(current, ballot) == (None, (ABSENT, b""))


def test_an_increment_keeps_expiry_and_metadata_and_starts_from_nothing_at_zero() -> None:
    record = applied(Increment(37), there)
    assert value(record) == b"42"
    assert (expires_at_ms(record), created_at_ms(record)) == (9_000, 1_000)
    assert Metadata.decode(meta(record)).content_type == b"text/plain"
    for current in absent:
        _, (_, body) = Increment(-3)(current, ballot)
        assert decode_changed(body).value == -3
        assert value(applied(Increment(-3), current)) == b"-3"


@pytest.mark.parametrize(
    "text",
    [b"", b" 5", b"5 ", b"+5", b"5.0", b"0x5", b"\xd9\xa5", b"--5", b"1_0", b"9" * 20, b"5\n"],
)
def test_what_is_no_decimal_integer_is_left_alone(text: bytes) -> None:
    record, (kind, reason) = Increment(1)(first + value_body(text), ballot)
    assert (record, kind) == (None, NOT_AN_INTEGER)
    assert reason


@given(
    st.one_of(st.integers(integer_min, integer_max), st.sampled_from((integer_min, integer_max))),
    st.one_of(st.integers(integer_min, integer_max), st.sampled_from((-1, 1, integer_min))),
)
def test_an_increment_adds_within_64_bits_and_refuses_beyond(before: int, by: int) -> None:
    record, (kind, body) = Increment(by)(first + value_body(b"%d" % before), ballot)
    if integer_min <= before + by <= integer_max:
        assert record is not None
        assert value(record) == b"%d" % (before + by)
        assert decode_changed(body).value == before + by
    else:
        assert (record, kind) == (None, NOT_AN_INTEGER)


def test_an_integer_that_does_not_fit_is_not_brought_back_into_bounds() -> None:
    for text in (b"%d" % (integer_max + 1), b"-" + b"9" * 19, b"1" + b"0" * 19, b"7" * 5_000):
        record, (kind, why) = Increment(-1)(first + value_body(text), ballot)
        assert (record, kind) == (None, NOT_AN_INTEGER)
        assert why == b"the stored value does not fit 64 bits"
    assert Increment(1)(first + value_body(b"%d" % integer_max), ballot)[1] == (
        NOT_AN_INTEGER,
        b"the sum does not fit 64 bits with a sign",
    )


# Conditions.

changes = [
    lambda condition: Put(b"x", 0, b"", condition),
    Delete,
    lambda condition: Expire(5, condition),
    lambda condition: Increment(1, condition),
]
other = pack_version(7, 7)


@pytest.mark.parametrize("make", changes)
@pytest.mark.parametrize(
    ("condition", "holds_there", "holds_absent"),
    [
        (no_condition, True, True),
        (Condition(present=True), True, False),
        (Condition(present=False), False, True),
        (Condition((first,)), True, False),
        (Condition((other, first)), True, False),
        (Condition((other,)), False, False),
        (Condition(()), False, False),
        (Condition((first,), present=True), True, False),
        (Condition((first,), present=False), False, False),
    ],
)
def test_a_condition_that_does_not_hold_leaves_the_key_and_names_its_version(
    make: object, condition: Condition, holds_there: bool, holds_absent: bool
) -> None:
    assert callable(make)
    change = make(condition)
    for current, holds in ((there, holds_there), (b"", holds_absent), (gone, holds_absent)):
        assert condition.holds(current) == holds
        record, (kind, body) = change(current, ballot)
        if not holds:
            assert (record, kind) == (None, PRECONDITION_FAILED)
            assert body == (first if current == there else version_zero)
        else:
            assert kind != PRECONDITION_FAILED


def test_a_second_round_makes_the_same_change_but_for_its_version() -> None:
    later = pack_version(3_000 << 16, 2)
    for change in (Put(b"x", 5, typed), Delete(), Expire(6), Increment(2)):
        one, _ = change(there, ballot)
        two, _ = change(there, later)
        assert one is not None
        assert two is not None
        assert (one[12:], two[:12]) == (two[12:], later)


@given(st.binary(max_size=20), st.booleans())
def test_a_value_is_there_or_it_is_not(content: bytes, deleted: bool) -> None:
    record = first + (tombstone_body if deleted else value_body(content))
    assert exists(record) != deleted == is_tombstone(record)
    assert not exists(b"")
