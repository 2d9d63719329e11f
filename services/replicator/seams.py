"""What coordinators need of their surroundings, whoever they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Hints(Protocol):
    """Where writes are kept for replicas that are away."""

    def keep(
        self, node_id: str, key: bytes, record: bytes, kept: Callable[[], None] | None = None
    ) -> None:
        """Note that this replica misses this record; `kept` hears of it once the note is durable,
        or cannot be made, in which case comparing replicas will find what is missing."""
        ...


class Epochs(Protocol):
    """Where newer maps come from."""

    def outdated(self, epoch: int) -> None:
        """Somebody knows of this epoch; find its map."""
        ...
