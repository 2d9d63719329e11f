"""What stands behind the `?` of a request about one key."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

from services.core.duration import DurationTooLongError, parse_duration
from services.core.errors import FixRequest
from services.core.operations import day_ms, integer_max, integer_min, ttl_ms_max
from services.runtime.text_members import half_escaped

# As many members as any of these queries has, and one to find fault with.
members_max: Final = 2
_integer: Final = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)


def no_query(query: bytes) -> None:
    """Refuse what would be ignored otherwise."""
    if query:
        _members(query, "")


def ttl_of(query: bytes, *, removable: bool = False) -> int:
    """The ttl in milliseconds, or 0 for none; with `removable` it must be given, and may be 0,
    which takes an expiry away."""
    text = _members(query, "ttl") if query else None
    if text is None:
        if removable:
            raise FixRequest(
                "invalid_ttl",
                "ttl is missing: give it in the query, as ?ttl=30m, or ?ttl=0 for none",
            )
        return 0
    return ttl_ms_of(text, removable=removable)


def ttl_ms_of(text: str, *, removable: bool = False) -> int:
    """The same of the text alone."""
    try:
        ttl_ms = parse_duration(text)
    except DurationTooLongError:
        raise _too_long(text) from None
    except ValueError as error:
        negative = f"{text[:40]!r} is negative; a time to live is positive"
        problem = negative if text.startswith("-") else str(error)
        raise FixRequest("invalid_ttl", f"ttl: {problem}") from None
    if ttl_ms > ttl_ms_max:
        raise _too_long(text)
    if not ttl_ms and not removable:
        raise FixRequest("invalid_ttl", f"ttl: {text!r} is no time to live; leave it out for none")
    return ttl_ms


def _too_long(text: str) -> FixRequest:
    days = ttl_ms_max // day_ms
    return FixRequest("invalid_ttl", f"ttl: {text!r} is longer than ten years, which are {days}d")


def increment_of(query: bytes) -> int:
    text = _members(query, "by") if query else None
    if text is None:
        return 1
    if not _integer.fullmatch(text) or not integer_min <= int(text) <= integer_max:
        raise FixRequest("invalid_query", f"by: {text[:40]!r} is no whole number of 64 bits")
    return int(text)


def _members(query: bytes, name: str) -> str | None:
    """The text of the one member that there may be. FixRequest for any other."""
    if half_escaped.search(query) is not None:
        raise FixRequest(
            "invalid_query", "A % in the query is not followed by two hexadecimal digits"
        )
    try:
        pairs = parse_qsl(
            query.decode("latin-1"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=members_max,
        )
    except UnicodeDecodeError:
        raise FixRequest("invalid_query", "The query is not UTF-8") from None
    except ValueError:
        raise FixRequest(
            "invalid_query", f"The query has too many members: {_only(name)}"
        ) from None
    for member, _ in pairs:
        if member != name:
            problem = f"{member[:40]!r} is not a parameter of this query: {_only(name)}"
            raise FixRequest("invalid_query", problem)
    if len(pairs) > 1:
        raise FixRequest("invalid_query", f"{name} is given more than once")
    return pairs[0][1] if pairs else None


def _only(name: str) -> str:
    return f"{name} is the only one" if name else "there is none"
