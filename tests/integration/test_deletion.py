"""The data of closed accounts, deleted from real nodes by way of a real replicator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.declarations import Declaration
from services.core.key import namespace_prefix
from services.core.namespaces import Count
from services.core.operations import DECLARE_NAMESPACE
from services.core.packed_bodies import encode_body
from services.core.wire import OK
from services.runtime.database_url import DatabaseAddress
from services.usermanager.deletion import Pace, sweeps_max
from services.usermanager.tenant_data import keys_at_once
from tests.integration.deletion_desk import Desk, Row, Worker, put_all, running
from tests.integration.replicator_process import until_metrics, until_told
from tests.integration.usermanager_process import usermanager_process


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


async def test_what_an_account_has_declared_goes_with_it(desk: Desk) -> None:
    spaces = [namespace_prefix(tenant, name) for tenant in (7, 8) for name in (b"a", b"b")]
    async with desk.client() as client:
        for prefix, max_items in zip(spaces, (10, None, 10, None), strict=True):
            declaration = encode_body(Declaration(prefix, max_items))
            assert (await client.ask(DECLARE_NAMESPACE, declaration))[0] == OK
    await desk.fill(7, {b"a": 30, b"c": 5})
    await desk.close(7)
    async with desk.worker():
        await desk.until_done(7)
    rows = await desk.connection.fetch("SELECT tenant::bigint, name FROM namespaces ORDER BY name")
    assert [tuple(row) for row in rows] == [(8, "a"), (8, "b")]
    assert (await desk.left(7)).keys == 0


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
        assert row["trouble"].startswith("no_replicator: No replicator can be asked")
        assert row["done_at"] is None

        async def shown() -> bool | None:
            figures = worker.metrics.as_json()
            return (figures["deletion_waiting"], figures["deletion_in_trouble"]) == (1, 1) or None

        await until_told(shown, "the figures tell of it")
        # To anybody who asks: nothing of where replicators are, nor of what is wrong with them.
        assert "replicator can be asked" not in str(worker.metrics.as_json())
        assert "127.0.0.1" not in str(worker.metrics.as_json())
        await desk.cluster.replicator.serve()
        (row,) = await desk.until_done(7)
        assert (row["trouble"], row["attempts"], row["keys_deleted"]) == (None, 0, 50)

        async def clear() -> bool | None:
            figures = worker.metrics.as_json()
            return (figures["deletion_waiting"], figures["deletion_in_trouble"]) == (0, 0) or None

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
        assert worker.running
    assert (await desk.left(7)) == Count(0, 0, total)


async def test_somebody_who_goes_on_writing_is_outwaited_not_raced(desk: Desk) -> None:
    await desk.fill(7, {b"default": 50})
    await desk.close(7)
    writing = asyncio.Event()
    writing.set()

    async def write(who: int) -> None:
        number = 0
        prefix = namespace_prefix(7, b"busy-%d" % who)
        async with desk.client() as client:
            while writing.is_set():
                number += 1
                await put_all(client, [prefix + b"%d-%d" % (number, each) for each in range(20)])

    # Several, so that no sweep meets a moment in which nothing is being written.
    writers = [asyncio.create_task(write(who)) for who in range(4)]
    async with desk.worker():

        async def is_asked() -> bool | None:
            row = await desk.row(7)
            if row["done_at"] is not None:
                # A sweep has met a moment without any: so nothing was left then. Once more.
                await desk.connection.execute("DELETE FROM closed_accounts WHERE user_id = 7")
                await desk.close(7)
            found = f"{sweeps_max} sweeps in a row found keys: who writes them?"
            return row["trouble"] == found or None

        await until_told(is_asked, "it is asked who writes")
        writing.clear()
        await asyncio.gather(*writers)
        await desk.until_done(7)
    assert (await desk.left(7)).keys == 0


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
