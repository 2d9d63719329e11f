"""What a node keeps of each namespace and tenant beside the records: counts, order, recency."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from sortedcontainers import SortedList  # type: ignore[import-untyped]

from services.core.key import tenant_prefix
from services.core.record import head_bytes
from services.dhtnode.index import Index
from services.dhtnode.recency import Recency
from services.dhtnode.runs import run_keys

# So many keys and a share of what there is may vanish before an index is brought up to date
# without a listing that needs it. It bounds the memory of a namespace whose keys come and go, and
# that of very many such namespaces. More at a time are merged at less cost for each.
_removed_min = run_keys // 4
# Keys of stores vanish when they are collected, which costs many times what merging does, and is
# there to have memory back: of keys with 100 bytes each this holds less than 4 % of what is left.
_removed_share = 8
# Keys of a cache may vanish as fast as others come.
_removed_share_of_cache = 4
# The names of a tenant that has no more are sorted whenever they are asked for, in 0.2 ms; an
# order that is kept would take a kilobyte for each of very many tenants with one namespace.
_unordered_max = 1_000


class Counts:
    """How much there is of something.

    `keys` are values that a client may see; one that expired counts until it is trimmed.
    `tombstones` are the records that are kept for their version alone: deleted, or trimmed.
    `bytes` are those of the keys, as clients know them, with their values and metadata;
    tombstones have none.
    """

    __slots__ = ("bytes", "keys", "tombstones")

    def __init__(self) -> None:
        self.keys = 0
        self.tombstones = 0
        self.bytes = 0

    @property
    def records(self) -> int:
        return self.keys + self.tombstones


class Tenant(Counts):
    """Has its namespaces by name."""

    __slots__ = ("_order", "namespaces")

    def __init__(self) -> None:
        super().__init__()
        self.namespaces: dict[bytes, Namespace] = {}
        # Their names, once they are many.
        self._order: SortedList | None = None

    def add(self, namespace: Namespace) -> None:
        self.namespaces[namespace.name] = namespace
        if self._order is not None:
            self._order.add(namespace.name)
        elif len(self.namespaces) > _unordered_max:
            self._order = SortedList(self.namespaces)

    def discard(self, namespace: Namespace) -> None:
        del self.namespaces[namespace.name]
        if self._order is not None:
            self._order.remove(namespace.name)

    def named_from(self, start: bytes, count: int) -> list[Namespace]:
        """The first so many namespaces, in order, whose names are not less than `start`."""
        names: Iterator[bytes]
        if self._order is not None:
            names = self._order.irange(start)
        else:
            names = iter(sorted(name for name in self.namespaces if name >= start))
        return [self.namespaces[name] for name in islice(names, count)]


class Past(NamedTuple):
    """The keys of a cache that was deleted, until they are given up. Nobody sees one any more, and
    whoever comes upon one has it given up at once."""

    recency: Recency
    # Whether they are among the counts of the namespace still.
    counted: bool


class Namespace(Counts):
    """One namespace of one tenant, for as long as it has records or is declared a cache."""

    __slots__ = (
        "fixed_bytes",
        "index",
        "max_items",
        "name",
        "pasts",
        "prefix",
        "recency",
        "tenant",
        "total",
    )

    def __init__(
        self, prefix: bytes, tenant: Tenant, total: Counts, present: Callable[[bytes], bool]
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.name = prefix[9:]
        self.tenant = tenant
        self.total = total
        self.index = Index(present)
        # What a key and a record have that a client does not count.
        self.fixed_bytes = len(prefix) + head_bytes
        # Above 0 the namespace is a cache. Its keys that are in `recency` are not in the digests.
        self.max_items = 0
        self.recency: Recency | None = None
        # Of the caches that it was; their keys are not in the digests either.
        self.pasts: tuple[Past, ...] = ()

    def count(self, keys: int, tombstones: int, size: int) -> None:
        """Add to the counts of the namespace, of its tenant, and of everything."""
        tenant, total = self.tenant, self.total
        self.keys += keys
        tenant.keys += keys
        total.keys += keys
        self.bytes += size
        tenant.bytes += size
        total.bytes += size
        if tombstones:
            self.tombstones += tombstones
            tenant.tombstones += tombstones
            total.tombstones += tombstones

    def doomed(self, key: bytes) -> bool:
        """Whether the key is one that a cache of the past has not given up yet."""
        return any(past.recency.orders(key) for past in self.pasts)

    @property
    def index_lags(self) -> bool:
        share = _removed_share if self.recency is None else _removed_share_of_cache
        return self.index.removed > _removed_min + self.records // share


class Namespaces:
    """All namespaces that there are, by what their storage keys begin with. They spring up with
    their first record and vanish with the last."""

    __slots__ = ("_lagging", "_present", "_tenants", "by_prefix", "lag_bytes", "total")

    def __init__(self, present: Callable[[bytes], bool]) -> None:
        self._present = present
        self._tenants: dict[bytes, Tenant] = {}
        self.by_prefix: dict[bytes, Namespace] = {}
        self.total = Counts()
        # Those whose index wants to be brought up to date, although no listing waits for it, with
        # how far. What comes meanwhile is left for the next time: a merge of much is cheaper.
        self._lagging: dict[bytes, int] = {}
        # What indexes hold besides the keys that there are.
        self.lag_bytes = 0

    def open(self, prefix: bytes) -> Namespace:
        """The namespace, new if need be."""
        namespace = self.by_prefix.get(prefix)
        if namespace is None:
            tenant = self._tenants.get(prefix[:8])
            if tenant is None:
                tenant = self._tenants[prefix[:8]] = Tenant()
            namespace = Namespace(prefix, tenant, self.total, self._present)
            self.by_prefix[prefix] = namespace
            tenant.add(namespace)
        return namespace

    def tenant(self, tenant: int) -> Tenant:
        return self._tenants.get(tenant_prefix(tenant)) or Tenant()

    def removed(self, namespace: Namespace, key: bytes) -> None:
        """The record of a key has gone, and is counted no more."""
        self.touch_removed(namespace, key)
        if namespace.index_lags and namespace.prefix not in self._lagging:
            self._lagging[namespace.prefix] = namespace.index.mark
        if not namespace.records:
            self.close_if_empty(namespace)

    def touch_removed(self, namespace: Namespace, key: bytes) -> None:
        """Have the index find out that a key is not there any more."""
        self.lag_bytes += namespace.index.touch_removed(key)

    def close_if_empty(self, namespace: Namespace) -> None:
        if namespace.records or namespace.max_items or namespace.pasts:
            return
        prefix = namespace.prefix
        if namespace.index.is_large:
            # Freeing that many keys at once would hold the loop; emptying the index does not.
            self._lagging[prefix] = namespace.index.mark
            return
        self._lagging.pop(prefix, None)
        self.lag_bytes -= namespace.index.lag_bytes
        del self.by_prefix[prefix]
        namespace.tenant.discard(namespace)
        if not namespace.tenant.namespaces:
            del self._tenants[prefix[:8]]

    def merge_slice(self, namespace: Namespace, mark: int, budget: int) -> bool:
        """`Index.merge_slice`, and what that frees."""
        before = namespace.index.lag_bytes
        merged = namespace.index.merge_slice(mark, budget)
        self.lag_bytes += namespace.index.lag_bytes - before
        return merged

    @property
    def lag(self) -> int:
        """How many touched keys there are in the indexes that want to be brought up to date."""
        return sum(self.by_prefix[prefix].index.behind for prefix in self._lagging)

    def tend_slice(self, budget: int) -> bool:
        """Bring an index that lags behind nearer to the present; whether none lags."""
        for prefix, mark in self._lagging.items():
            namespace = self.by_prefix[prefix]
            if self.merge_slice(namespace, mark, budget):
                del self._lagging[prefix]
                self.close_if_empty(namespace)
            return not self._lagging
        return True
