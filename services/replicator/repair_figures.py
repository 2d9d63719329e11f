"""The figures of anti-entropy and collection for /metrics: empty until there is a stamper."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.replicator.coordinator import Coordinator
from services.replicator.replicator import Replicator
from services.runtime.metrics import Metrics


def add_repair_figures(metrics: Metrics, replicator: Replicator) -> None:
    def of(read: Callable[[Coordinator], float]) -> Callable[[], float]:
        def number() -> float:
            coordinator = replicator.coordinator
            return 0 if coordinator is None else read(coordinator)

        return number

    def by_name(
        read: Callable[[Coordinator], Mapping[str, int]],
    ) -> Callable[[], Mapping[str, int]]:
        def numbers() -> Mapping[str, int]:
            coordinator = replicator.coordinator
            return {} if coordinator is None else read(coordinator)

        return numbers

    metrics.add_counters("repair", "of comparing replicas", replicator.repair_counters)
    add = metrics.add
    text = "Seconds since a slot of this replicator's share was compared with all its owners"
    add("repair_oldest_s", "gauge", text, of(lambda of: of.anti_entropy.ages().oldest_s))
    text = "The same of half of the slots, at most"
    add("repair_median_s", "gauge", text, of(lambda of: of.anti_entropy.ages().median_s))
    text = "Slots that are this replicator's to compare"
    add("repair_slots", "gauge", text, of(lambda of: of.anti_entropy.ages().slots))
    text = "Slots still to be compared before a node is told that it has caught up"
    read_owing = by_name(lambda of: of.anti_entropy.owing)
    add("repair_owing", "gauge", text, read_owing, labels=("node",))
    text = "Tombstones and the like in these slots, as they were compared last"
    add("tombstones_held", "gauge", text, of(lambda of: of.anti_entropy.tombstones))
    for name, text, read in (
        ("waiting", "Slots that wait to be collected", of(lambda of: of.collector.waiting)),
        ("under_way", "Slots that are being collected", of(lambda of: of.collector.under_way)),
        (
            "blocked",
            "Slots that cannot be collected, for a replica is gone",
            of(lambda of: of.collector.blocked),
        ),
        (
            "failing",
            "Slots that were given up after some attempts, and not collected since",
            of(lambda of: of.collector.failing),
        ),
    ):
        add(f"collection_{name}", "gauge", text, read)
    for name, text in (
        ("tombstones", "Tombstones collected"),
        ("promises", "Promises collected with them"),
        ("attempts", "Attempts to collect a slot"),
        ("repaired", "Records that replicas lacked when their slot was collected"),
        ("given_up", "Slots left to a later pass after some attempts"),
    ):
        add(f"collection_{name}", "counter", text, of(_counter(name)))
    text = "Attempts to collect a slot, by how they ended"
    ended = by_name(lambda of: {end.value: n for end, n in of.collector.counters.ended.items()})
    add("collection_ended", "counter", text, ended, labels=("end",))


def _counter(name: str) -> Callable[[Coordinator], float]:
    def read(coordinator: Coordinator) -> float:
        number: float = getattr(coordinator.collector.counters, name)
        return number

    return read
