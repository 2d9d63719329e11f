"""What comparing replicas and collecting have come to, for `/cluster` and `/repair`."""

from __future__ import annotations

from services.replicator.coordinator import Coordinator
from services.replicator.replicator import Replicator


def repair_document(coordinator: Coordinator) -> dict[str, object]:
    """The repair of this replicator's share of slots; ages are of the last whole comparison."""
    anti_entropy = coordinator.anti_entropy
    ages, counters = anti_entropy.ages(), anti_entropy.counters
    return {
        "replicators": list(coordinator.shares.replicators),
        "pass_s": anti_entropy.pass_s,
        "slots": ages.slots,
        "oldest_s": ages.oldest_s,
        "median_s": ages.median_s,
        "never_compared": ages.never,
        "passes": counters.passes,
        "differing_slots": counters.slots_differing,
        "differing_keys": counters.keys_differing,
        "records_sent": counters.records_sent,
        "bytes_sent": counters.bytes_sent,
        "below_floor": counters.below_floor,
        "refused": counters.records_refused,
        "owing": anti_entropy.owing,
        "ordered": anti_entropy.ordered,
    }


def collection_document(coordinator: Coordinator) -> dict[str, object]:
    collector, anti_entropy = coordinator.collector, coordinator.anti_entropy
    counters = collector.counters
    return {
        "tombstones": anti_entropy.tombstones,
        "collected": counters.tombstones,
        "promises_collected": counters.promises,
        "waiting": collector.waiting,
        "under_way": collector.under_way,
        "blocked": collector.blocked,
        "failing": (failing := collector.failing),
        "trouble": collector.trouble if failing else None,
        "attempts": counters.attempts,
        "given_up": counters.given_up,
        "ended": {end.value: count for end, count in counters.ended.items()},
    }


def order_document(replicator: Replicator) -> dict[str, object]:
    """How far the last order of an operator is."""
    document: dict[str, object] = {"replicator_id": replicator.settings.replicator_id}
    coordinator = replicator.coordinator
    if coordinator is None or (order := coordinator.anti_entropy.order) is None:
        return {**document, "state": "none", "slots": 0, "left": 0}
    found = order.found
    running = coordinator.anti_entropy.ordered
    return {
        **document,
        "state": "running" if running else "done",
        "number": coordinator.anti_entropy.orders,
        "slots": order.total,
        "left": order.left,
        "trouble": order.trouble if order.left else None,
        "differing_slots": found.slots,
        "differing_keys": found.keys,
        "records_sent": found.records,
        "bytes_sent": found.bytes,
        "collecting": coordinator.collector.waiting + coordinator.collector.under_way,
        "blocked": coordinator.collector.blocked,
    }
