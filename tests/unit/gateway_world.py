"""A gateway's view of a cluster in one process: real nodes and a real coordinator, on links, disks
and clocks in memory (replicator_world.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from services.core.errors import RetryLater
from services.core.key import namespace_prefix
from services.core.operations import BATCH
from services.core.wire import Role
from services.gateway.nodes import Answer
from services.replicator.batch import Batch
from services.runtime.clock import FakeClock
from services.runtime.fake_link import FakeLink
from services.runtime.fleet import Fleet
from services.runtime.link import Station
from services.runtime.opening import Identity
from services.runtime.speakers import Speakers
from tests.unit.replicator_world import Coordinator, World, opening_s, secret

T = TypeVar("T")
tenant = 7
prefix = namespace_prefix(tenant, b"default")


class Coordinating:
    """Asks a coordinator as over a link that never fails; or fails as it is told to."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.instead: Exception | None = None
        self.asked = 0
        self._coordinator = coordinator

    async def ask(
        self,
        kind: int,
        body: bytes,
        timeout_s: float,
        *,
        repeatable: bool = False,
        reads: bool = False,
    ) -> Answer:
        assert kind == BATCH
        self.asked += 1
        if self.instead is not None:
            raise self.instead
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        own = self._coordinator
        done = partial(_tell, answer)
        Batch(body, own.writes, own.strong, frozenset(), own.clock, done).start()
        return await answer


def _tell(answer: asyncio.Future[Answer], kind: int, body: bytes) -> None:
    answer.set_result((kind, body))


class GatewayWorld:
    def __init__(self, nodes: int = 3, *, replicas: int = 3) -> None:
        self.world = World(nodes, replicas=replicas)
        self.clock = FakeClock(self.world.timeline)
        station = Station(Identity(Role.GATEWAY, "gateway-1", secret))
        self.world.network.attach(station, self.clock)
        self.fleet = Fleet(
            lambda member: FakeLink(self.world.network, "gateway-1", member.node_id), self.clock
        )
        self.speakers = Speakers(self.fleet)
        self.replicators = Coordinating(self.world.replicator)
        self.caches: frozenset[bytes] = frozenset()
        self.absence = RetryLater("cluster_forming", "There is no map")
        self.fleet.adopt(self.world.map)
        self.fleet.start()
        self.world.pass_time(opening_s)

    def fill(self, keys: list[bytes], value: bytes = b"value") -> None:
        for start in range(0, len(keys), 1_000):
            asked = self.world.put_many(
                [prefix + key for key in keys[start : start + 1_000]], value
            )
            self.world.pass_time(0.3)
            assert all(one.version for one in asked)

    async def run(self, doing: Coroutine[Any, Any, T]) -> T:
        """What it comes to, as time goes by from one event to the next."""
        task = asyncio.create_task(doing)
        while True:
            # What it has been told becomes what it asks next.
            for _ in range(5):
                await asyncio.sleep(0)
            if task.done():
                self.world.check()
                return task.result()
            assert self.world.timeline.step(), "nothing happens any more"
