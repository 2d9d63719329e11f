"""How a node joins: it tells each replicator that it reaches who it is, and hears what it is.

link up ──REGISTER──► taken: the map, or how many nodes are missing for one, which comes later
             ▲   └──► refused: this process ends, or says so if it was taken before
             ├─pause── not now: PostgreSQL is away, or the answer was lost
             └─pause── a later map has this node at another address: somebody took its place
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Final

from services.core.cluster import Member
from services.core.errors import FatalError, PeerError
from services.core.messages import NOT_WELCOME, REGISTER, TRY_LATER, decode_registered
from services.core.packed_bodies import encode_body
from services.core.wire import OK, Role
from services.dhtnode.membership import Membership
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.opening import readable
from services.runtime.peer import SENT, Peer

# A replicator waits for PostgreSQL that long, with other nodes before us.
answer_s_max: Final = 15.0
pause_s_min: Final = 0.1
pause_s_max: Final = 10.0


class Registrar:
    """Registers `member` with every replicator that `came` tells of, until it is taken there.

    `fail` ends the process when it is refused. A node that was taken in this life stays: one
    replicator with other settings or another database must not take a cluster down.
    """

    def __init__(
        self,
        member: Member,
        membership: Membership,
        clock: Clock,
        fail: Callable[[FatalError], None],
        draw: random.Random,
    ) -> None:
        self.taken = False
        self._body = encode_body(member)
        self._membership = membership
        self._clock = clock
        self._fail = fail
        self._draw = draw
        # By replicator, how long to wait before it is asked once more.
        self._pauses: dict[Peer, float] = {}
        # By the replicator's id, what it said last, which need not be logged again.
        self._heard_of: dict[str, str] = {}
        # Those that have taken this node.
        self._taken_by: set[Peer] = set()
        self._member = member
        self._missing = 0
        self._said = telemetry.logger("services.dhtnode")

    @property
    def trouble(self) -> str | None:
        """Why nobody can use this node, or not every replicator has taken it."""
        taken_by = {peer.hello.id for peer in self._taken_by}
        said = "; ".join(
            f"{name}: {text}" for name, text in self._heard_of.items() if name not in taken_by
        )
        place = self._place()
        if place is not None and place != self._member:
            return f"{self._elsewhere(place)}: {said or 'no replicator has followed it yet'}"
        if said:
            who = "not every replicator" if taken_by else "no replicator"
            return f"{who} has taken this node: {said}"
        if not taken_by:
            return "no replicator has taken this node yet"
        if place is None:
            return f"the cluster is forming: {self._missing} of its nodes have not registered yet"
        return None

    def look(self) -> None:
        """See whether the newest map has this node where it is. If another process was taken at
        another address meanwhile, this one registers again, to be there when that one ends."""
        place = self._place()
        if place is None or place == self._member or not self._taken_by:
            return
        self._said.error(
            "another process has taken the place of this node",
            reason=f"{self._elsewhere(place)}: two processes run on copies of one directory; stop "
            "one of them",
        )
        taken_by, self._taken_by = self._taken_by, set()
        for peer in taken_by:
            self._heard_of.pop(peer.hello.id, None)
            self._again(peer)

    def _place(self) -> Member | None:
        """This node as the newest map has it."""
        known = self._membership.map
        return None if known is None else known.nodes.get(self._member.node_id)

    def _elsewhere(self, place: Member) -> str:
        ours = self._member
        return (
            f"the cluster has {ours.node_id} at {place.host} port {place.link_port}, and this is "
            f"{ours.host} port {ours.link_port}"
        )

    def came(self, peer: Peer) -> None:
        if peer.hello.role is Role.REPLICATOR:
            self._pauses[peer] = pause_s_min
            self._register(peer)

    def went(self, peer: Peer) -> None:
        self._pauses.pop(peer, None)
        self._taken_by.discard(peer)
        if not any(other.hello.id == peer.hello.id for other in self._pauses):
            self._heard_of.pop(peer.hello.id, None)

    def _register(self, peer: Peer) -> None:
        if peer in self._pauses:
            asked = peer.request(REGISTER, self._body, partial(self._heard, peer), answer_s_max)
            if asked != SENT:
                self._again(peer)

    def _heard(self, peer: Peer, kind: int, body: bytes) -> None:
        if peer not in self._pauses:
            return
        if kind == OK:
            self._registered(peer, body)
        elif kind == NOT_WELCOME:
            self._refused(peer, readable(body))
        else:
            reason = readable(body) if kind == TRY_LATER else f"it answered with kind {kind}"
            if self._is_news(peer, reason):
                self._said.warning("not registered yet", replicator=peer.hello.id, reason=reason)
            self._again(peer)

    def _registered(self, peer: Peer, body: bytes) -> None:
        self.taken = True
        replicator = peer.hello.id
        try:
            missing, data = decode_registered(body)
            if data:
                self._membership.adopt(data)
        except PeerError as error:
            if self._is_news(peer, str(error)):
                self._said.error(
                    "the cluster map is refused", replicator=replicator, reason=str(error)
                )
            self._again(peer)
            return
        self._missing = missing
        self._taken_by.add(peer)
        # A newer map than that of the answer may have come first.
        self.look()
        if peer not in self._taken_by:
            return
        self._pauses[peer] = pause_s_min
        if not data:
            if self._is_news(peer, f"missing {missing}"):
                self._said.info("registered; others are missing", missing=missing)
        elif self._is_news(peer, "registered"):
            known = self._membership.map
            epoch = None if known is None else known.epoch
            self._said.info("registered", replicator=replicator, epoch=epoch)

    def _refused(self, peer: Peer, reason: str) -> None:
        if not self.taken:
            self._fail(FatalError(f"the cluster refuses this node: {reason}"))
        elif self._is_news(peer, reason):
            self._said.error(
                "a replicator refuses this node", replicator=peer.hello.id, reason=reason
            )

    def _is_news(self, peer: Peer, text: str) -> bool:
        known = self._heard_of.get(peer.hello.id)
        self._heard_of[peer.hello.id] = text
        return known != text

    def _again(self, peer: Peer) -> None:
        pause_s = self._pauses[peer]
        self._pauses[peer] = min(pause_s * 2, pause_s_max)
        self._clock.call_later(
            pause_s * self._draw.uniform(0.5, 1.0), partial(self._register, peer)
        )
