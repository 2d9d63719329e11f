"""The keys of a simulated cluster, and what clients do with each."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from itertools import count

from services.core.key import namespace_prefix
from services.core.ring import slot_of

prefix = namespace_prefix(7, b"store")


class Mode(Enum):
    STRONG = "strong"
    EVENTUAL = "eventual"
    MIXED = "mixed"


@lru_cache(maxsize=1)
def keys_of_one_slot() -> tuple[bytes, ...]:
    """Five storage keys that share a slot. Looking for them takes a tenth of a second."""
    found: list[bytes] = []
    for number in count():
        key = prefix + b"key-%d" % number
        if not found or slot_of(key) == slot_of(found[0]):
            found.append(key)
        if len(found) == 5:
            break
    return tuple(found)


def key_modes() -> dict[bytes, Mode]:
    """The keys of a run, five of one slot and two from elsewhere."""
    first, second, third, fourth, fifth = keys_of_one_slot()
    return {
        **dict.fromkeys((first, second, third), Mode.STRONG),
        fourth: Mode.MIXED,
        fifth: Mode.EVENTUAL,
        prefix + b"elsewhere-0": Mode.EVENTUAL,
        prefix + b"elsewhere-1": Mode.MIXED,
    }


@lru_cache(maxsize=1)
def slots_of_keys() -> tuple[int, ...]:
    return tuple(sorted({slot_of(key) for key in key_modes()}))
