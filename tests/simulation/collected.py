"""What collecting has taken away from the nodes of a simulated cluster, and may never show again.

A collection forgets a key for good: nobody knows any more that there was a tombstone, so that
nothing but the rules of collecting keeps an older record from coming back. The simulation does not
forget. Of each key it keeps the latest version that ended and was taken away by any node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

from services.core.hlc import Version, version_zero
from services.core.record import expires_at_ms, is_tombstone, version
from services.dhtnode import sessions
from services.dhtnode.promises import Promises
from services.dhtnode.purging import Purged, take_away
from services.dhtnode.table import Table

Removed = Callable[[bytes, bytes], None]
"""Told a key, and the record that its cell had."""


@contextmanager
def told_of(removed: Removed) -> Iterator[None]:
    """Have every cell that any node forgets told."""

    def tell(table: Table, promises: Promises, purged: Purged) -> None:
        cells = [(key, table.peek(purged.slot, key)) for key, cell, _ in purged.gone if cell]
        take_away(table, promises, purged)
        for key, record in cells:
            if record is not None:
                removed(key, record)

    with patch.object(sessions, "take_away", tell):
        yield


def ended(record: bytes, now_ms: float) -> bool:
    """Whether a record is a tombstone by now, or counts as one."""
    return is_tombstone(record) or 0 < expires_at_ms(record) <= now_ms


@dataclass(slots=True)
class EverCollected:
    """By key, the latest of the records that are gone for good."""

    records: dict[bytes, bytes] = field(default_factory=dict)

    def note(self, key: bytes, record: bytes, now_ms: float) -> None:
        """A node has forgotten this record. One that had not ended is not collected but lost, and
        nothing excuses what is missed of it afterwards."""
        if ended(record, now_ms) and record > self.records.get(key, b""):
            self.records[key] = record

    def latest(self, key: bytes) -> Version:
        return version(self.records.get(key, version_zero))

    def known(self, key: bytes, cell: bytes) -> bytes:
        """What there is to know of a key of which a node has this cell, or none any more."""
        return cell or self.records.get(key, b"")

    def came_back(self, key: bytes, cell: bytes, now_ms: float) -> str | None:
        """What is wrong with showing this cell, if something is."""
        if not cell or ended(cell, now_ms) or version(cell) >= self.latest(key):
            return None
        return f"{cell!r} is shown, and what ended at {self.latest(key).hex()} was collected"
