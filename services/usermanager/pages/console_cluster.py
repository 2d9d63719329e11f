"""The cluster as operators see it: the ring, nodes, what is not well, and where a key lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
from starlette.responses import Response

from services.core.cluster_health import Document, age_in_words
from services.core.errors import FixRequest
from services.core.key import check_key, check_namespace, storage_key, tenant_max
from services.core.ring import slot_count, slot_of, virtual_nodes_per_node
from services.usermanager.cluster_looks import ClusterLooks, Look
from services.usermanager.pages.console_cluster_ring import RingDrawing, centre, size
from services.usermanager.pages.page import Audience, Page, Visit, errors_of

# How often an open page looks again, while somebody sees it.
refresh_ms: Final = 3_000
# With nobody to ask, the page is what can be told all the same.
away_status: Final = 503

_state_words: Final[Mapping[str, tuple[str, str]]] = {
    "live": ("live", "good"),
    "catching_up": ("catching up", "warn"),
    "silent": ("silent", "warn"),
    "unreachable": ("unreachable", "bad"),
}


class KeyQuery(msgspec.Struct, frozen=True):
    """A key to be looked up; none is asked for while it is empty."""

    key: str = ""
    namespace: str = "default"
    # Whose it is, by number; the visitor's own if it is empty.
    account: str = ""


@dataclass(slots=True, frozen=True)
class NodeRow:
    name: str
    zone: str
    words: str
    kind: str
    since: datetime
    trouble: str | None
    slots: int
    hints: int
    lag: str
    # None where the node cannot be asked from here.
    keys: int | None
    stored_bytes: int | None
    log_bytes: int | None


@dataclass(slots=True, frozen=True)
class Replica:
    node: str
    words: str
    kind: str


@dataclass(slots=True, frozen=True)
class Found:
    """Where a key lies: its replicas in the order in which they are asked while all are live."""

    key: str
    slot: int
    # Of the ring, clockwise from the top, in degrees.
    angle: float
    replicas: Sequence[Replica]


class ClusterPages:
    def __init__(self, looks: ClusterLooks) -> None:
        self._looks = looks
        self._drawing: RingDrawing | None = None

    def pages(self) -> list[Page]:
        return [
            Page("GET", "/console/cluster", self.show, Audience.OPERATORS),
            Page("GET", "/console/cluster/state", self.state, Audience.OPERATORS),
            Page("GET", "/console/cluster/key", self.key, Audience.OPERATORS),
        ]

    async def show(self, visit: Visit) -> Response:
        look = await self._looks.look()
        return visit.render(
            "console/cluster.html",
            _status(look),
            **self._seen(look),
            **_looked_up(visit, look),
            ring=self._drawn(look),
            ring_size=size,
            ring_centre=centre,
            points_per_node=virtual_nodes_per_node,
            refresh_ms=refresh_ms,
        )

    async def state(self, visit: Visit) -> Response:
        """What changes from moment to moment, for an open page."""
        look = await self._looks.look()
        return visit.render("console/_cluster_state.html", _status(look), **self._seen(look))

    async def key(self, visit: Visit) -> Response:
        """The form with what it has found, or with what is wrong with what it was given."""
        look = await self._looks.look()
        context = _looked_up(visit, look)
        status = 400 if context["errors"] else _status(look)
        return visit.render("console/_cluster_key.html", status, **context)

    def _seen(self, look: Look) -> dict[str, Any]:
        document = look.health.document
        ring = self._drawn(look)
        return {
            "look": look,
            "well": document,
            "troubles": [one for one in look.found.told if one.trouble is not None],
            "nodes": _rows(look),
            "replicators": _replicators(document["replicators"]),
            "shares": {} if ring is None else {share.node: share for share in ring.shares},
            "slot_count": slot_count,
            "age": age_in_words,
        }

    def _drawn(self, look: Look) -> RingDrawing | None:
        known = look.map
        if known is None:
            return None
        if self._drawing is None or self._drawing.epoch != known.epoch:
            self._drawing = RingDrawing.of(known)
        return self._drawing


def _status(look: Look) -> int:
    return away_status if look.is_silent else 200


def _rows(look: Look) -> list[NodeRow]:
    return [
        _row(name, node, look.found.figures.get(name, {}))
        for name, node in look.health.document["nodes"].items()
    ]


def _row(name: str, node: Document, figures: Document) -> NodeRow:
    words, kind = _state_words.get(node["state"], (node["state"], "bad"))
    return NodeRow(
        name=name,
        zone=node.get("zone", ""),
        words=words,
        kind=kind,
        since=datetime.fromisoformat(node["since"]),
        trouble=node["link_error"] or next(iter(node["reasons"]), None),
        slots=node["slots"],
        hints=node["hints"],
        lag=age_in_words(node["lag_ms"] / 1000) if node["lag_ms"] else "none",
        keys=figures.get("key_count"),
        stored_bytes=figures.get("stored_bytes"),
        log_bytes=figures.get("wal_size"),
    )


def _replicators(known: Document) -> list[Document]:
    """In order of their names; what a replicator that coordinates nothing lacks is left out."""
    return [{"name": name, **one} for name, one in sorted(known.items())]


def _looked_up(visit: Visit, look: Look) -> dict[str, Any]:
    """What the form is shown with."""
    asked = KeyQuery()
    found, errors = None, {}
    try:
        asked = visit.query(KeyQuery)
        if asked.key:
            found = _find(asked, visit.tenant, look)
        elif "key" in visit.request.query_params:
            errors = {"key": "Type a key to look up"}
    except FixRequest as refusal:
        errors = errors_of(refusal)
    return {"asked": asked, "found": found, "errors": errors, "is_known": look.map is not None}


def _find(asked: KeyQuery, own: int, look: Look) -> Found | None:
    """None while no map is known."""
    named: dict[str, bytes] = {}
    for member, check in (("key", check_key), ("namespace", check_namespace)):
        try:
            named[member] = check(getattr(asked, member).encode())
        except FixRequest as refusal:
            raise _wrong(refusal, member, refusal.detail) from None
    tenant = _tenant(asked.account.strip(), own)
    if look.map is None:
        return None
    slot = slot_of(storage_key(tenant, named["namespace"], named["key"]))
    states = look.health.document["nodes"]
    return Found(
        key=asked.key,
        slot=slot,
        angle=360 * (slot + 0.5) / slot_count,
        replicas=[
            Replica(
                node, *_state_words.get(states.get(node, {}).get("state", ""), ("unknown", "warn"))
            )
            for node in look.map.owners(slot)
        ],
    )


def _tenant(account: str, own: int) -> int:
    if not account:
        return own
    if account.isascii() and account.isdecimal() and len(account) <= len(str(tenant_max)):
        tenant = int(account)
        if tenant <= tenant_max:
            return tenant
    words = "An account is told by its number, which its owner finds on the page Account"
    raise _wrong(None, "account", words)


def _wrong(refusal: FixRequest | None, member: str, detail: str) -> FixRequest:
    code = "invalid_query" if refusal is None else refusal.code
    return FixRequest(code, detail, members={"member": member})
