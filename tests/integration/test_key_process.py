"""API keys in a real user manager: out of its logs, and polls in spite of its ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from services.core.api_key import lookup_hash, lookup_subkey
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import EmbeddedPostgres
from services.runtime.migrations import migrate
from tests.integration.replicator_process import until_metrics, until_told
from tests.integration.usermanager_process import (
    UserManagerProcess,
    key_pepper,
    usermanager_process,
)

told_s_max = 1.0


async def validated(usermanager: UserManagerProcess, key: str) -> int:
    key_hash = lookup_hash(lookup_subkey(key_pepper), key).hex()
    return (await usermanager.ask("POST", "/validate-key", {"key_hash": key_hash})).status_code


async def test_no_issued_key_is_in_the_log_whatever_is_done_with_it(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    issued = []
    async with usermanager_process(
        tmp_path, database_address, ACCESS_LOG="true", DEBUG_ENABLED="true"
    ) as usermanager:
        ada = await usermanager.person()
        for _ in range(3):
            answer = await ada.post("/apikeys", {"name": "robot"})
            issued.append(answer.json()["key"])
            rotated = await ada.post(f"/apikeys/{answer.json()['id']}/rotate", {"overlap": "1h"})
            issued.append(rotated.json()["key"])
            assert (await ada.delete(f"/apikeys/{rotated.json()['id']}")).status_code == 204
        for key in issued:
            await usermanager.ask("POST", "/validate-key", {"key": key})
            # And wherever people put keys by mistake.
            await usermanager.ask("POST", "/validate-key", {"key": [key]})
            await usermanager.ask("POST", "/validate-key", {key: key})
            await usermanager.call("POST", "/validate-key", {"key": key})
            await usermanager.call("GET", f"/apikeys/{key}?cursor={key}")
            await ada.get(f"/apikeys?cursor={key}")
            await ada.delete(f"/apikeys/{key}")
            await ada.post("/apikeys", {"name": key, "scopes": [key]})
            await usermanager.call(
                "GET", "/apikeys", headers={"Authorization": f"Bearer {key}", "X-Request-ID": key}
            )
        assert await usermanager.terminate() == 0
        log = usermanager.said
    assert len(issued) == 6
    assert "POST" in log
    for key in issued:
        assert key not in log
        # Nor any part of it that somebody could go on from.
        assert key[8:28] not in log
        assert key[-20:] not in log


async def test_a_key_revoked_at_one_process_is_told_of_by_another_within_a_second(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    loop = asyncio.get_running_loop()
    async with (
        usermanager_process(tmp_path / "one", database_address) as one,
        usermanager_process(tmp_path / "two", database_address) as two,
    ):
        ada = await one.person()
        for _ in range(3):
            made = (await ada.post("/apikeys", {"name": "robot"})).json()
            assert await validated(two, made["key"]) == 200
            last = (await two.ask("GET", "/key-events")).json()["last"]
            poll = asyncio.create_task(two.ask("GET", f"/key-events?after={last}"))
            await until_metrics(two, key_event_waiters=1)
            began_s = loop.time()
            assert (await ada.delete(f"/apikeys/{made['id']}")).status_code == 204
            events = (await poll).json()["events"]
            assert loop.time() - began_s < told_s_max
            assert [event["key_id"] for event in events] == [made["id"]]
            assert await validated(two, made["key"]) == 401


async def test_a_process_that_is_asked_to_end_answers_its_polls_and_ends_at_once(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    loop = asyncio.get_running_loop()
    async with usermanager_process(tmp_path, database_address) as usermanager:
        polls = [
            asyncio.create_task(usermanager.ask("GET", "/key-events?after=0&wait_s=60"))
            for _ in range(5)
        ]
        await until_metrics(usermanager, key_event_waiters=5)
        began_s = loop.time()
        ended = asyncio.create_task(usermanager.terminate())
        for answer in await asyncio.gather(*polls):
            assert answer.json() == {"events": [], "last": 0, "reset": False}
        assert loop.time() - began_s < told_s_max
        assert await ended == 0


async def test_a_poll_whose_client_has_gone_is_over(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with usermanager_process(tmp_path, database_address) as usermanager:
        for count in (3, 1):
            polls = [
                asyncio.create_task(usermanager.ask("GET", "/key-events?after=0&wait_s=60"))
                for _ in range(count)
            ]
            await until_metrics(usermanager, key_event_waiters=count)
            for poll in polls:
                poll.cancel()
            await asyncio.wait(polls)
            await until_metrics(usermanager, key_event_waiters=0)


async def test_uses_of_keys_are_written_before_a_process_ends(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with usermanager_process(tmp_path, database_address) as usermanager:
        ada = await usermanager.person()
        made = (await ada.post("/apikeys", {"name": "robot"})).json()
        assert await validated(usermanager, made["key"]) == 200
        assert await usermanager.terminate() == 0
        await usermanager.serve()
        await ada.login()
        (shown,) = (await ada.get("/apikeys")).json()["api_keys"]
        assert shown["last_used_at"] is not None


async def test_keys_outlive_a_restart_of_postgresql_and_the_process_needs_none(
    tmp_path: Path,
) -> None:
    password = "made up for this test"

    def server() -> EmbeddedPostgres:
        return EmbeddedPostgres(tmp_path / "pg", password, durable=False, log=lambda _: None)

    running = server()
    await running.__aenter__()
    await asyncio.to_thread(migrate, running.address)
    async with usermanager_process(tmp_path / "data", running.address) as usermanager:
        ada = await usermanager.person()
        made = (await ada.post("/apikeys", {"name": "robot"})).json()
        poll = asyncio.create_task(usermanager.ask("GET", "/key-events?after=0&wait_s=60"))
        await until_metrics(usermanager, key_event_waiters=1)
        await running.__aexit__(None, None, None)
        answers: list[httpx.Response] = [
            await poll,
            await usermanager.ask("GET", "/key-events"),
            await usermanager.ask("POST", "/validate-key", {"key": made["key"]}),
            await ada.get("/apikeys"),
            await ada.post("/apikeys", {"name": "another"}),
            await ada.delete(f"/apikeys/{made['id']}"),
            await ada.post(f"/apikeys/{made['id']}/rotate"),
        ]
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        async with server():

            async def good() -> bool | None:
                return await validated(usermanager, made["key"]) == 200 or None

            await until_told(good, "the key is good again")
            again = asyncio.create_task(usermanager.ask("GET", "/key-events?after=0&wait_s=60"))
            await until_metrics(usermanager, key_event_waiters=1)
            assert (await ada.delete(f"/apikeys/{made['id']}")).status_code == 204
            assert [event["key_id"] for event in (await again).json()["events"]] == [made["id"]]
            assert await validated(usermanager, made["key"]) == 401
