"""What services ask a keygen for in a tenant's name: the request is signed, and says

    POST /ids?count=3&size=7
    X-Ydht-Tenant: 12                        whose IDs they are,
    X-Ydht-Key-Id: 34                        against the quota of which API key they count,
    X-Ydht-Ids-Per-Day: 1000                 and how many it has: a number, or `unlimited`
    ──► 200 {"ids": ["0k3Zq1a", …]}

Without the last header the quota is that of the least plan. How much of it is used they ask by

    GET /ids/quota                           with the same headers
    ──► 200 {"used": 3, "limit": 1000, "resets_at": …,
             "keys": [{"key_id": 34, "used": 3}], "days": [0, 0, 0, 12, 0, 7, 3]}

which tells too what other API keys of the tenant have used, and all of them together on the last
days, this one as the last.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from services.core.plans import free

path_of_ids: Final = "/ids"
path_of_quota: Final = "/ids/quota"
key_id_header: Final = "X-Ydht-Key-Id"
ids_per_day_header: Final = "X-Ydht-Ids-Per-Day"
unlimited_text: Final = "unlimited"
count_max: Final = 10_000
returned_max: Final = 10_000
# Characters of those that are given out.
size_min: Final = 7
# As many days are told of.
days_told: Final = 7
# Of API keys, those that have used the most.
keys_told_max: Final = 100


class IdsQuery(msgspec.Struct, frozen=True):
    count: Annotated[int, Meta(ge=1, le=count_max, description="How many")] = 1
    size: Annotated[int, Meta(ge=size_min, le=16, description="Characters of each")] = size_min


class KeyUse(msgspec.Struct, frozen=True):
    """What an API key has had of its quota on this day."""

    key_id: int
    used: int


class Ids(msgspec.Struct, frozen=True):
    """Never given to anybody else, and never again."""

    ids: list[str]


def ids_per_day_text(ids_per_day: int | None) -> str:
    return unlimited_text if ids_per_day is None else str(ids_per_day)


def ids_per_day_told(text: str | None) -> int | None:
    """None: as many as are asked for. ValueError if it is neither a number nor `unlimited`."""
    if text is None:
        return free.ids_per_day
    if text == unlimited_text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise ValueError(f"is neither a number nor {unlimited_text}")
    return int(text)
