"""A client of replicators that asks for its writes until each of them is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle

from services.core import operations as o
from services.core.operations import Action, ChangeRequest, Item
from services.core.wire import OK, Role
from tests.integration.node_process import NodeClient, NodeProcess, node_client, prefix

batch_items = 100
batches_at_once = 8
value_bytes = 100
# A client that asks again without a pause only burns the core that it shares.
again_s = 0.05
# Of what is spread over time, a part each.
step_s = 0.1
# Longer than anything here is away: who is refused for so long would have had to be served.
settled_s_max = 60.0


def is_strong(name: bytes) -> bool:
    """Every fourth key is written and deleted strongly, at all times."""
    return int(name[-6:]) % 4 == 0


def content(name: bytes, edition: int) -> bytes:
    """A value that tells whose it is, and which of them."""
    mark = b"%s %d " % (name, edition)
    return (mark * value_bytes)[:value_bytes]


def eventual_put(name: bytes, edition: int) -> Item:
    return o.PUT, o.encode_put(prefix + name, content(name, edition))


def strong_put(name: bytes, edition: int) -> Item:
    change = ChangeRequest(Action.PUT, prefix + name, content(name, edition))
    return o.CHANGE, o.encode_change(change)


def put(name: bytes, edition: int) -> Item:
    return strong_put(name, edition) if is_strong(name) else eventual_put(name, edition)


def delete(name: bytes) -> Item:
    if is_strong(name):
        return o.CHANGE, o.encode_change(ChangeRequest(Action.DELETE, prefix + name))
    return o.DELETE, prefix + name


class Writer:
    """Nobody else may write its keys, and it may not write one twice at a time: to ask again for
    what may have been done would then do something else."""

    def __init__(self, clients: Sequence[NodeClient]) -> None:
        # How many answers were none, or left a write to be asked for again.
        self.repeated = 0
        self._clients = cycle(clients)

    async def settle(self, items: Sequence[Item]) -> None:
        waiting = iter(range(0, len(items), batch_items))

        async def work() -> None:
            for first in waiting:
                await self._settle_batch(items[first : first + batch_items])

        async with asyncio.timeout(settled_s_max), asyncio.TaskGroup() as group:
            for _ in range(batches_at_once):
                group.create_task(work())

    async def _settle_batch(self, items: Sequence[Item]) -> None:
        while items:
            kind, body = await next(self._clients).ask(o.BATCH, o.encode_batch(items))
            if kind == OK:
                answers = o.decode_batch(body)
                # What a strong delete did before its answer was lost, the next one finds absent.
                items = [
                    item
                    for item, (answered, _) in zip(items, answers, strict=True)
                    if answered not in (o.CHANGED, o.ABSENT)
                ]
            if items:
                self.repeated += len(items)
                await asyncio.sleep(again_s)

    async def spread(self, items: Sequence[Item], *, seconds: float) -> None:
        """The same, a little at a time over this while, or over a longer one if need be."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        steps = max(1, round(seconds / step_s))
        for step in range(steps):
            await self.settle(items[step::steps])
            await asyncio.sleep(max(0.0, began_s + (step + 1) * step_s - loop.time()))


@asynccontextmanager
async def writer(replicators: Sequence[NodeProcess]) -> AsyncIterator[Writer]:
    async with AsyncExitStack() as stack:
        entering = (node_client(one, "gateway-1", Role.GATEWAY) for one in replicators)
        yield Writer([await stack.enter_async_context(each) for each in entering])
