"""Nodes that say who they are: taken one at a time, as PostgreSQL decides, and answered.

A node registers over a link on which it has proved its name and its store. One that the map knows
as it is needs nothing of PostgreSQL, which may be away.

A known node that comes from another address has moved, or is a second process on a copy of its
directory: that one must not take the place of the first, whose promises it does not know. As long
as this replicator has a link to a process at the address of the map, no other is taken. It asks
its own links alone: a node that only others reach counts as gone.
"""

from __future__ import annotations

import asyncio
from typing import Final

from services.core.cluster import Member, members_max
from services.core.errors import FatalError, PeerError, RetryLater, UnknownOutcome
from services.core.messages import MALFORMED, NOT_WELCOME, TRY_LATER, Status, encode_registered
from services.core.packed_bodies import decode_body
from services.core.wire import OK, OVERLOADED, Role
from services.replicator.formation import RegistrationRefused, RegistrationWaits
from services.replicator.map_store import MapStore
from services.replicator.membership import Membership
from services.runtime import telemetry
from services.runtime.fleet import Fleet
from services.runtime.peer import Peer

# Every node of the largest cluster at once.
waiting_max: Final = members_max
text_bytes_max: Final = 1024


class Registrations:
    def __init__(self, membership: Membership, fleet: Fleet, store: MapStore) -> None:
        self._membership = membership
        self._fleet = fleet
        self._store = store
        self._waiting: asyncio.Queue[tuple[Peer, int, Member]] = asyncio.Queue(waiting_max)
        self._closed = False
        # By node id, why it was refused last; said once.
        self._refused: dict[str, str] = {}
        self._said = telemetry.logger("services.replicator")

    def register(self, peer: Peer, request_id: int, body: bytes) -> None:
        """The handler of REGISTER."""
        try:
            member = decode_body(body, Member)
            _check_proven(peer, member)
        except PeerError as error:
            self._said.warning(
                "a registration is refused", peer=peer.hello.id, reason=str(error)[:text_bytes_max]
            )
            peer.reply(request_id, MALFORMED, _text(str(error)))
            return
        known = self._membership.map
        if known is not None and known.nodes.get(member.node_id) == member:
            peer.reply(request_id, OK, encode_registered(0, self._membership.map_bytes))
        elif self._closed:
            peer.reply(request_id, TRY_LATER, _text("this replicator is stopping"))
        elif self._waiting.full():
            peer.reply(request_id, OVERLOADED, b"")
        else:
            self._waiting.put_nowait((peer, request_id, member))

    async def serve(self) -> None:
        """The loop: decide on those that wait."""
        while True:
            peer, request_id, member = await self._waiting.get()
            answer: Status = TRY_LATER, _text("the registration was not finished")
            try:
                answer = await self._decide(peer, member)
            finally:
                peer.reply(request_id, *answer)

    def close(self) -> None:
        """Answer those that wait, and take no more."""
        self._closed = True
        while not self._waiting.empty():
            peer, request_id, _ = self._waiting.get_nowait()
            peer.reply(request_id, TRY_LATER, _text("this replicator is stopping"))

    async def _decide(self, peer: Peer, member: Member) -> Status:
        membership = self._membership
        if (obstacle := self._obstacle()) is not None:
            return TRY_LATER, _text(obstacle)
        try:
            self._refuse_second(peer, member)
            registered = await self._store.register(member)
            membership.registered(registered)
        except RegistrationRefused as error:
            if self._refused.get(member.node_id) != str(error):
                self._said.warning("a registration is refused", reason=str(error))
                self._remember_refusal(member.node_id, str(error))
            kind = TRY_LATER if isinstance(error, RegistrationWaits) else NOT_WELCOME
            return kind, _text(str(error))
        except (RetryLater, UnknownOutcome) as error:
            return TRY_LATER, _text(error.detail)
        except FatalError as error:
            if membership.map is None:
                raise
            return TRY_LATER, _text(str(error))
        self._refused.pop(member.node_id, None)
        self._said.info("a node has registered", node=member.node_id, missing=registered.missing)
        found = b"" if registered.map is None else membership.map_bytes
        return OK, encode_registered(registered.missing, found)

    def _refuse_second(self, peer: Peer, member: Member) -> None:
        """`RegistrationWaits` while another process is this node at the address of the map."""
        node = self._fleet.nodes.get(member.node_id)
        if node is None or node.member.store_id != member.store_id or node.member == member:
            return
        link, known = node.link, node.member
        there = link.peer
        if there is not None and there.life == peer.hello.life:
            # It is itself that we reach there; it has another name for its address now.
            return
        address = f"{known.host} port {known.link_port}"
        if link.connected:
            raise RegistrationWaits(
                f"node {member.node_id!r} is live at {address}, and comes from {member.host} port "
                f"{member.link_port} as well: two processes run on copies of one directory, or the "
                "node has moved and still runs where it was; stop the other one"
            )
        if link.last_error is None:
            raise RegistrationWaits(
                f"node {member.node_id!r} comes from a new address, and {address}, where it was, "
                "has not been tried yet"
            )

    def _obstacle(self) -> str | None:
        """Why PostgreSQL is not to be asked: it might form a second cluster."""
        membership = self._membership
        if membership.objection is not None:
            return membership.objection
        if membership.confirmed:
            return None
        reason = membership.trouble or "it is about to be"
        return f"PostgreSQL has not been asked for the cluster map yet: {reason}"

    def _remember_refusal(self, node_id: str, reason: str) -> None:
        if len(self._refused) >= waiting_max:
            self._refused.clear()
        self._refused[node_id] = reason


def _check_proven(peer: Peer, member: Member) -> None:
    hello = peer.hello
    if hello.role is not Role.NODE:
        raise PeerError(f"{hello.id} is no node, and registers as node {member.node_id}")
    if (hello.id, hello.store_id.hex()) != (member.node_id, member.store_id):
        raise PeerError(
            f"node {hello.id} with store {hello.store_id.hex()} registers as node "
            f"{member.node_id} with store {member.store_id}; it can register itself alone"
        )


def _text(reason: str) -> bytes:
    return reason.encode()[:text_bytes_max]
