"""What msgspec finds wrong with a value, said to people who know neither it nor Python.

The words complete "member: ...". What is not one of msgspec's own sentences is passed on as it is:
it was raised by a type of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from msgspec import inspect as types

_nouns: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "datetime": "a time such as 2026-11-21T00:00:00Z",
    "array": "a list",
    "object": "an object with members",
    "bytes": "text in base64",
    "null": "null",
}
# Of what is there instead; 2.0 is a float, and looks like a whole number to people.
_found: Final = {**_nouns, "float": "a number with a decimal point", "datetime": "a time"}
_bounds: Final = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_units: Final = {"str": "character", "bytes": "byte", "array": "element", "object": "member"}
# Of a place: an element of a list, or a member by its name.
_step: Final = re.compile(r"\[[^\]]*\]|\.([^.\[]+)")
# More than the choices that any member of ours has.
_choices_max: Final = 12


def in_words(sentence: str, of: Any = None, where: str = "") -> str:
    """A sentence of msgspec's in plain words. `of` is the type of the whole member, and `where` the
    place in it, such as `[0].name`: by these, choices are told."""
    for pattern, said in _sentences:
        if match := pattern.fullmatch(sentence):
            return said(match)
    if match := _choice.fullmatch(sentence):
        choices = choices_of(of, where) if of is not None else []
        told = f"; it is one of {', '.join(choices)}" if choices else ""
        return f"cannot be {match[1]}{told}"
    return sentence


def choices_of(annotation: Any, where: str = "") -> list[str]:
    """What there is to choose from at this place, alone or in a list; none if there is no choice,
    or one among too many."""
    kinds: list[types.Type] = [types.type_info(annotation)]
    found: dict[str, None] = {}
    for step in _step.finditer(where):
        name = step[1]
        # Of a list or of its elements alike: a choice may be in either.
        if name is None:
            continue
        structs = [kind for kind in _within(kinds) if isinstance(kind, types.StructType)]
        tags = [str(kind.tag) for kind in structs if kind.tag_field == name]
        if tags:
            # The kind of an object, by which those are told apart that may be here.
            found = dict.fromkeys(sorted(tags))
            kinds = []
            break
        fields = [field for kind in structs for field in kind.fields]
        kinds = [field.type for field in fields if field.encode_name == name]
    found |= dict.fromkeys(str(choice) for kind in _within(kinds) for choice in _choices(kind))
    return list(found) if len(found) <= _choices_max else []


def _choices(kind: types.Type) -> Sequence[object]:
    return kind.values if isinstance(kind, types.LiteralType) else ()


def _within(kinds: Sequence[types.Type]) -> Iterator[types.Type]:
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        yield kind
        if isinstance(kind, types.UnionType):
            waiting += kind.types
        elif isinstance(kind, types.Metadata):
            waiting.append(kind.type)
        elif isinstance(kind, types.ListType):
            waiting.append(kind.item_type)


def _kinds(match: re.Match[str]) -> str:
    wanted = [_nouns.get(name, name) for name in match[1].split(" | ")]
    return f"must be {' or '.join(wanted)}, and is {_found.get(match[2], match[2])}"


def _length(match: re.Match[str]) -> str:
    kind, sign, size = match[1], match[2], int(match[3])
    if sign == ">=" and size == 1:
        return "must not be empty"
    unit = _units.get(kind, "element") + ("" if size == 1 else "s")
    return f"must have {_bounds.get(sign, 'exactly')} {size} {unit}"


_choice: Final = re.compile(r"Invalid (?:enum )?value (.*)", re.DOTALL)
_sentences: Final[Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]]] = [
    (re.compile(r"Expected `([a-z |]+)`, got `(\w+)`"), _kinds),
    (re.compile(r"Expected `(\w+)` of length ([<>=]+) (\d+)"), _length),
    (
        re.compile(r"Expected `\w+` ([<>]=?) (\S+)"),
        lambda match: f"must be {_bounds[match[1]]} {match[2]}",
    ),
    (
        re.compile(r"Expected `\w+` that's a multiple of (\S+)"),
        lambda match: f"must be a multiple of {match[1]}",
    ),
    (
        re.compile(r"Expected `str` matching regex .*", re.DOTALL),
        lambda _: "has characters that cannot be in it, or is too short or too long",
    ),
    (
        re.compile(r"Expected `datetime` with a timezone component"),
        lambda _: "has no time zone: end it with Z, or an offset such as +01:00",
    ),
    (
        re.compile(r"Invalid RFC3339 encoded datetime"),
        lambda _: "is not a time such as 2026-11-21T00:00:00Z",
    ),
    (re.compile(r"Invalid base64 encoded string"), lambda _: "is not base64"),
    (re.compile(r"(?:Integer|Number) (?:value )?out of range"), lambda _: "is too large a number"),
    (re.compile(r"Object missing required field `(.*)`"), lambda match: f"{match[1]} is missing"),
    (
        re.compile(r"Object contains unknown field `(.*)`", re.DOTALL),
        lambda match: f"{match[1]} is not a member of it",
    ),
]
