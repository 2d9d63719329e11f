"""Email addresses and user names: what may be one, and which of them are the same."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.usermanager import names
from services.usermanager.names import (
    Name,
    email_chars_max,
    fold,
    parse_email,
    parse_username,
    problem_of,
    typed_username_chars_max,
    username_chars_max,
)

every_character = [chr(point) for point in range(sys.maxunicode + 1)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ada", "aDA"),
        ("straße", "STRASSE"),
        ("cafe\u0301", "café"),
        ("ﬁsh", "fish"),
        ("\uff21\uff44\uff41", "ada"),  # full width
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("K", "\u212a"),  # the Kelvin sign
        ("Å", "\u212b"),  # the Ångström sign
        ("\u1e9e", "ss"),  # a capital sharp s
        ("a b", "a\u00a0b"),  # a space that does not break
        ("ⅷ", "viii"),
    ],
)
def test_names_that_differ_in_case_or_form_alone_are_the_same(one: str, other: str) -> None:
    assert parse_username(one).folded == parse_username(other).folded


@pytest.mark.parametrize(
    ("one", "other"),
    [("ada", "\u0430da"), ("o", "\u03bf"), ("a", "á"), ("i", "\u0131"), ("ab", "a b"), ("l", "1")],
)
def test_names_that_only_look_alike_are_different(one: str, other: str) -> None:
    assert parse_username(one).folded != parse_username(other).folded


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "1 to 64 characters"),
        ("a" * 65, "1 to 64 characters"),
        ("\ufdfa" * 4, "1 to 64 characters"),  # one character that is eighteen once normalised
        (" ada", "white space"),
        ("ada ", "white space"),
        ("\u3000ada", "white space"),
        ("\u00a0", "white space"),
        ("a  b", "two spaces"),
        ("a\u1680b", "U+1680"),  # a space that even the normal form keeps
        ("a\tb", "U+0009"),
        ("a\nb", "U+000A"),
        ("a\x00b", "U+0000"),
        ("a\x7fb", "U+007F"),
        ("a\x85b", "U+0085"),
        ("a\u200bb", "U+200B"),
        ("a\u200db", "U+200D"),
        ("a\u00adb", "U+00AD"),
        ("nimda\u202e", "U+202E"),
        ("a\u2066b", "U+2066"),
        ("a\u061cb", "U+061C"),
        ("a\u2028b", "U+2028"),
        ("a\ufe0fb", "U+FE0F"),
        ("a\U000e0041b", "U+E0041"),
        ("\u3164", "U+1160"),  # a filler, which is nothing to see, in its normal form
        ("a\u2800b", "U+2800"),
        ("a\ue000b", "U+E000"),
        ("a\uffffb", "U+FFFF"),
        ("a\ud800b", "U+D800"),
        ("\u0301ada", "accent"),
    ],
)
def test_a_user_name_that_cannot_be_read_aloud_is_refused(name: str, why: str) -> None:
    problem = problem_of(parse_username, name)
    assert problem is not None
    assert why in problem


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "Ada Lovelace",
        "o'neill",
        "李小龙",
        "Ахматова",
        "नमस्ते",
        "مریم",
        "ada_99",
        "a" * 64,
        "😀",
    ],
)
def test_user_names_of_every_script_are_taken_as_they_are(name: str) -> None:
    assert parse_username(name).shown == name


def test_a_user_name_is_shown_in_its_normal_form() -> None:
    assert parse_username("\uff3aoe\u0301").shown == "Zoé"


@given(st.text(max_size=username_chars_max + 2))
def test_whatever_is_taken_fits_the_database_and_is_taken_again_unchanged(text: str) -> None:
    if problem_of(parse_username, text) is not None:
        return
    name = parse_username(text)
    assert 1 <= len(name.shown) <= username_chars_max
    # An entry of an index of PostgreSQL has at most 2,704 bytes.
    assert len(name.folded.encode()) < 2_000
    assert parse_username(name.shown) == name
    assert name.folded == fold(name.shown) == fold(name.folded)
    assert all(unicodedata.category(character)[0] != "C" for character in name.shown)


def test_folding_any_character_twice_changes_nothing_more() -> None:
    for character in every_character:
        once = fold(character)
        assert fold(once) == once, f"U+{ord(character):04X}"


def test_a_character_folds_as_its_upper_case_and_its_normal_forms_do() -> None:
    for character in every_character:
        folded = fold(character)
        forms = [unicodedata.normalize(form, character) for form in ("NFC", "NFD", "NFKC", "NFKD")]
        for form in [*forms, character.casefold()]:
            assert fold(form) == folded, f"U+{ord(character):04X}"


@pytest.mark.parametrize(
    "email",
    [
        "a@b",
        "demo@localhost",
        "ada@example.com",
        "ada.lovelace+keys@mail.example.co.uk",
        "o'neill@example.com",
        "!#$%&'*+-/=?^_`{|}~@example.com",
        "ada@xn--bcher-kva.example",
        "用户@例子.广告",
        "ada@bücher.example",
        "a" * 64 + "@example.com",
        "ada@" + "a" * 63 + ".example",
    ],
)
def test_email_addresses_are_taken(email: str) -> None:
    assert parse_email(email).shown == email


def test_an_email_address_is_trimmed_and_compared_without_regard_to_case() -> None:
    name = parse_email("  Ada@Example.COM\n")
    assert (name.shown, name.folded) == ("Ada@Example.COM", "ada@example.com")
    assert parse_email("ADA@EXAMPLE.com").folded == name.folded


@pytest.mark.parametrize(
    "email",
    [
        "",
        "   ",
        "ada",
        "ada@",
        "@example.com",
        "a@@b",
        "a@b@c",
        "a b@example.com",
        "a@exa mple.com",
        ".ada@example.com",
        "ada.@example.com",
        "a..b@example.com",
        "ada@example..com",
        "ada@.example.com",
        "ada@example.com.",
        "ada@-example.com",
        "ada@example-.com",
        "ada@exam_ple.com",
        "ada@[127.0.0.1]",
        '"ada"@example.com',
        "ada\x00@example.com",
        "ada\r\nBcc: eve@example.com",
        "ada\u202e@example.com",
        "a\u200bda@example.com",
        "ada@exa\u00admple.com",
        "ada\ufe0f@example.com",
        "<ada@example.com>",
        "ada@example.com,eve@example.com",
        "a" * 65 + "@example.com",
        "ada@" + "a" * 64 + ".example",
        "a@" + "b." * 127 + "c",
        "ada@example.com" + "a" * email_chars_max,
        "'; DROP TABLE users; --",
    ],
)
def test_what_is_no_email_address_is_refused(email: str) -> None:
    assert problem_of(parse_email, email) is not None


@given(st.text(max_size=300))
def test_no_text_breaks_a_parser(text: str) -> None:
    for parse in (parse_email, parse_username):
        problem = problem_of(parse, text)
        assert problem is None or len(problem) < 100


@given(st.text(max_size=20), st.text(max_size=20))
def test_an_email_address_that_is_taken_fits_the_database(local: str, domain: str) -> None:
    text = f"{local}@{domain}"
    if problem_of(parse_email, text) is None:
        email = parse_email(text)
        assert 3 <= len(email.shown) <= email_chars_max
        assert "\x00" not in email.folded
        assert parse_email(email.shown) == email


@pytest.mark.parametrize("parse", [parse_email, parse_username])
@pytest.mark.parametrize("end", ["", "@example.com"])
def test_a_heap_of_accents_is_refused_before_it_is_put_in_order(
    parse: Callable[[str], Name], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty thousand of two classes would hold up the process for seconds."""
    normalised = []

    def normalize(form: str, text: str) -> str:
        normalised.append(len(text))
        return unicodedata.normalize(form, text)  # type: ignore[arg-type]

    monkeypatch.setattr(names, "unicodedata", SimpleNamespace(normalize=normalize))
    heap = "a" + "\u0315" * 16_000 + "\u0316" * 16_000 + end
    problem = problem_of(parse, heap)
    assert problem is not None
    assert "characters" in problem
    assert sum(normalised) == 0


def test_a_name_may_be_typed_with_its_accents_apart() -> None:
    assert parse_username("e\u0323\u0302" * username_chars_max).shown == "\u1ec7" * 64
    at_most = "a" * typed_username_chars_max
    assert problem_of(parse_username, at_most) == "is not 1 to 64 characters long"
