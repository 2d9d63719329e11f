"""Strong operations on one key take turns, so that they meet rivals only from other replicators.

Whoever comes is at the head of its key's queue, or waits behind. When the head is over the next
one has its turn; it may be over in that very moment, as without a quorum, and so may a thousand
behind it, on each of many keys. Then they have their turns by and by.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from services.replicator.strong_operation import Operation
from services.runtime.clock import Clock

# Each holds a value of up to a mebibyte.
waiting_for_key_max: Final = 1_000
# To end so many at once, as without a quorum or when it is too late, takes about two milliseconds.
ended_in_a_turn: Final = 200


class KeyTurns:
    """`begin` is called with the operation whose turn it is; `leave` is to be called when one has
    been answered, whoever it is."""

    def __init__(self, clock: Clock, begin: Callable[[Operation], None]) -> None:
        self._clock = clock
        self._begin = begin
        # By key: whose turn it is, and who waits for that to end.
        self._queues: dict[bytes, deque[Operation]] = {}
        # Keys whose first in the queue is over, and the next ones have their turns by and by.
        self._passing: dict[bytes, None] = {}

    def take(self, operation: Operation) -> bool:
        """Have it begin at its turn, which may be now; False if too many wait."""
        queue = self._queues.get(operation.key)
        if queue is None:
            self._queues[operation.key] = deque((operation,))
            self._begin(operation)
        elif len(queue) > waiting_for_key_max:
            return False
        else:
            queue.append(operation)
        return True

    def leave(self, operation: Operation) -> None:
        """The next one's turn, if this one was at the head."""
        key = operation.key
        queue = self._queues.get(key)
        if queue is None or queue[0] is not operation:
            return
        self._pass_on(key, queue, 1)
        if queue and queue[0].answered:
            if not self._passing:
                self._clock.call_later(0.0, self._pass_on_more)
            self._passing[key] = None

    def _pass_on(self, key: bytes, queue: deque[Operation], turns_max: int) -> int:
        """Let those behind the head, which is over, have their turns until one is under way; how
        many had one. If there are more, one that is over stays at the head."""
        turns = 0
        while queue and queue[0].answered:
            # While it stays at the head nobody who ends in here takes another turn.
            following = queue[1] if len(queue) > 1 else None
            if following is not None and not following.answered:
                if turns == turns_max:
                    return turns
                turns += 1
                self._begin(following)
            queue.popleft()
        if not queue:
            del self._queues[key]
        return turns

    def _pass_on_more(self) -> None:
        left = ended_in_a_turn
        while self._passing and left:
            key = next(iter(self._passing))
            queue = self._queues[key]
            left -= self._pass_on(key, queue, left)
            if not (queue and queue[0].answered):
                del self._passing[key]
        if self._passing:
            self._clock.call_later(0.0, self._pass_on_more)
