"""The hints for one node, sent to it when it is back.

They go in their order, in messages of many, a few at a time and not faster than a node takes
them beside its other work. What it has taken, or has no use for, is delivered; the rest of a
message is sent again, after a pause that grows while the node does not get on. When nothing is
left, the node is told that it has caught up, on every connection anew: it counts as catching up
until each replicator has said so.

A hint below the floor of its slot is refused for good: a collection that froze the slot has brought
it, or was broken off before it could. So once nothing else is left these slots are collected.

A connection may break at any time: what was under way is then sent once more on the next one.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from services.core.errors import PeerError, RetryLater
from services.core.hlc import check_version
from services.core.messages import (
    BELOW_FLOOR,
    CAUGHT_UP,
    MALFORMED,
    NEWER,
    WRITE_MANY,
    WRONG_EPOCH,
    decode_statuses,
    encode_write_many,
    epoch_of,
)
from services.core.ring import slot_of
from services.core.wire import DOWN, LOST, OK, Hello
from services.replicator.hint_log import HintLog
from services.replicator.seams import Epochs
from services.replicator.stamps import Stamps
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet
from services.runtime.peer import SENT, OwnedLink

# A node stores so many in about 2 ms. The second message is on its way while the first becomes
# durable there; more would only stand in front of what clients want.
message_hints_max: Final = 256
message_bytes_max: Final = 1 << 20
messages_max: Final = 2
# A node that missed a minute of 10,000 writes a second has them after 15 s, and still has more
# than half of its time for everybody else.
hints_per_s_max: Final = 40_000
bytes_per_s_max: Final = 64 << 20
# How far sending may run ahead of these rates: what a late timer costs.
burst_s: Final = 0.02
# The node has to write a megabyte behind what else waits for its disk.
answer_s_max: Final = 5.0
pause_s_min: Final = 0.02
pause_s_max: Final = 2.0
# To request the collection of so many slots takes a millisecond or two.
requests_in_a_turn: Final = 1_024

log = telemetry.logger(__name__)


@dataclass(slots=True)
class Counters:
    """What became of hints; those dropped by reason are in `Hints.dropped`. Besides `messages` all
    are hints: one that is sent again, or twice, counts each time."""

    delivered: int = 0
    messages: int = 0
    sent_again: int = 0


class _Message:
    """Hints that are sent together, those of them that the node has not taken yet."""

    __slots__ = ("items", "kept_ms", "last", "sent")

    def __init__(self, items: list[tuple[bytes, bytes]], kept_ms: int, last: int) -> None:
        self.items = items
        self.kept_ms = kept_ms
        self.last = last
        self.sent = False


class Replay:
    """`look` whenever something may have changed: the link, the hints, or the time.

    `is_whole` tells whether hints are all that the node misses; `on_refused` hears how many of
    them it will never take, `on_below_floor` in which slots only a collection can bring them.
    """

    def __init__(
        self,
        node_id: str,
        hints: HintLog,
        fleet: Fleet,
        stamps: Stamps,
        epochs: Epochs,
        clock: Clock,
        draw: random.Random,
        counters: Counters,
        *,
        is_whole: Callable[[], bool],
        on_refused: Callable[[int], None],
        on_below_floor: Callable[[int], None],
    ) -> None:
        self._node_id = node_id
        self._hints = hints
        self._fleet = fleet
        self._stamps = stamps
        self._epochs = epochs
        self._clock = clock
        self._draw = draw
        self._counters = counters
        self._is_whole = is_whole
        self._on_refused = on_refused
        self._on_below_floor = on_below_floor
        # Slots of which hints were refused below the floor.
        self._below_floor: dict[int, None] = {}
        self._under_way: deque[_Message] = deque()
        # The connection that we know of, and the one on which all was said to be delivered.
        self._peer: Hello | None = None
        self._told: Hello | None = None
        self._telling = False
        # Until when to send nothing, and by how much that grows.
        self._resume_s = 0.0
        self._pause_s = pause_s_min
        # By when what was sent should have been sent at the highest rates.
        self._paced_s = 0.0
        self._waking = False
        self._closed = False

    @property
    def caught_up(self) -> bool:
        """Whether the node was told so on its present connection."""
        return self._told is not None and self._told is self._peer

    def look(self) -> None:
        """Send what can be sent; if nothing is left, tell the node so."""
        node = self._fleet.nodes.get(self._node_id)
        link = None if node is None else node.link
        if self._closed or link is None or not link.connected:
            return
        if link.peer is not self._peer:
            self._peer = link.peer
            self._resume_s, self._pause_s = 0.0, pause_s_min
        if self._clock.monotonic_s() >= self._resume_s:
            self._send(link)
            if self._hints.count or self._under_way:
                return
            self._request_collections()
            if self._is_whole():
                self._tell(link)

    def reset(self) -> None:
        """The hints that were taken are not to be delivered any more."""
        self._under_way.clear()

    def close(self) -> None:
        self._closed = True
        self._under_way.clear()

    # -- hints

    def _send(self, link: OwnedLink) -> None:
        for message in self._under_way:
            if not message.sent and not self._ask(link, message):
                return
        while len(self._under_way) < messages_max and self._in_pace():
            taken = self._hints.take(message_hints_max, message_bytes_max)
            if not taken:
                return
            items = [(hint.key, hint.record) for hint in taken]
            message = _Message(items, taken[0].kept_ms, taken[-1].sequence)
            self._under_way.append(message)
            if not self._ask(link, message):
                return

    def _in_pace(self) -> bool:
        """Whether the rate allows another message now; if not, one is sent when it does."""
        ahead_s = self._paced_s - self._clock.monotonic_s()
        if ahead_s <= burst_s:
            return True
        self._wake(ahead_s)
        return False

    def _ask(self, link: OwnedLink, message: _Message) -> bool:
        body = encode_write_many(self._fleet.epoch, message.items)
        heard = partial(self._heard, message)
        asked = link.request(WRITE_MANY, body, heard, answer_s_max)
        if asked != SENT:
            if asked != DOWN:
                self._pause()
            return False
        message.sent = True
        self._counters.messages += 1
        cost_s = max(len(message.items) / hints_per_s_max, len(body) / bytes_per_s_max)
        self._paced_s = max(self._paced_s, self._clock.monotonic_s()) + cost_s
        return True

    def _heard(self, message: _Message, kind: int, body: bytes) -> None:
        message.sent = False
        if message not in self._under_way:
            return
        if kind == OK:
            self._judge(message, body)
        elif kind == WRONG_EPOCH:
            self._epochs.outdated(epoch_of(body))
        if not message.items:
            self._pause_s = pause_s_min
            self._settle()
            self.look()
            return
        self._counters.sent_again += len(message.items)
        if kind not in (DOWN, LOST):
            self._pause()

    def _judge(self, message: _Message, body: bytes) -> None:
        """Strike off what the node has taken, or has no use for."""
        try:
            statuses = decode_statuses(body)
        except PeerError as error:
            log.warning("a node answers hints nonsense", node=self._node_id, reason=str(error))
            return
        if len(statuses) != len(message.items):
            log.warning("a node answers other hints than it was sent", node=self._node_id)
            return
        left: list[tuple[bytes, bytes]] = []
        refused = 0
        for item, (kind, detail) in zip(message.items, statuses, strict=True):
            if kind in (NEWER, BELOW_FLOOR):
                self._merge(detail)
                if kind == BELOW_FLOOR:
                    self._below_floor[slot_of(item[0])] = None
            elif kind == MALFORMED:
                # It would stand in the way of all others for ever.
                refused += 1
            elif kind != OK:
                if kind == WRONG_EPOCH:
                    self._epochs.outdated(epoch_of(detail))
                left.append(item)
        self._counters.delivered += len(message.items) - len(left) - refused
        message.items = left
        if refused:
            self._on_refused(refused)

    def _merge(self, version: bytes) -> None:
        try:
            self._stamps.merge(check_version(version))
        except (PeerError, RetryLater):
            # Too far ahead to be followed, or no version at all. What is there is newer.
            return

    def _settle(self) -> None:
        """What is delivered with nothing undelivered before it need not be kept."""
        through = 0
        while self._under_way and not self._under_way[0].items:
            through = self._under_way.popleft().last
        if through:
            oldest_ms = self._under_way[0].kept_ms if self._under_way else None
            self._hints.delivered(through, oldest_ms)

    # -- time

    def _pause(self) -> None:
        """Let the node get on; longer each time, until it has taken a whole message."""
        now_s = self._clock.monotonic_s()
        if now_s < self._resume_s:
            return
        wait_s = self._pause_s * self._draw.uniform(0.5, 1.0)
        self._pause_s = min(self._pause_s * 2, pause_s_max)
        self._resume_s = now_s + wait_s
        self._wake(wait_s)

    def _wake(self, wait_s: float) -> None:
        if not self._waking:
            self._waking = True
            self._clock.call_later(wait_s, self._woken)

    def _woken(self) -> None:
        self._waking = False
        self.look()

    # -- nothing left

    def _request_collections(self) -> None:
        for slot in list(islice(self._below_floor, requests_in_a_turn)):
            del self._below_floor[slot]
            self._on_below_floor(slot)
        if self._below_floor:
            self._wake(0.0)

    def _tell(self, link: OwnedLink) -> None:
        if self._telling or self._told is self._peer:
            return
        peer = self._peer

        def heard(kind: int, body: bytes) -> None:
            self._telling = False
            if kind == OK:
                self._told = peer
            elif kind not in (DOWN, LOST):
                self._pause()

        asked = link.request(CAUGHT_UP, b"", heard, answer_s_max)
        if asked == SENT:
            self._telling = True
        elif asked != DOWN:
            self._pause()
