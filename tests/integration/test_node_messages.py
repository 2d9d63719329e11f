"""Every kind of message that a node is asked with, over real links to a real process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from services.core import messages as m
from services.core.cluster import ClusterMap, Member
from services.core.comparison import (
    SlotDigest,
    decode_digests,
    digests_max,
    encode_digests_asked,
)
from services.core.digest import summary_of
from services.core.errors import PeerError
from services.core.key import namespace_prefix
from services.core.listings import ListEntry, ListPage, ListQuery, ScanPage, slot_bitmap_bytes
from services.core.namespaces import (
    Cache,
    Count,
    Edition,
    NamespaceCount,
    NamespacesPage,
    NamespacesQuery,
    encode_caches,
    encode_edition,
    no_edition,
)
from services.core.packed_bodies import decode_body, encode_body
from services.core.ring import leaf_count, place_of, slot_count, slot_of
from services.core.wire import OK, UNKNOWN_KIND, Role, no_store_id
from services.dhtnode.chunk import decode_chunk
from tests.integration.node_process import (
    NodeClient,
    NodeProcess,
    in_flight,
    node_client,
    node_process,
    prefix,
)
from tests.integration.replicator_process import until_told
from tests.waiting import wait_until

every_leaf = (1 << leaf_count) - 1
Records = dict[bytes, bytes]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeProcess]:
    async with node_process(tmp_path / "data") as node:
        yield node


@pytest.fixture
async def client(node: NodeProcess) -> AsyncIterator[NodeClient]:
    async with node_client(node) as client:
        yield client


async def load(client: NodeClient, names: list[bytes], of: bytes = prefix) -> Records:
    """Write a value of each name; the records by storage key."""
    records = {of + name: client.stamps.value(b"value of " + name) for name in names}
    assert await write_all(client, list(records.items())) == {OK}
    return records


async def write_all(client: NodeClient, items: list[tuple[bytes, bytes]]) -> set[int]:
    """Write many, as many at a time as one message takes; what became of them."""
    outcomes: set[int] = set()
    for start in range(0, len(items), m.items_max):
        kind, body = await client.write_many(items[start : start + m.items_max])
        assert kind == OK
        outcomes |= {status for status, _ in m.decode_statuses(body)}
    return outcomes


async def pages(client: NodeClient, kind: int, query: ListQuery) -> list[ListPage | ScanPage]:
    """Follow a listing to its end."""
    found: list[ListPage | ScanPage] = []
    start: bytes | None = query.start
    while start is not None:
        asked = ListQuery(
            query.namespace,
            query.prefix,
            start,
            query.limit,
            query.delimiter,
            query.slots,
            query.tombstones,
        )
        answer, body = await client.ask(kind, encode_body(asked))
        assert answer == OK
        page: ListPage | ScanPage
        page = decode_body(body, ListPage) if kind == m.LIST else decode_body(body, ScanPage)
        found.append(page)
        start = page.next
    return found


async def listed(client: NodeClient, query: ListQuery) -> list[bytes]:
    found = await pages(client, m.LIST, query)
    return [entry.key for page in found if isinstance(page, ListPage) for entry in page.entries]


def bitmap(slots: set[int]) -> bytes:
    bits = bytearray(slot_bitmap_bytes)
    for slot in slots:
        bits[slot >> 3] |= 1 << (slot & 7)
    return bytes(bits)


async def digests(client: NodeClient) -> list[SlotDigest]:
    found = []
    for first in range(0, slot_count, digests_max):
        kind, body = await client.ask(m.DIGESTS, encode_digests_asked(first, digests_max))
        assert kind == OK
        found += decode_digests(body)
    return found


async def count(client: NodeClient, of: bytes) -> Count:
    kind, body = await client.ask(m.COUNT, of)
    assert kind == OK
    return decode_body(body, Count)


# Keys.


async def test_10000_keys_written_with_64_in_flight_are_there_after_kill_9(
    node: NodeProcess, client: NodeClient
) -> None:
    records = {
        prefix + b"key-%d" % number: client.stamps.value(b"value-%d" % number)
        for number in range(10_000)
    }

    async def write(key: bytes) -> None:
        assert await client.write(key, records[key]) == (OK, b"")

    await in_flight(64, [partial(write, key) for key in records])
    figures = await node.metrics()
    assert figures["key_count"] == 10_000
    assert figures["wal_frames"] == 10_000
    assert figures["wal_syncs"] < 5_000
    await node.kill()
    await node.serve()
    await wait_until(lambda: client.link.connected, "the link is up again")
    names = list(records)
    for start in range(0, len(names), 1_000):
        portion = names[start : start + 1_000]
        kind, body = await client.ask(m.GET_MANY, m.encode_get_many(portion))
        assert kind == OK
        assert m.decode_records(body) == [records[key] for key in portion]


async def test_records_that_do_not_fit_one_answer_are_marked(client: NodeClient) -> None:
    large = bytes(1 << 20)
    for number in range(4):
        assert await client.put(b"large-%02d" % number, large) == (OK, b"")
    names = [prefix + b"large-%02d" % number for number in range(4)] + [prefix + b"none"]
    kind, body = await client.ask(m.GET_MANY, m.encode_get_many(names))
    assert kind == OK
    records = m.decode_records(body)
    assert [record is None for record in records] == [False] + [True] * 3 + [False]
    assert records[-1] == b""


# Listings.


@pytest.mark.parametrize("kind", [m.LIST, m.SCAN])
async def test_a_listing_shows_every_key_once_in_order_while_others_come_and_go(
    client: NodeClient, kind: int
) -> None:
    names = sorted(b"key-%05d" % number for number in range(0, 12_000, 3))
    await load(client, names)
    stop = asyncio.Event()

    async def churn() -> None:
        draw = random.Random(3)
        while not stop.is_set():
            name = b"key-%05d" % (draw.randrange(4_000) * 3 + 1)
            await client.put(name, b"x")
            await client.write(prefix + name, client.stamps.tombstone())

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(churn())
        found = await pages(client, kind, ListQuery(prefix, limit=170))
        stop.set()
    shown = [
        entry.key if isinstance(entry, ListEntry) else entry[0]
        for page in found
        for entry in (page.entries if isinstance(page, ListPage) else page.found)
    ]
    assert shown == sorted(set(shown))
    assert [name for name in shown if name in set(names)] == names
    assert len(found) > len(names) // 170


async def test_a_listing_keeps_to_prefix_start_delimiter_and_slots(client: NodeClient) -> None:
    names = [b"%s/%d" % (folder, number) for folder in (b"a", b"b", b"c") for number in range(50)]
    await load(client, [*names, b"plain", b"\xff\xff"])
    assert await listed(client, ListQuery(prefix, prefix=b"b/")) == sorted(names[50:100])
    assert await listed(client, ListQuery(prefix, start=b"c/7")) == [
        name for name in sorted([*names, b"plain", b"\xff\xff"]) if name >= b"c/7"
    ]
    (page,) = await pages(client, m.LIST, ListQuery(prefix, delimiter=b"/"))
    assert isinstance(page, ListPage)
    assert page.groups == [b"a/", b"b/", b"c/"]
    assert [entry.key for entry in page.entries] == [b"plain", b"\xff\xff"]
    half = {slot for slot in range(slot_count) if slot % 2}
    parts = [
        await listed(client, ListQuery(prefix, slots=bitmap(slots)))
        for slots in (half, set(range(slot_count)) - half, set())
    ]
    assert sorted(parts[0] + parts[1]) == sorted([*names, b"plain", b"\xff\xff"])
    assert all(slot_of(prefix + name) in half for name in parts[0])
    assert parts[2] == []
    assert await listed(client, ListQuery(namespace_prefix(8, b"default"))) == []


async def test_a_scan_shows_what_is_deleted_or_expired_when_asked(client: NodeClient) -> None:
    await load(client, [b"stays", b"goes"])
    gone = client.stamps.tombstone()
    await client.write(prefix + b"goes", gone)
    await client.write(prefix + b"over", client.stamps.value(b"x", expires_at_ms=1))
    (page,) = await pages(client, m.SCAN, ListQuery(prefix))
    assert isinstance(page, ScanPage)
    assert [key for key, _ in page.found] == [b"stays"]
    (page,) = await pages(client, m.SCAN, ListQuery(prefix, tombstones=True))
    assert isinstance(page, ScanPage)
    assert [key for key, _ in page.found] == [b"goes", b"over", b"stays"]
    assert page.found[0][1] == gone[:12]


async def test_a_count_is_of_a_namespace_or_of_a_tenant(client: NodeClient) -> None:
    other = namespace_prefix(7, b"other")
    await load(client, [b"a", b"bb"])
    await load(client, [b"ccc"], of=other)
    await load(client, [b"x"], of=namespace_prefix(8, b"other"))
    await client.write(prefix + b"a", client.stamps.tombstone())
    size = len(b"bb" + b"value of bb")
    assert await count(client, prefix) == Count(1, size, 1)
    assert await count(client, prefix[:8]) == Count(2, size + len(b"ccc" + b"value of ccc"), 1)
    assert await count(client, namespace_prefix(9, b"other")) == Count(0, 0, 0)


async def test_namespaces_of_a_tenant_are_told_and_after_kill_9_too(
    node: NodeProcess, client: NodeClient
) -> None:
    await load(client, [b"a", b"b"], namespace_prefix(7, b"one"))
    await load(client, [b"c"], namespace_prefix(7, "zwölf".encode()))
    await load(client, [b"d"], namespace_prefix(8, b"of another"))
    gone = namespace_prefix(7, b"gone") + b"key"
    assert await client.write(gone, client.stamps.value(b"x")) == (OK, b"")
    assert await client.write(gone, client.stamps.tombstone()) == (OK, b"")
    size = len(b"a" + b"value of a")
    there = [NamespaceCount(b"one", 2, 2 * size), NamespaceCount("zwölf".encode(), 1, size)]
    for _ in range(2):
        kind, body = await client.ask(m.NAMESPACES, encode_body(NamespacesQuery(7)))
        assert kind == OK
        assert decode_body(body, NamespacesPage) == NamespacesPage(there, None)
        await node.kill()
        await node.serve()
        await wait_until(lambda: client.link.connected, "the link is up again")


# Slots.


async def test_two_nodes_with_the_same_writes_in_other_orders_have_equal_digests(
    node: NodeProcess, client: NodeClient, tmp_path: Path
) -> None:
    writes = [
        (prefix + b"key-%d" % (number % 700), client.stamps.value(b"%d" % number))
        for number in range(2_000)
    ]
    writes += [(prefix + b"key-%d" % number, client.stamps.tombstone()) for number in range(50)]
    async with (
        node_process(tmp_path / "other", "node-2") as other_node,
        node_client(other_node) as other,
    ):
        await write_all(client, writes)
        random.Random(5).shuffle(writes)
        await write_all(other, writes)
        ours, theirs = await digests(client), await digests(other)
        assert len({digest.summary for digest in ours}) > 500
        assert ours == theirs
        assert len(ours) == slot_count
        assert sum(digest.ended for digest in ours) == 50
        await other.put(b"one more", b"x")
        changed = await digests(other)
        slot = slot_of(prefix + b"one more")
        differing = [at for at in range(slot_count) if ours[at] != changed[at]]
        assert differing == [slot]
        await other_node.kill()
        await other_node.serve()
        await wait_until(lambda: other.link.connected, "the link is up again")
        assert await digests(other) == changed
    kind, leaves = await client.ask(m.LEAVES, m.u16.pack(slot))
    assert (kind, summary_of(leaves)) == (OK, ours[slot].summary)


async def test_versions_and_records_of_a_slot_come_in_pages_by_leaves(client: NodeClient) -> None:
    slot = slot_of(prefix + b"key-0")
    names: list[bytes] = []
    number = 0
    while len(names) < 40:
        name = b"key-%d" % number
        names += [name] if slot_of(prefix + name) == slot else []
        number += 1
    large = {prefix + name: client.stamps.value(name * 4_000) for name in names}
    for key, record in large.items():
        assert await client.write(key, record) == (OK, b"")
    kind, body = await client.ask(m.VERSIONS, m.u16.pack(slot) + m.u64.pack(every_leaf))
    assert kind == OK
    assert versions_in(body) == (False, {key: record[:12] for key, record in large.items()})
    leaf = place_of(prefix + names[0]) % leaf_count
    _, body = await client.ask(m.VERSIONS, m.u16.pack(slot) + m.u64.pack(1 << leaf))
    assert set(versions_in(body)[1]) == {key for key in large if place_of(key) % leaf_count == leaf}
    assert await records_of_slot(client, slot) == large


def versions_in(body: bytes) -> tuple[bool, dict[bytes, bytes]]:
    found, position = {}, 1
    while position < len(body):
        end = position + 2 + int.from_bytes(body[position : position + 2], "big")
        found[body[position + 2 : end]] = body[end : end + 12]
        position = end + 12
    return bool(body[0]), found


async def records_of_slot(client: NodeClient, slot: int) -> Records:
    records: Records = {}
    after, answers = b"", 0
    while True:
        kind, body = await client.ask(m.SLOT, m.u16.pack(slot) + after)
        assert kind == OK
        reader = m.Reader(body)
        after = reader.take(reader.u16())
        if not after:
            assert reader.rest() == b""
            break
        of, keys, found = decode_chunk(reader.rest())
        assert of == slot
        assert not records.keys() & set(keys)
        records |= dict(zip(keys, found, strict=True))
        answers += 1
    assert answers > 1
    return records


# The cluster.


def members(*names: str, store: str = "a") -> tuple[Member, ...]:
    return tuple(
        Member(name, (store + name[-1]) * 16, "127.0.0.1", 8_000 + at, 9_000 + at)
        for at, name in enumerate(names)
    )


async def test_a_map_is_adopted_kept_and_followed_only_by_one_that_may(
    node: NodeProcess, client: NodeClient
) -> None:
    first = ClusterMap(1, 2, members("node-1", "node-2", "node-3"))
    joint = first.begin_change(members("node-1", "node-2", "node-3", "node-4"))
    for received, epoch in ((first, 1), (first, 1), (joint, 2), (first, 2)):
        assert await client.ask(m.EPOCH, received.encode()) == (OK, m.u64.pack(epoch))
    # A change begins where the one before it ended, and keeps the replication factor.
    objectionable = [
        ClusterMap(3, 2, members("node-1", "node-2")),
        ClusterMap(3, 3, joint.members),
    ]
    kept = node.directory / "map"
    await wait_until(lambda: kept.read_bytes().endswith(joint.encode()), "the map is kept")
    await node.kill()
    await node.serve()
    await wait_until(lambda: client.link.connected, "the link is up again")
    assert client.link.peer is not None
    assert client.link.peer.epoch == 2
    for received in objectionable:
        kind, reason = await client.ask(m.EPOCH, received.encode())
        assert kind == m.MALFORMED
        assert b"cannot follow" in reason
    key, record = prefix + b"key", client.stamps.value(b"x")
    assert await client.write(key, record, epoch=1) == (m.WRONG_EPOCH, m.u64.pack(2))
    assert await client.write(key, record, epoch=2) == (OK, b"")
    assert await client.ask(m.EPOCH, joint.finish_change().encode()) == (OK, m.u64.pack(3))
    assert (await node.metrics())["epoch"] == 3


async def kept(client: NodeClient, space: bytes) -> bool | None:
    return (await count(client, space)).keys == 200 or None


async def test_caches_are_kept_over_a_restart_and_evict(
    node: NodeProcess, client: NodeClient
) -> None:
    space = namespace_prefix(7, b"cached")
    first, second = Edition(1, 1), Edition(2, 1)
    told = encode_caches(first, [Cache(space, 100)])
    assert await client.ask(m.CACHES, told) == (OK, encode_edition(first))
    await load(client, [b"key-%d" % number for number in range(500)], of=space)
    assert (await count(client, space)).keys == 100
    await node.kill()
    await node.serve()
    await wait_until(lambda: client.link.connected, "the link is up again")
    await load(client, [b"more-%d" % number for number in range(200)], of=space)
    assert (await count(client, space)).keys == 100
    assert set(await digests(client)) == {SlotDigest(summary_of(bytes(512)), 0)}
    # What it knew it knows again, and is not told anything older.
    assert await client.ask(m.CACHES, encode_caches(no_edition, [])) == (
        OK,
        encode_edition(first),
    )
    assert await client.ask(m.CACHES, encode_caches(second, [])) == (
        OK,
        encode_edition(second),
    )
    await load(client, [b"store-%d" % number for number in range(200)], of=space)
    # What the cache had goes, and what was put since stays.
    await until_told(partial(kept, client, space), "the new keys are all that there are")


async def test_a_node_catches_up_once_every_connected_replicator_has_said_so(
    node: NodeProcess, client: NodeClient
) -> None:
    assert client.link.peer is not None
    assert client.link.peer.role is Role.NODE
    assert client.link.peer.store_id != no_store_id
    async with (
        node_client(node, "replicator-2") as second,
        node_client(node, "gateway-1", Role.GATEWAY),
    ):
        assert await client.ask(m.CAUGHT_UP) == (OK, b"")
        assert (await node.metrics())["catching_up"] == 1
        assert await second.ask(m.CAUGHT_UP) == (OK, b"")
        assert (await node.metrics())["catching_up"] == 0
    await node.kill()
    await node.serve()
    assert (await node.metrics())["catching_up"] == 1


# What makes no sense.

edition = Edition(9, 9)
MALFORMED = {
    "no epoch": (m.WRITE, b"\0\0\0"),
    "no key": (m.WRITE, bytes(10)),
    "an empty write of many": (m.WRITE_MANY, b""),
    "items cut short": (m.WRITE_MANY, bytes(8) + b"\0\1"),
    "too many keys": (m.GET_MANY, b"\xff\xff"),
    "a list that is no list": (m.LIST, b"\xc1"),
    "a list of nothing": (m.LIST, encode_body(ListQuery(b""))),
    "a list of a broken namespace": (m.LIST, encode_body(ListQuery(prefix + b"x"))),
    "a list without end": (m.LIST, encode_body(ListQuery(prefix, limit=1_001))),
    "a list of no keys": (m.SCAN, encode_body(ListQuery(prefix, limit=0))),
    "a short bitmap": (m.SCAN, encode_body(ListQuery(prefix, slots=b"\1"))),
    "a count of something": (m.COUNT, b"some"),
    "namespaces of nobody": (m.NAMESPACES, encode_body(NamespacesQuery(-1))),
    "a count of everything": (m.COUNT, b""),
    "digests of no slots": (m.DIGESTS, b"\0\0\0\0"),
    "digests past the end": (m.DIGESTS, m.u16.pack(slot_count - 1) + b"\0\2"),
    "too many digests": (m.DIGESTS, b"\0\0" + m.u16.pack(1_025)),
    "leaves of no slot": (m.LEAVES, m.u16.pack(slot_count)),
    "leaves and more": (m.LEAVES, b"\0\0\0"),
    "versions without leaves": (m.VERSIONS, b"\0\0"),
    "a slot beyond": (m.SLOT, b"\xff\xff"),
    "an empty slot message": (m.SLOT, b""),
    "no map": (m.EPOCH, b"{}"),
    "a huge map": (m.EPOCH, bytes(600_000)),
    "a cache of nothing": (m.CACHES, encode_caches(edition, [Cache(b"", 1)])),
    "a cache of none": (m.CACHES, encode_caches(edition, [Cache(prefix, 0)])),
    "no caches": (m.CACHES, b""),
    "too many caches": (m.CACHES, encode_caches(edition, [Cache(prefix, 1)] * 4_097)),
    "32 MB of nothing": (m.WRITE_MANY, bytes(32_000_000)),
}


async def test_what_makes_no_sense_is_answered_as_such_and_the_link_goes_on(
    node: NodeProcess, client: NodeClient
) -> None:
    for what, (kind, body) in MALFORMED.items():
        answer, reason = await client.ask(kind, body)
        assert answer == m.MALFORMED, what
        assert 0 < len(reason) <= 512, what
    for kind in (35, 100, 127):
        assert await client.ask(kind, b"x") == (UNKNOWN_KIND, b"")
    draw = random.Random(9)
    for _ in range(500):
        answer, _ = await client.ask(draw.randint(16, 33), draw.randbytes(draw.randrange(60)))
        assert answer in (OK, m.MALFORMED, m.WRONG_EPOCH, m.AHEAD, UNKNOWN_KIND)
    assert (await client.read(b"key"))[0] == OK
    figures = await node.metrics()
    assert figures["link_bugs"] == 0
    assert figures["replica_malformed"] >= len(MALFORMED)
    node.check_no_traceback()


def test_a_message_that_is_longer_than_its_answer_could_be_is_refused_by_its_decoder() -> None:
    with pytest.raises(PeerError):
        m.decode_statuses(b"\0\1\x80\5abc")
    with pytest.raises(PeerError):
        m.decode_records(b"\0\1\0\0\0\1")
