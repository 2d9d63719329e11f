"""What stands behind the `?` of a request about one key."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import FixRequest
from services.gateway.queries import increment_of, no_query, ttl_of


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        (b"ttl=90s", 90_000),
        (b"ttl=1h30m", 5_400_000),
        (b"ttl=7d", 604_800_000),
        (b"ttl=60", 60_000),
        (b"ttl=1.5h", 5_400_000),
        (b"ttl=1%68", 3_600_000),
        (b"ttl=0.1ms", 1),
    ],
)
def test_a_ttl_is_a_duration(text: bytes, milliseconds: int) -> None:
    assert ttl_of(text) == ttl_of(text, removable=True) == milliseconds


@pytest.mark.parametrize(
    "text", [b"ttl=", b"ttl=-1s", b"ttl=soon", b"ttl=11y", b"ttl=4000d", b"ttl=1e9", b"ttl=0x1"]
)
def test_what_is_no_ttl_is_refused_and_never_ignored(text: bytes) -> None:
    for removable in (False, True):
        with pytest.raises(FixRequest) as refused:
            ttl_of(text, removable=removable)
        assert refused.value.code == "invalid_ttl"


def test_the_longest_ttl_is_as_long_as_ten_years_can_be() -> None:
    assert ttl_of(b"ttl=3653d") == 3_653 * 86_400_000
    for text in (b"ttl=3653d1ms", b"ttl=40000d", b"ttl=99999999999d"):
        with pytest.raises(FixRequest, match="longer than ten years, which are 3653d"):
            ttl_of(text)


@pytest.mark.parametrize("text", [b"ttl=-1", b"ttl=-5s", b"ttl=-1h30m"])
def test_a_negative_ttl_is_told_as_that(text: bytes) -> None:
    with pytest.raises(FixRequest, match="is negative; a time to live is positive"):
        ttl_of(text)


@pytest.mark.parametrize("text", [b"ttl=%zz", b"by=%", b"%4=1", b"prefix=a%2"])
def test_half_of_an_escape_is_refused(text: bytes) -> None:
    for read in (no_query, ttl_of, increment_of):
        with pytest.raises(FixRequest, match="two hexadecimal digits") as refused:
            read(text)
        assert refused.value.code == "invalid_query"


def test_zero_takes_an_expiry_away_where_there_may_be_one_and_is_refused_elsewhere() -> None:
    assert ttl_of(b"ttl=0", removable=True) == 0
    with pytest.raises(FixRequest, match="invalid_ttl"):
        ttl_of(b"ttl=0s")


def test_a_new_expiry_must_be_given() -> None:
    assert ttl_of(b"") == 0
    with pytest.raises(FixRequest, match="ttl is missing"):
        ttl_of(b"", removable=True)


@pytest.mark.parametrize(
    ("text", "by"),
    [
        (b"", 1),
        (b"by=5", 5),
        (b"by=-3", -3),
        (b"by=0", 0),
        (b"by=9223372036854775807", 2**63 - 1),
        (b"by=-9223372036854775808", -(2**63)),
    ],
)
def test_an_increment_is_a_whole_number_of_64_bits(text: bytes, by: int) -> None:
    assert increment_of(text) == by


@pytest.mark.parametrize(
    "text",
    [b"by=", b"by=1.0", b"by=1e3", b"by=9223372036854775808", b"by=\xb2", b"by=0x1", b"by= 1"],
)
def test_what_is_no_such_number_is_refused(text: bytes) -> None:
    with pytest.raises(FixRequest, match="by:"):
        increment_of(text)


@pytest.mark.parametrize("text", [b"tll=1h", b"ttl=1h&ttl=2h", b"ttl=1h&x=1", b"&&&&a=1", b"%ff=1"])
def test_what_would_be_ignored_is_refused(text: bytes) -> None:
    for read in (no_query, ttl_of, increment_of):
        with pytest.raises(FixRequest):
            read(text)


@given(st.binary(max_size=60))
def test_no_query_is_a_bug(text: bytes) -> None:
    for read in (no_query, ttl_of, increment_of):
        with suppress(FixRequest):
            read(text)
