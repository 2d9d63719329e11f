"""What the console knows of the cluster: by replicators that answer, are away, or are none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest

from services.core.cluster import ClusterMap, Member
from services.core.hlc import rfc3339
from services.runtime.clock import FakeClock, Timeline
from services.usermanager.cluster_looks import ClusterLooks, kept_s

members = tuple(
    Member(f"node-{number}", f"{number:032x}", f"node{number}", 8_000 + number, 9_000 + number)
    for number in (1, 2, 3)
)
first_map = ClusterMap(1, 3, members)
Handler = Callable[[httpx.Request], httpx.Response]


def told(known: ClusterMap = first_map, **more: object) -> dict[str, Any]:
    node = {
        "state": "live",
        "since": rfc3339(FakeClock.epoch_ms),
        "zone": "",
        "slots": 16_384,
        "link_error": None,
        "retries": 0,
        "hints": 0,
        "overflowed": False,
        "lag_ms": 0,
    }
    return {
        "replicator_id": "replicator-1",
        "epoch": known.epoch,
        "state": "stable",
        "database": None,
        "slots_without_quorum": 0,
        "map": json.loads(known.encode()),
        "nodes": {
            member.node_id: {**node, "host": member.host, "http_port": member.http_port}
            for member in known.members
        },
        "repair": None,
        "collection": None,
        **more,
    }


class Platform:
    """Answers by host and path; who is not in it cannot be reached."""

    def __init__(self) -> None:
        self.answers: dict[str, Mapping[str, object] | bytes] = {"replicator/cluster": told()}
        for number in (1, 2, 3):
            self.answers[f"node{number}/ready"] = {"status": "ready", "reasons": {}}
            self.answers[f"node{number}/metrics"] = {"key_count": number, "wal_size": 7}
        self.asked: list[str] = []
        self.timeline = Timeline()
        self.looks = ClusterLooks(
            ["http://replicator", "http://other"],
            "tests sign by this secret 8c02",
            FakeClock(self.timeline),
            transport=httpx.MockTransport(self),
        )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        place = request.url.host + request.url.path
        self.asked.append(place)
        answer = self.answers.get(place)
        if answer is None:
            raise httpx.ConnectError("refused")
        if isinstance(answer, bytes):
            return httpx.Response(200, content=answer)
        return httpx.Response(200, json=answer)


async def test_nodes_are_known_with_their_own_figures() -> None:
    platform = Platform()
    look = await platform.looks.look()
    assert look.map == first_map
    assert {name: one["key_count"] for name, one in look.found.figures.items()} == {
        "node-1": 1,
        "node-2": 2,
        "node-3": 3,
    }
    # The other replicator is away, and somebody has to hear of it.
    assert any("http://other" in reason for reason in look.health.reasons)


async def test_a_node_out_of_reach_has_no_figures_and_all_else_is_told() -> None:
    platform = Platform()
    for path in ("ready", "metrics"):
        del platform.answers[f"node2/{path}"]
    look = await platform.looks.look()
    assert look.found.figures.keys() == {"node-1", "node-3"}
    assert look.health.document["nodes"].keys() == {"node-1", "node-2", "node-3"}


async def test_many_who_look_ask_once() -> None:
    platform = Platform()
    looks = await asyncio.gather(*(platform.looks.look() for _ in range(20)))
    assert len(set(map(id, looks))) == 1
    assert platform.asked.count("replicator/cluster") == 1
    platform.timeline.advance(kept_s + 0.1)
    await platform.looks.look()
    assert platform.asked.count("replicator/cluster") == 2


async def test_where_keys_lie_stays_known_while_nobody_answers() -> None:
    platform = Platform()
    await platform.looks.look()
    platform.answers.clear()
    platform.timeline.advance(kept_s + 0.1)
    look = await platform.looks.look()
    assert look.is_silent
    assert look.map == first_map
    assert look.health.document["nodes"] == {}


async def test_the_newest_map_counts_whoever_tells_it() -> None:
    platform = Platform()
    newer = ClusterMap(3, 3, (*members, Member("node-4", f"{4:032x}", "node4", 8_004, 9_004)))
    platform.answers["other/cluster"] = told(newer, replicator_id="replicator-2")
    assert (await platform.looks.look()).map == newer
    platform.answers["other/cluster"] = told(first_map, replicator_id="replicator-2")
    platform.timeline.advance(kept_s + 0.1)
    assert (await platform.looks.look()).map == newer


@pytest.mark.parametrize("map_told", [None, 7, {}, {"format": 2}, "map", [1]])
async def test_a_map_that_cannot_be_read_is_none(map_told: object) -> None:
    platform = Platform()
    platform.answers["replicator/cluster"] = told(map=map_told)
    look = await platform.looks.look()
    assert look.map is None
    assert look.health.document["nodes"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"status": "healthy"}', b"\xff<html>"])
async def test_who_is_no_replicator_is_told_of_as_such(content: bytes) -> None:
    platform = Platform()
    platform.answers["replicator/cluster"] = content
    look = await platform.looks.look()
    assert look.is_silent
    assert look.map is None
    assert "it answers what no" in str(look.found.told[0].trouble)
