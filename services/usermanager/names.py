"""What people are called: email addresses and user names, as shown and as they are unique.

Both are normalised (NFKC) so that one name typed on two machines is one name. What is unique is
the folded form: without regard to case or to forms that Unicode calls compatible. Names in
different scripts that look alike stay different names; a user name gives access to nothing, and
no mail is sent, so nobody gains by one. What else people name has to be legible in the same way,
and is kept as it was typed.

A parser raises ValueError with a text that completes "email: ..." or "username: ...".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# RFC 5321 takes 256 octets of path, of which two are its angle brackets.
email_chars_max: Final = 254
email_local_chars_max: Final = 64
domain_label_chars_max: Final = 63
# Fits a line of every page.
username_chars_max: Final = 64
# What may be typed, which is looked at before it is normalised: to put accents into their order
# takes time as the square of how many follow one letter. An address that has to be trimmed may
# be a little longer than one, and a letter may come in four parts.
typed_email_chars_max: Final = email_chars_max + 64
typed_username_chars_max: Final = 4 * username_chars_max

# What RFC 5322 calls an atom, and letters, digits and accents of every script (RFC 6531).
_atom_signs: Final = frozenset("!#$%&'*+-/=?^_`{|}~")
_word_categories: Final = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd", "Nl", "No"))
_accent_categories: Final = frozenset(("Mn", "Mc", "Me"))
# Controls, formats (among them all that turn the direction of text), surrogates, characters of
# private use or of no use yet, and ends of lines and paragraphs.
_refused_categories: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
# Nothing is seen of these although their categories are those of letters, accents and signs: the
# rest of Unicode's Default_Ignorable_Code_Point, and the Braille pattern without a dot.
_invisible: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)


@dataclass(slots=True, frozen=True)
class Name:
    """A name as shown, and in the form that no two accounts share."""

    shown: str
    folded: str


def parse_email(text: str) -> Name:
    """An address that mail could be sent to, as far as its form tells. Its edges are trimmed."""
    shown = _normalised(text.strip()) if len(text) <= typed_email_chars_max else ""
    if not 3 <= len(shown) <= email_chars_max:
        raise ValueError(f"is not an email address of 3 to {email_chars_max} characters")
    local, at, domain = shown.rpartition("@")
    if not at or not _is_local_part(local) or not _is_domain(domain):
        raise ValueError("is not an email address such as name@example.com")
    return Name(shown, fold(shown))


def parse_username(text: str) -> Name:
    """Anything that can be read aloud: letters, digits, signs and single spaces between them."""
    shown = _normalised(text) if len(text) <= typed_username_chars_max else ""
    if not 1 <= len(shown) <= username_chars_max:
        raise ValueError(f"is not 1 to {username_chars_max} characters long")
    check_legible(shown)
    return Name(shown, fold(shown))


def check_legible(text: str) -> None:
    """Whether a text that people are shown can be read aloud, and does nothing to what it is shown
    on: neither turns the direction of the text around it nor commands a terminal."""
    if text != text.strip():
        raise ValueError("begins or ends with white space")
    for character in text:
        if unicodedata.category(character) in _refused_categories or _invisible.match(character):
            raise ValueError(f"contains U+{ord(character):04X}, which cannot be seen")
        if character.isspace() and character != " ":
            raise ValueError(f"contains the white space U+{ord(character):04X}; use plain spaces")
    if "  " in text:
        raise ValueError("contains two spaces in a row")
    if text and unicodedata.category(text[0]) in _accent_categories:
        raise ValueError("begins with an accent that has no letter")


def problem_of(check: Callable[[str], object], text: str) -> str | None:
    """What is wrong about a name, if anything is."""
    try:
        check(text)
    except ValueError as error:
        return str(error)
    return None


def fold(text: str) -> str:
    """The form in which names are compared: Unicode's toNFKC_Casefold, without its deletions."""
    # One round is not enough where a fold has a compatible form, or one that folds on.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
    return unicodedata.normalize("NFKC", text.casefold())


def _normalised(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _is_local_part(local: str) -> bool:
    if not 1 <= len(local) <= email_local_chars_max:
        return False
    return all(atom and all(map(_is_atom_sign, atom)) for atom in local.split("."))


def _is_atom_sign(character: str) -> bool:
    return character in _atom_signs or _is_of_a_word(character)


def _is_domain(domain: str) -> bool:
    return all(_is_label(label) for label in domain.split("."))


def _is_label(label: str) -> bool:
    if not 1 <= len(label) <= domain_label_chars_max or "-" in (label[0], label[-1]):
        return False
    return all(character == "-" or _is_of_a_word(character) for character in label)


def _is_of_a_word(character: str) -> bool:
    visible = not _invisible.match(character)
    return visible and unicodedata.category(character) in _word_categories
