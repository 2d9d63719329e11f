"""Durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.duration import (
    DurationTooLongError,
    duration_chars_max,
    duration_ms_max,
    format_duration,
    parse_duration,
)

day_ms = 86_400_000


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("0", 0),
        ("0s", 0),
        ("3600", 3_600_000),
        ("007", 7_000),
        ("0.5", 500),
        ("90s", 90_000),
        ("1h30m", 5_400_000),
        ("30m1h", 5_400_000),
        ("1.5h", 5_400_000),
        ("1h1h", 7_200_000),
        (".5s", 500),
        ("1.s", 1_000),
        ("24h", day_ms),
        ("7d", 7 * day_ms),
        ("1d12h", day_ms + day_ms // 2),
        ("500ms", 500),
        ("1m500ms", 60_500),
        ("1500us", 2),
        ("2000µs", 2),
        ("2000\u03bcs", 2),
        ("1ns", 1),
        ("999999ns", 1),
        ("0.1h", 360_000),
        ("1.001s", 1_001),
    ],
)
def test_a_duration_is_read_exactly(text: str, duration_ms: int) -> None:
    assert parse_duration(text) == duration_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        ".",
        ".s",
        "1h30",
        "10x",
        "h1",
        "1 h",
        " 1h",
        "1h ",
        "1h\n",
        "60\n",
        "-1h",
        "+1h",
        "-5",
        "1e3",
        "1_000",
        "0x10",
        "inf",
        "nan",
        "1/2",
        "1..5s",
        "1.5.s",
        "1,5h",
        "1H",
        "1y",
        "1w",
        "\u0663\u0660s",
        "\u0663\u0660",
        "\uff11s",
        "1h\x00",
        "forever",
    ],
)
def test_what_is_not_a_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write it as 90s"):
        parse_duration(text)


def test_a_long_text_is_refused_before_it_is_looked_at() -> None:
    assert parse_duration("0" * (duration_chars_max - 2) + "1s") == 1_000
    with pytest.raises(ValueError, match="at most 64 characters, this one 10000"):
        parse_duration("9" * 10_000)


def test_the_longest_duration_is_a_hundred_years() -> None:
    assert parse_duration("36525d") == duration_ms_max
    for text in ("36525d1ms", "9" * 63 + "d"):
        with pytest.raises(DurationTooLongError, match="longer than a hundred years"):
            parse_duration(text)


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (1_500, "1s500ms"),
        (90_000, "1m30s"),
        (5_400_000, "1h30m"),
        (7 * day_ms, "7d"),
        (day_ms + 1, "1d1ms"),
    ],
)
def test_a_duration_is_written_in_whole_units(duration_ms: int, text: str) -> None:
    assert format_duration(duration_ms) == text


def test_a_negative_duration_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="-1 ms"):
        format_duration(-1)


@given(st.integers(0, duration_ms_max))
def test_what_is_written_is_read_back_the_same(duration_ms: int) -> None:
    assert parse_duration(format_duration(duration_ms)) == duration_ms


@given(st.one_of(st.text(max_size=80), st.text("0123456789.smhdnuµ-+ ", max_size=80)))
def test_any_text_is_a_duration_in_bounds_or_a_value_error(text: str) -> None:
    try:
        duration_ms = parse_duration(text)
    except ValueError:
        return
    assert 0 <= duration_ms <= duration_ms_max
