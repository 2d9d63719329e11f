"""What replicators tell becomes one picture, and what is not well is said in words."""

from __future__ import annotations

from typing import Any

import pytest

from services.core.cluster_health import Told, age_in_words, health_of, node_urls
from services.core.hlc import rfc3339

now_ms = 1_790_000_000_000


def node(state: str = "live", **members: object) -> dict[str, Any]:
    return {
        "state": state,
        "since": rfc3339(now_ms - 720_000),
        "slots": 16_384,
        "link_error": None,
        "retries": 0,
        "hints": 0,
        "overflowed": False,
        "lag_ms": 0,
        **members,
    }


def document(number: int = 1, **members: object) -> dict[str, Any]:
    return {
        "replicator_id": f"replicator-{number}",
        "epoch": 1,
        "state": "stable",
        "database": None,
        "slots_without_quorum": 0,
        "nodes": {"node-1": node(), "node-2": node()},
        "repair": {
            "pass_s": 600,
            "slots": 8_192,
            "oldest_s": 300.0,
            "median_s": 100.0,
            "never_compared": 0,
            "differing_slots": 1,
            "differing_keys": 2,
            "records_sent": 3,
            "bytes_sent": 4,
            "below_floor": 0,
            "owing": {},
        },
        "collection": {
            "tombstones": 5,
            "collected": 6,
            "waiting": 0,
            "under_way": 0,
            "blocked": 0,
            "failing": 0,
            "trouble": None,
        },
        **members,
    }


def told(*documents: dict[str, Any]) -> list[Told]:
    return [Told(f"http://r{place}", one) for place, one in enumerate(documents)]


def test_a_cluster_that_is_well_has_no_reasons_and_sums() -> None:
    health = health_of(told(document(1), document(2)), now_ms)
    assert health.reasons == []
    assert health.document["well"] is True
    assert health.document["repair"]["slots"] == 16_384
    assert health.document["repair"]["oldest_s"] == 300.0
    assert health.document["collection"]["collected"] == 12
    assert set(health.document["replicators"]) == {"replicator-1", "replicator-2"}


def test_a_node_is_shown_as_who_is_worst_off_with_it_sees_it() -> None:
    away = node("unreachable", link_error="connection refused", hints=7, lag_ms=60_000)
    one, other = document(1), document(2)
    one["nodes"]["node-2"] = {**node(), "hints": 3}
    other["nodes"]["node-2"] = away
    health = health_of(told(one, other), now_ms)
    shown = health.document["nodes"]["node-2"]
    assert (shown["state"], shown["hints"], shown["lag_ms"]) == ("unreachable", 10, 60_000)
    [reason] = health.reasons
    assert reason.startswith("node-2 cannot be reached since 2026-")
    assert reason.endswith(", 12 min: connection refused")


def changed(member: str, **values: object) -> dict[str, Any]:
    one = document()
    one[member] = {**one[member], **values}
    return one


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (document(database="PostgreSQL cannot be asked"), "replicator-1: PostgreSQL cannot"),
        (document(slots_without_quorum=9), "9 slots have too few live owners"),
        (document(repair=None), "replicator-1 has no stamper yet"),
        (changed("repair", oldest_s=1_201.0), "some slot has not been compared with all its"),
        (changed("collection", blocked=4), "4 slots cannot be collected while a replica is away"),
        (
            changed("collection", failing=3, trouble="slot 7: node-1: storage_full"),
            "3 slots could not be collected in several attempts, and are tried again after the "
            "next pass: slot 7: node-1: storage_full",
        ),
        (
            changed("nodes", **{"node-1": node(overflowed=True)}),
            "node-1 misses more than hints hold",
        ),
        (changed("nodes", **{"node-1": node("silent")}), "node-1 does not answer since"),
        (changed("nodes", **{"node-1": node("catching_up")}), "node-1 has not all data yet since"),
    ],
)
def test_whatever_is_not_well_is_said(one: dict[str, Any], expected: str) -> None:
    [reason] = health_of(told(one), now_ms).reasons
    assert reason.startswith(expected)


def test_what_nodes_say_of_themselves_is_a_reason_where_they_can_be_asked() -> None:
    full = {"status": "degraded", "reasons": {"storage": "puts are refused: disk: no room"}}
    of_nodes = {"node-2": full, "node-1": {"status": "ready", "reasons": {}}, "node-9": full}
    health = health_of(told(document()), now_ms, of_nodes)
    assert health.reasons == ["node-2 says: puts are refused: disk: no room"]
    assert health.document["nodes"]["node-2"]["reasons"] == ["puts are refused: disk: no room"]
    assert health.document["nodes"]["node-1"]["reasons"] == []


def test_nodes_are_asked_that_somebody_is_connected_to() -> None:
    places: dict[str, Any] = {"host": "::1", "http_port": 8082}
    one = changed(
        "nodes",
        **{
            "node-1": node(**places),
            "node-2": node("silent", **places),
            "node-3": node("catching_up", host="10.0.0.3", http_port=8084),
        },
    )
    silent = Told("http://gone", None, "it cannot be asked: refused")
    assert node_urls([*told(one), silent]) == {
        "node-1": "http://[::1]:8082",
        "node-3": "http://10.0.0.3:8084",
    }
    assert node_urls([silent]) == {}


def test_a_slow_pass_is_no_reason_before_it_is_late_by_another() -> None:
    assert health_of(told(changed("repair", oldest_s=1_199.0)), now_ms).reasons == []


def test_a_cluster_that_forms_says_how_many_are_missing() -> None:
    forming = document(state="forming", epoch=0, missing=2, nodes={}, repair=None, collection=None)
    [reason] = health_of(told(forming), now_ms).reasons
    assert reason == "the cluster is forming: 2 nodes are missing"


def test_a_replicator_that_is_behind_or_silent_is_named() -> None:
    newest = document(1, epoch=3)
    silent = Told("http://gone", None, "it cannot be asked: refused")
    reasons = health_of([*told(newest, document(2)), silent], now_ms).reasons
    assert reasons[0] == "replicator at http://gone: it cannot be asked: refused"
    assert reasons[1].startswith("replicator-2 is behind: it knows the map of epoch 1")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (7_199.0, "120 min"),
        (7_200.0, "2 h"),
        (172_800.0, "2 days"),
    ],
)
def test_ages_are_told_as_people_say_them(seconds: float, words: str) -> None:
    assert age_in_words(seconds) == words
