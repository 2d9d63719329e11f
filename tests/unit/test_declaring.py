"""Declaring and deleting namespaces, as a replicator does it beside PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest_asyncio

from services.core.hlc import version_bytes
from services.core.key import namespace_prefix
from services.core.messages import encode_body
from services.core.operations import UNKNOWN, Declaration, decode_unknown
from services.core.paxos import Answer
from services.core.wire import OK, Role
from services.replicator.cache_news import CacheNews
from services.replicator.declared import Declared
from services.replicator.declaring import Declaring
from services.replicator.memory_namespace_store import MemoryNamespaceStore, NamespaceRows
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fleet import Fleet
from tests.integration.link_ends import log_lines
from tests.unit.hand_peer import hand_peer
from tests.unit.test_replicator_membership import Away
from tests.waiting import wait_until

store = namespace_prefix(7, b"store")


class World:
    def __init__(self) -> None:
        clock, self.rows, declared = FakeClock(Timeline()), NamespaceRows(), Declared()
        self.news = CacheNews(declared, Fleet(Away, clock), lambda peer: True, clock)
        rows = MemoryNamespaceStore(self.rows)
        self.declaring = Declaring(rows, declared, self.news, clock, random.Random(1))
        self.running = asyncio.create_task(self.declaring.run())

    async def declare(self, prefix: bytes, max_items: int | None) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.declaring.declare(
            encode_body(Declaration(prefix, max_items)),
            lambda kind, body: answer.set_result((kind, body)),
        )
        return await answer


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    world.running.cancel()
    await asyncio.wait([world.running])


async def test_what_is_unknown_is_told_by_an_id_that_the_log_has(world: World) -> None:
    world.rows.replies_to_lose, world.rows.then_away = 1, True
    with log_lines() as lines:
        kind, body = await world.declare(store, None)
    assert kind == UNKNOWN
    operation, why = decode_unknown(body)
    assert operation != bytes(version_bytes)
    (line,) = [line for line in lines if line.get("operation") == operation.hex()]
    assert (line["level"], line["reason"]) == ("warning", why)
    # To ask again is no harm, and tells.
    world.rows.away = False
    assert (await world.declare(store, None))[0] == OK
    world.rows.replies_to_lose = 1
    _, body = await world.declare(namespace_prefix(7, b"other"), None)
    assert decode_unknown(body)[0] != operation


async def test_what_is_cut_off_at_the_end_is_unknown_by_an_id_too(world: World) -> None:
    world.news.came(hand_peer(Role.NODE, "node-1"))
    with log_lines() as lines:
        asked = asyncio.ensure_future(world.declare(store, None))
        # It is declared, and waits for the node to say that it knows.
        await wait_until(lambda: world.rows.version == 1, "it is declared")
        world.running.cancel()
        kind, body = await asked
    assert kind == UNKNOWN
    assert decode_unknown(body)[0].hex() in [line.get("operation") for line in lines]
