"""Durations as people write them: `90s`, `1h30m`, `1.5h`, `500ms`, `7d`, or plain seconds.

The grammar is Go's, without a sign and with days (of 24 hours): one or more decimal numbers,
each followed by its unit and simply added up. A single number without a unit counts seconds.
"""

from __future__ import annotations

import re
from fractions import Fraction

# A hundred years: longer than any caller allows, and such a time from now still fits a version.
duration_ms_max = 36_525 * 86_400_000
# Every duration in bounds can be written far shorter; it bounds the arithmetic below.
duration_chars_max = 64

_unit_ns = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # the micro sign,
    "\u03bcs": 1_000,  # and the Greek letter, as Go takes them both
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_ns_per_ms = _unit_ns["ms"]
_number = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_part = re.compile(rf"({_number})(ns|us|µs|\u03bcs|ms|s|m|h|d)")
_plain = re.compile(_number)


class DurationTooLongError(ValueError):
    """It is a duration, and longer than any caller allows."""


def parse_duration(text: str) -> int:
    """The duration in milliseconds; `ValueError`, with a text fit for the user, if it is none,
    and of these `DurationTooLongError` if it only is too long.

    Zero is a duration. Fractions of a millisecond are rounded up, so that nothing else becomes
    zero. A sign is refused: no setting here has a use for a negative duration.
    """
    if len(text) > duration_chars_max:
        raise ValueError(
            f"a duration has at most {duration_chars_max} characters, this one {len(text)}"
        )
    total_ns = _plain_seconds_ns(text) if _plain.fullmatch(text) else _parts_ns(text)
    total_ms = -(-total_ns // _ns_per_ms)
    if total_ms > duration_ms_max:
        raise DurationTooLongError(f"the duration {text!r} is longer than a hundred years")
    return total_ms


def format_duration(duration_ms: int) -> str:
    """The duration in whole units, greatest first: `7d`, `1h30m`, `1s500ms`, `0s`.

    `parse_duration` reads it back as the same number.
    """
    if duration_ms < 0:
        raise ValueError(f"a duration is not negative, as {duration_ms} ms is")
    parts = []
    rest_ns = duration_ms * _ns_per_ms
    for unit in ("d", "h", "m", "s", "ms"):
        count, rest_ns = divmod(rest_ns, _unit_ns[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _plain_seconds_ns(text: str) -> Fraction:
    return Fraction(text) * _unit_ns["s"]


def _parts_ns(text: str) -> Fraction:
    total_ns = Fraction(0)
    position = 0
    while match := _part.match(text, position):
        total_ns += Fraction(match[1]) * _unit_ns[match[2]]
        position = match.end()
    if position < len(text) or not text:
        raise ValueError(
            f"{text!r} is not a duration; write it as 90s, 1h30m, 7d, or plain seconds"
        )
    return total_ns
