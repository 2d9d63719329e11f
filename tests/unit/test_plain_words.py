"""What is wrong with a value is said in words that need no knowledge of Python."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from services.runtime.plain_words import choices_of, in_words


class Circle(msgspec.Struct, tag_field="shape", tag="circle"):
    color: Literal["red", "green"] = "red"


class Square(msgspec.Struct, tag_field="shape", tag="square"):
    color: Literal["blue"] = "blue"


class Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str


@pytest.mark.parametrize(
    ("of", "body", "told"),
    [
        (int, b'"5"', "must be a whole number, and is text"),
        (
            int | None,
            b"2.0",
            "must be a whole number or null, and is a number with a decimal point",
        ),
        (bool, b"1", "must be true or false, and is a whole number"),
        (list[int], b"{}", "must be a list, and is an object with members"),
        (float, b"null", "must be a number, and is null"),
        (datetime, b"5", "must be a time such as 2026-11-21T00:00:00Z, and is a whole number"),
        (datetime, b'"now"', "is not a time such as 2026-11-21T00:00:00Z"),
        (Annotated[datetime, Meta(tz=True)], b'"2026-11-21T00:00:00"', "has no time zone"),
        (Annotated[int, Meta(ge=1)], b"0", "must be at least 1"),
        (Annotated[int, Meta(le=5)], b"6", "must be at most 5"),
        (Annotated[int, Meta(gt=0)], b"0", "must be at least 1"),
        (Annotated[float, Meta(lt=1.5)], b"1.5", "must be less than 1.5"),
        (Annotated[int, Meta(multiple_of=5)], b"6", "must be a multiple of 5"),
        (Annotated[str, Meta(min_length=1)], b'""', "must not be empty"),
        (Annotated[str, Meta(min_length=3)], b'""', "must have at least 3 characters"),
        (Annotated[str, Meta(max_length=1)], b'"ab"', "must have at most 1 character"),
        (Annotated[list[int], Meta(max_length=2)], b"[1,2,3]", "must have at most 2 elements"),
        (Annotated[str, Meta(pattern="^a$")], b'"b"', "has characters that cannot be in it"),
        (Literal["a", "b"], b'"c"', "cannot be 'c'; it is one of a, b"),
        (Literal["a", "b"] | None, b'"c"', "cannot be 'c'; it is one of a, b"),
        (list[Literal["a", "b"]], b'["c"]', "cannot be 'c'; it is one of a, b"),
        (Named, b"{}", "name is missing"),
        (Named, b'{"name": "a", "age": 5}', "age is not a member of it"),
        (bytes, b'"\xc3\xa9"', "is not base64"),
        (int, b"1e400", "is too large a number"),
    ],
)
def test_a_sentence_of_the_decoder_is_said_in_plain_words(of: Any, body: bytes, told: str) -> None:
    with pytest.raises(msgspec.ValidationError) as wrong:
        msgspec.json.decode(body, type=of)
    sentence = str(wrong.value).partition(" - at ")[0]
    assert in_words(sentence, of).startswith(told)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'[{"shape": "oval"}]', "cannot be 'oval'; it is one of circle, square"),
        (b'[{"shape": "circle", "color": "x"}]', "cannot be 'x'; it is one of green, red, blue"),
    ],
)
def test_choices_are_told_of_the_very_place(body: bytes, told: str) -> None:
    of = list[Circle | Square]
    with pytest.raises(msgspec.ValidationError) as wrong:
        msgspec.json.decode(body, type=of)
    sentence, _, where = str(wrong.value).partition(" - at `$")
    assert in_words(sentence, of, where.rstrip("`")) == told


def test_where_there_is_no_such_place_there_is_no_choice() -> None:
    for where in (".shape.shape", "[0].size", "[0].color.color", "[...].shape[0].shape"):
        assert choices_of(list[Circle | Square], where) in ([], ["circle", "square"])


def test_what_a_type_of_ours_says_is_passed_on_as_it_is() -> None:
    assert in_words("minute is not the beginning of a minute") == (
        "minute is not the beginning of a minute"
    )


def test_a_type_without_a_choice_has_none() -> None:
    assert choices_of(int) == choices_of(str | None) == []


@given(st.text())
def test_no_sentence_makes_it_fail(sentence: str) -> None:
    assert isinstance(in_words(sentence), str)


class All(msgspec.Struct, forbid_unknown_fields=True):
    number: Annotated[int, Meta(ge=0, le=9)] | None = None
    text: Annotated[str, Meta(min_length=1, max_length=3, pattern="^[a-z]*$")] = "a"
    choice: Literal["one", "two"] = "one"
    flags: list[bool] = []
    at: Annotated[datetime, Meta(tz=True)] | None = None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(All.__struct_fields__), json_values) | json_values)
def test_nothing_that_the_decoder_finds_wrong_is_left_in_its_own_words(value: Any) -> None:
    try:
        msgspec.json.decode(msgspec.json.encode(value), type=All)
    except msgspec.ValidationError as wrong:
        told = in_words(str(wrong).partition(" - at ")[0])
        assert "`" not in told
        assert "Expected" not in told
