"""Room for large bodies: how much of the memory those that are being worked on may have, together.

A body is in memory from its first byte until its answer is on its way, and so is what is made of
it. Those that find no room are refused before they are read; whoever has much under way already is
refused while there is still room for others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Final

from services.core.errors import RetryLater

# With what is made of them, decoded and sent on, about four times as much.
room_bytes_default: Final = 128 << 20
# Three who send as much as they can leave room for a fourth.
share_bytes_default: Final = room_bytes_default // 4


class BodyRoom:
    def __init__(
        self,
        bytes_max: int = room_bytes_default,
        share_bytes_max: int = share_bytes_default,
    ) -> None:
        self._bytes_max = bytes_max
        self._share_bytes_max = share_bytes_max
        self._by_owner: Counter[Hashable] = Counter()
        self.taken_bytes = 0
        self.refused = 0

    @contextmanager
    def of(self, whose: Hashable, size_bytes: int) -> Iterator[None]:
        """Let the block have that much. RetryLater if there is not so much."""
        held = self._by_owner[whose] + size_bytes
        if self.taken_bytes + size_bytes > self._bytes_max or held > self._share_bytes_max:
            if not self._by_owner[whose]:
                del self._by_owner[whose]
            self.refused += 1
            raise RetryLater(
                "overloaded",
                f"Bodies of {self.taken_bytes} bytes are being worked on; there is no room for "
                f"{size_bytes} more",
            )
        self.taken_bytes += size_bytes
        self._by_owner[whose] = held
        try:
            yield
        finally:
            self.taken_bytes -= size_bytes
            self._by_owner[whose] -= size_bytes
            if not self._by_owner[whose]:
                del self._by_owner[whose]
