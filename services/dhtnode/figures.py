"""The figures of a node for /metrics: what is read when somebody asks, and no sooner."""

from __future__ import annotations

from functools import partial

from services.core.hlc import rfc3339
from services.dhtnode.node import Node
from services.runtime.metrics import Metrics


def add_figures(metrics: Metrics, node: Node) -> None:
    table, clock, add = node.table, node.service.clock, metrics.add
    metrics.add_fact("node_id", lambda: node.settings.node_id)
    metrics.add_fact("timestamp", lambda: rfc3339(clock.wall_ms()))
    add("key_count", "gauge", "Keys with a value", lambda: table.total.keys)
    add("tombstone_count", "gauge", "Deletions not yet collected", lambda: table.total.tombstones)
    add("stored_bytes", "gauge", "Keys, values and metadata", lambda: table.total.bytes)
    add("table_memory_bytes", "gauge", "Memory of the table, estimated", lambda: table.memory_bytes)
    add("values_trimmed", "counter", "Expired values freed", lambda: table.trimmed)
    add("epoch", "gauge", "Epoch of the cluster map", lambda: node.replica.epoch)
    add("catching_up", "gauge", "1 while writes may be missing", lambda: _catching_up(node))
    add("puts_refused", "gauge", "1 while storage is full", lambda: int(bool(node.replica.full)))
    add("recovery_seconds", "gauge", "What the recovery took", lambda: node.recovery_s)
    add("frozen_objects", "gauge", "What full collections pass over", lambda: node.frozen_objects)
    metrics.add_counters("replica", "of the replica", node.replica.counters)
    acceptor = node.acceptor
    metrics.add_counters("acceptor", "of the acceptor of strong operations", acceptor.counters)
    add("promises", "gauge", "Keys with a promise", lambda: acceptor.promises.count)
    add("unlearned", "gauge", "Keys accepted and not learned", lambda: acceptor.unlearned)
    add(
        "promises_expired",
        "gauge",
        "Keys whose accepted value has expired, to be told to a replicator",
        lambda: acceptor.promises.expired,
    )
    _add_collection(metrics, node)
    metrics.add_counters("link", "of all links", node.link_counters)
    add("links_open", "gauge", "Links that others hold to this node", lambda: _links_open(node))
    _add_log(metrics, node)
    _add_scrub(metrics, node)


def _add_collection(metrics: Metrics, node: Node) -> None:
    """What collections do is among the counters of the replica."""
    table, replica, add = node.table, node.replica, metrics.add
    add("floors", "gauge", "Slots that were ever collected", lambda: len(replica.floors))
    add("sessions_open", "gauge", "Slots being collected", lambda: len(replica.sessions))
    add(
        "tombstones_held",
        "gauge",
        "Keys deleted or expired that are to be collected",
        lambda: table.ended_everywhere,
    )
    add(
        "promises_ended",
        "gauge",
        "Promises for keys that were deleted or never there, to be collected",
        lambda: replica.promises.ended_everywhere,
    )


def _add_log(metrics: Metrics, node: Node) -> None:
    """A node that still recovers has neither log nor upkeep: their figures are zeros."""

    def of_log(name: str) -> int:
        return 0 if node.log is None else int(getattr(node.log.counters, name))

    def of_upkeep(name: str) -> int:
        return 0 if node.upkeep is None else int(getattr(node.upkeep, name))

    add = metrics.add
    add("wal_size", "gauge", "Bytes in the log", lambda: node.log.used_bytes if node.log else 0)
    add("wal_frames", "counter", "Changes made durable", lambda: of_log("frames"))
    add("wal_bytes", "counter", "Bytes made durable", lambda: of_log("bytes"))
    add("wal_syncs", "counter", "Syncs of the log", lambda: of_log("batches"))
    metrics.add_histogram("wal_batch_frames", "Changes made durable by a sync", node.batch_sizes)
    add("snapshots", "counter", "Snapshots written", lambda: of_upkeep("snapshots"))
    add("snapshot_failures", "counter", "No room for one", lambda: of_upkeep("snapshot_failures"))
    add("snapshot_bytes", "gauge", "Size of the newest", lambda: of_upkeep("snapshot_bytes"))


def _add_scrub(metrics: Metrics, node: Node) -> None:
    def of(name: str) -> int:
        return 0 if node.scrub is None else int(getattr(node.scrub.counters, name))

    def age_s() -> float:
        return -1.0 if node.scrub is None else node.scrub.age_s

    add = metrics.add
    add("scrub_age_seconds", "gauge", "Since the last scrub ended; -1 if none did", age_s)
    add(
        "scrub_waiting",
        "gauge",
        "Keys taken out because of rot, that other replicas are to bring back",
        lambda: 0 if node.scrub is None else node.scrub.waiting,
    )
    for name, about in (
        ("passes", "Scrubs that have ended"),
        ("records", "Records compared with sums and digests"),
        ("file_bytes", "Bytes of files compared with their checksums"),
        ("found_in_memory", "What had rotted in memory"),
        ("found_on_disk", "Places where files were damaged"),
        ("mended", "What of this was mended"),
        ("unmendable", "Rot of which nobody had a sound copy"),
    ):
        add(f"scrub_{name}", "counter", about, partial(of, name))


def _links_open(node: Node) -> int:
    return 0 if node.server is None else len(node.server.connections)


def _catching_up(node: Node) -> int:
    return int(node.membership.catching_up)
