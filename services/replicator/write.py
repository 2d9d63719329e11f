"""One eventual write on its way, and the messages in which several go to a node together.

An attempt sends the write to every owner by one map, with one stamp. What is answered to an
earlier attempt does not count for the present one, but what that attempt may have left on some
replica is never forgotten: it decides between "nothing was done" and "unknown".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from services.core.hlc import version_bytes
from services.core.messages import (
    encode_write_many,
    few_bytes_max,
    few_items_max,
    items_max,
    many_bytes_max,
    u16,
    u32,
    u64,
)
from services.core.placement import Placement
from services.core.ring import slot_of
from services.replicator.answers import Done, Failures
from services.runtime.fleet import FleetNode, Owner, Route

# What a message has besides its keys and bodies, for each of them and in all.
_item_bytes: Final = u16.size + u32.size + version_bytes
_many_bytes: Final = u64.size + u16.size


class Write:
    """From its arrival until every replica has it or is to be told later."""

    __slots__ = (
        "acked",
        "answered",
        "attempt",
        "awaited",
        "body",
        "done",
        "failures",
        "hints_due",
        "key",
        "loose",
        "made",
        "missed",
        "placement",
        "record",
        "replaced",
        "restamped",
        "risked",
        "slot",
        "started_s",
        "unheard",
        "yields",
    )

    # Of the present attempt.
    record: bytes
    placement: Placement
    # The owners whose acknowledgement is waited for, as bits of the placement.
    awaited: int
    missed: list[tuple[Owner, int]]
    failures: Failures | None

    def __init__(
        self,
        key: bytes,
        body: bytes,
        done: Done,
        now_s: float,
        *,
        yields: bool,
        replaced: bool = False,
    ) -> None:
        self.key = key
        self.slot = slot_of(key)
        self.body = body
        self.done = done
        self.started_s = now_s
        self.yields = yields
        # What was asked for after it, together with it, is to stay above it.
        self.replaced = replaced
        # Requests without an answer yet, of the present attempt and of earlier ones.
        self.attempt = self.unheard = self.loose = 0
        # Enough replicas have it; its client was told; a later stamp was given; and an earlier
        # attempt may have left it somewhere.
        self.made = self.answered = self.restamped = self.risked = False
        self.acked = self.awaited = self.hints_due = 0
        self.failures = None

    def begin(self, route: Route) -> None:
        """A new attempt, by the present map."""
        self.void()
        self.placement = route.placement
        self.missed = []
        self.failures = None

    def void(self) -> None:
        """End the attempt: what it was acknowledged does not count any more."""
        self.risked = self.risked or self._touched
        self.loose += self.unheard
        self.unheard = self.acked = self.awaited = 0
        self.attempt += 1

    @property
    def final(self) -> bool:
        """Whether it must not be stamped again, for that was done or would put it too high."""
        return self.restamped or self.replaced

    @property
    def traceless(self) -> bool:
        """Whether it is sure that no replica has it, of any attempt."""
        return not (self.risked or self.loose or self.unheard or self._touched)

    @property
    def _touched(self) -> bool:
        """Whether, by what was answered to this attempt, some replica has it or may have it."""
        return bool(self.acked) or (self.failures is not None and self.failures.undecided)

    def note(self, owner: Owner, kind: int) -> None:
        """This owner has not taken it."""
        self.missed.append((owner, kind))
        if self.failures is None:
            self.failures = Failures()
        self.failures.note(owner.node.node_id, kind)

    @property
    def sufficient(self) -> bool:
        """Whether those have it whose acknowledgement was waited for, and enough."""
        return bool(self.acked & self.awaited) and self.placement.is_in_both(self.acked)

    @property
    def possible(self) -> bool:
        """Whether those that have not failed could still be enough."""
        missed = 0
        for owner, _ in self.missed:
            missed |= owner.bit
        return self.placement.is_in_both(self.placement.everyone & ~missed)


class Load:
    """What one node is sent in one message: some writes, each with the attempt at it and with what
    this node is to it. Three lists, as an object for each of them would take half of the time."""

    __slots__ = ("attempts", "bytes", "node", "owners", "writes")

    def __init__(self, node: FleetNode) -> None:
        self.node = node
        self.writes: list[Write] = []
        self.attempts: list[int] = []
        self.owners: list[Owner] = []
        self.bytes = _many_bytes

    def add(self, write: Write, owner: Owner, size: int) -> None:
        self.writes.append(write)
        self.attempts.append(write.attempt)
        self.owners.append(owner)
        self.bytes += size

    def has_room(self, size: int) -> bool:
        """Whether a write of this size fits in. One alone always does."""
        return len(self.writes) < items_max and self.bytes + size <= many_bytes_max

    def encode(self, epoch: int) -> bytes:
        """As WRITE_MANY."""
        return encode_write_many(epoch, [(write.key, write.record) for write in self.writes])


def few_of(coming: deque[Write]) -> list[Write]:
    """The first of them, which are taken out: no more than a node stores in one piece, so that none
    has to wait there behind the batches of others."""
    few = [coming.popleft()]
    room = few_bytes_max - _many_bytes - _size_of(few[0])
    while coming and len(few) < few_items_max:
        room -= _size_of(coming[0])
        if room < 0:
            break
        few.append(coming.popleft())
    return few


def loads(begun: Iterable[tuple[Write, Route]]) -> list[Load]:
    """What to send to whom, in this order, so that every owner gets its share of these writes in
    as few messages as can be. Nodes that own the same have the very same writes in theirs; where
    there are no others, one next to the other."""
    found: list[Load] = []
    filling: dict[FleetNode, Load] = {}
    for write, route in begun:
        size = _size_of(write)
        for owner in route.owners:
            node = owner.node
            load = filling.get(node)
            if load is None or not load.has_room(size):
                load = filling[node] = Load(node)
                found.append(load)
            load.add(write, owner, size)
    return found


def _size_of(write: Write) -> int:
    return _item_bytes + len(write.key) + len(write.body)
