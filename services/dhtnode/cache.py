"""Cache namespaces: which there are, and what they keep.

A cache keeps at most `max_items` records on this node, those used last. It has no part in
anti-entropy: replicas evict different keys, so its keys are not in the digests.

A namespace may have keys when it becomes a cache. They change sides one by one, in slices: a key is
out of the digests exactly when it stands in the `recency` of its namespace. What is a cache no more
was deleted, and gives up what it has, in slices as well. No replica has all that another one has of
a cache, so that nobody else could delete it; what is put meanwhile is that of a store, and stays.

What a strong operation once had for a key must not come back when a cache becomes a store: a record
of such a key, most often its tombstone, is not given up. It is pinned, and does not count.
"""

from __future__ import annotations

from typing import Protocol

from services.core.digest import Digests
from services.core.ring import place_of, slot_count, slot_of
from services.dhtnode.namespace import Namespace, Namespaces
from services.dhtnode.recency import Recency

# One makes room for the key that came; the other catches up with a limit that was lowered.
_evictions_per_put = 2
# Costs in the budget of a slice, beside a unit for each key that is looked at.
_change_cost = 8


class Drop(Protocol):
    def __call__(self, namespace: Namespace, slot: int, key: bytes) -> None:
        """Remove a record that stands neither in the digests nor in a recency."""


class Bound(Protocol):
    def __call__(self, slot: int, key: bytes) -> bool:
        """Whether an acceptor holds something for this key."""


class Caches:
    __slots__ = (
        "_adopting",
        "_digests",
        "_drop",
        "_namespaces",
        "_overfull",
        "_returning",
        "_slots",
        "bound",
        "declared",
        "evicted",
        "ordered",
    )

    def __init__(
        self,
        slots: list[dict[bytes, bytes]],
        namespaces: Namespaces,
        digests: Digests,
        drop: Drop,
    ) -> None:
        self._slots = slots
        self._namespaces = namespaces
        self._digests = digests
        self._drop = drop
        self.bound: Bound = lambda slot, key: False
        self.declared: dict[bytes, Namespace] = {}
        # What is left to do, by prefix: the next slot to be searched for keys that a cache had
        # before it was declared one; caches above their limit; stores that were caches.
        self._adopting: dict[bytes, int] = {}
        self._overfull: dict[bytes, Namespace] = {}
        self._returning: dict[bytes, Namespace] = {}
        # How many keys stand in a recency, of all namespaces together.
        self.ordered = 0
        self.evicted = 0

    @property
    def settled(self) -> bool:
        """Whether the digests have all keys of stores and no keys of caches."""
        return not (self._adopting or self._returning)

    # Declarations.

    def declare(self, prefix: bytes, max_items: int) -> None:
        if max_items < 1:
            raise ValueError(f"a cache has 1 item at least, not {max_items}")
        namespace = self._namespaces.open(prefix)
        namespace.max_items = max_items
        if namespace.recency is None:
            namespace.recency = Recency()
        self.declared[prefix] = namespace
        self._returning.pop(prefix, None)
        self._overfull[prefix] = namespace
        if namespace.records > len(namespace.recency) + len(namespace.recency.pinned):
            self._adopting[prefix] = 0

    def forget(self, prefix: bytes) -> None:
        namespace = self.declared.pop(prefix, None)
        if namespace is None:
            return
        namespace.max_items = 0
        self._adopting.pop(prefix, None)
        self._overfull.pop(prefix, None)
        self._returning[prefix] = namespace

    # Keys.

    def use(self, prefix: bytes, key: bytes) -> None:
        """A client has read the key, which may be one of a store."""
        namespace = self.declared.get(prefix)
        if namespace is not None:
            recency = namespace.recency
            # A key that is not adopted yet stays in the digests until it is.
            if recency is not None and key in recency:
                recency.touch(key)

    def put(self, namespace: Namespace, key: bytes, old: bytes | None) -> bool:
        """A key of a namespace with a recency has been put; False if the digests are to follow
        it, as they do in a store."""
        recency = namespace.recency
        if recency is None:
            return False
        known = key in recency
        if not namespace.max_items:
            if known:
                self._leave(recency, key, old)
            return False
        if old is not None and not known:
            self._digests.toggle(place_of(key), key, old[:12])
        recency.touch(key)
        if not known:
            self.ordered += 1
        for _ in range(_evictions_per_put):
            if len(recency) <= namespace.max_items:
                break
            self._evict(namespace, recency)
        return True

    def _leave(self, recency: Recency, key: bytes, record: bytes | None) -> None:
        """The key of a cache becomes one of a store, in the digests with the record it had."""
        recency.discard(key)
        self.ordered -= 1
        if record is not None:
            self._digests.toggle(place_of(key), key, record[:12])

    def doomed(self, key: bytes) -> bool:
        """Whether the key is one that a cache of the past has not given up yet."""
        if not self._returning:
            return False
        namespace = self._returning.get(key[: 9 + key[8]])
        if namespace is None or namespace.recency is None:
            return False
        return key in namespace.recency and key not in namespace.recency.pinned

    def remove(self, namespace: Namespace, key: bytes) -> bool:
        """A key is being removed; False if the digests are to follow it."""
        recency = namespace.recency
        if recency is None or key not in recency:
            return False
        recency.discard(key)
        self.ordered -= 1
        return True

    def _evict(self, namespace: Namespace, recency: Recency) -> None:
        key = recency.pop_oldest()
        slot = slot_of(key)
        if self.bound(slot, key):
            recency.pinned[key] = None
            return
        self.ordered -= 1
        self.evicted += 1
        self._drop(namespace, slot, key)

    # Changing sides.

    def tend_slice(self, budget: int) -> bool:
        """Do some of what declarations have left to do; whether there is nothing more."""
        while self._adopting or self._overfull or self._returning:
            if budget <= 0:
                return False
            if self._adopting:
                budget -= self._adopt(*next(iter(self._adopting.items())))
            elif self._overfull:
                budget -= self._shrink(next(iter(self._overfull.values())))
            else:
                budget -= self._return(next(iter(self._returning.values())))
        return True

    def _adopt(self, prefix: bytes, slot: int) -> int:
        """Take the keys of one slot into a cache that they were in before it was one."""
        recency = self.declared[prefix].recency
        cost = 1 + len(self._slots[slot])
        for key, record in self._slots[slot].items():
            if key.startswith(prefix) and recency is not None and key not in recency:
                self._digests.toggle(place_of(key), key, record[:12])
                recency.touch(key)
                self.ordered += 1
                cost += _change_cost
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
        """Give up a key of what was a cache; one that is pinned goes back into the digests."""
        recency = namespace.recency
        if recency is None or not (recency or recency.pinned):
            del self._returning[namespace.prefix]
            namespace.recency = None
            self._namespaces.close_if_empty(namespace)
            return 1
        if recency:
            self._evict(namespace, recency)
        else:
            key = next(iter(recency.pinned))
            self._leave(recency, key, self._slots[slot_of(key)][key])
        return _change_cost
