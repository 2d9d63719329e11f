"""When a replicator can do what it is there for, and what is amiss while it does."""

from __future__ import annotations

from functools import partial

from services.core.ring import slot_count
from services.replicator.replicator import Replicator
from services.runtime.probes import Condition, Readiness, degraded, ready, unready


def add_conditions(readiness: Readiness, replicator: Replicator) -> None:
    readiness.add("cluster_map", partial(_has_map, replicator))
    readiness.add("database", partial(_has_database, replicator))
    readiness.add("clock", partial(_can_stamp, replicator))
    readiness.add("quorum", partial(_has_quorum, replicator))


def _has_map(replicator: Replicator) -> Condition:
    membership = replicator.membership
    if (forming := membership.forming) is not None:
        return unready(f"{forming.code}: {forming.detail}")
    return ready if membership.objection is None else degraded(membership.objection)


def _has_database(replicator: Replicator) -> Condition:
    """PostgreSQL is missed by nodes that register and by nobody else, once there is a map."""
    trouble = replicator.membership.trouble
    if trouble is None:
        return ready
    return degraded(f"the cluster goes on as it is, but nothing about it can change: {trouble}")


def _can_stamp(replicator: Replicator) -> Condition:
    coordinator = replicator.coordinator
    if coordinator is None:
        reason = replicator.allotment.trouble or "it is being asked"
        return unready(f"PostgreSQL has not given this replicator a stamper yet: {reason}")
    stamps = coordinator.stamps
    trouble = stamps.trouble
    if not stamps.ready:
        waiting = "the first ceiling of the clock is not durable yet"
        return unready(waiting if trouble is None else f"{waiting}: {trouble}")
    # Reads that find all replicas agree go on.
    return ready if trouble is None else degraded(f"writes are refused, or soon will be: {trouble}")


def _has_quorum(replicator: Replicator) -> Condition:
    """Named, and no more than degraded: the slots that have theirs go on."""
    lacking = replicator.fleet.slots_without_quorum
    if not lacking:
        return ready
    away = sorted(node_id for node_id, node in replicator.fleet.nodes.items() if not node.live)
    return degraded(
        f"{lacking:,} of {slot_count:,} slots have no majority of their replicas: "
        f"{', '.join(away)} cannot be reached"
    )
