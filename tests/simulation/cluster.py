"""A whole cluster in one process, behind bad weather: strong stays linearizable, eventual
converges, and neither loses what was acknowledged.

The real code of nodes and replicators runs on links in memory, disks that lie and clocks that are
wrong. Clients put, delete, compare, count and read, and what has ended is collected all the while,
by several replicators at once; while messages are lost, doubled and overtaken, processes pause and
die, disks freeze and fail, and clocks jump. Then everything is mended, what repairs itself gets the
time to, and the end is judged:

- the history of each key that only strong operations touch is linearizable;
- an acknowledged eventual write is on its replicas, or something newer is, wherever hints and
  retries of a replicator that lived on were to bring it; and on some replica in any case;
- replicas become the same by themselves, whatever replicators forgot by their deaths;
- a strong read of a key of both kinds shows no less than any acknowledged write;
- what a strong read shows is what the cells of the key's replicas have come to hold, or it has
  ended since;
- what has ended is collected by and by: no replica keeps anything of it, and all their digests are
  the same;
- what was collected is never shown again, by any replica at any time;
- of what has ended no replica keeps more than when it ended;
- no callback has failed, and nothing was acknowledged by a process that had ended.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from services.core.cluster import ClusterMap
from services.replicator.memory_map_store import Rows
from services.runtime.clock import Timeline
from services.runtime.fake_link import FakeNetwork
from tests.simulation.cluster_clients import Client, Habits, Told
from tests.simulation.cluster_collecting import Collecting
from tests.simulation.cluster_faults import Faults
from tests.simulation.cluster_keys import key_modes, slots_of_keys
from tests.simulation.cluster_operator import Operator
from tests.simulation.collected import told_of
from tests.simulation.history import History
from tests.simulation.judgement import Judgement, lead_ms, shown_again
from tests.simulation.machines import MapStoreOfChanges, NodeMachine, ReplicatorMachine, Site
from tests.simulation.node_life import Trimming
from tests.simulation.replicator_life import few_slots, finish
from tests.simulation.scenario import Outcome
from tests.simulation.slow_network import SlowNetwork

operations_min = 160
faults_min = 4
# Where clients get nowhere for so long, the trouble ends before they are through.
trouble_s_max = 20.0
work_s_max = 60.0
watch_s = 0.05
# A client's wait, then the retries of a write and a look for what was left unfinished.
quiet_s = 9.0
skew_ms_near = 400
# A write that is older is brought to replicas that lack it by comparing them.
young_ms_near = 300
young_ms_far = -100_000
skew_ms_far = 30_000
# Nodes leave values that have ended to each other's and replicators' clocks, and to operations
# that began before.
trim_margin_ms = 700


class World:
    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.outcome = Outcome()
        self.timeline = Timeline()
        self.near = draw.random() < 0.75
        self.skew_ms = skew_ms_near if self.near else skew_ms_far
        back = SlowNetwork(draw, self.timeline)
        front = FakeNetwork(draw)
        size = draw.choice((3, 3, 4, 5))
        self.rows = Rows()
        self.site = Site(
            draw,
            self.timeline,
            back,
            front,
            MapStoreOfChanges(self.rows, size, 3),
            self.near,
            self.outcome.count,
            Trimming(slots_of_keys(), 2 * self.skew_ms + trim_margin_ms),
        )
        if self.near:
            self.site.ahead_ms = self.skew_ms + lead_ms
        self.nodes = [NodeMachine(self.site, n + 1, self._skew()) for n in range(size)]
        self.replicators = [
            ReplicatorMachine(self.site, n + 1, self._skew()) for n in range(draw.randint(1, 3))
        ]
        self.told = Told(History(lambda: self.timeline.now_s))
        habits = Habits(draw)
        names = [machine.name for machine in self.replicators]
        self.clients = [
            Client(self.site, f"client-{n + 1}", names, self.told, habits, self._life_of)
            for n in range(draw.randint(4, 6))
        ]
        client_names = [client.name for client in self.clients]
        self.faults = Faults(self.site, self.nodes, self.replicators, client_names, self.skew_ms)
        self.collecting = Collecting(self.site, self.replicators, self.faults)
        self.operator = Operator(self.site, self.nodes, list(key_modes()))
        self.changes_left = draw.choice((0, 0, 1, 2, 3))

    def _skew(self) -> int:
        return self.draw.randint(-self.skew_ms, self.skew_ms)

    def _life_of(self, replicator: str) -> int:
        return next(each.lives for each in self.replicators if each.name == replicator)

    def run(self) -> Outcome:
        for node in self.nodes:
            node.start()
            finish(self.site.store.register(node.member))
        for replicator in self.replicators:
            replicator.start()
        self.timeline.advance(0.3)
        for client in self.clients:
            client.begin()
        self.faults.begin()
        self.collecting.begin()
        self._plan_change()
        self._suffer()
        self._mend()
        Judgement(self).run()
        return self.outcome

    def _suffer(self) -> None:
        counts = self.outcome.counts
        while self.timeline.now_s < work_s_max and (
            self.told.operations < operations_min or counts.get("faults", 0) < faults_min
        ):
            if self.timeline.now_s > trouble_s_max and not self.faults.stopped:
                self.faults.end()
            self.timeline.advance(watch_s)
            self.watch()
        self.outcome.count("operations", self.told.operations)
        assert self.told.operations >= operations_min, "the clients got nowhere"
        assert counts["faults"] >= faults_min, "too little went wrong"

    def watch(self) -> None:
        """What was collected does not come back, not for a moment."""
        wrong = shown_again(self)
        assert wrong is None, wrong

    def _mend(self) -> None:
        for client in self.clients:
            client.stopped = True
        self.faults.end()
        self.collecting.end()
        self.changes_left = 0
        self.timeline.advance(quiet_s)
        assert not self.operator.busy, "the change of members does not come to its end"

    # -- members that come and go

    def _plan_change(self) -> None:
        if self.changes_left:
            self.timeline.schedule(self.draw.uniform(0.1, 1.5), self._change_members)

    def _change_members(self) -> None:
        if self.changes_left and not self.operator.busy:
            self.changes_left -= 1
            newest = finish(self.site.store.newest())
            assert newest is not None
            self.operator.begin(newest, self._other_members(newest))
            self.outcome.count("changes of members")
        self._plan_change()

    def _other_members(self, newest: ClusterMap) -> list[NodeMachine]:
        """One or two nodes join, or leave, or are replaced."""
        draw = self.draw
        members = [machine for machine in self.nodes if machine.name in newest.nodes]
        joining = draw.choice((0, 1, 1, 2))
        leaving = draw.choice((0, 1, 1, 2))
        if not joining:
            leaving = min(leaving, len(members) - 3)
        joining = joining or int(not leaving)
        stay = draw.sample(members, max(len(members) - leaving, 3 - joining))
        for _ in range(joining):
            machine = NodeMachine(self.site, len(self.nodes) + 1, self._skew())
            self.nodes.append(machine)
            machine.start()
            stay.append(machine)
        return stay


@contextmanager
def _maps_placed_once() -> Iterator[None]:
    """Placing the slots of a map takes some milliseconds, and maps of the same bytes are the same
    in all processes of all seeds."""
    with patch.object(ClusterMap, "decode", _decode):
        yield


_decode = functools.lru_cache(maxsize=128)(ClusterMap.decode)


def cluster(seed: int) -> Outcome:
    world = World(seed)
    young_ms = young_ms_near if world.near else young_ms_far
    with _maps_placed_once(), few_slots(young_ms), told_of(world.site.removed):
        return world.run()
