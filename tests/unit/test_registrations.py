"""Nodes that register with a replicator: who is taken at another address than the map has."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from services.core import messages as m
from services.core.cluster import ClusterMap, Member
from services.core.packed_bodies import encode_body
from services.core.wire import OK, Hello, Role
from services.replicator.membership import Membership
from services.replicator.memory_map_store import MemoryMapStore, Rows
from services.replicator.registration import Registrations
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fleet import Fleet
from tests.integration.link_ends import log_lines
from tests.unit.hand_peer import HandPeer
from tests.unit.test_replicator_membership import Away, first, member
from tests.waiting import wait_until

here, elsewhere = member(1), member(1, host="127.0.0.9", http_port=8701, link_port=9701)


class Reached(Away):
    """A link that a test brings up and takes down."""

    last_error = None

    def up(self, life: bytes) -> None:
        store_id = bytes.fromhex(self.member.store_id)
        self.peer = Hello(Role.NODE, self.member.node_id, 1, bytes(32), store_id, life)
        self.connected = True

    def down(self) -> None:
        self.peer, self.connected, self.last_error = None, False, "parted"


class World:
    """A replicator with the map of three nodes, one of which may be reached."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.rows.maps[1] = first.encode()
        store = MemoryMapStore(self.rows, 3, 3)
        self.links: dict[Member, Reached] = {}
        self.fleet = Fleet(self._connect, FakeClock(Timeline()))
        self.membership = Membership(store, self.fleet, 3, lambda data: None, random.Random(1))
        self.membership.remember(first.encode())
        self.membership.confirmed = True
        self.registrations = Registrations(self.membership, self.fleet, store)
        self.asked = 0

    def _connect(self, of: Member) -> Reached:
        self.links[of] = Reached(of)
        return self.links[of]

    async def register(self, who: Member, life: bytes) -> tuple[int, str]:
        hello = Hello(Role.NODE, who.node_id, 1, bytes(32), bytes.fromhex(who.store_id), life)
        peer = HandPeer(hello)
        self.asked += 1
        self.registrations.register(peer, self.asked, encode_body(who))
        await wait_until(lambda: self.asked in peer.replies, "the registration is answered")
        kind, body = peer.replies[self.asked]
        return kind, body.decode(errors="replace")

    def host(self) -> str:
        newest = ClusterMap.decode(self.rows.maps[max(self.rows.maps)])
        return newest.nodes["node-1"].host


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    serving = asyncio.create_task(world.registrations.serve())
    yield world
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving


async def test_a_second_process_on_a_copy_waits_until_the_first_is_gone(world: World) -> None:
    world.links[here].up(b"original")
    with log_lines() as lines:
        for _ in range(3):
            kind, reason = await world.register(elsewhere, b"the copy")
            assert kind == m.TRY_LATER
    assert "'node-1' is live at 127.0.0.1 port 9001, and comes from 127.0.0.9 port 9701" in reason
    assert "two processes run on copies of one directory" in reason
    assert "stop the other one" in reason
    assert [line["event"] for line in lines] == ["a registration is refused"]
    assert world.host() == "127.0.0.1"
    world.links[here].down()
    assert (await world.register(elsewhere, b"the copy"))[0] == OK
    assert world.host() == "127.0.0.9"
    # Now the first is the second.
    world.links[elsewhere].up(b"the copy")
    kind, reason = await world.register(here, b"original")
    assert kind == m.TRY_LATER
    assert "is live at 127.0.0.9 port 9701" in reason


async def test_a_process_that_only_names_its_address_otherwise_is_taken(world: World) -> None:
    world.links[here].up(b"original")
    renamed = member(1, host="127.0.0.9")
    assert (await world.register(renamed, b"original"))[0] == OK
    assert world.host() == "127.0.0.9"


async def test_before_the_old_address_was_tried_nobody_knows_who_is_there(world: World) -> None:
    kind, reason = await world.register(elsewhere, b"the copy")
    assert kind == m.TRY_LATER
    assert "127.0.0.1 port 9001, where it was, has not been tried yet" in reason
    world.links[here].down()
    assert (await world.register(elsewhere, b"the copy"))[0] == OK


async def test_where_it_is_known_a_node_registers_whatever_link_there_is(world: World) -> None:
    assert (await world.register(here, b"original"))[0] == OK
    world.links[here].up(b"original")
    assert (await world.register(here, b"newlife."))[0] == OK
    kind, reason = await world.register(member(1, store_id="f" * 32), b"original")
    assert kind == m.NOT_WELCOME
    assert "lost its directory" in reason
