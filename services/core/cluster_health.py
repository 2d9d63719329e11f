"""How a cluster is by what its replicators tell: one picture, and what is not well in words.

Replicators see nodes with their own eyes. Where they disagree the worst is shown: a node that one
of them cannot reach misses what that one writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from services.core.hlc import rfc3339

Document = Mapping[str, Any]

# From well to unwell.
_states: Final = ("live", "catching_up", "silent", "unreachable")
_connected: Final = _states[:2]
# A pass that is late by another one has not just met a busy hour.
late_passes: Final = 2
_in_words: Final = {
    "catching_up": "has not all data yet",
    "silent": "does not answer",
    "unreachable": "cannot be reached",
}
_repair_sums: Final = (
    "slots",
    "never_compared",
    "differing_slots",
    "differing_keys",
    "records_sent",
    "bytes_sent",
    "below_floor",
)
_collection_sums: Final = (
    "tombstones",
    "collected",
    "waiting",
    "under_way",
    "blocked",
    "failing",
)


@dataclass(frozen=True, slots=True)
class Told:
    """What a service has answered, or why it has not."""

    url: str
    document: Document | None
    trouble: str | None = None


@dataclass(slots=True, frozen=True)
class Health:
    """What `ydht cluster status` and the console show. `document` is all of it for programs."""

    document: dict[str, Any]
    reasons: list[str]


def node_urls(told: Sequence[Told]) -> dict[str, str]:
    """Where the nodes are that somebody is connected to, by name."""
    documents = [one.document for one in told if one.document is not None]
    newest = max(documents, key=lambda one: one["epoch"], default=None)
    nodes = {} if newest is None else _nodes(newest, documents)
    urls = {}
    for name, node in nodes.items():
        if node["state"] in _connected:
            host = f"[{node['host']}]" if ":" in node["host"] else node["host"]
            urls[name] = f"http://{host}:{node['http_port']}"
    return urls


def health_of(
    told: Sequence[Told], now_ms: int, of_nodes: Mapping[str, Document] | None = None
) -> Health:
    """One picture of what all replicators tell, and why it is not well if it is not. `of_nodes` is
    what nodes tell of their own readiness, by name, as far as they could be asked."""
    documents = {one.url: one.document for one in told if one.document is not None}
    reasons = [f"replicator at {one.url}: {one.trouble}" for one in told if one.trouble is not None]
    newest = max(documents.values(), key=lambda one: one["epoch"], default=None)
    nodes = {} if newest is None else _nodes(newest, documents.values())
    for name, ready in (of_nodes or {}).items():
        if name in nodes:
            nodes[name]["reasons"] = list(ready.get("reasons", {}).values())
    repair = _summed(documents.values(), "repair", _repair_sums)
    collection = _summed(documents.values(), "collection", _collection_sums)
    collections = [one["collection"] for one in documents.values() if one.get("collection")]
    troubles = (one["trouble"] for one in collections if one["trouble"])
    collection["trouble"] = next(troubles, None)
    repairs = [one["repair"] for one in documents.values() if one.get("repair")]
    repair["oldest_s"] = max((one["oldest_s"] for one in repairs), default=0.0)
    repair["median_s"] = max((one["median_s"] for one in repairs), default=0.0)
    repair["pass_s"] = max((one["pass_s"] for one in repairs), default=0.0)
    if newest is not None:
        reasons += _of_replicators(newest, documents.values())
        reasons += [
            reason for name, node in nodes.items() for reason in _of_node(name, node, now_ms)
        ]
        reasons += _of_slots(newest, repair, collection)
    document: dict[str, Any] = {
        "time": rfc3339(now_ms),
        "well": not reasons,
        "reasons": reasons,
        "epoch": 0 if newest is None else newest["epoch"],
        "state": "unknown" if newest is None else newest["state"],
        "nodes": nodes,
        "replicators": {
            one["replicator_id"]: {"url": url, **_replicator(one)} for url, one in documents.items()
        },
        "repair": repair,
        "collection": collection,
    }
    return Health(document, reasons)


def age_in_words(seconds: float) -> str:
    """For people: 40 s, 12 min, 3 h, 2 days."""
    for unit, size_s, until in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < until * size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def _nodes(newest: Document, documents: Iterable[Document]) -> dict[str, dict[str, Any]]:
    """Each node of the newest map, as the replicator that is worst off with it sees it."""
    found: dict[str, dict[str, Any]] = {}
    for name in newest["nodes"]:
        views = [one["nodes"][name] for one in documents if name in one["nodes"]]
        worst = max(views, key=lambda view: _badness(view["state"]))
        found[name] = {
            **worst,
            "retries": sum(view["retries"] for view in views),
            "hints": sum(view["hints"] for view in views),
            "overflowed": any(view["overflowed"] for view in views),
            "lag_ms": max(view["lag_ms"] for view in views),
            "owed_slots": max((_owing(one).get(name, 0) for one in documents), default=0),
            "reasons": [],
        }
    return found


def _badness(state: str) -> int:
    return _states.index(state) if state in _states else len(_states)


def _owing(document: Document) -> Mapping[str, int]:
    repair = document.get("repair") or {}
    owing: Mapping[str, int] = repair.get("owing", {})
    return owing


def _summed(documents: Iterable[Document], member: str, names: Sequence[str]) -> dict[str, Any]:
    parts = [one[member] for one in documents if one.get(member)]
    return {name: sum(part[name] for part in parts) for name in names}


def _replicator(document: Document) -> dict[str, Any]:
    return {
        name: document.get(name) for name in ("epoch", "state", "database", "repair", "collection")
    }


# What is not well.


def _of_replicators(newest: Document, documents: Iterable[Document]) -> list[str]:
    reasons = []
    if newest["state"] == "forming":
        reasons.append(f"the cluster is forming: {newest['missing']} nodes are missing")
    for one in documents:
        name = one["replicator_id"]
        if one["database"] is not None:
            reasons.append(f"{name}: {one['database']}")
        if one["epoch"] < newest["epoch"]:
            reasons.append(
                f"{name} is behind: it knows the map of epoch {one['epoch']}, and the newest is "
                f"of {newest['epoch']}"
            )
        elif one["state"] != "forming" and one.get("repair") is None:
            reasons.append(f"{name} has no stamper yet and coordinates nothing")
    return reasons


def _of_node(name: str, node: Mapping[str, Any], now_ms: int) -> list[str]:
    reasons = []
    if node["state"] != "live":
        since = datetime.fromisoformat(node["since"])
        age_s = max(0.0, now_ms / 1000 - since.timestamp())
        words = _in_words.get(node["state"], node["state"])
        shown = since.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        why = f": {node['link_error']}" if node["link_error"] else ""
        reasons.append(f"{name} {words} since {shown}, {age_in_words(age_s)}{why}")
    if node["overflowed"]:
        left = f"{node['owed_slots']} slots are left" if node["owed_slots"] else "it has to be back"
        reasons.append(
            f"{name} misses more than hints hold, and is compared with the others: {left}"
        )
    reasons += [f"{name} says: {reason}" for reason in node["reasons"]]
    return reasons


def _of_slots(
    newest: Document, repair: Mapping[str, Any], collection: Mapping[str, Any]
) -> list[str]:
    reasons = []
    if newest.get("slots_without_quorum"):
        reasons.append(
            f"{newest['slots_without_quorum']} slots have too few live owners for strong operations"
        )
    if repair["pass_s"] and repair["oldest_s"] > late_passes * repair["pass_s"]:
        reasons.append(
            "some slot has not been compared with all its owners for "
            f"{age_in_words(repair['oldest_s'])}, and a pass takes "
            f"{age_in_words(repair['pass_s'])}"
        )
    if collection["blocked"]:
        reasons.append(
            f"{collection['blocked']} slots cannot be collected while a replica is away: until it "
            "is back, what is deleted there goes on taking memory on the others"
        )
    if collection["failing"]:
        reasons.append(
            f"{collection['failing']} slots could not be collected in several attempts, and are "
            f"tried again after the next pass: {collection['trouble']}"
        )
    return reasons
