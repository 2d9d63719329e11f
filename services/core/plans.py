"""Plans: what an account may ask of the platform, in the one table that every service reads.

An account has a plan; each of its API keys may be held to less of it, never to more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

# What a key that is held to less may ask at once: a tenth of its minute, as in most plans.
burst_share: Final = 10


class Limits(NamedTuple):
    """Of a token bucket."""

    requests_per_minute: int
    burst: int

    def held_to(self, per_minute: int | None) -> Limits:
        """Of an API key that is held to so many requests a minute; None: to these alone."""
        if per_minute is None or per_minute >= self.requests_per_minute:
            return self
        if per_minute < 1:
            raise ValueError(f"a key is held to at least one request a minute: {per_minute}")
        return Limits(per_minute, min(self.burst, -(-per_minute // burst_share)))


@dataclass(slots=True, frozen=True)
class Plan:
    name: str
    requests_per_minute: int
    burst: int
    # None: as many as are asked for.
    ids_per_day: int | None
    # Namespaces that are caches. All processes hear of every one, so the platform has an end of
    # them (`messages.caches_max`), which a few accounts that cost nothing must not reach.
    caches_max: int

    def limits(self, key_per_minute: int | None = None) -> Limits:
        """Of an API key that is held to so many requests a minute; None: to the plan alone."""
        return Limits(self.requests_per_minute, self.burst).held_to(key_per_minute)


free: Final = Plan("free", 100, 10, 1_000, 2)
pro: Final = Plan("pro", 6_000, 600, 1_000_000, 16)
developer: Final = Plan("developer", 60_000_000, 1_000_000, None, 64)
# Of those who come without an API key, where they are let in, which is on a developer's machine.
public: Final = Plan("public", developer.requests_per_minute, developer.burst, None, 0)

plans: Final[Mapping[str, Plan]] = {plan.name: plan for plan in (free, pro, developer, public)}
# What an account can be given: nobody logs in as the public.
account_plans: Final = (free.name, pro.name, developer.name)


def plan_named(name: str) -> Plan:
    """The plan of an account. A name that is not in the table is of a newer version, which has
    begun to use it while this process still runs: the least of all is what this one gives."""
    return plans.get(name, free)
