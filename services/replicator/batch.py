"""Many requests of one client in one message: each by itself, answered together.

Eventual items go to each node some hundreds in a message, and come back so. Strong items go through
`StrongOperations` one by one, so many at a time; what they send within one turn of the loop
leaves in one write of each socket all the same. Items on one key take effect in their order if
they are of the same mode.

The answer must fit a frame, and what is read must fit memory while others are waited for: room
for short answers is set aside for each item, and a record that no longer fits when it comes is
answered TOO_LARGE.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from functools import partial
from typing import Final

from services.core.change import read
from services.core.hlc import version_bytes
from services.core.messages import u16
from services.core.operations import (
    TOO_LARGE,
    Item,
    decode_batch,
    encode_batch,
    item_head_bytes,
    text_bytes_max,
)
from services.core.paxos import Change
from services.core.wire import OK
from services.replicator.answers import Done, refusal
from services.replicator.eventual import EventualWrites
from services.replicator.items import eventual_of, not_of_caches, strong_of
from services.replicator.strong import StrongOperations
from services.runtime.clock import Clock
from services.runtime.peer import body_bytes_max

# Enough that what they send is worth a write of its own; and values of a mebibyte from so many
# reads, of two replicas each, are as much as links bear.
strong_at_once: Final = 32
# If they all end at once, as without a quorum, so many take about two milliseconds.
begun_in_a_turn: Final = 100
# Within the time a gateway gives its client's request the items begun last have theirs.
begin_s_max: Final = 2.5
# What any answer but a record takes: the name of an error or a version, and a text.
short_bytes_max: Final = text_bytes_max + 64 + version_bytes


class Batch:
    """One batch, from its bytes to its answer. PeerError, and nothing is begun, if they make no
    sense."""

    def __init__(
        self,
        body: bytes,
        writes: EventualWrites,
        strong: StrongOperations,
        caches: Container[bytes],
        clock: Clock,
        done: Done,
    ) -> None:
        self._writes = writes
        self._strong = strong
        self._clock = clock
        self._done = done
        self._eventual: list[tuple[bytes, bytes, Done]] = []
        self._waiting: deque[tuple[bytes, Change, bool, Done]] = deque()
        # Keys that strong items of this batch change.
        self._changed: set[bytes] = set()
        # Strong items of caches, by their places.
        self._invalid: list[int] = []
        self._under_way = 0
        self._beginning = False
        self._begin_until_s = clock.monotonic_s() + begin_s_max
        items = decode_batch(body)
        now_ms = clock.wall_ms()
        for index, (kind, content) in enumerate(items):
            written = eventual_of(kind, content, now_ms)
            if written is not None:
                self._eventual.append((*written, partial(self._answered, index)))
                continue
            key, change, grows = strong_of(kind, content, now_ms)
            if key[: 9 + key[8]] in caches:
                self._invalid.append(index)
            else:
                self._waiting.append((key, change, grows, partial(self._ended, index)))
                if change is not read:
                    self._changed.add(key)
        self._answers: list[Item] = [(TOO_LARGE, b"")] * len(items)
        self._left = len(items)
        self._room = body_bytes_max - u16.size - len(items) * (item_head_bytes + short_bytes_max)

    def start(self) -> None:
        if not self._left:
            self._done(OK, encode_batch(()))
            return
        for index in self._invalid:
            self._answered(index, *not_of_caches)
        self._writes.write_many(self._eventual)
        self._begin_more()

    def _begin_more(self) -> None:
        """Begin strong items while there is room. One may end at once; the next is then begun in
        this loop, as a thousand in each other would be too deep, and after some in the next turn
        of the event loop."""
        if self._beginning:
            return
        self._beginning = True
        begun = 0
        while self._waiting and self._under_way < strong_at_once:
            if begun == begun_in_a_turn:
                self._clock.call_later(0.0, self._begin_more)
                break
            begun += 1
            key, change, grows, done = self._waiting.popleft()
            self._under_way += 1
            if self._clock.monotonic_s() > self._begin_until_s:
                text = f"{begin_s_max:g} s went by before this item of a batch could begin"
                done(*refusal("overloaded", text))
            elif change is read and key not in self._changed:
                self._strong.fetch(key, done)
            else:
                # Here also a read, which must not pass changes before it or fall behind later ones.
                self._strong.change(key, change, done, grows=grows)
        self._beginning = False

    def _ended(self, index: int, kind: int, body: bytes) -> None:
        self._under_way -= 1
        self._answered(index, kind, body)
        self._begin_more()

    def _answered(self, index: int, kind: int, body: bytes) -> None:
        excess = len(body) - short_bytes_max
        if excess <= self._room:
            self._answers[index] = (kind, body)
            self._room -= max(excess, 0)
        self._left -= 1
        if not self._left:
            self._done(OK, encode_batch(self._answers))
