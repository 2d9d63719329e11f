"""A real replicator tells the namespaces of a tenant, from what real nodes hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from services.core.deletions import PrefixDeleted, PrefixDeletion
from services.core.key import namespace_prefix
from services.core.namespaces import NamespaceCount, NamespacesPage, NamespacesQuery
from services.core.operations import (
    BATCH,
    CHANGED,
    DELETE_PREFIX,
    LIST_NAMESPACES,
    PUT,
    REFUSED,
    decode_batch,
    decode_refused,
    encode_batch,
    encode_put,
)
from services.core.packed_bodies import decode_body, encode_body
from services.core.wire import OK, Role
from services.runtime.database_url import DatabaseAddress
from tests.integration.node_process import NodeClient, node_client
from tests.integration.replicator_process import (
    ClusterProcesses,
    cluster_processes,
    until_metrics,
)

value = b"twelve bytes"


@pytest.fixture
async def cluster(
    tmp_path: Path, database_address: DatabaseAddress
) -> AsyncIterator[ClusterProcesses]:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await cluster.serve()
        await cluster.formed()
        for node in cluster.nodes:
            await until_metrics(node, catching_up=0)
        await until_metrics(cluster.replicator, nodes_live=3)
        yield cluster


@pytest.fixture
async def client(cluster: ClusterProcesses) -> AsyncIterator[NodeClient]:
    async with node_client(cluster.replicator, "usermanager-1", Role.USERMANAGER) as client:
        yield client


async def fill(client: NodeClient, tenant: int, names: Sequence[bytes], keys: int) -> None:
    puts = [
        (PUT, encode_put(namespace_prefix(tenant, name) + b"%03d" % number, value))
        for name in names
        for number in range(keys)
    ]
    for start in range(0, len(puts), 1_000):
        kind, body = await client.ask(BATCH, encode_batch(puts[start : start + 1_000]))
        assert kind == OK
        assert {kind for kind, _ in decode_batch(body)} == {CHANGED}


async def page(client: NodeClient, query: NamespacesQuery) -> NamespacesPage:
    kind, body = await client.ask(LIST_NAMESPACES, encode_body(query))
    assert kind == OK, body
    return decode_body(body, NamespacesPage)


async def test_namespaces_are_told_with_exact_counts_until_all_of_one_is_deleted(
    cluster: ClusterProcesses, client: NodeClient
) -> None:
    names = [b"ns-%03d" % number for number in range(250)]
    await fill(client, 7, names, 20)
    await fill(client, 8, [b"theirs"], 3)
    for node in cluster.nodes:
        await until_metrics(node, key_count=250 * 20 + 3)
    counts = [NamespaceCount(name, 20, 20 * (3 + len(value))) for name in names]
    assert await page(client, NamespacesQuery(7, limit=200)) == NamespacesPage(
        counts[:200], names[200]
    )
    assert await page(client, NamespacesQuery(7, names[200])) == NamespacesPage(counts[200:], None)
    whole = PrefixDeletion(namespace_prefix(7, names[0]), b"", whole=True)
    kind, body = await client.ask(DELETE_PREFIX, encode_body(whole))
    assert kind == OK
    assert decode_body(body, PrefixDeleted) == PrefixDeleted(20, 20, None)
    # With a node down the others know it, too, and know no less.
    await cluster.nodes[0].kill()
    await until_metrics(cluster.replicator, nodes_live=2)
    assert await page(client, NamespacesQuery(7)) == NamespacesPage(counts[1:], None)
    assert (await page(client, NamespacesQuery(8))).found[0].name == b"theirs"
    # And with all of them down nobody says that there are none.
    await cluster.nodes[1].kill()
    await cluster.nodes[2].kill()
    await until_metrics(cluster.replicator, nodes_live=0)
    kind, body = await client.ask(LIST_NAMESPACES, encode_body(NamespacesQuery(7)))
    assert kind == REFUSED
    assert decode_refused(body)[0] == "no_quorum"
