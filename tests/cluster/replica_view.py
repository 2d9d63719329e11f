"""What each replica has, asked of itself and of nobody else: digests, records, what it shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence

import msgspec

from services.core.comparison import decode_digests, digests_max, encode_digests_asked
from services.core.listings import ListPage, ListQuery
from services.core.messages import DIGESTS, GET_MANY, LIST, decode_records, encode_get_many
from services.core.ring import slot_count
from services.core.wire import OK, Role
from services.runtime.clock import SystemClock
from services.runtime.signing import Signer, signature_header
from tests.integration.lane_world import Client, request
from tests.integration.node_process import NodeProcess, node_client, prefix, secret

records_at_once = 500
connections = 8
# To tell the digests of all slots takes a node 30 ms; who looks is not to be what is measured.
look_s = 0.5
all_slots = range(slot_count)


async def summaries(node: NodeProcess, slots: range = all_slots) -> list[bytes]:
    """The digests of these slots, of which there are some thousands."""
    found: list[bytes] = []
    async with node_client(node, "tool", Role.TOOL) as client:
        for first in range(slots.start, slots.stop, digests_max):
            count = min(digests_max, slots.stop - first)
            kind, body = await client.ask(DIGESTS, encode_digests_asked(first, count))
            assert kind == OK
            found += [digest.summary for digest in decode_digests(body)]
    return found


async def are_equal(nodes: Iterable[NodeProcess], slots: range = all_slots) -> bool:
    one, *others = [await summaries(node, slots) for node in nodes]
    return all(other == one for other in others)


async def until_equal(
    nodes: Sequence[NodeProcess], *, seconds: float, slots: range = all_slots
) -> float:
    """Wait until all of them tell the same of these slots; at which time of the loop they did."""
    try:
        async with asyncio.timeout(seconds):
            while not await are_equal(nodes, slots):  # noqa: ASYNC110  Nothing tells.
                await asyncio.sleep(look_s)
    except TimeoutError:
        raise AssertionError(f"replicas still differ after {seconds:g} s") from None
    return asyncio.get_running_loop().time()


async def records(
    node: NodeProcess, names: Sequence[bytes]
) -> AsyncIterator[tuple[bytes, bytes | None]]:
    """What the replica holds for each of these keys; nothing, or a tombstone, maybe."""
    async with node_client(node, "tool", Role.TOOL) as client:
        for first in range(0, len(names), records_at_once):
            some = names[first : first + records_at_once]
            keys = [prefix + name for name in some]
            kind, body = await client.ask(GET_MANY, encode_get_many(keys))
            assert kind == OK
            for name, record in zip(some, decode_records(body), strict=True):
                yield name, record


async def listed(node: NodeProcess) -> list[bytes]:
    """The keys of the namespace that the replica lists."""
    found: list[bytes] = []
    async with node_client(node, "tool", Role.TOOL) as client:
        start: bytes | None = b""
        while start is not None:
            query = msgspec.msgpack.encode(ListQuery(prefix, start=start))
            kind, body = await client.ask(LIST, query)
            assert kind == OK
            page = msgspec.msgpack.decode(body, type=ListPage)
            found += [entry.key for entry in page.entries]
            start = page.next
    return found


async def shown(node: NodeProcess, names: Collection[bytes]) -> list[bytes]:
    """Which of these keys the replica shows at /store/{key}, each asked for by itself."""
    waiting = iter(names)
    found: list[bytes] = []
    signer = Signer(secret, SystemClock())

    async def look() -> None:
        client = Client(*await asyncio.open_connection("127.0.0.1", node.port))
        for name in waiting:
            target = f"/store/{name.decode()}"
            signature = signer.sign("GET", target, [("X-Ydht-Tenant", "7")], b"")
            answer = await client.ask(
                request("GET", target, "X-Ydht-Tenant: 7", f"{signature_header}: {signature}")
            )
            assert answer.status in (200, 404), answer
            if answer.status == 200:
                found.append(name)
        await client.close()

    async with asyncio.TaskGroup() as looking:
        for _ in range(connections):
            looking.create_task(look())
    return found
