"""What is shown of a service: rates and latencies of the time between two looks, and what is now.

A figure is None where it cannot be known: of who is away, and of rates and latencies at the first
look, or when the process has been started anew since the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.cli.top_looks import Seen

Figures = Mapping[str, float | None]
Buckets = Sequence[tuple[float, float]]

kinds: Final = ("gateway", "usermanager", "keygen", "replicator", "node")
# By kind: what is shown as it is, and which counters, added up, as a rate.
_gauges: Final[Mapping[str, Mapping[str, str]]] = {
    "gateway": {"in_flight": "http_requests_in_flight"},
    "usermanager": {"in_flight": "http_requests_in_flight"},
    "keygen": {"in_flight": "http_requests_in_flight", "pool_keys": "pool_keys"},
    "replicator": {
        "queue": "queue_size",
        "retrying": "retries_in_progress",
        "hints": "hints_waiting",
        "lag_ms": "max_replication_lag_ms",
    },
    "node": {"keys": "key_count", "log_bytes": "wal_size", "stored_bytes": "stored_bytes"},
}
_requests: Final = {"per_s": ("http_requests_total",), "failed_per_s": ("http_requests_total_5xx",)}
_rates: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "gateway": _requests,
    "usermanager": _requests,
    "keygen": {**_requests, "ids_per_s": ("keys_issued_total",)},
    "replicator": {
        "per_s": ("total_replications_total", "fast_reads_total", "proposals_total"),
        "refused_per_s": ("refusals_total", "unknown_outcomes_total"),
    },
    "node": {
        "per_s": ("replica_reads_total", "replica_writes_total"),
        "reads_per_s": ("replica_reads_total",),
        "writes_per_s": ("replica_writes_total",),
        "syncs_per_s": ("wal_syncs_total",),
    },
}
# The histogram of latencies, and what makes milliseconds of its unit.
_latencies: Final[Mapping[str, tuple[str, float]]] = {
    **dict.fromkeys(("gateway", "usermanager", "keygen"), ("http_request_ms", 1.0)),
    "replicator": ("ack_seconds", 1000.0),
}


@dataclass(slots=True, frozen=True)
class Row:
    kind: str
    name: str
    url: str
    state: str
    # Why it is away, or not well.
    reasons: Sequence[str]
    figures: Figures


def rows_of(before: Mapping[str, Seen], now: Sequence[Seen]) -> list[Row]:
    """Of each service; `before` has the last look at each, by its URL."""
    return [_row(before.get(one.url), one) for one in now]


def quantile(before: Buckets, now: Buckets, share: float) -> float | None:
    """The upper end of the bucket that this share of what came in between lies below; None if
    nothing came. Of the highest, which has no end, the lower one."""
    counts = dict(before)
    rest = [(end, count - counts.get(end, 0.0)) for end, count in now]
    if not rest or rest[-1][1] <= 0:
        return None
    rank = share * rest[-1][1]
    finite = [end for end, _ in rest if math.isfinite(end)]
    found = next(end for end, count in rest if count >= rank and count > 0)
    return found if math.isfinite(found) else finite[-1]


def _row(before: Seen | None, now: Seen) -> Row:
    if now.trouble is not None:
        return Row(now.kind, now.name, now.url, now.state, [now.trouble], _seen_by_others(now))
    numbers = now.numbers
    figures: dict[str, float | None] = {
        "memory_bytes": numbers.get("process_resident_memory_bytes"),
    }
    figures |= {name: numbers.get(metric) for name, metric in _gauges[now.kind].items()}
    figures |= dict.fromkeys(("cpu", *_rates[now.kind], "p50_ms", "p99_ms"))
    if before is not None and _same_process(before, now):
        _add_rates(figures, before, now)
    if now.kind == "node":
        figures |= _seen_by_others(now)
    return Row(now.kind, now.name, now.url, now.state, now.reasons, figures)


def _add_rates(figures: dict[str, float | None], before: Seen, now: Seen) -> None:
    took_s = now.at_s - before.at_s

    def rate(*names: str) -> float:
        grown = sum(now.numbers.get(one, 0) - before.numbers.get(one, 0) for one in names)
        return max(grown, 0) / took_s

    figures["cpu"] = rate("process_cpu_seconds_total")
    figures |= {name: rate(*counters) for name, counters in _rates[now.kind].items()}
    if now.kind in _latencies:
        name, to_ms = _latencies[now.kind]
        for figure, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
            found = quantile(before.buckets.get(name, ()), now.buckets.get(name, ()), share)
            figures[figure] = None if found is None else found * to_ms


def _same_process(before: Seen, now: Seen) -> bool:
    started = "process_start_time_seconds"
    return (
        before.trouble is None
        and now.at_s > before.at_s
        and before.numbers.get(started) == now.numbers.get(started)
    )


def _seen_by_others(now: Seen) -> Figures:
    """Of a node: what replicators keep for it, and for how long it has lacked something."""
    if now.kind != "node":
        return {}
    return {"hints": now.view.get("hints"), "lag_ms": now.view.get("lag_ms")}
