"""What replicas of a slot lack, by what each has told of its keys and versions.

Pages may end at different keys: what is known of all replicas goes up to the first of these ends,
and the next pages go on from there. So a slot of any size is compared by pages, and what is held
is one of each replica. Pages are compared part by part, so that others have their turn in between.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

from services.core.comparison import VersionsPage
from services.core.hlc import Version, version_ms

# To compare so many keys of each replica takes one or two milliseconds, the more the less equal.
keys_in_a_part: Final = 512
# A key that a replica has not at all counts as one that is older than any.
absent: Final[Version] = b""


class Lacking(NamedTuple):
    """A key whose newest version some have and some lack; both by their places among the pages."""

    key: bytes
    version: Version
    having: int
    lacking: tuple[int, ...]


class Differences(NamedTuple):
    """What pages differ in up to the key `through`, behind which it goes on with another part, or
    after the last one with other pages; None if there are no more. Of the keys that differ, `young`
    are left alone."""

    lacking: list[Lacking]
    young: int
    through: bytes | None


_key = itemgetter(0)


def differences(
    pages: Sequence[VersionsPage], young_ms: int, keys_max: int = keys_in_a_part
) -> Iterator[Differences]:
    """Compare the pages that replicas have told of the same keys, some keys at a time. What is
    newer than `young_ms` is on its way to all of them already."""
    ends = [page.found[-1][0] for page in pages if page.more]
    through = min(ends) if ends else None
    told = [page.found for page in pages]
    stops = [
        len(found) if through is None else bisect_right(found, through, key=_key) for found in told
    ]
    starts = [0] * len(told)
    while True:
        longer = [
            found[start + keys_max - 1][0]
            for found, start, stop in zip(told, starts, stops, strict=True)
            if stop - start > keys_max
        ]
        if not longer:
            yield Differences(*_differing(told, starts, stops, young_ms), through)
            return
        end = min(longer)
        cuts = [
            bisect_right(found, end, start, stop, key=_key)
            for found, start, stop in zip(told, starts, stops, strict=True)
        ]
        yield Differences(*_differing(told, starts, cuts, young_ms), end)
        starts = cuts


def _differing(
    told: Sequence[Sequence[tuple[bytes, Version]]],
    starts: Sequence[int],
    ends: Sequence[int],
    young_ms: int,
) -> tuple[list[Lacking], int]:
    parts = [
        frozenset(found[start:end]) for found, start, end in zip(told, starts, ends, strict=True)
    ]
    common = frozenset.intersection(*parts)
    lacked: list[Lacking] = []
    young = 0
    versions = [dict(part - common) for part in parts]
    for key in sorted(set().union(*versions)):
        here = [one.get(key, absent) for one in versions]
        newest = max(here)
        if version_ms(newest) > young_ms:
            young += 1
            continue
        lacking = tuple(place for place, version in enumerate(here) if version != newest)
        lacked.append(Lacking(key, newest, here.index(newest), lacking))
    return lacked, young
