"""What a replicator shows of the cluster over HTTP: `GET /cluster`, for people and programs."""

from __future__ import annotations

from collections import Counter

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.cluster import ClusterMap
from services.replicator.readiness import slots_without_quorum
from services.replicator.replicator import Replicator
from services.runtime.fleet import FleetNode, node_state


def routes(replicator: Replicator) -> list[BaseRoute]:
    async def cluster(_: Request) -> Response:
        return JSONResponse(cluster_document(replicator), headers={"Cache-Control": "no-store"})

    return [Route("/cluster", cluster)]


def cluster_document(replicator: Replicator) -> dict[str, object]:
    """The map as this replicator has it, and how each node is; or what is missing for one."""
    membership, fleet = replicator.membership, replicator.fleet
    document: dict[str, object] = {
        "replicator_id": replicator.settings.replicator_id,
        "epoch": fleet.epoch,
        "database": membership.trouble or membership.objection,
    }
    if fleet.map is None:
        return {
            **document,
            "state": "forming",
            "cluster_size": replicator.settings.cluster_size,
            "missing": membership.missing,
            "nodes": {},
        }
    slots = _slots(fleet.map)
    return {
        **document,
        "state": "joint" if fleet.map.is_joint else "stable",
        "replication_factor": fleet.map.replication_factor,
        "slots_without_quorum": slots_without_quorum(fleet),
        "nodes": {
            node_id: {**_node(node, slots[node_id]), **_behind(replicator, node_id)}
            for node_id, node in sorted(fleet.nodes.items())
        },
    }


def _slots(known: ClusterMap) -> Counter[str]:
    """How many slots each node has a replica of."""
    owned: Counter[str] = Counter()
    for placement in known.placements:
        owned.update(placement.owners)
    return owned


def _node(node: FleetNode, slots: int) -> dict[str, object]:
    member = node.member
    return {
        "state": node_state(node),
        "store_id": member.store_id,
        "host": member.host,
        "http_port": member.http_port,
        "link_port": member.link_port,
        "zone": member.zone,
        "slots": slots,
        "link_error": None if node.link.connected else node.link.last_error,
    }


def _behind(replicator: Replicator, node_id: str) -> dict[str, object]:
    """What this replicator still has for a node, and for how long. `overflowed` tells whether
    the node misses more than that, which is found by comparing replicas."""
    coordinator = replicator.coordinator
    if coordinator is None:
        return {"retries": 0, "hints": 0, "overflowed": False, "lag_ms": 0}
    hints, clock = coordinator.hints, replicator.service.clock
    since_s = coordinator.eventual.retries.of(node_id)
    retried_ms = (clock.monotonic_s() - min(since_s)) * 1000 if since_s else 0
    return {
        "retries": len(since_s),
        "hints": hints.waiting.get(node_id, 0),
        "overflowed": bool(hints.mark(node_id)),
        "lag_ms": max(round(retried_ms), hints.lag_ms(node_id)),
    }
