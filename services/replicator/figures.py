"""The figures of a replicator for /metrics and /health: read when somebody asks, and no sooner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Final

from services.core.hlc import rfc3339
from services.replicator.repair_figures import add_repair_figures
from services.replicator.replicator import Replicator
from services.replicator.requests import bytes_max, requests_max
from services.replicator.retries import retrying_max
from services.replicator.strong import waiting_max
from services.runtime.histogram import Histogram
from services.runtime.metrics import Metrics

# Of what a queue may hold; past it, requests are about to be refused.
nearly_full: Final = 0.8


def add_figures(metrics: Metrics, replicator: Replicator) -> None:
    counters, add = replicator.counters, metrics.add
    metrics.add_fact("replicator_id", lambda: replicator.settings.replicator_id)
    metrics.add_fact("timestamp", lambda: rfc3339(replicator.service.clock.wall_ms()))
    for name, text in (
        ("total_replications", "Records that all owners of a key were to have"),
        ("failed_replicas", "Owners that have not taken one when asked first"),
        ("retries", "Further attempts to have a replica take one"),
        ("restamped", "Writes stamped again, for a replica had a newer one"),
        ("wrong_epoch", "Answers that told of a newer epoch"),
        ("fast_reads", "Strong reads done in one round trip"),
        ("read_repairs", "Replicas told what a strong read found chosen"),
        ("proposals", "Strong operations that took a proposal"),
        ("rounds_again", "Further rounds of proposals"),
        ("refusals", "Requests refused, with nothing done"),
        ("unknown_outcomes", "Requests that may or may not have been done"),
    ):
        add(name, "counter", text, partial(getattr, counters, name))
    add(
        "successful_replicas",
        "counter",
        "Owners that have taken one, at once, at another try or as a hint; hints of earlier runs "
        "and adopted ones count too",
        lambda: counters.successful_replicas + _hints_delivered(replicator),
    )
    text = "Messages to replicas under way, of whatever kind; writes that came together share one"
    add("queue_size", "gauge", text, lambda: replicator.fleet.pending)
    add(
        "retries_in_progress",
        "gauge",
        "Replicas that are tried again",
        lambda: retrying(replicator),
    )
    add("requests_under_way", "gauge", "Requests", lambda: replicator.requests.under_way)
    add("strong_under_way", "gauge", "Strong operations", lambda: strong_under_way(replicator))
    add("malformed", "counter", "Requests without sense", lambda: replicator.requests.malformed)
    for name, text in (
        ("finished", "Operations of dead coordinators brought to an end"),
        ("expired", "Accepted values that have expired and became tombstones"),
        ("unfinished", "Tries to do either that had no quorum"),
    ):
        add(name, "counter", text, partial(_swept, replicator, name))
    add("average_ack_time_ms", "gauge", "To an acknowledgement", lambda: _mean_ms(counters.acks))
    add(
        "max_replication_lag_ms",
        "gauge",
        "For how long a replica has lacked a write that is tried again or kept as a hint",
        lambda: lag_ms(replicator),
    )
    metrics.add_histogram("ack_seconds", "To an acknowledgement", counters.acks)
    metrics.add_histogram("replication_seconds", "Until the last replica had it", counters.lags)
    _add_hints(metrics, replicator)
    add_repair_figures(metrics, replicator)
    add("epoch", "gauge", "Epoch of the cluster map", lambda: replicator.fleet.epoch)
    add("nodes_live", "gauge", "Nodes that answer", lambda: _live(replicator))
    add("links_open", "gauge", "Links that others hold to us", lambda: _links_open(replicator))
    metrics.add_counters("link", "of all links", replicator.link_counters)


def _add_hints(metrics: Metrics, replicator: Replicator) -> None:
    """Until there is a stamper there are no hints, and their figures are empty."""

    def by_node(name: str) -> Mapping[str, int]:
        coordinator = replicator.coordinator
        return {} if coordinator is None else getattr(coordinator.hints, name)

    def count(name: str) -> int:
        coordinator = replicator.coordinator
        return 0 if coordinator is None else getattr(coordinator.hints.counters, name)

    def dropped() -> Mapping[str, int]:
        coordinator = replicator.coordinator
        return {} if coordinator is None else asdict(coordinator.hints.counters.dropped)

    def adopted() -> int:
        coordinator = replicator.coordinator
        return 0 if coordinator is None else coordinator.adoption.adopted

    for name, text in (
        ("waiting", "Hints that wait for a node"),
        ("waiting_bytes", "What they take"),
        ("overflowed", "How often a hint for a node was dropped, until replicas are compared"),
    ):
        read = partial(by_node, name)
        metrics.add(f"hints_{name}", "gauge", text, read, labels=("node",))
    for name, text in (
        ("kept", "Hints kept"),
        ("delivered", "Hints that their nodes have taken"),
        ("messages", "Messages with hints"),
        ("sent_again", "Hints that were sent again, counted each time"),
    ):
        metrics.add(f"hints_{name}", "counter", text, partial(count, name))
    metrics.add("hints_adopted", "counter", "Hints of others taken over", adopted)
    text = "Hints that were not kept, or not to the end"
    metrics.add("hints_dropped", "counter", text, dropped, labels=("reason",))


def health(replicator: Replicator) -> dict[str, object]:
    """What /health adds: degraded when a queue is nearly full."""
    requests = replicator.requests
    status: dict[str, object] = {"queue_size": replicator.fleet.pending}
    full = [
        f"{what}: {size} of {size_max}"
        for what, size, size_max in (
            ("requests", requests.under_way, requests_max),
            ("bytes of requests", requests.under_way_bytes, bytes_max),
            ("replicas tried again", retrying(replicator), retrying_max),
            ("strong operations", strong_under_way(replicator), waiting_max),
        )
        if size >= nearly_full * size_max
    ]
    if full:
        status.update(status="degraded", nearly_full=full)
    return status


def retrying(replicator: Replicator) -> int:
    coordinator = replicator.coordinator
    return 0 if coordinator is None else coordinator.eventual.retrying


def strong_under_way(replicator: Replicator) -> int:
    coordinator = replicator.coordinator
    return 0 if coordinator is None else coordinator.strong.under_way


def lag_ms(replicator: Replicator) -> float:
    """For how long the replica has lacked a write that has lacked one for longest."""
    coordinator = replicator.coordinator
    if coordinator is None:
        return 0.0
    since_s, now_s = coordinator.eventual.oldest_s, replicator.service.clock.monotonic_s()
    retried_ms = 0.0 if since_s is None else (now_s - since_s) * 1000
    return round(max(retried_ms, coordinator.hints.oldest_ms), 3)


def _mean_ms(histogram: Histogram) -> float:
    return round(histogram.total / histogram.count * 1000, 3) if histogram.count else 0.0


def _swept(replicator: Replicator, name: str) -> int:
    coordinator = replicator.coordinator
    return 0 if coordinator is None else getattr(coordinator.sweeper, name)


def _hints_delivered(replicator: Replicator) -> int:
    coordinator = replicator.coordinator
    return 0 if coordinator is None else coordinator.hints.counters.delivered


def _live(replicator: Replicator) -> int:
    return sum(node.live for node in replicator.fleet.nodes.values())


def _links_open(replicator: Replicator) -> int:
    return 0 if replicator.server is None else len(replicator.server.connections)
