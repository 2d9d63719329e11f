"""The data of closed accounts, deleted from real nodes by way of a real replicator."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.core.key import namespace_prefix, tenant_prefix
from services.core.messages import COUNT, Count, decode_body
from services.core.operations import BATCH, CHANGED, PUT, decode_batch, encode_batch, encode_put
from services.core.wire import OK, Role
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.link import Station
from services.runtime.metrics import Metrics
from services.runtime.opening import Identity
from services.runtime.postgres import Database
from services.runtime.replicators import Replicators, links_to_replicators, only_replicators
from services.usermanager.audit import Audit
from services.usermanager.deletion import Deletion, Pace, sweeps_max
from services.usermanager.deletion_store import (
    ClosedAccount,
    DeletionStore,
    LostError,
    trouble_chars_max,
)
from services.usermanager.tenant_data import TenantData, keys_at_once
from tests.integration.node_process import NodeClient, NodeProcess, node_client, secret
from tests.integration.replicator_process import (
    ClusterProcesses,
    cluster_processes,
    until_metrics,
    until_told,
)
from tests.integration.usermanager_process import usermanager_process

# As the default, but that nobody has to wait for gateways to forget what they know.
brisk = Pace(last_pass_s=0.0, lease_s=5.0, look_s=0.05, pause_s_min=0.05, pause_s_max=0.2)
Row = Mapping[str, Any]


class Desk:
    """A database in which accounts are closed, a cluster in which they had stored something, and
    workers that delete it, each with connections and links of its own."""

    def __init__(self, address: DatabaseAddress, cluster: ClusterProcesses) -> None:
        self.address = address
        self.cluster = cluster
        self.connection: asyncpg.Connection

    async def close(self, *tenants: int) -> None:
        """As closing an account does it."""
        for tenant in tenants:
            await self.connection.execute(
                "INSERT INTO closed_accounts (user_id) VALUES ($1)", tenant
            )

    async def row(self, tenant: int) -> Row:
        row: Row = await self.connection.fetchrow(
            "SELECT *, due_at - closed_at AS due_after FROM closed_accounts WHERE user_id = $1",
            tenant,
        )
        return row

    async def until_row(self, tenant: int, what: str, **expected: object) -> Row:
        async def look() -> Row | None:
            row = await self.row(tenant)
            return row if all(row[name] == value for name, value in expected.items()) else None

        return await until_told(look, what)

    async def until_done(self, *tenants: int) -> list[Row]:
        async def look() -> list[Row] | None:
            rows = [await self.row(tenant) for tenant in tenants]
            return rows if all(row["done_at"] is not None for row in rows) else None

        return await until_told(look, f"the data of {tenants} is deleted")

    @asynccontextmanager
    async def client(self) -> AsyncIterator[NodeClient]:
        async with node_client(self.cluster.replicator, "gateway-1", Role.GATEWAY) as client:
            yield client

    async def fill(self, tenant: int, sizes: Mapping[bytes, int]) -> int:
        """So many keys in each namespace; how many in all."""
        keys = [
            namespace_prefix(tenant, name) + b"key-%05d" % number
            for name, size in sizes.items()
            for number in range(size)
        ]
        async with self.client() as client:
            for start in range(0, len(keys), 1_000):
                await put_all(client, keys[start : start + 1_000])
        return len(keys)

    async def left(self, tenant: int, node: NodeProcess | None = None) -> Count:
        async with node_client(node or self.cluster.nodes[0], "tool", Role.TOOL) as client:
            kind, body = await client.ask(COUNT, tenant_prefix(tenant))
        assert kind == OK
        return decode_body(body, Count)

    @asynccontextmanager
    async def worker(self, pace: Pace = brisk) -> AsyncIterator[Worker]:
        async with AsyncExitStack() as stack:
            yield await Worker.start(self, pace, stack)


class Worker:
    """What a user manager has for this. `die` ends it in the middle of whatever it does."""

    def __init__(self, desk: Desk, pace: Pace) -> None:
        station = Station(Identity(Role.USERMANAGER, "usermanager-1", secret))
        urls = [replicator.url for replicator in desk.cluster.replicators]
        links = links_to_replicators(urls, station, admit=only_replicators)
        draw = random.Random(1)
        self.database = Database(desk.address)
        self.replicators = Replicators(links, draw)
        self.store = DeletionStore(self.database, Audit(self.database))
        self.deletion = Deletion(
            self.store, TenantData(self.replicators), SystemClock(), draw, pace
        )
        self.metrics = Metrics()
        self.deletion.add_to(self.metrics)
        self._task: asyncio.Task[None]

    @classmethod
    async def start(cls, desk: Desk, pace: Pace, stack: AsyncExitStack) -> Worker:
        worker = cls(desk, pace)
        await stack.enter_async_context(worker.database)
        worker.replicators.start()
        stack.push_async_callback(worker.replicators.close)
        worker._task = asyncio.create_task(worker.deletion.run())
        stack.push_async_callback(worker.die)
        return worker

    async def die(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


async def put_all(client: NodeClient, keys: Iterable[bytes]) -> None:
    puts = [(PUT, encode_put(key, b"value")) for key in keys]
    kind, body = await client.ask(BATCH, encode_batch(puts))
    assert kind == OK
    assert {kind for kind, _ in decode_batch(body)} == {CHANGED}


@asynccontextmanager
async def running(path: Path, address: DatabaseAddress, *, nodes: int) -> AsyncIterator[Desk]:
    async with cluster_processes(path, address, nodes=nodes) as cluster:
        await cluster.serve()
        await cluster.formed()
        for node in cluster.nodes:
            await until_metrics(node, catching_up=0)
        await until_metrics(cluster.replicator, nodes_live=nodes)
        desk = Desk(address, cluster)
        desk.connection = await asyncpg.connect(**address.asyncpg())
        try:
            yield desk
        finally:
            await desk.connection.close()


@pytest.fixture
async def desk(tmp_path: Path, database_address: DatabaseAddress) -> AsyncIterator[Desk]:
    async with running(tmp_path, database_address, nodes=1) as desk:
        yield desk


async def test_everything_of_a_closed_account_goes_from_all_replicas_and_nothing_of_another(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with running(tmp_path, database_address, nodes=3) as desk:
        sizes = {b"default": 300, b"a": 1, b"n" * 255: 20, "größer".encode(): keys_at_once + 500}
        total = await desk.fill(7, sizes)
        kept = await desk.fill(8, {b"default": 300, b"a": 5})
        await desk.close(7)
        async with desk.worker() as worker:
            (row,) = await desk.until_done(7)
            counters = worker.deletion.counters
        for node in desk.cluster.nodes:
            assert await desk.left(7, node) == Count(0, 0, total)
            assert (await desk.left(8, node)).keys == kept
        assert (row["keys_deleted"], row["trouble"], row["attempts"]) == (total, None, 0)
        assert (counters.keys_deleted, counters.accounts_done) == (total, 1)
        entry = await desk.connection.fetchrow("SELECT * FROM audit_log WHERE user_id = 7")
        assert (entry["action"], entry["actor"]) == ("data_deleted", "user manager")
        assert entry["details"] == f'{{"keys": {total}}}'


async def test_an_account_that_stored_nothing_is_done_with_too(desk: Desk) -> None:
    await desk.close(7)
    async with desk.worker():
        (row,) = await desk.until_done(7)
    assert row["keys_deleted"] == 0


async def test_the_first_pass_is_at_once_and_the_last_when_nobody_can_write_any_more(
    desk: Desk,
) -> None:
    await desk.fill(7, {b"default": 50})
    await desk.close(7)
    wait_s = 3.0
    async with desk.worker(Pace(wait_s, 5.0, 0.05)) as worker:
        row = await desk.until_row(7, "its first pass is over", keys_deleted=50)
        assert row["done_at"] is None
        # A gateway that was cut off when the account was closed still writes.
        await desk.fill(7, {b"default": 10, b"late": 3})
        await until_told(lambda: passes(worker, 1), "the first pass is noted")
        row = await desk.row(7)
        assert row["done_at"] is None
        assert row["due_after"].total_seconds() == wait_s
        (row,) = await desk.until_done(7)
    assert (row["done_at"] - row["closed_at"]).total_seconds() >= wait_s
    assert row["keys_deleted"] == 63
    assert (await desk.left(7)).keys == 0


async def passes(worker: Worker, count: int) -> bool | None:
    return worker.deletion.counters.passes >= count or None


async def test_without_a_replicator_it_says_so_waits_longer_each_time_and_then_goes_on(
    desk: Desk,
) -> None:
    await desk.fill(7, {b"default": 50})
    await desk.cluster.replicator.kill()
    await desk.close(7)
    async with desk.worker() as worker:

        async def tried_thrice() -> Row | None:
            row = await desk.row(7)
            return row if row["attempts"] >= 3 else None

        row = await until_told(tried_thrice, "it was put off three times")
        assert row["trouble"].startswith("no_replicator: None of 1 replicators can be asked")
        assert row["done_at"] is None

        async def shown() -> bool | None:
            figures = worker.metrics.as_json()
            trouble = str(figures["deletion_trouble"])
            return (
                (figures["deletion_waiting"], figures["deletion_in_trouble"]) == (1, 1)
                and "no_replicator" in trouble
            ) or None

        await until_told(shown, "the figures tell of it")
        await desk.cluster.replicator.serve()
        (row,) = await desk.until_done(7)
        assert (row["trouble"], row["attempts"], row["keys_deleted"]) == (None, 0, 50)

        async def clear() -> bool | None:
            figures = worker.metrics.as_json()
            return (
                figures["deletion_waiting"],
                figures["deletion_in_trouble"],
                figures["deletion_trouble"],
            ) == (0, 0, None) or None

        await until_told(clear, "the figures tell that nothing is left")


async def test_while_a_slot_has_no_live_owner_nothing_is_called_deleted(desk: Desk) -> None:
    await desk.fill(7, {b"default": 50})
    (node,) = desk.cluster.nodes
    await node.kill()
    await until_metrics(desk.cluster.replicator, nodes_live=0)
    await desk.close(7)
    async with desk.worker():

        async def in_trouble() -> str | None:
            trouble: str | None = (await desk.row(7))["trouble"]
            return trouble

        assert (await until_told(in_trouble, "it is in trouble")).startswith("no_quorum: ")
        await node.serve()
        (row,) = await desk.until_done(7)
    assert row["keys_deleted"] == 50
    assert (await desk.left(7)).keys == 0


async def test_two_workers_share_the_accounts(desk: Desk) -> None:
    tenants = range(100, 116)
    total = 0
    for tenant in tenants:
        total += await desk.fill(tenant, {b"default": 40, b"other": 10})
    await desk.close(*tenants)
    async with desk.worker() as one, desk.worker() as other:
        rows = await desk.until_done(*tenants)
        done = [worker.deletion.counters.accounts_done for worker in (one, other)]
        keys = [worker.deletion.counters.keys_deleted for worker in (one, other)]
    assert [row["keys_deleted"] for row in rows] == [50] * len(tenants)
    assert (sum(done), sum(keys)) == (len(tenants), total)
    assert min(done) > 0
    notes = "SELECT count(*) FROM audit_log WHERE action = 'data_deleted'"
    assert await desk.connection.fetchval(notes) == len(tenants)


async def test_what_a_worker_leaves_that_dies_in_the_middle_another_goes_on_with(
    desk: Desk,
) -> None:
    total = await desk.fill(7, {b"ns-%03d" % number: 20 for number in range(200)})
    await desk.close(7)
    pace = Pace(last_pass_s=0.0, lease_s=1.0, look_s=0.05)
    async with desk.worker(pace) as first:

        async def begun() -> Row | None:
            row = await desk.row(7)
            return row if row["keys_deleted"] > 0 else None

        row = await until_told(begun, "some keys are deleted")
        await first.die()
        left = (await desk.left(7)).keys
        assert 0 < left < total
    async with desk.worker(pace):
        (row,) = await desk.until_done(7)
    assert (await desk.left(7)).keys == 0
    # What the first one deleted in its last step it could not say any more.
    assert total - 20 <= row["keys_deleted"] <= total


async def test_a_database_that_loses_its_connections_only_delays_it(desk: Desk) -> None:
    total = await desk.fill(7, {b"ns-%03d" % number: 10 for number in range(200)})
    await desk.close(7)
    pace = Pace(last_pass_s=0.0, lease_s=0.5, look_s=0.05)
    async with desk.worker(pace) as worker:
        for _ in range(5):
            assert (await desk.row(7))["done_at"] is None
            await desk.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.1)
        await desk.until_done(7)
        assert not worker._task.done()
    assert (await desk.left(7)) == Count(0, 0, total)


async def test_somebody_who_goes_on_writing_is_outwaited_not_raced(desk: Desk) -> None:
    await desk.fill(7, {b"default": 50})
    await desk.close(7)
    writing = asyncio.Event()
    writing.set()

    async def write() -> None:
        number = 0
        async with desk.client() as client:
            while writing.is_set():
                number += 1
                prefix = namespace_prefix(7, b"busy")
                await put_all(client, [prefix + b"%d-%d" % (number, each) for each in range(20)])

    writer = asyncio.create_task(write())
    async with desk.worker():

        async def in_trouble() -> str | None:
            trouble: str | None = (await desk.row(7))["trouble"]
            return trouble

        trouble = await until_told(in_trouble, "it is in trouble")
        assert trouble == f"{sweeps_max} sweeps in a row found keys: who writes them?"
        writing.clear()
        await writer
        await desk.until_done(7)
    assert (await desk.left(7)).keys == 0


# Who is at it.


@pytest.fixture
async def store(database_address: DatabaseAddress) -> AsyncIterator[DeletionStore]:
    async with Database(database_address) as database:
        yield DeletionStore(database, Audit(database))


@pytest.fixture
async def connection(database_address: DatabaseAddress) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(**database_address.asyncpg())
    yield connection
    await connection.close()


async def taken(store: DeletionStore, lease_s: float = 60.0) -> ClosedAccount:
    account = await store.take(lease_s)
    assert account is not None
    return account


async def test_an_account_is_taken_on_by_one_until_its_lease_ends(
    store: DeletionStore, connection: asyncpg.Connection
) -> None:
    await connection.execute("INSERT INTO closed_accounts (user_id) VALUES (1), (2), (3)")
    found = await asyncio.gather(*(store.take(60.0) for _ in range(8)))
    assert sorted(account.user_id for account in found if account is not None) == [1, 2, 3]
    account = next(account for account in found if account is not None)
    await store.go_on(account, -1.0, 5)
    again = await taken(store)
    assert again.user_id == account.user_id
    assert again.begun_at > account.begun_at


async def test_who_has_lost_an_account_has_no_say_in_it_any_more(
    store: DeletionStore, connection: asyncpg.Connection
) -> None:
    await connection.execute("INSERT INTO closed_accounts (user_id) VALUES (1)")
    late = await taken(store, lease_s=-1.0)
    owner = await taken(store)
    for say in (
        store.go_on(late, 60.0, 100),
        store.come_back(late, 0.0),
        store.put_off(late, 0.0, "trouble"),
        store.finish(late),
    ):
        with pytest.raises(LostError):
            await say
    await store.go_on(owner, 60.0, 3)
    assert await store.finish(owner) == 3
    with pytest.raises(LostError):
        await store.finish(owner)
    assert await store.take(60.0) is None
    assert await connection.fetchval("SELECT count(*) FROM audit_log") == 1


async def test_any_text_of_a_trouble_can_be_kept(
    store: DeletionStore, connection: asyncpg.Connection
) -> None:
    await connection.execute("INSERT INTO closed_accounts (user_id) VALUES (1)")
    await store.put_off(await taken(store), 0.0, "nul \0 and " + "ü" * 10_000)
    backlog = await store.backlog()
    assert (backlog.waiting, backlog.in_trouble) == (1, 1)
    assert backlog.trouble is not None
    assert len(backlog.trouble) == trouble_chars_max
    assert (await taken(store)).attempts == 1


async def test_accounts_done_with_long_ago_are_forgotten_and_no_others(
    store: DeletionStore, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "INSERT INTO closed_accounts (user_id, closed_at, done_at) VALUES"
        " (1, now() - interval '400 days', now() - interval '366 days'),"
        " (2, now() - interval '400 days', now() - interval '364 days'),"
        " (3, now() - interval '400 days', NULL)"
    )
    await store.tidy()
    left = await connection.fetch("SELECT user_id FROM closed_accounts ORDER BY user_id")
    assert [row["user_id"] for row in left] == [2, 3]


# As a user does it.


async def test_who_closes_an_account_over_http_has_its_data_deleted(
    desk: Desk, tmp_path: Path, database_address: DatabaseAddress
) -> None:
    urls = desk.cluster.replicator.url
    async with usermanager_process(tmp_path, database_address, REPLICATOR_URLS=urls) as usermanager:
        ada, ben = await usermanager.person(), await usermanager.person()
        await desk.fill(ada.id, {b"default": 100, b"more": 5})
        await desk.fill(ben.id, {b"default": 10})
        answer = await ada.delete("/me", {"password": ada.password})
        assert answer.status_code == 204, answer.text
        await desk.until_row(ada.id, "the first pass is over", keys_deleted=105)
        assert (await desk.left(ada.id)).keys == 0
        assert (await desk.left(ben.id)).keys == 10
        # A quarter of an hour later, and with the process started anew in between.
        await usermanager.kill()
        await desk.connection.execute(
            "UPDATE closed_accounts SET closed_at = now() - interval '16 minutes', due_at = now()"
        )
        await usermanager.serve()
        await desk.until_done(ada.id)
        figures = await usermanager.metrics()
        assert figures["deletion_accounts_done"] == 1
        assert figures["replicators_live"] == 1
        assert f"user_id={ada.id}" in usermanager.said
    assert (await desk.left(ben.id)).keys == 10
