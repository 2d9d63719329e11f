"""A store of maps in memory, for simulations and tests: the same rules, without PostgreSQL.

Several replicators share one `Rows`. What a real database may do to them is asked for: being
away, and losing the reply to a commit.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from services.core.cluster import ClusterMap, Member
from services.core.errors import FatalError, RetryLater, UnknownOutcome
from services.core.hlc import stamper_max
from services.replicator.formation import Registered, check_settings, decide


@dataclass(slots=True)
class Rows:
    """What PostgreSQL would hold, and how it behaves."""

    nodes: dict[str, Member] = field(default_factory=dict)
    # As bytes, so that nobody shares an object with another replicator.
    maps: dict[int, bytes] = field(default_factory=dict)
    stampers_allotted: int = 0
    # Of these stampers, how many each name was given.
    stampers_of: Counter[str] = field(default_factory=Counter)
    away: bool = False
    # So many of the next commits are done, and nobody is told.
    replies_to_lose: int = 0


class MemoryMapStore:
    def __init__(self, rows: Rows, cluster_size: int, replication_factor: int) -> None:
        self._rows = rows
        self._cluster_size = cluster_size
        self._replication_factor = replication_factor

    async def newest(self) -> ClusterMap | None:
        self._begin()
        return self._newest()

    async def register(self, member: Member) -> Registered:
        self._begin()
        decision = decide(
            self._rows.nodes,
            self._newest(),
            member,
            self._cluster_size,
            self._replication_factor,
        )
        if decision.store_member:
            self._rows.nodes[member.node_id] = member
        if decision.new_map is not None:
            self._rows.maps[decision.new_map.epoch] = decision.new_map.encode()
        if decision.store_member or decision.new_map is not None:
            self._commit()
        return decision.answer

    async def allot_stamper(self, replicator_id: str) -> int:
        self._begin()
        if self._rows.stampers_allotted == stamper_max:
            raise FatalError(f"all {stamper_max} stampers have been given out")
        self._rows.stampers_allotted += 1
        self._rows.stampers_of[replicator_id] += 1
        stamper = self._rows.stampers_allotted
        self._commit()
        return stamper

    async def stampers_of(self, replicator_id: str) -> int:
        self._begin()
        return self._rows.stampers_of[replicator_id]

    def check(self, newest: ClusterMap) -> None:
        check_settings(newest, self._cluster_size, self._replication_factor)

    def _begin(self) -> None:
        if self._rows.away:
            raise RetryLater("database_unavailable", "PostgreSQL cannot be reached")

    def _commit(self) -> None:
        if self._rows.replies_to_lose:
            self._rows.replies_to_lose -= 1
            raise UnknownOutcome("PostgreSQL was lost while it committed")

    def _newest(self) -> ClusterMap | None:
        maps = self._rows.maps
        return ClusterMap.decode(maps[max(maps)]) if maps else None
