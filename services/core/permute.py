"""Which key a counter becomes: a keyed bijection on [0, 62^n), and base62.

    index ──split──► left, right ──six rounds──► left, right ──base62──► key of n characters

It is a Feistel network of mixed radix: the halves are numbers below 62^⌊n/2⌋ and 62^⌈n/2⌉, and each
round adds to one half, modulo its radix, a function of the other. Whatever that function is, the
round can be taken back, so no two indexes become one key: uniqueness does not hang on luck.

The function is tabulation hashing: the other half in slices of 12 bits, each looked up in a table
of its own, the entries combined by xor. The tables are drawn by SHAKE-256 from the key material, so
each key material and each size has a bijection of its own.

What it is not: encryption. Neighbours look unrelated, and whoever sees some keys cannot tell the
next one by looking. But whoever has many thousands of them, knows their indexes and is ready to do
the algebra can work out the tables. Where a key must not be guessed, as for a session or a reset
link, take a random one instead.

Keys are made in batches, since one lookup costs less than the call that asks for it: 0.1 us each at
n = 7 and 0.25 us at n = 16, base62 included, and 1.4 and 3.5 us where this is not compiled (CPython
3.11, 2.1 GHz, batches of 128). Numbers lie packed, 8 bytes each. A batch looks everywhere into the
tables, which other work has pushed out of the processor's cache by then: as objects, five times as
large and far apart, they cost three times as much there.
"""

from __future__ import annotations

import hashlib
from typing import Final

from librt.vecs import append, vec
from mypy_extensions import i64

digits: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
radix: Final = len(digits)
# Of fewer characters there are too few keys to give away; more than these nobody has asked for.
size_min: Final = 6
size_max: Final = 16
sizes: Final = range(size_min, size_max + 1)
# A half of one character would be a table of 62: below this the network has nothing to mix.
_size_least: Final = 2
material_bytes: Final = 32

# Four make a network of perfect random functions look like a random bijection. The functions are
# not perfect, and two rounds more cost 0.3 us.
_rounds: Final = 6
_slice_bits: Final = 12
_slice_mask: Final = (1 << _slice_bits) - 1
_entries: Final = 1 << _slice_bits
# Of each entry: as far above the largest radix, 48 bits, as makes every remainder equally likely.
_entry_bytes: Final = 8
_entry_shift: Final = 4
_purpose: Final = b"ydht keys of size "

_pair: Final = radix**2
_pairs: Final = radix**4
_one: Final = tuple([digit.encode() for digit in digits])
_two: Final = tuple([first + second for first in _one for second in _one])
_value: Final = {ord(digit): value for value, digit in enumerate(digits)}


class Permutation:
    """The keys of one size. `index` in [0, space) and key are each other's inverse."""

    def __init__(self, material: bytes, size: int) -> None:
        """ValueError unless the material has 32 bytes. Takes some 10 ms, for the tables."""
        if len(material) != material_bytes:
            raise ValueError(f"key material has {material_bytes} bytes, not {len(material)}")
        if not _size_least <= size <= size_max:
            raise ValueError(f"keys have {_size_least} to {size_max} characters, not {size}")
        self.size = size
        self.space = radix**size
        self._left_digits = size // 2
        self._right_digits = size - size // 2
        self._left: int = radix**self._left_digits
        self._right: int = radix**self._right_digits
        # Of each round: the tables for the half that is looked at, which is the other one in turn.
        slices = (_slices(self._right), _slices(self._left))
        drawn = _draw(material, size, _rounds // 2 * sum(slices))
        self._tables: list[list[vec[i64]]] = []
        for number in range(_rounds):
            count = slices[number % 2]
            self._tables.append(drawn[:count])
            drawn = drawn[count:]

    def keys(self, first: int, count: int) -> list[bytes]:
        """The keys of `count` indexes from `first` on, in their order."""
        if first < 0 or count < 0 or first + count > self.space:
            raise ValueError(f"{first} to {first + count} is not within {self.space} indexes")
        # A batch may lie beyond what 8 bytes hold, but neither half of any index does.
        left, right = divmod(first, self._right)
        lefts, rights = _counted(left, right, self._right, count)
        for number, tables in enumerate(self._tables):
            if number % 2:
                _add(rights, lefts, tables, self._right)
            else:
                _add(lefts, rights, tables, self._left)
        high = _spelled(lefts, self._left_digits)
        low = _spelled(rights, self._right_digits)
        return [one + other for one, other in zip(high, low, strict=True)]

    def key(self, index: int) -> bytes:
        return self.keys(index, 1)[0]

    def index(self, key: bytes) -> int:
        """What `key` was made of. ValueError if it is not one of this size."""
        if len(key) != self.size:
            raise ValueError(f"it has {len(key)} characters, not {self.size}")
        left, right = divmod(number_spelled(key), self._right)
        for number in reversed(range(_rounds)):
            tables = self._tables[number]
            if number % 2:
                right = (right - _mixed(left, tables)) % self._right
            else:
                left = (left - _mixed(right, tables)) % self._left
        return left * self._right + right


def number_spelled(key: bytes) -> int:
    """The number that a key spells in base62. ValueError if a character is none of its digits."""
    number = 0
    for character in key:
        value = _value.get(character)
        if value is None:
            raise ValueError(f"{chr(character)!r} is not one of 0-9, A-Z and a-z")
        number = number * radix + value
    return number


def _slices(half: int) -> int:
    """How many tables it takes to look up a number below `half`. Never one alone: then every
    batch goes through the same few lines."""
    return max(2, -(-(half - 1).bit_length() // _slice_bits))


def _draw(material: bytes, size: int, tables: int) -> list[vec[i64]]:
    """So many tables of random numbers, the same ones whenever the material is the same."""
    table_bytes = _entries * _entry_bytes
    seed = _purpose + bytes([size]) + material
    drawn = hashlib.shake_256(seed).digest(tables * table_bytes)
    return [
        vec[i64](
            [
                int.from_bytes(drawn[at : at + _entry_bytes], "big") >> _entry_shift
                for at in range(start, start + table_bytes, _entry_bytes)
            ]
        )
        for start in range(0, tables * table_bytes, table_bytes)
    ]


def _counted(left: i64, right: i64, modulus: i64, count: int) -> tuple[vec[i64], vec[i64]]:
    """The halves of so many indexes from this one on."""
    lefts, rights = vec[i64](capacity=count), vec[i64](capacity=count)
    for _ in range(count):
        lefts, rights = append(lefts, left), append(rights, right)
        right += 1
        if right == modulus:
            left, right = left + 1, 0
    return lefts, rights


def _mixed(number: int, tables: list[vec[i64]]) -> int:
    found = 0
    for table in tables:
        found ^= table[number & _slice_mask]
        number >>= _slice_bits
    return found


def _add(own: vec[i64], others: vec[i64], tables: list[vec[i64]], modulus: i64) -> None:
    """What `_mixed` makes of the others, added to each. Written out for each number of slices:
    this is where nearly all the time goes."""
    mask: i64 = _slice_mask
    bits: i64 = _slice_bits
    a, b = tables[0], tables[1]
    if len(tables) == 2:
        for at, y in enumerate(others):
            own[at] = (own[at] + (a[y & mask] ^ b[y >> bits])) % modulus
        return
    c = tables[2]
    if len(tables) == 3:
        for at, y in enumerate(others):
            mixed = a[y & mask] ^ b[y >> bits & mask] ^ c[y >> 2 * bits]
            own[at] = (own[at] + mixed) % modulus
        return
    d = tables[3]
    for at, y in enumerate(others):
        mixed = a[y & mask] ^ b[y >> bits & mask] ^ c[y >> 2 * bits & mask] ^ d[y >> 3 * bits]
        own[at] = (own[at] + mixed) % modulus


def _spelled(numbers: vec[i64], width: int) -> list[bytes]:
    """Each number in so many digits of base62, two digits at a time."""
    one, two = _one, _two
    pair: i64 = _pair
    if width == 1:
        return [one[number] for number in numbers]
    if width == 2:
        return [two[number] for number in numbers]
    if width == 3:
        return [one[number // pair] + two[number % pair] for number in numbers]
    if width == 4:
        return [two[number // pair] + two[number % pair] for number in numbers]
    pairs: i64 = _pairs
    high = _spelled(vec[i64]([number // pairs for number in numbers]), width - 4)
    low = _spelled(vec[i64]([number % pairs for number in numbers]), 4)
    return [first + second for first, second in zip(high, low, strict=True)]
