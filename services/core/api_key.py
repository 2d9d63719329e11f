"""API keys: their form, and the hash that they are looked up by.

    ydht_ · 43 random base62 digits · 6 base62 digits of checksum

The random part is drawn evenly from 62^43 numbers, a little more than 256 bits. The checksum is
the CRC-32 of all that stands before it, so a key that was cut or mistyped is told from a wrong one
without asking anybody, and scanners for leaked secrets can tell keys from look-alikes. It is no
secret and proves nothing.

A key is kept nowhere. Looked up is its HMAC-SHA256 under a subkey of KEY_PEPPER, so a stolen
database says nothing about keys, not even whether a guess is right. As keys cannot be guessed
either way, the hash needs no salt and no stretching.
"""

from __future__ import annotations

import hmac
import re
import zlib
from collections.abc import Callable
from typing import Final

from services.core.subkey import subkey

mark: Final = "ydht_"
random_digits: Final = 43
checksum_digits: Final = 6
key_chars: Final = len(mark) + random_digits + checksum_digits
# What people recognise a key by in a list: the mark, and 3 of 43 digits.
display_chars: Final = 8
lookup_hash_bytes: Final = 32
purpose_lookup: Final = b"ydht api key"

_digits: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_form: Final = re.compile(
    rf"{mark}[0-9A-Za-z]{{{random_digits + checksum_digits}}}", flags=re.ASCII
)


def new_key(number_below: Callable[[int], int]) -> str:
    """A key that nobody else has. `number_below` draws evenly and unpredictably, as
    `secrets.randbelow` does."""
    body = mark + _base62(number_below(len(_digits) ** random_digits), random_digits)
    return body + _checksum(body)


def well_formed(text: str) -> bool:
    """Whether this can be a key: of the right form, and nowhere mistyped."""
    if _form.fullmatch(text) is None:
        return False
    body, checksum = text[:-checksum_digits], text[-checksum_digits:]
    return _checksum(body) == checksum


def displayed(key: str) -> str:
    """The part of a key that may be kept and shown."""
    return key[:display_chars]


def lookup_subkey(key_pepper: str) -> bytes:
    """What `lookup_hash` takes, derived once from KEY_PEPPER."""
    return subkey(key_pepper, purpose_lookup)


def lookup_hash(pepper_subkey: bytes, key: str) -> bytes:
    """What the key is looked up by. Any text has one, also what was never a key."""
    return hmac.digest(pepper_subkey, key.encode("utf-8", "surrogatepass"), "sha256")


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode("ascii")), checksum_digits)


def _base62(number: int, digits: int) -> str:
    found = []
    for _ in range(digits):
        number, digit = divmod(number, len(_digits))
        found.append(_digits[digit])
    return "".join(reversed(found))
