"""What has been declared of namespaces, and the rules for declaring more.

Namespaces spring up when they are used, as stores. Only what was declared stands here: of a cache
how many keys it may have, of a store 0. A tenant declares caches before use; that a namespace is a
store may be declared, too, so that nobody makes a cache of it.

Everything here is a function of what is stored. A store of declarations (`namespace_store`) reads,
calls `decide` and writes, all under one lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.core.errors import FixRequest, RetryLater
from services.core.key import check_namespace
from services.core.namespaces import caches_max, max_items_max

# Of one tenant, whatever its plan: more than an application has kinds of data.
tenant_declarations_max: Final = 64
# Every replicator has them all in memory, and in a file: 3 MB with the longest names.
declarations_max: Final = 16_384

Declared = tuple[bytes, int]
"""The prefix of a namespace, and how many keys it may have; 0 for a store."""


@dataclass(slots=True, frozen=True)
class Declarations:
    """All that are, as of a version, which grows with every change."""

    version: int
    # By the prefix of the namespace, how many keys it may have; 0 for a store.
    max_items: Mapping[bytes, int]
    # Those of them that are caches.
    caches: Mapping[bytes, int]
    # By the prefix of the tenant, the names of namespaces.
    names: Mapping[bytes, frozenset[bytes]]

    @classmethod
    def of(cls, version: int, declared: Iterable[Declared]) -> Declarations:
        max_items = dict(declared)
        names: dict[bytes, set[bytes]] = {}
        for prefix in max_items:
            names.setdefault(prefix[:8], set()).add(prefix[9:])
        return cls(
            version,
            max_items,
            {prefix: items for prefix, items in max_items.items() if items},
            {tenant: frozenset(of_tenant) for tenant, of_tenant in names.items()},
        )

    def with_change(self, version: int, prefix: bytes, max_items: int | None) -> Declarations:
        """The next version, in which this namespace is declared so; None for not at all."""
        tenant, name = prefix[:8], prefix[9:]
        others = self.names.get(tenant, frozenset()) - {name}
        declared, caches, names = dict(self.max_items), dict(self.caches), dict(self.names)
        declared.pop(prefix, None)
        caches.pop(prefix, None)
        names.pop(tenant, None)
        if max_items is not None:
            declared[prefix] = max_items
            others |= {name}
        if max_items:
            caches[prefix] = max_items
        if others:
            names[tenant] = others
        return Declarations(version, declared, caches, names)

    def names_from(self, tenant: bytes, start: bytes) -> list[bytes]:
        """The names that a tenant has declared, in order, that are not less than `start`."""
        return sorted(name for name in self.names.get(tenant, ()) if name >= start)


nothing_declared: Final = Declarations(0, {}, {}, {})


class Counted(NamedTuple):
    """How many declarations there are."""

    of_tenant: int
    caches_of_tenant: int
    in_all: int
    caches: int


def check(prefix: bytes, max_items: int | None) -> int:
    """The number that stands for what is to be declared. `FixRequest` if a client may not."""
    check_namespace(prefix[9:])
    if max_items is None:
        return 0
    if not 1 <= max_items <= max_items_max:
        raise FixRequest("invalid_body", f"max_items is 1 to {max_items_max}, not {max_items}")
    return max_items


def decide(known: int | None, wanted: int, counted: Counted, plan_caches_max: int) -> bool:
    """Whether there is anything to write, given what is declared of this namespace, and how many
    caches the plan of its tenant has. Those that there are may be changed, however many.

    `FixRequest` if it is declared the other kind, or if the tenant has declared enough; RetryLater
    if the platform has as many as it takes.
    """
    if known == wanted:
        return False
    if known is not None:
        if known and wanted:
            return True
        raise FixRequest(
            "already_exists", f"the namespace is declared as a {_kind(known)}; delete it first"
        )
    if counted.of_tenant >= tenant_declarations_max:
        raise FixRequest(
            "limit_reached",
            f"{tenant_declarations_max} namespaces are declared, which is the limit; delete one "
            "of them (stores need not be declared)",
        )
    if wanted and counted.caches_of_tenant >= plan_caches_max:
        raise FixRequest(
            "limit_reached",
            f"{counted.caches_of_tenant} caches are declared, and your plan has {plan_caches_max}; "
            "delete one of them, or use a larger plan",
        )
    if counted.in_all >= declarations_max or (wanted and counted.caches >= caches_max):
        raise RetryLater(
            "storage_full",
            f"the platform has as many declared namespaces as it takes ({declarations_max}, "
            f"{caches_max} of them caches)",
        )
    return True


def _kind(max_items: int) -> str:
    return "cache" if max_items else "store"
