"""What a replicator did since its start; plain integers that `/metrics` reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.core.operations import UNKNOWN
from services.runtime.histogram import Histogram

# From a fast disk's sync to the time an operation may take at all.
latency_s: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2)


@dataclass(slots=True)
class Counters:
    """A replication is one record that every owner of its key is to have: an eventual write, from
    its first stamp on; or what a strong operation had accepted, which for a read that replicas
    disagreed about is what was there. A strong operation whose outcome is unknown is one too. What
    is refused before there is a record, or leaves none, is not.

    Each owner of a replication becomes successful once, when it has the record or something newer,
    or failed once: it did not take the record when asked first, or the replication was given up
    before it did. At rest the two make up all owners of all replications, and then an owner that
    failed may still become successful as well: by another try, which is counted here, or by a
    hint, which `Hints` counts as delivered and /metrics adds. Hints outlive the run that counted
    their replications, and are adopted from replicators that are gone: what /metrics shows as
    successful may be more than this run's replications account for."""

    total_replications: int = 0
    successful_replicas: int = 0
    failed_replicas: int = 0
    retries: int = 0
    restamped: int = 0
    wrong_epoch: int = 0
    # Strong operations: reads that one round trip decided, proposals, and further rounds of them.
    fast_reads: int = 0
    read_repairs: int = 0
    proposals: int = 0
    rounds_again: int = 0
    refusals: int = 0
    unknown_outcomes: int = 0
    # Of replications: the time from the request to its acknowledgement; and to the last owner's
    # success, where every owner took it when asked first.
    acks: Histogram = field(default_factory=lambda: Histogram(latency_s))
    lags: Histogram = field(default_factory=lambda: Histogram(latency_s))

    def acknowledged(self, after_s: float) -> None:
        self.acks.observe(after_s)

    def settled(self, after_s: float) -> None:
        self.lags.observe(after_s)

    def refused(self, kind: int) -> None:
        """A request was answered without having been done for sure."""
        if kind == UNKNOWN:
            self.unknown_outcomes += 1
        else:
            self.refusals += 1
