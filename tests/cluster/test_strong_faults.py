"""Strong operations on real processes while these are killed, paused and cut off.

FAULT_SECONDS=300 in the environment runs the full figure (`make faults`); without it there is one
of each fault.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from services.core.key import namespace_prefix
from services.runtime.database_url import DatabaseAddress
from tests.cluster.strong_cluster import Cluster, gateway_client, strong_cluster
from tests.integration.node_process import NodeClient
from tests.simulation.asked import outcome_of, request_of
from tests.simulation.history import (
    FAILED,
    IF_ABSENT,
    UNKNOWN,
    Action,
    Delete,
    Found,
    Get,
    History,
    Increment,
    Operation,
    Put,
    Wrote,
)
from tests.simulation.key_model import KeyModel
from tests.simulation.linearizability import check

seconds = float(os.environ.get("FAULT_SECONDS", "0"))
clients = 12
keys = [namespace_prefix(9, b"faults") + b"key-%03d" % number for number in range(300)]
counters = [namespace_prefix(9, b"faults") + b"counter-%02d" % number for number in range(20)]
request_s = 5.0
# A fault lasts as long as it takes to be noticed, and then some.
fault_s = (0.5, 4.0)
back_s_max = 10.0


class Traffic:
    """Clients that ask now one replicator, now the other, and note what they were told."""

    def __init__(self, links: list[NodeClient], draw: random.Random) -> None:
        self.history = History(time.monotonic)
        self.over = False
        self._links = links
        self._draw = draw
        self._written = 0
        self._seen: dict[bytes, bytes] = {}

    async def client(self, name: str) -> None:
        while not self.over:
            operation = await self.ask(name, *self._choose())
            if operation.outcome is FAILED:
                # Refused at once; a client that asks again without a pause only burns its core.
                await asyncio.sleep(0.02)
            else:
                await asyncio.sleep(0.002)

    async def ask(self, name: str, key: bytes, action: Action) -> Operation:
        link = self._draw.choice(self._links)
        operation = self.history.invoke(name, key, action)
        answer = await link.ask(*request_of(action, key), timeout_s=request_s)
        outcome = outcome_of(action, *answer)
        self.history.resolve(operation, outcome)
        if isinstance(outcome, Found | Wrote):
            self._seen[key] = outcome.version
        return operation

    def _choose(self) -> tuple[bytes, Action]:
        draw = self._draw
        if draw.random() < 0.1:
            key = draw.choice(counters)
            return key, draw.choice((Increment(), Increment(5), Get()))
        key = draw.choice(keys)
        chance = draw.random()
        if chance < 0.4:
            return key, Get()
        if chance < 0.5:
            return key, Delete()
        self._written += 1
        value = b"value %d" % self._written
        if chance < 0.75:
            return key, Put(value)
        if chance < 0.85:
            return key, Put(value, guard=IF_ABSENT)
        return key, Put(value, guard=self._seen.get(key))


class Faults:
    """One fault at a time, each followed by proof that the service is back."""

    def __init__(self, cluster: Cluster, traffic: Traffic, draw: random.Random) -> None:
        self.cluster = cluster
        self.traffic = traffic
        self.done: Counter[str] = Counter()
        self.longest_back_s = 0.0
        self._draw = draw
        self._kinds: list[Callable[[], Awaitable[str]]] = [
            self._kill_node,
            self._kill_replicator,
            self._pause_node,
            self._pause_replicator,
            self._cut_to_node,
            self._cut_from_node,
        ]

    async def run(self) -> None:
        until_s = time.monotonic() + seconds
        for kind in self._kinds:
            await self._one(kind)
        while time.monotonic() < until_s:
            await self._one(self._draw.choice(self._kinds))

    async def _one(self, fault: Callable[[], Awaitable[str]]) -> None:
        self.done[await fault()] += 1
        began_s = time.monotonic()
        await self._back()
        self.longest_back_s = max(self.longest_back_s, time.monotonic() - began_s)

    async def _back(self) -> None:
        """Until every replicator has put a change through on keys all over the ring."""
        async with asyncio.timeout(back_s_max):
            for link in self.traffic._links:
                for key in keys[::30]:
                    action = Get()
                    while True:
                        operation = self.traffic.history.invoke("probe", key, action)
                        answer = await link.ask(*request_of(action, key), timeout_s=request_s)
                        self.traffic.history.resolve(operation, outcome_of(action, *answer))
                        if operation.outcome not in (FAILED, UNKNOWN):
                            break
                        await asyncio.sleep(0.05)

    def _last(self) -> float:
        return self._draw.uniform(*fault_s)

    async def _kill_node(self) -> str:
        node = self._draw.choice(self.cluster.nodes)
        await node.kill()
        await asyncio.sleep(self._last())
        await node.start()
        await self.cluster.until_ready(node)
        return "node killed"

    async def _kill_replicator(self) -> str:
        replicator = self._draw.choice(self.cluster.replicators)
        await replicator.kill()
        await asyncio.sleep(self._last())
        await replicator.start()
        await self.cluster.until_ready(replicator)
        return "replicator killed"

    async def _pause_node(self) -> str:
        node = self._draw.choice(self.cluster.nodes)
        node.pause()
        await asyncio.sleep(self._last())
        node.resume()
        return "node paused"

    async def _pause_replicator(self) -> str:
        replicator = self._draw.choice(self.cluster.replicators)
        replicator.pause()
        await asyncio.sleep(self._last())
        replicator.resume()
        return "replicator paused"

    async def _cut_to_node(self) -> str:
        proxy = self._draw.choice(self.cluster.proxies)
        proxy.to_server.drop()
        await asyncio.sleep(self._last())
        proxy.heal()
        return "nothing reached a node"

    async def _cut_from_node(self) -> str:
        proxy = self._draw.choice(self.cluster.proxies)
        proxy.to_client.drop()
        await asyncio.sleep(self._last())
        proxy.heal()
        return "nothing came from a node"


async def test_strong_operations_stay_linearizable_through_kills_pauses_and_cuts(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    draw = random.Random(20261121)
    async with (
        strong_cluster(tmp_path, database_address.url()) as cluster,
        AsyncExitStack() as stack,
    ):
        links = [
            await stack.enter_async_context(gateway_client(replicator, f"gateway-{number}"))
            for number, replicator in enumerate(cluster.replicators)
        ]
        traffic = Traffic(links, draw)
        faults = Faults(cluster, traffic, draw)
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(traffic.client(f"client-{number}"))
            await faults.run()
            traffic.over = True
        # Whatever was acknowledged and is lost, these reads do not show.
        for key in keys + counters:
            last = await traffic.ask("reader", key, Get())
            assert last.outcome not in (FAILED, UNKNOWN), str(last)
    counts = traffic.history.counts()
    sys.stdout.write(
        f"{counts}; {dict(faults.done)}; back after {faults.longest_back_s:.1f} s at most\n"
    )
    assert counts["unknown"] < 0.05 * counts["operations"], counts
    report = check(traffic.history.operations, KeyModel())
    assert not report.violations, report.violations[0]
    assert not report.undecided, report.undecided
