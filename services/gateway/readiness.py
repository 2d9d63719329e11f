"""When a gateway can do what it is there for, and what is amiss while it does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from services.core.placement import Placement
from services.core.ring import slot_count
from services.gateway.cluster import Cluster
from services.runtime.fleet import Fleet, node_state
from services.runtime.probes import Condition, Readiness, degraded, ready, unready
from services.runtime.replicators import Replicators


def add_conditions(readiness: Readiness, cluster: Cluster) -> None:
    readiness.add("cluster_map", partial(_has_map, cluster))
    readiness.add("replicators", partial(has_replicators, cluster.replicators))
    readiness.add("replicas", partial(has_replicas, cluster.fleet))


def health(cluster: Cluster) -> Mapping[str, object]:
    """The nodes, as this gateway finds them."""
    nodes = [
        {"node_id": node_id, "state": node_state(node)}
        for node_id, node in sorted(cluster.fleet.nodes.items())
    ]
    return {"nodes": nodes}


def _has_map(cluster: Cluster) -> Condition:
    if cluster.fleet.map is None:
        absence = cluster.absence
        return unready(f"{absence.code}: {absence.detail}")
    return ready if cluster.objection is None else degraded(cluster.objection)


def has_replicators(replicators: Replicators) -> Condition:
    """Without any, eventual reads go on, which is what a gateway is there for too.

    That one of them is away is told so that who restarts one after the other knows when the next
    may go: a gateway asks one that is back only once its own link to it is.
    """
    live, count = replicators.live, replicators.count
    if live == count:
        return ready
    if live:
        return degraded(f"{count - live} of {count} replicators cannot be asked; the others are")
    return degraded(f"writes and strong reads are refused: {replicators.absence.detail}")


def has_replicas(fleet: Fleet) -> Condition:
    """Unready only where no slot can be read: of some that can be, others know no more."""
    away = sorted(node_id for node_id, node in fleet.nodes.items() if not node.live)
    if not away:
        return ready
    names = ", ".join(away)
    if lacking := fleet.slots_without(_can_be_read):
        condition = unready if lacking == slot_count else degraded
        return condition(
            f"{lacking:,} of {slot_count:,} slots cannot be read: {names} cannot be reached"
        )
    if lacking := fleet.slots_without_quorum:
        return degraded(
            f"strong requests are refused for {lacking:,} of {slot_count:,} slots, which have no "
            f"majority of their replicas: {names} cannot be reached"
        )
    return degraded(f"the others answer for {names}, which cannot be reached")


def _can_be_read(placement: Placement, live: int) -> bool:
    """New owners have not all of the data yet."""
    return bool(live & placement.old_mask)
