"""Declaring and deleting namespaces, as a replicator does it beside PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest_asyncio

from services.core.cluster import ClusterMap, Member
from services.core.declarations import Declaration, DeclaredAnswer
from services.core.hlc import version_bytes
from services.core.key import namespace_prefix
from services.core.namespaces import Edition, encode_edition
from services.core.operations import INVALID, UNKNOWN, decode_refused, decode_unknown
from services.core.packed_bodies import encode_body
from services.core.paxos import Answer
from services.core.wire import OK, Role
from services.replicator.cache_news import CacheNews, awaited_s_max
from services.replicator.declarations import Declarations
from services.replicator.declared import Declared
from services.replicator.declaring import Declaring
from services.replicator.memory_namespace_store import MemoryNamespaceStore, NamespaceRows
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fleet import Fleet
from tests.integration.link_ends import log_lines
from tests.unit.hand_peer import hand_peer
from tests.unit.test_replicator_membership import Away
from tests.waiting import wait_until

store, cache = (namespace_prefix(7, name) for name in (b"store", b"cache"))


def told(*untold: str, changed: bool) -> Answer:
    return OK, encode_body(DeclaredAnswer(changed, list(untold)))


class World:
    def __init__(self) -> None:
        self.timeline, self.rows, self.declared = Timeline(), NamespaceRows(), Declared()
        clock = FakeClock(self.timeline)
        self.fleet = Fleet(Away, clock)
        self.news = CacheNews(self.declared, self.fleet, lambda peer: True, clock)
        rows = MemoryNamespaceStore(self.rows)
        self.declaring = Declaring(rows, self.declared, self.news, clock, random.Random(1))
        self.running = asyncio.create_task(self.declaring.run())

    async def declare(
        self, prefix: bytes, max_items: int | None, caches_max: int | None = None
    ) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.declaring.declare(
            encode_body(Declaration(prefix, max_items, caches_max)),
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


async def test_a_declaration_brings_along_how_many_caches_the_plan_has(world: World) -> None:
    world.rows.declared[cache], world.rows.version = 10, 1
    world.declared.adopt(Declarations.of(1, [(cache, 10)]))
    more = namespace_prefix(7, b"more")
    # This replicator has heard of it as a cache, so that it need not look for keys.
    world.declared.adopt(Declarations.of(2, [(cache, 10), (more, 5)]))
    world.rows.version = 2
    kind, body = await world.declare(more, 5, 1)
    assert (kind, decode_refused(body)[0]) == (INVALID, "limit_reached")
    assert world.rows.declared == {cache: 10}
    assert await world.declare(more, 5, 2) == told(changed=True)
    assert await world.declare(cache, 20, 0) == told(changed=True)


async def test_only_what_becomes_a_cache_waits_for_the_nodes(world: World) -> None:
    world.rows.declared[cache] = 10
    world.rows.version = 1
    node = hand_peer(Role.NODE, "node-1")
    world.news.came(node)
    world.declared.adopt(Declarations.of(1, [(cache, 10)]))
    # Neither of these changes where anything is put. The node has not said that it knows.
    for prefix, max_items in ((store, None), (cache, 20), (cache, 30)):
        assert await world.declare(prefix, max_items) == told(changed=True)
    waiting = asyncio.ensure_future(world.declare(cache, 30))

    def answered() -> bool:
        world.timeline.advance(awaited_s_max)
        return waiting.done()

    await wait_until(answered, "a second has passed")
    assert await waiting == told("node-1", changed=False)


async def test_what_is_cut_off_at_the_end_is_unknown_by_an_id_too(world: World) -> None:
    world.fleet.adopt(ClusterMap(1, 1, (Member("node-1", "1" * 32, "127.0.0.1", 8001, 9001),)))
    node = hand_peer(Role.NODE, "node-1")
    world.news.came(node)
    node.answer(OK, encode_edition(Edition(0, 1)))
    with log_lines() as lines:
        world.declared.adopt(Declarations.of(1, [(cache, 10)]))
        world.rows.declared[cache], world.rows.version = 10, 1
        asked = asyncio.ensure_future(world.declare(cache, 10))
        # It waits for the node to say that it knows.
        await wait_until(lambda: bool(node.asked), "the node is told")
        world.running.cancel()
        kind, body = await asked
    assert kind == UNKNOWN
    assert decode_unknown(body)[0].hex() in [line.get("operation") for line in lines]
