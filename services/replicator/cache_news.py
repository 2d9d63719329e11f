"""Who is told which namespaces are caches: nodes their share of each, gateways the whole.

A list travels whole, under an edition that tells which of two is the newer one, and is told on
every new connection and whenever it has changed: one at a time on each, and once a second unless
somebody waits for it, so that of many changes in a row a peer hears of the last. It acknowledges by
the edition that it knows then. Who did not, as after a message that was lost, is told again by
`remind`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from services.core.errors import PeerError
from services.core.messages import CACHES, MALFORMED
from services.core.namespaces import (
    Cache,
    Edition,
    decode_edition,
    encode_caches,
    no_edition,
)
from services.core.wire import OK, Role
from services.replicator.declared import Declared
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet
from services.runtime.opening import readable
from services.runtime.peer import SENT, Peer

# A node answers once the list is durable.
told_s_max: Final = 5.0
# Who changes a limit again and again does not have a megabyte sent to everybody each time.
told_every_s: Final = 1.0
# For who declares, that the nodes know. One that is busy takes some milliseconds.
awaited_s_max: Final = 1.0

Told = Callable[[list[str]], None]
"""Called once with the names of the nodes that are connected and did not say that they know."""


@dataclass(slots=True)
class _Told:
    """What a peer has acknowledged."""

    edition: Edition = no_edition
    # When it was told last.
    at_s: float = -math.inf
    # Whether it is being told just now.
    asking: bool = False
    # Whether it has refused a list, which was logged.
    objected: bool = False


@dataclass(slots=True, eq=False)
class _Awaited:
    version: int
    told: Told


class CacheNews:
    def __init__(
        self, declared: Declared, fleet: Fleet, is_member: Callable[[Peer], bool], clock: Clock
    ) -> None:
        self._declared = declared
        self._fleet = fleet
        # Whether a node is one of the map, with the store that it has there.
        self._is_member = is_member
        self._clock = clock
        self._told: dict[Peer, _Told] = {}
        self._awaited: list[_Awaited] = []
        # Whether those who were not told, because they had been told just before, soon will be.
        self._due = False
        # What was encoded last: for nodes, and for all others.
        self._encoded: dict[bool, tuple[Edition, bytes]] = {}
        self._said = telemetry.logger("services.replicator")

    @property
    def edition(self) -> Edition:
        return Edition(self._declared.now.version, self._fleet.epoch)

    def came(self, peer: Peer) -> None:
        """A peer is connected. One that has been with us before may have lost what it was told."""
        if peer.hello.role in (Role.NODE, Role.GATEWAY):
            self._told[peer] = _Told()
            self._tell(peer)

    def went(self, peer: Peer) -> None:
        self._told.pop(peer, None)
        self._look()

    def remind(self) -> None:
        """Tell everybody who does not know the newest list."""
        for peer in list(self._told):
            self._tell(peer)

    def await_nodes(self, told: Told) -> None:
        """Everybody is told at once; `told` is called once the nodes that are connected know what
        is declared now, or after a second."""
        awaited = _Awaited(self._declared.now.version, told)
        self._awaited.append(awaited)
        self._clock.call_later(awaited_s_max, partial(self._late, awaited))
        self.remind()
        self._look()

    # -- telling

    def _tell(self, peer: Peer) -> None:
        """Send the list to a peer that has not acknowledged it, if that is any of its business."""
        told, edition = self._told[peer], self.edition
        # Without a map nobody knows how many shares there are.
        if not edition.epoch or told.asking or told.edition >= edition:
            return
        if peer.hello.role is Role.NODE and not self._is_member(peer):
            return
        now_s = self._clock.monotonic_s()
        if now_s < told.at_s + told_every_s and not self._awaits_more_than(told.edition):
            self._tell_soon()
            return
        told.at_s = now_s
        body = self._body(edition, shares=peer.hello.role is Role.NODE)
        heard = partial(self._heard, peer, told, edition)
        told.asking = peer.request(CACHES, body, heard, told_s_max) == SENT

    def _awaits_more_than(self, known: Edition) -> bool:
        return any(awaited.version > known.version for awaited in self._awaited)

    def _tell_soon(self) -> None:
        if not self._due:
            self._due = True
            self._clock.call_later(told_every_s, self._now_due)

    def _now_due(self) -> None:
        self._due = False
        self.remind()

    def _body(self, edition: Edition, *, shares: bool) -> bytes:
        encoded = self._encoded.get(shares)
        if encoded is None or encoded[0] != edition:
            caches = [
                Cache(prefix, self._share(max_items) if shares else max_items)
                for prefix, max_items in self._declared.now.caches.items()
            ]
            encoded = self._encoded[shares] = edition, encode_caches(edition, caches)
        return encoded[1]

    def _share(self, max_items: int) -> int:
        """What one node keeps of a cache, so that all of them have each of its keys N times."""
        known = self._fleet.map
        if known is None:
            raise RuntimeError("there are no shares without a map")
        return -(-max_items * known.replication_factor // len(known.members))

    def _heard(self, peer: Peer, told: _Told, edition: Edition, kind: int, body: bytes) -> None:
        told.asking = False
        if kind == MALFORMED and not told.objected:
            told.objected = True
            self._said.error(
                "a peer refuses the list of caches", peer=peer.hello.id, reason=readable(body)
            )
        if self._told.get(peer) is not told or kind != OK:
            return
        try:
            told.edition = decode_edition(body)
        except PeerError:
            return
        self._look()
        if told.edition >= edition:
            # There may be a newer list meanwhile. A peer that could not take this one has time.
            self._tell(peer)

    # -- those who wait for the nodes

    def _untold(self, version: int) -> list[str]:
        """The nodes that are connected and have not said that they know this version."""
        knows: dict[str, bool] = {}
        for peer, told in self._told.items():
            if self._is_member(peer):
                known = told.edition.version >= version
                knows[peer.hello.id] = knows.get(peer.hello.id, False) or known
        return sorted(node_id for node_id, known in knows.items() if not known)

    def _look(self) -> None:
        """See who need not wait any longer."""
        for awaited in list(self._awaited):
            if not self._untold(awaited.version):
                self._awaited.remove(awaited)
                awaited.told([])

    def _late(self, awaited: _Awaited) -> None:
        if awaited in self._awaited:
            self._awaited.remove(awaited)
            awaited.told(self._untold(awaited.version))
