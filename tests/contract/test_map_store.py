"""The contract of a store of cluster maps, in PostgreSQL and in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from services.core.cluster import ClusterMap, Member
from services.core.errors import FatalError, RetryLater, UnknownOutcome
from services.core.hlc import stamper_max
from services.replicator.formation import Registered, RegistrationRefused, decide
from services.replicator.map_store import MapStore, PlacedMap, PostgresMapStore
from services.replicator.memory_map_store import MemoryMapStore, Rows
from services.runtime.database_url import DatabaseAddress
from services.runtime.postgres import Database
from tests.integration.test_postgres_pool import Proxy


class Stores(Protocol):
    """One place where maps are kept, and the replicators that use it."""

    async def replicator(self, cluster_size: int = 3, replication_factor: int = 3) -> MapStore:
        """A store of one more replicator, with connections of its own."""
        ...

    def go_away(self) -> None: ...

    def come_back(self) -> None: ...

    def lose_a_reply(self) -> None:
        """Have the next commit happen without anybody hearing of it."""
        ...


class MemoryStores:
    def __init__(self) -> None:
        self.rows = Rows()

    async def replicator(self, cluster_size: int = 3, replication_factor: int = 3) -> MapStore:
        return MemoryMapStore(self.rows, cluster_size, replication_factor)

    def go_away(self) -> None:
        self.rows.away = True

    def come_back(self) -> None:
        self.rows.away = False

    def lose_a_reply(self) -> None:
        self.rows.replies_to_lose = 1


class PostgresStores:
    def __init__(self, address: DatabaseAddress, proxy: Proxy, stack: AsyncExitStack) -> None:
        self.address = address
        self._proxy = proxy
        self._stack = stack

    async def replicator(self, cluster_size: int = 3, replication_factor: int = 3) -> MapStore:
        database = Database(self.address, connections_max=4)
        await self._stack.enter_async_context(database)
        return PostgresMapStore(database, cluster_size, replication_factor)

    def go_away(self) -> None:
        self._proxy.cut_before = lambda _: True
        self._proxy.cut()

    def come_back(self) -> None:
        self._proxy.cut_before = lambda _: False

    def lose_a_reply(self) -> None:
        def once(chunk: bytes) -> bool:
            if b"COMMIT" not in chunk:
                return False
            self._proxy.cut_after = lambda _: False
            return True

        self._proxy.cut_after = once


@pytest_asyncio.fixture(params=["memory", "postgres"])
async def stores(
    request: pytest.FixtureRequest, database_address: DatabaseAddress, tmp_path: Path
) -> AsyncIterator[Stores]:
    if request.param == "memory":
        yield MemoryStores()
        return
    proxy = Proxy(database_address)
    host = await proxy.start(tmp_path)
    async with AsyncExitStack() as stack:
        yield PostgresStores(replace(database_address, host=host), proxy, stack)
    await proxy.stop()


def member(number: int, **changes: Any) -> Member:
    return Member(
        **{
            "node_id": f"node-{number}",
            "store_id": f"{number:032x}",
            "host": "127.0.0.1",
            "http_port": 8_000 + number,
            "link_port": 9_000 + number,
            "zone": f"zone-{number}",
            **changes,
        }
    )


def again(node: Member, **changes: Any) -> Member:
    return msgspec.structs.replace(node, **changes)


one, two, three, four = (member(number) for number in range(1, 5))
trio = (one, two, three)


async def formed(stores: Stores, *nodes: Member) -> MapStore:
    """A store in which the cluster of these nodes has just formed."""
    store = await stores.replicator(cluster_size=len(nodes))
    for node in nodes:
        await store.register(node)
    return store


async def refused(store: MapStore, node: Member, saying: str) -> None:
    """The node is turned away in one line that says this, and nothing changes by it."""
    before = await store.newest()
    for _ in range(2):
        with pytest.raises(RegistrationRefused, match=saying) as refusal:
            await store.register(node)
        assert "\n" not in str(refusal.value)
    assert await store.newest() == before


# Formation.


async def test_the_last_missing_node_forms_the_cluster(stores: Stores) -> None:
    store = await stores.replicator()
    assert await store.newest() is None
    assert await store.register(one) == Registered(None, 2)
    assert await store.register(two) == Registered(None, 1)
    assert await store.newest() is None
    expected = ClusterMap(1, 3, trio)
    assert await store.register(three) == Registered(expected, 0)
    assert await store.newest() == expected
    store.check(expected)


@pytest.mark.parametrize(
    ("size", "factor", "replicas"), [(1, 1, 1), (1, 3, 1), (2, 3, 2), (4, 3, 3), (3, 2, 2)]
)
async def test_there_are_as_many_replicas_as_asked_for_or_as_there_are_nodes(
    stores: Stores, size: int, factor: int, replicas: int
) -> None:
    store = await stores.replicator(size, factor)
    for number in range(size):
        answer = await store.register(member(number))
    assert answer.map is not None
    assert (len(answer.map.members), answer.map.replication_factor) == (size, replicas)
    store.check(answer.map)


async def test_a_node_that_registers_again_is_counted_once(stores: Stores) -> None:
    store = await stores.replicator()
    for _ in range(5):
        assert await store.register(one) == Registered(None, 2)
    for node in (two, three):
        await store.register(node)
    for node in trio:
        assert await store.register(node) == Registered(ClusterMap(1, 3, trio), 0)


async def test_before_formation_a_node_may_come_with_new_directory_address_and_zone(
    stores: Stores,
) -> None:
    store = await stores.replicator()
    await store.register(one)
    changed = again(one, store_id="f" * 32, host="10.0.0.9", http_port=1, link_port=2, zone="b")
    assert await store.register(changed) == Registered(None, 2)
    await store.register(two)
    answer = await store.register(three)
    assert answer.map == ClusterMap(1, 3, (changed, two, three))


async def test_before_formation_a_directory_has_one_node(stores: Stores) -> None:
    store = await stores.replicator()
    await store.register(one)
    await refused(store, again(two, store_id=one.store_id), "store of node 'node-1'.*copied")
    # What the first left is free for others.
    await store.register(again(one, store_id="f" * 32))
    assert await store.register(again(two, store_id=one.store_id)) == Registered(None, 1)


@pytest.mark.parametrize(
    "changes",
    [{"http_port": 8_001}, {"link_port": 9_001}, {"http_port": 9_001}, {"link_port": 8_001}],
)
async def test_before_formation_no_two_nodes_share_an_address(
    stores: Stores, changes: dict[str, int]
) -> None:
    store = await stores.replicator()
    await store.register(again(one, host="here.example"))
    clash = again(two, host="HERE.example", **changes)
    await refused(store, clash, "address of node 'node-1'.*ADVERTISE_HOST")
    assert await store.register(again(clash, host="there.example")) == Registered(None, 1)


async def test_with_another_cluster_size_fewer_nodes_can_do_but_never_too_many(
    stores: Stores,
) -> None:
    larger = await stores.replicator(cluster_size=5)
    for node in trio:
        await larger.register(node)
    smaller = await stores.replicator(cluster_size=2)
    with pytest.raises(FatalError, match=r"CLUSTER_SIZE is 2, but 3 nodes.*CLUSTER_SIZE to 3"):
        await smaller.register(one)
    assert await smaller.newest() is None
    fitting = await stores.replicator(cluster_size=3)
    assert (await fitting.register(one)).map == ClusterMap(1, 3, trio)


# Once the cluster has formed.


async def test_a_newcomer_is_refused_by_naming_the_members(stores: Stores) -> None:
    store = await formed(stores, *trio)
    await refused(store, four, r"node-1, node-2, node-3 \(epoch 1\); joining.*not available")


async def test_a_member_that_lost_its_directory_is_never_taken_for_its_old_self(
    stores: Stores,
) -> None:
    store = await formed(stores, *trio)
    await refused(store, again(two, store_id="f" * 32), "lost its directory")
    await refused(store, again(two, store_id="f" * 32), "or another process is that node, at")
    await refused(store, again(two, store_id="f" * 32), "give this one a NODE_ID of its own")


async def test_a_copied_directory_does_not_make_another_node(stores: Stores) -> None:
    store = await formed(stores, *trio)
    await refused(store, again(four, store_id=two.store_id), "store of node 'node-2'")
    await refused(store, again(one, store_id=two.store_id), "store of node 'node-2'")


async def test_a_member_cannot_change_its_zone(stores: Stores) -> None:
    store = await formed(stores, *trio)
    await refused(store, again(two, zone="zone-9"), "set ZONE to 'zone-2'")
    await refused(store, again(two, zone="zone-9", host="10.0.0.2"), "set ZONE to 'zone-2'")


async def test_a_member_may_move_to_another_address(stores: Stores) -> None:
    store = await formed(stores, *trio)
    old = await store.newest()
    moved = again(two, host="10.0.0.2", http_port=80, link_port=1080)
    answer = await store.register(moved)
    assert old is not None
    assert answer.map == ClusterMap(3, 3, (one, moved, three))
    assert answer.map.can_follow(old)
    assert answer.map.placements == old.placements
    assert await store.newest() == answer.map
    # Again without news, and then back.
    assert (await store.register(moved)).map == answer.map
    assert (await store.register(two)).map == ClusterMap(5, 3, trio)


async def test_a_member_cannot_move_to_anothers_address_until_that_one_has_left_it(
    stores: Stores,
) -> None:
    store = await formed(stores, *trio)
    to_second = again(one, http_port=two.http_port, link_port=two.link_port)
    await refused(store, to_second, "address of node 'node-2'")
    await store.register(again(two, http_port=80, link_port=1080))
    answer = await store.register(to_second)
    assert answer.map is not None
    assert answer.map.epoch == 5
    assert answer.map.nodes["node-1"] == to_second


def test_while_membership_changes_an_address_has_to_wait() -> None:
    joint = ClusterMap(1, 3, trio).begin_change((*trio, four))
    with pytest.raises(RegistrationRefused, match="once that change is through"):
        decide({}, joint, again(four, host="10.0.0.4"), 3, 3)
    assert decide({}, joint, four, 3, 3).answer == Registered(joint, 0)


@given(st.integers(1, 40))
def test_refusals_name_a_few_members_and_count_the_others(size: int) -> None:
    nodes = tuple(member(number, node_id=f"{number:03}" + "n" * 61) for number in range(size))
    with pytest.raises(RegistrationRefused) as refusal:
        decide({}, ClusterMap(1, 1, nodes), member(200), size, 1)
    named = sum(node.node_id in str(refusal.value) for node in nodes)
    assert named == min(size, 16)
    assert (f" and {size - 16} more" in str(refusal.value)) == (size > 16)


# Settings that contradict what has formed.


async def test_other_settings_than_those_that_formed_the_cluster_are_refused(
    stores: Stores,
) -> None:
    newest = await (await formed(stores, *trio)).newest()
    assert newest is not None
    (await stores.replicator(3, 3)).check(newest)
    # More replicas than nodes are as many as there are nodes.
    (await stores.replicator(3, 5)).check(newest)
    with pytest.raises(FatalError, match=r"CLUSTER_SIZE is 4.*of 3 nodes.*CLUSTER_SIZE to 3"):
        (await stores.replicator(4, 3)).check(newest)
    with pytest.raises(FatalError, match=r"FACTOR is 2.*with 3 replicas.*FACTOR to 3"):
        (await stores.replicator(3, 2)).check(newest)


# Several at once.


async def test_ten_registrations_that_race_form_exactly_one_map(stores: Stores) -> None:
    nodes = [member(number) for number in range(10)]
    replicators = [await stores.replicator(10) for _ in range(3)]
    draw = random.Random(10)
    calls = [(store, node) for store in replicators for node in nodes]
    draw.shuffle(calls)
    answers = await asyncio.gather(*(store.register(node) for store, node in calls))
    maps = [answer.map for answer in answers if answer.map is not None]
    assert maps[0] == ClusterMap(1, 3, tuple(nodes))
    assert all(each == maps[0] for each in maps)
    assert sorted({answer.missing for answer in answers}) == list(range(10))
    assert await replicators[0].newest() == maps[0]


async def test_members_that_move_at_once_make_one_epoch_after_the_other(stores: Stores) -> None:
    await formed(stores, *trio)
    replicators = [await stores.replicator() for _ in range(2)]
    moved = [again(node, host=f"10.0.0.{number}") for number, node in enumerate(trio)]
    answers = await asyncio.gather(
        *(store.register(node) for node in moved for store in replicators)
    )
    assert {answer.map.epoch for answer in answers if answer.map} <= {3, 5, 7}
    assert await replicators[0].newest() == ClusterMap(7, 3, tuple(moved))


async def test_a_race_for_the_last_place_has_one_winner(stores: Stores) -> None:
    first, second = [await stores.replicator() for _ in range(2)]
    for node in (one, two):
        await first.register(node)
    results = await asyncio.gather(
        first.register(three), second.register(four), return_exceptions=True
    )
    winners = [result for result in results if isinstance(result, Registered)]
    losers = [result for result in results if isinstance(result, RegistrationRefused)]
    assert (len(winners), len(losers)) == (1, 1)
    assert await first.newest() == winners[0].map


async def test_no_stamper_is_given_out_twice(stores: Stores) -> None:
    replicators = [await stores.replicator() for _ in range(3)]
    given_out = await asyncio.gather(
        *(store.allot_stamper(f"replicator-{n % 4}") for store in replicators for n in range(20))
    )
    assert len(set(given_out)) == 60
    assert all(1 <= stamper <= stamper_max for stamper in given_out)


# When PostgreSQL is away, or is lost at the worst moment.


async def test_while_the_database_is_away_nothing_is_taken(stores: Stores) -> None:
    store = await stores.replicator()
    await store.register(one)
    stores.go_away()
    for call in (
        store.newest,
        lambda: store.register(two),
        lambda: store.allot_stamper("r"),
        lambda: store.stampers_of("r"),
    ):
        with pytest.raises(RetryLater) as away:
            await call()
        assert away.value.code == "database_unavailable"
    stores.come_back()
    assert await store.register(two) == Registered(None, 1)


async def test_after_a_lost_reply_to_a_registration_it_is_safe_to_register_again(
    stores: Stores,
) -> None:
    store = await stores.replicator()
    await store.register(one)
    stores.lose_a_reply()
    with pytest.raises(UnknownOutcome):
        await store.register(two)
    assert await store.register(two) == Registered(None, 1)
    stores.lose_a_reply()
    with pytest.raises(UnknownOutcome):
        await store.register(three)
    assert await store.register(three) == Registered(ClusterMap(1, 3, trio), 0)


async def test_a_move_whose_reply_was_lost_is_not_made_twice(stores: Stores) -> None:
    store = await formed(stores, *trio)
    moved = again(one, host="10.0.0.1")
    stores.lose_a_reply()
    with pytest.raises(UnknownOutcome):
        await store.register(moved)
    answer = await store.register(moved)
    assert answer.map is not None
    assert answer.map.epoch == 3


async def test_stampers_are_counted_by_name(stores: Stores) -> None:
    store = await stores.replicator()
    assert await store.stampers_of("replicator-1") == 0
    for name in ("replicator-1", "replicator-2", "replicator-1"):
        await store.allot_stamper(name)
    assert await (await stores.replicator()).stampers_of("replicator-1") == 2
    assert await store.stampers_of("replicator-2") == 1


async def test_a_stamper_whose_reply_was_lost_is_given_to_nobody(stores: Stores) -> None:
    store = await stores.replicator()
    first = await store.allot_stamper("replicator-1")
    stores.lose_a_reply()
    with pytest.raises(UnknownOutcome):
        await store.allot_stamper("replicator-1")
    assert await store.allot_stamper("replicator-1") == first + 2


# What only PostgreSQL can do to its users.


@pytest_asyncio.fixture
async def postgres(database_address: DatabaseAddress) -> AsyncIterator[PostgresMapStore]:
    async with Database(database_address) as database:
        yield PostgresMapStore(database, 3, 3)


async def execute(address: DatabaseAddress, sql: str) -> str:
    connection = await asyncpg.connect(**address.asyncpg())
    try:
        return str(await connection.execute(sql))
    finally:
        await connection.close()


async def test_a_database_that_was_never_migrated_is_one_line_of_advice(
    empty_database_address: DatabaseAddress,
) -> None:
    async with Database(empty_database_address) as database:
        store = PostgresMapStore(database, 3, 3)
        with pytest.raises(FatalError, match="run `ydht migrate`"):
            await store.newest()
        with pytest.raises(FatalError, match="run `ydht migrate`"):
            await store.register(one)


@pytest.mark.parametrize("row", ["''", "'{}'", r"'\xff00'", "'{\"format\":2}'"])
async def test_a_map_that_cannot_be_read_stops_the_replicator(
    postgres: PostgresMapStore, database_address: DatabaseAddress, row: str
) -> None:
    await execute(database_address, f"INSERT INTO cluster_maps (epoch, map) VALUES (7, {row})")  # noqa: S608  Ours.
    with pytest.raises(FatalError, match=r"epoch 7 .* cannot be read"):
        await postgres.newest()
    with pytest.raises(FatalError, match=r"epoch 7 .* cannot be read"):
        await postgres.register(one)


async def test_a_registration_changed_by_hand_is_found(
    postgres: PostgresMapStore, database_address: DatabaseAddress
) -> None:
    await postgres.register(one)
    await execute(database_address, "UPDATE nodes SET host = 'no host'")
    with pytest.raises(FatalError, match=r"table nodes .*'no host'.* register again"):
        await postgres.register(two)
    await execute(database_address, "DELETE FROM nodes")
    assert await postgres.register(two) == Registered(None, 2)


async def test_the_last_stamper_is_the_last(
    postgres: PostgresMapStore, database_address: DatabaseAddress
) -> None:
    await execute(database_address, f"SELECT setval('stampers', {stamper_max - 1})")
    assert await postgres.allot_stamper("replicator-1") == stamper_max
    for _ in range(2):
        with pytest.raises(FatalError, match="stampers have been given out"):
            await postgres.allot_stamper("replicator-1")


async def test_epochs_stay_in_the_database_and_registrations_tell_the_newest_address(
    postgres: PostgresMapStore, database_address: DatabaseAddress
) -> None:
    for node in trio:
        await postgres.register(node)
    await postgres.register(again(one, host="10.0.0.1"))
    connection = await asyncpg.connect(**database_address.asyncpg())
    try:
        epochs = await connection.fetch("SELECT epoch FROM cluster_maps ORDER BY epoch")
        hosts = await connection.fetch("SELECT host FROM nodes ORDER BY node_id")
    finally:
        await connection.close()
    assert [row["epoch"] for row in epochs] == [1, 3]
    assert [row["host"] for row in hosts] == ["10.0.0.1", "127.0.0.1", "127.0.0.1"]


async def test_an_older_map_that_is_placed_later_does_not_take_the_newer_ones_place() -> None:
    many = [member(number) for number in range(1, 41)]
    older = ClusterMap(1, 3, tuple(many))
    newer = ClusterMap(3, 3, trio)
    found = PlacedMap()
    placing = asyncio.create_task(found.place(older))
    await asyncio.sleep(0)
    newest = await found.place(newer)
    assert not placing.done()
    assert await placing == older
    assert await found.place(ClusterMap.decode(newer.encode())) is newest


async def test_a_map_from_postgresql_has_its_slots_placed_in_many_turns(
    database_address: DatabaseAddress,
) -> None:
    async with Database(database_address, connections_max=2) as database:
        store = PostgresMapStore(database, 1, 1)
        formed = (await store.register(member(1))).map
        assert formed is not None
        assert "placements" in vars(formed)
        assert await store.newest() is formed, "it is not placed again"
        turns = 0
        finding = asyncio.create_task(PostgresMapStore(database, 1, 1).newest())
        while not finding.done():
            turns += 1
            await asyncio.sleep(0)
        found = finding.result()
        assert found == formed
        assert "placements" in vars(found)
        assert turns > sum(1 for _ in ClusterMap.decode(formed.encode()).prepare())
