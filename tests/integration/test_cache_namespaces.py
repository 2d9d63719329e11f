"""Cache namespaces from their declaration to eviction, in a real cluster."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from services.core.cluster import ClusterMap
from services.core.declarations import Declaration, DeclaredAnswer, NamespacesTold, NamespaceTold
from services.core.deletions import NamespaceDeletion, PrefixDeleted
from services.core.key import namespace_prefix
from services.core.messages import CACHES, COUNT, EPOCH, GET, MALFORMED, u64
from services.core.namespaces import (
    Cache,
    CacheList,
    Count,
    Edition,
    NamespacesQuery,
    decode_caches,
    encode_edition,
    no_edition,
)
from services.core.operations import (
    BATCH,
    CHANGE,
    CHANGED,
    DECLARE_NAMESPACE,
    DELETE_NAMESPACE,
    DESCRIBE_NAMESPACE,
    FETCH,
    INVALID,
    LIST_NAMESPACES,
    PUT,
    REFUSED,
    Action,
    ChangeRequest,
    decode_batch,
    decode_refused,
    encode_batch,
    encode_change,
    encode_put,
)
from services.core.packed_bodies import decode_body, encode_body
from services.core.wire import OK, Role
from services.runtime.database_url import DatabaseAddress
from services.runtime.link import Link, Station
from services.runtime.opening import Identity
from services.runtime.peer import Peer
from services.runtime.settings import link_port_offset
from tests.integration.node_process import NodeClient, NodeProcess, Stamps, node_client, secret
from tests.integration.replicator_process import (
    ClusterProcesses,
    ReplicatorProcess,
    cluster_processes,
    until_metrics,
    until_told,
)
from tests.waiting import wait_until

cached = namespace_prefix(7, b"cached")
done, so_already = (DeclaredAnswer(changed=changed, untold=[]) for changed in (True, False))


@asynccontextmanager
async def running(
    path: Path, address: DatabaseAddress, *, nodes: int = 3, replicators: int = 1
) -> AsyncIterator[ClusterProcesses]:
    async with cluster_processes(path, address, nodes=nodes, replicators=replicators) as cluster:
        await cluster.serve()
        await cluster.formed()
        for node in cluster.nodes:
            await until_metrics(node, catching_up=0)
        for replicator in cluster.replicators:
            await until_metrics(replicator, nodes_live=nodes)
        yield cluster


class Gateway(NodeClient):
    """A gateway as a replicator sees it: told maps and caches, and asking."""

    def __init__(self, name: str, of: ReplicatorProcess) -> None:
        self.maps: list[ClusterMap] = []
        self.lists: list[CacheList] = []
        handlers = {EPOCH: self._epoch, CACHES: self._caches}
        station = Station(Identity(Role.GATEWAY, name, secret), handlers)
        link = Link(station, "127.0.0.1", of.port + link_port_offset)
        super().__init__(link, Stamps())

    def _epoch(self, peer: Peer, request_id: int, body: bytes) -> None:
        self.maps.append(ClusterMap.decode(body))
        peer.reply(request_id, OK, u64.pack(self.maps[-1].epoch))

    def _caches(self, peer: Peer, request_id: int, body: bytes) -> None:
        self.lists.append(decode_caches(body))
        peer.reply(request_id, OK, encode_edition(self.lists[-1].edition))

    @property
    def caches(self) -> dict[bytes, int] | None:
        """As it was last told."""
        if not self.lists:
            return None
        return {cache.namespace: cache.items_max for cache in self.lists[-1].caches}

    async def until_told(self, caches: dict[bytes, int], edition: Edition = no_edition) -> None:
        await wait_until(
            lambda: self.caches == caches and self.lists[-1].edition >= edition,
            f"{caches} is told, of {edition} or later",
        )

    async def declare(self, prefix: bytes, max_items: int | None) -> DeclaredAnswer:
        declaration = Declaration(prefix, max_items)
        kind, body = await self.ask(DECLARE_NAMESPACE, encode_body(declaration))
        assert kind == OK, (kind, body)
        return decode_body(body, DeclaredAnswer)

    async def refused(self, prefix: bytes, max_items: int | None) -> tuple[int, str]:
        declaration = Declaration(prefix, max_items)
        kind, body = await self.ask(DECLARE_NAMESPACE, encode_body(declaration))
        assert kind in (INVALID, REFUSED), (kind, body)
        return kind, decode_refused(body)[0]

    async def delete(self, prefix: bytes, limit: int = 10_000) -> list[PrefixDeleted]:
        """As a gateway does it: from where the call before has ended, until all is gone."""
        calls: list[PrefixDeleted] = []
        start: bytes | None = b""
        while start is not None:
            deletion = NamespaceDeletion(prefix, start, limit)
            kind, body = await self.ask(DELETE_NAMESPACE, encode_body(deletion))
            assert kind == OK, (kind, body)
            calls.append(decode_body(body, PrefixDeleted))
            start = calls[-1].next
        return calls

    async def described(self, prefix: bytes) -> NamespaceTold | None:
        kind, body = await self.ask(DESCRIBE_NAMESPACE, prefix)
        if kind == INVALID:
            assert decode_refused(body)[0] == "not_found"
            return None
        assert kind == OK, (kind, body)
        return decode_body(body, NamespaceTold)

    async def listed(self, tenant: int = 7) -> list[NamespaceTold]:
        kind, body = await self.ask(LIST_NAMESPACES, encode_body(NamespacesQuery(tenant)))
        assert kind == OK, (kind, body)
        return decode_body(body, NamespacesTold).found

    async def fill(self, keys: Sequence[bytes], value: bytes = b"value") -> None:
        for start in range(0, len(keys), 500):
            puts = [(PUT, encode_put(key, value)) for key in keys[start : start + 500]]
            kind, body = await self.ask(BATCH, encode_batch(puts))
            assert kind == OK
            assert {kind for kind, _ in decode_batch(body)} == {CHANGED}


@asynccontextmanager
async def gateway(of: ReplicatorProcess, name: str = "gateway-1") -> AsyncIterator[Gateway]:
    one = Gateway(name, of)
    one.link.start()
    try:
        await wait_until(lambda: one.link.connected, f"{name} has a link to {of.node_id}")
        yield one
    finally:
        await one.link.close()


async def count_at(node: NodeProcess, prefix: bytes) -> Count:
    async with node_client(node, "tool", Role.TOOL) as client:
        kind, body = await client.ask(COUNT, prefix)
    assert kind == OK
    return decode_body(body, Count)


async def until_count(node: NodeProcess, prefix: bytes, keys: int) -> None:
    async def look() -> bool | None:
        return (await count_at(node, prefix)).keys == keys or None

    await until_told(look, f"{node.node_id} has {keys} keys")


async def present_at(node: NodeProcess, keys: Sequence[bytes]) -> set[bytes]:
    async with node_client(node, "tool", Role.TOOL) as client:
        answers = await asyncio.gather(*(client.ask(GET, key) for key in keys))
    assert {kind for kind, _ in answers} == {OK}
    return {key for key, (_, record) in zip(keys, answers, strict=True) if record}


def key_of(number: int, of: bytes = cached) -> bytes:
    return of + b"key-%05d" % number


async def test_a_cache_of_a_thousand_keeps_a_thousand_those_used_last(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with running(tmp_path, database_address) as cluster, gateway(cluster.replicator) as asker:
        assert await asker.declare(cached, 1_000) == done
        keys = [key_of(number) for number in range(5_000)]
        # What is put right after is put into a cache; and what is read stays.
        favourites = keys[:50]
        await asker.fill(keys[:500])
        for start in range(500, 5_000, 500):
            for node in cluster.nodes:
                assert await present_at(node, favourites) == set(favourites)
            await asker.fill(keys[start : start + 500])
            # One replica has answered for all; the others have what was put as well.
            await until_metrics(cluster.replicator, queue_size=0, retries_in_progress=0)
        for node in cluster.nodes:
            await until_count(node, cached, 1_000)
            present = await present_at(node, keys)
            assert len(present) == 1_000
            assert set(favourites) < present
            assert present >= set(keys[4_100:])
        assert await asker.described(cached) == NamespaceTold(b"cached", 1_000, 14_000, 1_000)
        # After kill -9 they are caches from the first frame on.
        for node in cluster.nodes:
            await node.kill()
        for node in cluster.nodes:
            await node.serve()
            assert (await count_at(node, cached)).keys == 1_000
            assert await present_at(node, keys[4_100:]) == set(keys[4_100:])
        await until_metrics(cluster.replicator, nodes_live=3)
        more = [key_of(number) for number in range(5_000, 7_500)]
        await asker.fill(more)
        await until_metrics(cluster.replicator, queue_size=0, retries_in_progress=0)
        for node in cluster.nodes:
            await until_count(node, cached, 1_000)
            # Nearly all of the last thousand: what one replica was told again is newer there.
            assert await present_at(node, more[1_600:]) == set(more[1_600:])


async def test_of_more_nodes_than_replicas_each_keeps_its_share(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with (
        running(tmp_path, database_address, nodes=4) as cluster,
        gateway(cluster.replicator) as asker,
    ):
        # Rounded up: 3/4 of 1,001.
        assert (await asker.declare(cached, 1_001)).untold == []
        await asker.fill([key_of(number) for number in range(4_000)])
        for node in cluster.nodes:
            await until_count(node, cached, 751)
        # All four together have about so many keys three times.
        told = await asker.described(cached)
        assert told is not None
        assert abs(told.keys - 1_001) <= 1
        assert asker.caches == {cached: 1_001}


async def test_declarations_are_answered_as_clients_are_to_be(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with running(tmp_path, database_address) as cluster, gateway(cluster.replicator) as asker:
        store, used = namespace_prefix(7, b"store"), namespace_prefix(7, b"used")
        await asker.fill([used + b"key"])
        assert await asker.declare(store, None) == done
        assert await asker.declare(store, None) == so_already
        assert await asker.declare(used, None) == done
        assert await asker.declare(cached, 10) == done
        assert await asker.declare(cached, 10) == so_already
        assert await asker.declare(cached, 20) == done
        conflict = INVALID, "already_exists"
        assert await asker.refused(cached, None) == conflict
        assert await asker.refused(store, 5) == conflict
        await asker.fill([namespace_prefix(7, b"sprung up") + b"key"])
        assert await asker.refused(namespace_prefix(7, b"sprung up"), 5) == conflict
        assert await asker.refused(cached, 0) == (INVALID, "invalid_body")
        assert await asker.refused(cached, 1 << 41) == (INVALID, "invalid_body")
        assert await asker.refused(namespace_prefix(7, b"\n"), 5) == (INVALID, "invalid_namespace")
        assert await asker.refused(namespace_prefix(7, b"\xff"), 5) == (
            INVALID,
            "invalid_namespace",
        )
        for body in (b"", encode_body(Declaration(b"short", 5)), b"\x92\xc4\x00\xa1x"):
            assert (await asker.ask(DECLARE_NAMESPACE, body))[0] == MALFORMED
            assert (await asker.ask(DELETE_NAMESPACE, body))[0] == MALFORMED
        # Of another tenant nobody sees or meets anything.
        assert await asker.listed(8) == []
        assert await asker.declare(namespace_prefix(8, b"cached"), None) == done
        assert await asker.listed() == [
            NamespaceTold(b"cached", 0, 0, 20),
            NamespaceTold(b"sprung up", 1, 8, None),
            NamespaceTold(b"store", 0, 0, None),
            NamespaceTold(b"used", 1, 8, None),
        ]


async def test_a_cache_is_eventual_alone_until_it_is_deleted(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with running(tmp_path, database_address) as cluster, gateway(cluster.replicator) as asker:
        increment = encode_change(ChangeRequest(Action.INCREMENT, cached + b"n", by=1))
        # What strong operations have left is not what comes back later.
        await asker.ask(CHANGE, increment)
        assert (await asker.delete(cached)) == [PrefixDeleted(1, 1, None)]
        assert await asker.described(cached) is None
        await asker.declare(cached, 100)
        for kind, body in ((CHANGE, increment), (FETCH, cached + b"n")):
            answer, text = await asker.ask(kind, body)
            assert (answer, decode_refused(text)[0]) == (INVALID, "invalid_consistency")
        await asker.fill([key_of(number) for number in range(1_000)])
        assert asker.caches == {cached: 100}
        for node in cluster.nodes:
            await until_count(node, cached, 100)
        # A tombstone is a record of a cache, too, and may have another one evicted.
        calls = await asker.delete(cached, limit=40)
        assert 40 < sum(call.deleted for call in calls) <= 300
        assert len(calls) > 1
        assert [call.next is None for call in calls] == [False] * (len(calls) - 1) + [True]
        assert asker.caches == {}
        # What only others than the first owners had, each of them has given up by itself.
        for node in cluster.nodes:
            await until_count(node, cached, 0)
        assert await asker.described(cached) is None
        assert await asker.ask(FETCH, cached + b"n") == (OK, b"")
        kind, _ = await asker.ask(CHANGE, increment)
        assert kind == CHANGED
        assert await asker.described(cached) == NamespaceTold(b"cached", 1, 2, None)


async def test_a_gateway_is_told_the_map_and_each_list_by_every_replicator(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with (
        running(tmp_path, database_address, replicators=2) as cluster,
        gateway(cluster.replicators[0]) as first,
        gateway(cluster.replicators[1]) as second,
    ):
        for asker in (first, second):
            await asker.until_told({})
            assert [known.epoch for known in asker.maps] == [1]
        await first.declare(cached, 10)
        assert first.caches == {cached: 10}
        await second.until_told({cached: 10})
        assert second.lists[-1] == CacheList(Edition(1, 1), [Cache(cached, 10)])
        await second.delete(cached)
        await first.until_told({})
        # On another connection everything is told anew.
        async with gateway(cluster.replicators[0], "gateway-2") as third:
            await third.until_told({})
            assert [known.epoch for known in third.maps] == [1]
            assert third.lists[-1].edition == Edition(2, 1)
        # A node that moves makes a map, and that is told as well, with the shares it leads to.
        mover = cluster.nodes[0]
        await mover.terminate()
        moved = cluster.node(1)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(moved.clear)
            await moved.serve()
            for asker in (first, second):
                await asker.until_told({}, Edition(2, 3))
                assert [known.epoch for known in asker.maps] == [1, 3]


async def test_who_was_away_learns_of_caches_and_without_postgresql_they_are_known(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with running(tmp_path, database_address) as cluster:
        absent, *others = cluster.nodes
        await absent.kill()
        await until_metrics(cluster.replicator, nodes_live=2)
        async with gateway(cluster.replicator) as asker:
            # It is not waited for, as it is not connected.
            assert await asker.declare(cached, 10) == done
            await asker.fill([key_of(number) for number in range(100)])
        for node in others:
            await until_count(node, cached, 10)
        await absent.serve()
        # It is told before, or at the latest when, hints bring it what it missed.
        await until_metrics(absent, catching_up=0)
        await until_count(absent, cached, 10)
        replicator = cluster.replicator
        await replicator.kill()
        replicator.environment["DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/nothing"
        await replicator.serve()
        await until_metrics(replicator, nodes_live=3)
        async with gateway(replicator) as asker:
            await asker.until_told({cached: 10})
            kind, body = await asker.ask(FETCH, key_of(1))
            assert (kind, decode_refused(body)[0]) == (INVALID, "invalid_consistency")
            database_away = REFUSED, "database_unavailable"
            assert await asker.refused(namespace_prefix(7, b"new"), 5) == database_away
            kind, body = await asker.ask(DELETE_NAMESPACE, encode_body(NamespaceDeletion(cached)))
            assert (kind, decode_refused(body)[0]) == database_away
            assert (await asker.described(cached)) == NamespaceTold(b"cached", 10, 140, 10)


async def test_a_node_that_does_not_say_that_it_knows_is_named_after_a_second(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with running(tmp_path, database_address) as cluster, gateway(cluster.replicator) as asker:
        assert await asker.declare(cached, 10) == done
        silent = cluster.nodes[2]
        silent.process.send_signal(signal.SIGSTOP)
        try:
            # Of another limit nodes hear soon, of a store they need not; who asks is told.
            assert await asker.declare(cached, 20) == done
            assert await asker.declare(namespace_prefix(7, b"store"), None) == done
            answer = await asker.declare(cached, 20)
            assert answer == DeclaredAnswer(changed=False, untold=["node-3"])
        finally:
            silent.process.send_signal(signal.SIGCONT)
        await until_metrics(cluster.replicator, nodes_live=3)

        async def look() -> bool | None:
            name = namespace_prefix(7, b"cache")
            return (await asker.declare(name, 10)).untold == [] or None

        await until_told(look, "all nodes know")
