"""Clients that ask for so much a second, whatever becomes of it, and how long they wait for it.

That they do not wait for answers before they ask on is what makes the figures honest: a service
that stands still for a while is asked all the same meanwhile.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count, cycle

from services.core.messages import GET
from services.core.operations import CHANGED, FETCH, Item
from services.core.ring import slot_of
from services.core.wire import OK, Role
from services.runtime.peer import SENT
from tests.cluster.steadfast_writer import eventual_put, strong_put
from tests.integration.node_process import NodeClient, NodeProcess, node_client, prefix
from tests.waiting import wait_until

# With which a machine of two cores that runs all services and this process is far from busy.
asked_per_s = 400
turn_s = 0.01
answer_s_max = 10.0
# Where their keys lie, so that whoever compares replicas meanwhile can leave these slots out.
busy_slots = range(1_024)
names_count = 500


def names() -> list[bytes]:
    """Keys in these slots."""
    found: list[bytes] = []
    for number in count():
        name = b"client-%06d" % number
        if slot_of(prefix + name) in busy_slots:
            found.append(name)
        if len(found) == names_count:
            return found
    raise AssertionError("there is no end to numbers")


@dataclass(slots=True)
class Waited:
    """When each request was made, and how long its answer took, by kind of request."""

    took_s: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    # Answers that were not those asked for, by kind of request and of answer.
    errors: Counter[tuple[str, int]] = field(default_factory=Counter)
    # How many answers are awaited.
    open: int = 0

    def p99_ms(self, kind: str, began_s: float, ended_s: float) -> float:
        """Of what was asked for in between."""
        took_s = [took_s for at_s, took_s in self.took_s[kind] if began_s <= at_s < ended_s]
        assert len(took_s) >= 100, f"{len(took_s)} of {kind} do not make a percentile"
        return statistics.quantiles(took_s, n=100)[98] * 1_000

    async def settle(self) -> None:
        """Until everything is answered."""
        await wait_until(lambda: not self.open, "all is answered")

    def hear(self, kind: str, at_s: float, good: int, answered: int, body: bytes) -> None:
        self.open -= 1
        self.took_s[kind].append((at_s, asyncio.get_running_loop().time() - at_s))
        if answered != good:
            self.errors[kind, answered] += 1


@dataclass(slots=True, frozen=True)
class _Kind:
    """One thing that is asked for, again and again, of one service."""

    name: str
    client: NodeClient
    good: int
    items: Sequence[Item]


@asynccontextmanager
async def steady_clients(replicator: NodeProcess, node: NodeProcess) -> AsyncIterator[Waited]:
    """They ask the replicator, and the node for eventual reads, until the block ends."""
    waited = Waited()
    async with (
        node_client(replicator, "gateway-2", Role.GATEWAY) as coordinated,
        node_client(node, "gateway-2", Role.GATEWAY) as direct,
    ):
        asking = asyncio.create_task(_ask(_kinds(coordinated, direct), waited))
        try:
            yield waited
        finally:
            asking.cancel()
            await asyncio.wait([asking])
        if not asking.cancelled():
            asking.result()
        await waited.settle()


def _kinds(coordinated: NodeClient, direct: NodeClient) -> list[_Kind]:
    found = names()
    # Who mixes both on one key pays for that.
    eventual, strong = found[::2], found[1::2]
    return [
        _Kind("GET", direct, OK, [(GET, prefix + name) for name in eventual]),
        _Kind("PUT", coordinated, CHANGED, [eventual_put(name, 1) for name in eventual]),
        _Kind("strong GET", coordinated, OK, [(FETCH, prefix + name) for name in strong]),
        _Kind("strong PUT", coordinated, CHANGED, [strong_put(name, 1) for name in strong]),
    ]


async def _ask(kinds: list[_Kind], waited: Waited) -> None:
    loop = asyncio.get_running_loop()
    waited.took_s.update({kind.name: [] for kind in kinds})
    turns = cycle([(kind, cycle(kind.items)) for kind in kinds])
    due_s = loop.time()
    while True:
        for _ in range(round(asked_per_s * turn_s)):
            kind, items = next(turns)
            asked, body = next(items)
            heard = partial(waited.hear, kind.name, loop.time(), kind.good)
            refusal = kind.client.link.request(asked, body, heard, answer_s_max)
            waited.open += refusal == SENT
            if refusal != SENT:
                waited.errors[kind.name, refusal] += 1
        due_s += turn_s
        await asyncio.sleep(max(0.0, due_s - loop.time()))
