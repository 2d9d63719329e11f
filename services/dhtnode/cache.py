"""Cache namespaces: which there are, and what they keep.

A cache keeps at most `max_items` records on this node, those used last. It has no part in
anti-entropy: replicas evict different keys, so its keys are not in the digests.

A namespace may have keys when it becomes a cache. They change sides one by one, in slices: a key is
out of the digests exactly when it stands in the `recency` of its namespace, or in one of its past.

What is a cache no more was deleted, and gives up what it has. No replica has all that another one
has of a cache, so that nobody else could delete it. From that moment on nobody sees it: it does not
count, no listing shows it, and whoever looks for one of its keys has that given up first. The rest
goes in slices. What is put meanwhile is that of a store, or of the next cache of this name, which
begins with an order of its own, and stays.

What a strong operation once had for a key must not come back when a cache becomes a store. Of such
a key nothing but the value is given up: its record becomes a tombstone of the same version, which
is greater than the record, so that replicas agree on it and it does no harm beside what is newer.
It is pinned, and does not count, until the key is put again.
"""

from __future__ import annotations

from typing import Protocol

from services.core.ring import slot_count, slot_of
from services.dhtnode.namespace import Namespace, Namespaces, Past
from services.dhtnode.recency import Recency

# One makes room for the key that came; the other catches up with a limit that was lowered.
_evictions_per_put = 2
# Costs in the budget of a slice, beside a unit for each key that is looked at.
_change_cost = 8


class Records(Protocol):
    """What the owner of the records does to one that stands neither in the digests nor in a
    recency. It may not be `counted` in its namespace."""

    def drop(self, namespace: Namespace, slot: int, key: bytes, *, counted: bool) -> None:
        """Forget it altogether."""

    def blank(self, namespace: Namespace, slot: int, key: bytes, *, counted: bool) -> None:
        """Have a tombstone of its version in its place, and count that."""

    def join(self, slot: int, key: bytes, record: bytes) -> None:
        """Have a key that is in no recency take part in the digests."""

    def leave(self, slot: int, key: bytes, record: bytes) -> None:
        """Have it take no part any more."""


class Held(Protocol):
    """What strong operations have left (promises.py)."""

    def holds(self, slot: int, key: bytes) -> bool:
        """Whether there is anything for this key."""
        ...

    def weigh(self, slot: int, key: bytes) -> None:
        """Hear that the record of this key is another one."""
        ...


class NothingHeld:
    def holds(self, slot: int, key: bytes) -> bool:
        return False

    def weigh(self, slot: int, key: bytes) -> None:
        """Nothing changes."""


class Caches:
    __slots__ = (
        "_adopting",
        "_namespaces",
        "_overfull",
        "_records",
        "_slots",
        "declared",
        "evicted",
        "held",
        "ordered",
        "returning",
        "uncounted",
    )

    def __init__(
        self,
        slots: list[dict[bytes, bytes]],
        namespaces: Namespaces,
        records: Records,
    ) -> None:
        self._slots = slots
        self._namespaces = namespaces
        self._records = records
        self.held: Held = NothingHeld()
        self.declared: dict[bytes, Namespace] = {}
        # What is left to do, by prefix: the next slot to be searched for keys that a cache had
        # before it was declared one; caches above their limit; namespaces that have a past.
        self._adopting: dict[bytes, int] = {}
        self._overfull: dict[bytes, Namespace] = {}
        self.returning: dict[bytes, Namespace] = {}
        # How many keys stand in a recency, of all namespaces together; and how many of those of
        # the past are counted no more.
        self.ordered = 0
        self.uncounted = 0
        self.evicted = 0

    @property
    def settled(self) -> bool:
        """Whether the digests have all keys of stores and no keys of caches."""
        return not (self._adopting or self.returning)

    # Declarations.

    def declare(self, prefix: bytes, max_items: int) -> None:
        if max_items < 1:
            raise ValueError(f"a cache has 1 item at least, not {max_items}")
        namespace = self._namespaces.open(prefix)
        namespace.max_items = max_items
        self.declared[prefix] = namespace
        self._overfull[prefix] = namespace
        if namespace.recency is None:
            namespace.recency = Recency()
            if namespace.records:
                self._adopting[prefix] = 0

    def forget(self, prefix: bytes) -> None:
        namespace = self.declared.pop(prefix, None)
        if namespace is None:
            return
        adopting = self._adopting.pop(prefix, None) is not None
        self._overfull.pop(prefix, None)
        recency, pasts = namespace.recency, namespace.pasts
        namespace.max_items = 0
        namespace.recency = None
        if recency is not None and (recency or recency.pinned):
            # While not all of its keys were adopted, nobody knows what the others count for. It had
            # no keys to be seen when it was declared, so that is little.
            counted = adopting or any(past.counted for past in pasts)
            namespace.pasts = (*pasts, Past(recency, counted))
            if not counted:
                self._count_no_more(namespace)
            self.returning[prefix] = namespace
        self._namespaces.close_if_empty(namespace)

    def _count_no_more(self, namespace: Namespace) -> None:
        """All that it counts is of the past; of that only what is pinned stays, as tombstones."""
        pinned = sum(len(past.recency.pinned) for past in namespace.pasts)
        self.uncounted += namespace.records - pinned
        namespace.count(-namespace.keys, pinned - namespace.tombstones, -namespace.bytes)

    # Keys.

    def use(self, prefix: bytes, key: bytes) -> None:
        """A client has read the key, which may be one of a store."""
        namespace = self.declared.get(prefix)
        if namespace is not None:
            recency = namespace.recency
            # A key that is not adopted yet stays in the digests until it is.
            if recency is not None and recency.orders(key):
                recency.touch(key)

    def put(self, namespace: Namespace, key: bytes, old: bytes | None) -> bool:
        """A key that is not of the past has been put; False if the digests are to follow it, as
        they do in a store."""
        recency = namespace.recency
        if recency is None:
            return False
        known = key in recency
        if old is not None and not known:
            self._records.leave(slot_of(key), key, old)
        recency.touch(key)
        if not known:
            self.ordered += 1
        for _ in range(_evictions_per_put):
            if len(recency) <= namespace.max_items:
                break
            self._evict(namespace, recency)
        return True

    def remove(self, namespace: Namespace, key: bytes) -> bool:
        """A key that is not of the past is being removed; False if the digests are to follow."""
        recency = namespace.recency
        if recency is None or key not in recency:
            return False
        recency.discard(key)
        self.ordered -= 1
        return True

    def _evict(self, namespace: Namespace, recency: Recency) -> None:
        self.ordered -= 1
        self._give_up(namespace, recency.pop_oldest(), counted=True)

    def _give_up(self, namespace: Namespace, key: bytes, *, counted: bool) -> None:
        """A key leaves an order of use, and goes unless there is something that it must outlast."""
        slot = slot_of(key)
        self.evicted += 1
        if not counted:
            self.uncounted -= 1
        if self.held.holds(slot, key):
            self._records.blank(namespace, slot, key, counted=counted)
            self.held.weigh(slot, key)
            self._keep(namespace, slot, key)
        else:
            self._records.drop(namespace, slot, key, counted=counted)

    def _keep(self, namespace: Namespace, slot: int, key: bytes) -> None:
        """A tombstone stays, in a cache without counting for it, in a store with the digests."""
        if namespace.recency is not None:
            namespace.recency.pinned[key] = None
            self.ordered += 1
        else:
            self._records.join(slot, key, self._slots[slot][key])

    # What is of the past.

    def lasts(self, slot: int, key: bytes) -> bool:
        """Whether the key is one that is here to stay, as far as it depends on declarations."""
        namespace = self.returning.get(key[: 9 + key[8]])
        return namespace is None or not namespace.doomed(key) or self.held.holds(slot, key)

    def is_past(self, key: bytes) -> bool:
        """Whether the key stands in the order of a cache that was, or is pinned there."""
        namespace = self.returning.get(key[: 9 + key[8]])
        return namespace is not None and any(key in past.recency for past in namespace.pasts)

    def meet(self, key: bytes) -> None:
        """Somebody is about to look at this key: if it is of the past it has its end now."""
        namespace = self.returning.get(key[: 9 + key[8]])
        if namespace is None:
            return
        for past in namespace.pasts:
            if key in past.recency:
                self._end(namespace, past, key)
                return

    def _end(self, namespace: Namespace, past: Past, key: bytes) -> None:
        pinned = key in past.recency.pinned
        past.recency.discard(key)
        self.ordered -= 1
        if pinned:
            self._keep(namespace, slot_of(key), key)
        else:
            self._give_up(namespace, key, counted=past.counted)

    # Changing sides.

    def tend_slice(self, budget: int) -> bool:
        """Do some of what declarations have left to do; whether there is nothing more."""
        while self._adopting or self._overfull or self.returning:
            if budget <= 0:
                return False
            if self._adopting:
                budget -= self._adopt(*next(iter(self._adopting.items())))
            elif self._overfull:
                budget -= self._shrink(next(iter(self._overfull.values())))
            else:
                budget -= self._return(next(iter(self.returning.values())))
        return True

    def _adopt(self, prefix: bytes, slot: int) -> int:
        """Take the keys of one slot into a cache that they were in before it was one."""
        recency = self.declared[prefix].recency
        cost = 1 + len(self._slots[slot])
        for key, record in self._slots[slot].items():
            if not key.startswith(prefix) or recency is None or key in recency:
                continue
            cost += _change_cost
            if not self.is_past(key):
                self._records.leave(slot, key, record)
                recency.touch(key)
                self.ordered += 1
        if slot + 1 < slot_count:
            self._adopting[prefix] = slot + 1
        else:
            del self._adopting[prefix]
        return cost

    def _shrink(self, namespace: Namespace) -> int:
        recency = namespace.recency
        if recency is None or len(recency) <= namespace.max_items:
            del self._overfull[namespace.prefix]
            return 1
        self._evict(namespace, recency)
        return _change_cost

    def _return(self, namespace: Namespace) -> int:
        """Have the end of one key of the past, the oldest first."""
        past = namespace.pasts[0]
        if past.recency:
            self.ordered -= 1
            self._give_up(namespace, past.recency.pop_oldest(), counted=past.counted)
        elif past.recency.pinned:
            self._end(namespace, past, next(iter(past.recency.pinned)))
        else:
            namespace.pasts = namespace.pasts[1:]
            if not namespace.pasts:
                del self.returning[namespace.prefix]
                self._namespaces.close_if_empty(namespace)
            return 1
        return _change_cost
