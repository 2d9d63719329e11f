"""A store of declarations in memory, for tests: the same rules, without PostgreSQL.

Several replicators share one `NamespaceRows`. What a real database may do to them is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.core.errors import RetryLater, UnknownOutcome
from services.replicator.declarations import Counted, Declarations, decide


@dataclass(slots=True)
class NamespaceRows:
    """What PostgreSQL would hold, and how it behaves."""

    version: int = 0
    # By prefix; 0 for a store.
    declared: dict[bytes, int] = field(default_factory=dict)
    away: bool = False
    # So many of the next commits are done, and nobody is told.
    replies_to_lose: int = 0
    # Whether it goes away with a reply that is lost.
    then_away: bool = False


class MemoryNamespaceStore:
    def __init__(self, rows: NamespaceRows) -> None:
        self._rows = rows

    async def newest(self, known: Declarations) -> Declarations:
        self._begin()
        rows = self._rows
        if rows.version == known.version:
            return known
        if rows.version < known.version:
            rows.version = known.version + 1
        return Declarations.of(rows.version, rows.declared.items())

    async def declare(self, prefix: bytes, max_items: int, plan_caches_max: int) -> int | None:
        self._begin()
        declared = self._rows.declared
        mine = [items for other, items in declared.items() if other[:8] == prefix[:8]]
        caches, mine_caches = (sum(map(bool, items)) for items in (declared.values(), mine))
        counted = Counted(len(mine), mine_caches, len(declared), caches)
        if not decide(declared.get(prefix), max_items, counted, plan_caches_max):
            return None
        declared[prefix] = max_items
        return self._commit()

    async def forget(self, prefix: bytes) -> int | None:
        self._begin()
        if self._rows.declared.pop(prefix, None) is None:
            return None
        return self._commit()

    def _begin(self) -> None:
        if self._rows.away:
            raise RetryLater("database_unavailable", "PostgreSQL cannot be reached")

    def _commit(self) -> int:
        self._rows.version += 1
        if self._rows.replies_to_lose:
            self._rows.replies_to_lose -= 1
            self._rows.away = self._rows.then_away
            raise UnknownOutcome("PostgreSQL was lost while it committed")
        return self._rows.version
