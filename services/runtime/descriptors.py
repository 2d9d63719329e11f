"""File descriptors: as many as the system gives, and a part kept back for our own use."""

from __future__ import annotations

import resource

from services.runtime.metrics import open_descriptors

# Links, the database pool, the log's files and a burst of accepts, for which the kernel hands out
# descriptors before we get to close any: an eighth of all, within these bounds.
reserve_min = 16
reserve_max = 1024
# Where descriptors are without limit, memory is not: with its parser and buffers an idle
# connection takes some 11 KB, so this many are about 700 MB.
connections_most = 65_536


def raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one where the system lets us, and return what holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            # macOS calls its hard limit infinite and then refuses it; the soft one serves.
            return soft
    return hard


def links_within(limit: int) -> int:
    """How many links a server may take: a quarter of all descriptors, as clients need the rest."""
    if limit == resource.RLIM_INFINITY:
        return connections_most
    return max(1, limit // 4)


def descriptor_limit() -> int:
    """The limit that holds for this process now."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def connections_within(limit: int) -> int:
    """How many client connections fit into the limit beside what is open and the reserve."""
    if limit == resource.RLIM_INFINITY:  # A negative number.
        return connections_most
    reserve = min(max(limit // 8, reserve_min), reserve_max)
    return min(max(1, limit - open_descriptors() - reserve), connections_most)
