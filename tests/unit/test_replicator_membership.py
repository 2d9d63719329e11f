"""A replicator's map: what it takes from PostgreSQL, how often it asks, and whom it tells."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from services.core import messages as m
from services.core.cluster import ClusterMap, Member
from services.core.errors import FatalError, PeerError, RetryLater
from services.core.wire import LOST, OK, Hello, Role
from services.replicator.formation import Registered
from services.replicator.map_store import MapStore
from services.replicator.membership import Membership, poll_s_min
from services.replicator.memory_map_store import MemoryMapStore, Rows
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fleet import Fleet
from services.runtime.peer import OnAnswer
from tests.integration.link_ends import log_lines
from tests.unit.hand_peer import HandPeer, hand_peer
from tests.waiting import wait_until


def member(number: int, **changes: object) -> Member:
    fields = {
        "node_id": f"node-{number}",
        "store_id": f"{number:032x}",
        "host": "127.0.0.1",
        "http_port": 8000 + number,
        "link_port": 9000 + number,
    }
    return Member(**{**fields, **changes})  # type: ignore[arg-type]


first = ClusterMap(1, 3, (member(1), member(2), member(3)))
moved = first.begin_change((member(1, host="127.0.0.2"), member(2), member(3))).finish_change()


class Away:
    """A link to a node that is never there."""

    connected = False
    last_error: str | None = "no such process"
    peer: Hello | None = None
    pending = 0

    def __init__(self, of: Member) -> None:
        self.member = of
        self.closed = False

    def silent_s(self) -> float:
        return float("inf")

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        raise AssertionError("nobody asks a node that is not there")

    def notify(self, kind: int, body: bytes) -> bool:
        return False

    def start(self) -> None: ...

    async def close(self, drain_s: float = 0.0) -> None:
        self.closed = True


class CountingStore(MemoryMapStore):
    """Counts how often it is asked, and has the database's worst day when told to."""

    asked = 0
    fatal: FatalError | None = None

    async def newest(self) -> ClusterMap | None:
        self.asked += 1
        if self.fatal is not None:
            raise self.fatal
        return await super().newest()


class World:
    def __init__(self) -> None:
        self.rows = Rows()
        self.store = CountingStore(self.rows, 3, 3)
        self.links: list[Away] = []
        self.fleet = Fleet(self._connect, FakeClock(Timeline()))
        self.kept: list[bytes] = []
        self.membership = self.restart(self.store)

    def restart(self, store: MapStore) -> Membership:
        return Membership(store, self.fleet, 3, self.kept.append, random.Random(1))

    def _connect(self, of: Member) -> Away:
        self.links.append(Away(of))
        return self.links[-1]

    def in_postgresql(self, new: ClusterMap) -> None:
        self.rows.maps[new.epoch] = new.encode()

    def come(self, role: Role, name: str, **about: object) -> HandPeer:
        peer = hand_peer(role, name, **about)  # type: ignore[arg-type]
        self.membership.came(peer)
        return peer

    def node(self, number: int) -> HandPeer:
        return self.come(Role.NODE, f"node-{number}", store_id=f"{number:032x}")

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.membership.follow())
        try:
            await self.asked()
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def asked(self) -> None:
        """Have PostgreSQL asked once more."""
        before = self.store.asked
        self.membership.outdated(1 << 40)
        await wait_until(lambda: self.store.asked > before, "PostgreSQL is asked")
        await asyncio.sleep(0)

    async def until_epoch(self, epoch: int) -> None:
        await wait_until(lambda: self.fleet.epoch == epoch, f"epoch {epoch} is adopted")


async def test_a_map_is_taken_kept_and_told_to_members_and_gateways_alone() -> None:
    world = World()
    one, gateway = world.node(1), world.come(Role.GATEWAY, "gateway-1")
    strangers = [
        world.come(Role.NODE, "node-1", store_id="f" * 32),
        world.node(4),
        world.come(Role.TOOL, "tool"),
        world.come(Role.REPLICATOR, "replicator-2"),
    ]
    async with world.following():
        assert world.membership.forming is not None
        assert world.membership.forming.code == "cluster_forming"
        world.in_postgresql(first)
        world.membership.outdated(1)
        await world.until_epoch(1)
    assert world.membership.forming is None
    assert world.kept == [first.encode()]
    for peer in (one, gateway):
        [(kind, body, _)] = peer.asked
        assert (kind, body) == (m.EPOCH, first.encode())
    assert [peer.asked for peer in strangers] == [[], [], [], []]
    # Who comes later is told at once.
    assert len(world.node(2).asked) == 1


async def test_who_did_not_acknowledge_a_map_is_told_again_and_who_did_is_not() -> None:
    world = World()
    world.in_postgresql(first)
    silent, refusing, done, full = (world.node(number) for number in (1, 2, 3, 3))
    full.full = True
    with log_lines() as lines:
        async with world.following():
            silent.answer(LOST)
            refusing.answer(m.MALFORMED, b"no map of mine")
            done.answer(OK, m.u64.pack(1))
            full.full = False
            await wait_until(
                lambda: all(peer.asked for peer in (silent, refusing, full)), "they are told again"
            )
            refusing.answer(m.MALFORMED, b"no map of mine")
            assert done.asked == []
    refusals = [line for line in lines if line["event"] == "a peer refuses the cluster map"]
    assert [line["reason"] for line in refusals] == ["no map of mine"]


async def test_a_map_that_comes_while_another_is_being_told_follows_it_at_once() -> None:
    world = World()
    world.in_postgresql(first)
    one = world.node(1)
    async with world.following():
        await world.until_epoch(1)
        world.in_postgresql(moved)
        world.membership.outdated(3)
        await world.until_epoch(3)
        assert [body for _, body, _ in one.asked] == [first.encode()]
        one.answer(OK, m.u64.pack(1))
        assert [body for _, body, _ in one.asked] == [moved.encode()]
        await wait_until(lambda: any(link.closed for link in world.links), "a link is closed")
        [dropped] = [link for link in world.links if link.closed]
        assert dropped.member == member(1)


async def test_who_knows_a_later_epoch_than_its_map_is_told_the_map_of_that_too() -> None:
    world = World()
    world.in_postgresql(first)
    one = world.node(1)
    async with world.following():
        await world.until_epoch(1)
        world.in_postgresql(moved)
        world.membership.outdated(3)
        await world.until_epoch(3)
        # A message of epoch 3 has come to it before the first map.
        one.answer(OK, m.u64.pack(3))
        assert [body for _, body, _ in one.asked] == [moved.encode()]
        one.answer(OK, m.u64.pack(3))
        assert one.asked == []


async def test_however_many_tell_of_newer_epochs_postgresql_is_asked_in_moderation() -> None:
    world = World()
    world.in_postgresql(first)
    async with world.following():
        before, until_s = world.store.asked, asyncio.get_running_loop().time() + 0.5
        while asyncio.get_running_loop().time() < until_s:
            world.membership.outdated(1_000)
            world.come(Role.GATEWAY, "gateway-1", epoch=1_000)
            await asyncio.sleep(0)
        assert 2 <= world.store.asked - before <= 0.5 / poll_s_min + 1
        before = world.store.asked
        world.membership.outdated(1)
        await asyncio.sleep(poll_s_min * 3)
        assert world.store.asked - before <= 1


async def test_the_epoch_of_a_peer_that_comes_is_reason_enough_to_ask() -> None:
    world = World()
    async with world.following():
        world.in_postgresql(first)
        world.come(Role.GATEWAY, "gateway-1", epoch=1)
        async with asyncio.timeout(0.7):
            await world.until_epoch(1)


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        (None, "it has none"),
        (ClusterMap(1, 3, (member(1), member(2), member(9))), "older than epoch 3"),
        (ClusterMap(3, 3, first.members), "a different map of that epoch"),
        (ClusterMap(5, 2, first.members), "replication factor changes from 3 to 2"),
    ],
)
async def test_what_cannot_follow_our_map_is_refused_aloud_once_until_it_is_mended(
    there: ClusterMap | None, reason: str
) -> None:
    world = World()
    world.membership.remember(moved.encode())
    if there is not None:
        world.in_postgresql(there)
    with log_lines() as lines:
        async with world.following():
            await world.asked()
            assert world.fleet.map == moved
            assert reason in (world.membership.objection or "")
            with pytest.raises(RetryLater, match="DATABASE_URL names another database"):
                world.membership.registered(Registered(there, 0))
            world.rows.maps.clear()
            world.in_postgresql(moved)
            await world.asked()
            assert world.membership.objection is None
    told = [line["event"] for line in lines if line["level"] == "error"]
    assert told == ["the cluster map is refused"]
    assert world.kept == []


async def test_a_first_map_that_other_settings_formed_is_fatal_wherever_it_comes_from() -> None:
    world = World()
    other = ClusterMap(1, 1, (member(1),))
    with pytest.raises(FatalError, match="set CLUSTER_SIZE to 1"):
        world.membership.remember(other.encode())
    world.in_postgresql(other)
    with pytest.raises(FatalError, match="set CLUSTER_SIZE to 1"):
        await world.membership.follow()
    with pytest.raises(PeerError):
        world.membership.remember(b"garbage")
    assert world.fleet.map is None


async def test_a_database_that_is_away_or_broken_costs_a_replicator_nothing_that_has_a_map() -> (
    None
):
    world = World()
    world.rows.away = True
    async with world.following():
        assert world.membership.forming is not None
        assert world.membership.forming.code == "database_unavailable"
        assert not world.membership.confirmed
        world.rows.away = False
        world.in_postgresql(first)
        await world.until_epoch(1)
        assert world.membership.confirmed
        world.store.fatal = FatalError("the schema is gone")
        await world.asked()
        assert world.membership.trouble == "the schema is gone"
        assert world.membership.forming is None
        world.store.fatal = None
        await world.asked()
        assert world.membership.trouble is None
    world = World()
    world.store.fatal = FatalError("the schema is gone")
    with pytest.raises(FatalError, match="the schema is gone"):
        await world.membership.follow()


async def test_an_answer_that_is_older_than_a_registration_is_no_objection() -> None:
    world = World()

    class Slow(CountingStore):
        async def newest(self) -> ClusterMap | None:
            found = await super().newest()
            world.membership.registered(Registered(moved, 0))
            return found

    world.in_postgresql(first)
    world.membership = world.restart(Slow(world.rows, 3, 3))
    task = asyncio.create_task(world.membership.follow())
    await world.until_epoch(3)
    await asyncio.sleep(0)
    assert world.membership.objection is None
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_registration_whose_map_was_long_in_coming_is_no_objection() -> None:
    """Another replicator made a newer one while this one's slots were placed."""
    world = World()
    world.in_postgresql(moved)
    async with world.following():
        await world.until_epoch(3)
        world.membership.registered(Registered(first, 0))
        assert world.membership.objection is None
        assert world.fleet.epoch == 3
        assert world.membership.map_bytes == moved.encode()


async def test_a_registration_alone_does_not_withdraw_an_objection() -> None:
    world = World()
    world.in_postgresql(moved)
    async with world.following():
        await world.until_epoch(3)
        world.rows.maps = {1: first.encode()}
        await world.asked()
        await wait_until(lambda: world.membership.objection is not None, "it is refused")
        with pytest.raises(RetryLater, match="epoch 1 is older than epoch 3"):
            world.membership.registered(Registered(first, 0))
        assert world.fleet.epoch == 3
