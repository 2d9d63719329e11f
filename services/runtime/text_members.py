"""Structs that are read from text: the parameters of a path, a query, or the headers of a request.

What can be read is text, times, choices, `true` and `false`, and whole numbers, which are plain
decimal ones. A member that is wrong is refused with `invalid_query`, one of a header with
`invalid_header`, or with the code that its type names:

    cursor: Annotated[str, Meta(max_length=2048, extra=code("invalid_cursor"))]

What is wrong is told as msgspec finds it, or as the type says that has better words for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from msgspec import inspect as types

from services.core.errors import FixRequest
from services.runtime.plain_words import in_words
from services.runtime.request_body import detail_chars_max, invalid_members

# More members than any query of ours has, fewer than it takes to keep a process busy.
query_members_max: Final = 64

_integer: Final = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
_code: Final = "code"
_told: Final = "told"
_of_query: Final = "invalid_query"
# A time of a query whose offset has lost its sign: + stands for a space there.
_lost_plus: Final = re.compile(r"(\d{4}-\S+:\S+) (\d\d:\d\d)", re.ASCII)
_not_utf8: Final = "is not UTF-8"
# What is to encode a byte, and does not.
half_escaped: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def code(name: str, told: str | None = None) -> dict[str, str]:
    """What to give a `Meta` as its `extra`, for members of this type to be refused with a code,
    and in these words, if there are any."""
    return {_code: name} if told is None else {_code: name, _told: told}


class Wrong(NamedTuple):
    """What is wrong with a member, and the code to refuse it with."""

    member: str
    detail: str
    code: str = _of_query


def refusal(wrong: Sequence[Wrong]) -> FixRequest:
    """Names every member that is wrong, under the code of the first."""
    return invalid_members(((one.member, one.detail) for one in wrong), wrong[0].code)


class TextMembers:
    """A Struct that is read from text, member by member; without a Struct there are none.

    `usual` is the code that members are refused with whose types name none.
    """

    def __init__(self, of: type[Any] | None, usual: str = _of_query) -> None:
        self._of = of
        fields = () if of is None else msgspec.structs.fields(of)
        self._fields = {field.encode_name: field for field in fields}
        kinds = {name: list(_kinds(field.type)) for name, field in self._fields.items()}
        self._integers = _having(types.IntType, kinds)
        self._booleans = _having(types.BoolType, kinds)
        self._times = _having(types.DateTimeType, kinds)
        self._codes = {
            name: _extra_in(of_member, _code) or usual for name, of_member in kinds.items()
        }
        self._words = {name: _extra_in(of_member, _told) for name, of_member in kinds.items()}
        self._of_header = {name.lower().encode(): name for name in self._fields}

    @property
    def codes(self) -> list[str]:
        """What wrong members are refused with, in their order."""
        return list(dict.fromkeys(self._codes.values()))

    def of_path(self, given: Mapping[str, str]) -> tuple[Any, list[Wrong]]:
        """The value of the parameters of a path; or None, and what is wrong with them."""
        texts = {name: text.encode("utf-8", "surrogatepass") for name, text in given.items()}
        return self._read(texts, [])

    def of_query(self, query: bytes) -> tuple[Any, list[Wrong]]:
        """The same of a query as it was sent. A member that is unknown or there twice is wrong."""
        given: dict[str, bytes] = {}
        wrong: list[Wrong] = []
        for name, text in _query_pairs(query):
            if name not in self._fields:
                wrong.append(Wrong(name[:detail_chars_max], "is not a parameter of this query"))
            elif name in given:
                wrong.append(self._wrong(name, "is given more than once"))
            given[name] = text
        return self._read(given, wrong)

    def of_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[Any, list[Wrong]]:
        """The same of headers, whose names are in lower case. Those that are no members are passed
        over, and one may be there twice if it says the same."""
        given: dict[str, bytes] = {}
        wrong: list[Wrong] = []
        for lower, text in headers:
            name = self._of_header.get(lower)
            if name is None:
                continue
            if given.setdefault(name, text) != text:
                detail = "is given more than once, with different values"
                wrong.append(Wrong(name, detail, "invalid_header"))
        return self._read(given, wrong)

    def _read(self, given: Mapping[str, bytes], wrong: list[Wrong]) -> tuple[Any, list[Wrong]]:
        if self._of is None:
            return None, wrong
        found: dict[str, Any] = {}
        for name, member in self._fields.items():
            raw = given.get(name)
            if raw is None:
                if member.required:
                    wrong.append(self._wrong(name, "is missing"))
                continue
            try:
                found[name] = self._value(name, raw.decode())
            except UnicodeDecodeError:
                wrong.append(self._wrong(name, _not_utf8))
            except ValueError as error:
                told = self._words[name] or in_words(str(error), member.type)
                wrong.append(self._wrong(name, told[:detail_chars_max]))
        if wrong:
            return None, wrong
        try:
            return msgspec.convert(found, self._of), []
        except msgspec.ValidationError as error:
            # Its members are right one by one, but not together.
            return None, [Wrong("query", str(error)[:detail_chars_max])]

    def _value(self, name: str, text: str) -> Any:
        """ValueError, of which msgspec's is one, for what is not a value of this member."""
        if name in self._integers and not _is_int64(text):
            raise ValueError("is not a whole number of 64 bits")
        if name in self._booleans and text not in ("true", "false"):
            raise ValueError("is neither true nor false")
        if name in self._times and (match := _lost_plus.fullmatch(text)):
            told = f"{match[1]}%2B{match[2]}"
            raise ValueError(f"has a space for a +, which is written %2B in a URL: {told}")
        # Lax, it would take null for what may be absent, and numbers for times.
        strict = name not in self._integers and name not in self._booleans
        return msgspec.convert(text, self._fields[name].type, strict=strict)

    def _wrong(self, name: str, detail: str) -> Wrong:
        return Wrong(name, detail, self._codes[name])


def is_text(encoded: bytes) -> bool:
    """Whether what percent signs encode is UTF-8."""
    try:
        unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_int64(text: str) -> bool:
    """Whether it is a number as it is written in a URL; msgspec would also take 1e2 and null."""
    return _integer.fullmatch(text) is not None and -(2**63) <= int(text) < 2**63


def _kinds(annotation: Any) -> Iterator[types.Type]:
    """The type of a member, with all that it is made of."""
    waiting = [types.type_info(annotation)]
    while waiting:
        kind = waiting.pop()
        yield kind
        if isinstance(kind, types.UnionType):
            waiting += kind.types
        elif isinstance(kind, types.Metadata):
            waiting.append(kind.type)


def _having(wanted: type[types.Type], kinds: Mapping[str, Sequence[types.Type]]) -> set[str]:
    return {name for name, of in kinds.items() if any(isinstance(one, wanted) for one in of)}


def _extra_in(kinds: Iterable[types.Type], name: str) -> str | None:
    for kind in kinds:
        if isinstance(kind, types.Metadata) and kind.extra is not None and name in kind.extra:
            return str(kind.extra[name])
    return None


def _query_pairs(query: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and the bytes of their values; what was not encoded by percent signs, as it was."""
    if half_escaped.search(query) is not None:
        detail = "has a % that is not followed by two hexadecimal digits"
        raise invalid_members([("query", detail)], _of_query)
    try:
        pairs = parse_qsl(
            query.decode("latin-1"),
            keep_blank_values=True,
            encoding="latin-1",
            max_num_fields=query_members_max,
        )
    except ValueError:
        detail = f"has more than {query_members_max} parameters"
        raise invalid_members([("query", detail)], _of_query) from None
    for name, text in pairs:
        try:
            yield name.encode("latin-1").decode(), text.encode("latin-1")
        except UnicodeDecodeError:
            raise invalid_members([("query", _not_utf8)], _of_query) from None
