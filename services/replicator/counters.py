"""What a replicator did since its start; plain integers that `/metrics` reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.core.operations import UNKNOWN
from services.runtime.metrics import Histogram

# From a fast disk's sync to the time an operation may take at all.
latency_s: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2)


@dataclass(slots=True)
class Counters:
    """A replication is one write that replicas are to have; each replica of it succeeds or fails,
    and one that failed may succeed later: by another try, or as a hint."""

    total_replications: int = 0
    successful_replicas: int = 0
    failed_replicas: int = 0
    # Requests to replicas that have not been answered yet.
    queue_size: int = 0
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
    # Time from a request to its acknowledgement, and to the last replica's.
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
