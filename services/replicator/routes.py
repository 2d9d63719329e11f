"""What a replicator shows of the cluster over HTTP, for people and programs, and is told to do.

    GET  /cluster    the map, how each node is, repair and collection
    GET  /repair     how far the last order is
    POST /repair     compare replicas now: {"slots": [7, 8]}, or null for all; signed

A replicator compares the slots of its own share alone: who wants all of them asks every replicator.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Final

import msgspec
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.cluster import ClusterMap
from services.core.hlc import rfc3339
from services.core.ring import slot_count
from services.replicator.repair_document import (
    collection_document,
    order_document,
    repair_document,
)
from services.replicator.replicator import Replicator
from services.runtime.fleet import FleetNode, node_state
from services.runtime.request_body import read_json
from services.runtime.signing import RequireSignature, Verifier

# Nothing here may be kept by anybody: it is of this moment.
_fresh: Final = {"Cache-Control": "no-store"}

Slot = Annotated[int, msgspec.Meta(ge=0, lt=slot_count)]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which slots to compare now; None stands for all."""

    slots: Annotated[list[Slot], msgspec.Meta(max_length=slot_count)] | None = None


def routes(replicator: Replicator, verifier: Verifier) -> list[BaseRoute]:
    async def cluster(_: Request) -> Response:
        return JSONResponse(cluster_document(replicator), headers=_fresh)

    async def progress(_: Request) -> Response:
        return JSONResponse(order_document(replicator), headers=_fresh)

    async def order(request: Request) -> Response:
        wanted = await read_json(request, Order)
        coordinator = replicator.coordinator
        if (refusal := replicator.refusal) is not None:
            raise refusal
        if coordinator is not None:
            coordinator.anti_entropy.compare(wanted.slots)
        return JSONResponse(order_document(replicator), status_code=202, headers=_fresh)

    signed = [Middleware(RequireSignature, verifier=verifier)]
    return [
        Route("/cluster", cluster),
        Route("/repair", progress),
        Route("/repair", order, methods=["POST"], middleware=signed),
    ]


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
            "map": None,
            "nodes": {},
        }
    slots = _slots(fleet.map)
    coordinator = replicator.coordinator
    return {
        **document,
        "state": "joint" if fleet.map.is_joint else "stable",
        # For who has to know where keys are: what nodes and gateways route by.
        "map": json.loads(fleet.map.encode()),
        "replication_factor": fleet.map.replication_factor,
        "slots_without_quorum": fleet.slots_without_quorum,
        "nodes": {
            node_id: {**_node(replicator, node, slots[node_id]), **_behind(replicator, node_id)}
            for node_id, node in sorted(fleet.nodes.items())
        },
        "repair": None if coordinator is None else repair_document(coordinator),
        "collection": None if coordinator is None else collection_document(coordinator),
    }


def _slots(known: ClusterMap) -> Counter[str]:
    """How many slots each node has a replica of."""
    owned: Counter[str] = Counter()
    for placement in known.placements:
        owned.update(placement.owners)
    return owned


def _node(replicator: Replicator, node: FleetNode, slots: int) -> dict[str, object]:
    member = node.member
    return {
        "state": node_state(node),
        "since": rfc3339(replicator.node_states.since_ms(node)),
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
