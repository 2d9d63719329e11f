"""What replicas of a slot lack, by what each has told of its keys and versions.

Pages may end at different keys: what is known of all replicas goes up to the first of these ends,
and the next pages go on from there. So a slot of any size is compared by pages, and what is held
is one of each replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.core.comparison import VersionsPage
from services.core.hlc import Version, version_ms

# A key that a replica has not at all counts as one that is older than any.
absent: Version = b""


class Lacking(NamedTuple):
    """A key whose newest version some have and some lack; both by their places among the pages."""

    key: bytes
    version: Version
    having: int
    lacking: tuple[int, ...]


class Differences(NamedTuple):
    """What pages differ in up to the key `through`, behind which others must be asked for; None
    if there are no more. Of the keys that differ, `young` are left alone."""

    lacking: list[Lacking]
    young: int
    through: bytes | None


def differences(pages: Sequence[VersionsPage], young_ms: int) -> Differences:
    """Compare the pages that replicas have told of the same keys. What is newer than `young_ms` is
    on its way to all of them already."""
    ends = [page.found[-1][0] for page in pages if page.more]
    through = min(ends) if ends else None
    told = [
        frozenset(page.found if through is None else _up_to(page.found, through)) for page in pages
    ]
    common = frozenset.intersection(*told)
    found: list[Lacking] = []
    young = 0
    versions = [dict(one - common) for one in told]
    for key in sorted(set().union(*versions)):
        here = [one.get(key, absent) for one in versions]
        newest = max(here)
        if version_ms(newest) > young_ms:
            young += 1
            continue
        lacking = tuple(place for place, version in enumerate(here) if version != newest)
        found.append(Lacking(key, newest, here.index(newest), lacking))
    return Differences(found, young, through)


def _up_to(found: Sequence[tuple[bytes, Version]], through: bytes) -> list[tuple[bytes, Version]]:
    return [item for item in found if item[0] <= through]
