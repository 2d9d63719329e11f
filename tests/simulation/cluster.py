"""A whole cluster in one process, behind bad weather: strong stays linearizable, eventual
converges, and neither loses what was acknowledged.

The real code of nodes and replicators runs on links in memory, disks that lie and clocks that are
wrong. Clients put, delete, compare, count and read, while messages are lost, doubled and
overtaken, processes pause and die, disks freeze and fail, and clocks jump. Then everything is
mended, what repairs itself gets the time to, and the end is judged:

- the history of each key that only strong operations touch is linearizable;
- an acknowledged eventual write is on its replicas, or something newer is, wherever hints and
  retries of a replicator that lived on were to bring it; and on some replica in any case;
- a strong read of a key of both kinds shows no less than any acknowledged write;
- what a strong read shows is what the cells of the key's replicas have come to hold, or it has
  ended since;
- of what has ended no replica keeps more than when it ended;
- no callback has failed, and nothing was acknowledged by a process that had ended.

Comparing replicas, which mends what a replicator forgot by its death, is done by the test itself.
"""

from __future__ import annotations

import functools
import math
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from services.core.cluster import ClusterMap
from services.core.messages import WRITE, encode_write
from services.core.record import expires_at_ms
from services.core.ring import slot_of
from services.replicator.memory_map_store import Rows
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_link import FakeNetwork, Weather
from tests.simulation.cells import different, hidden, lost, made_by_nobody
from tests.simulation.cluster_clients import Client, Mode, Told, Write, key_modes, slots_of_keys
from tests.simulation.cluster_faults import Faults
from tests.simulation.cluster_operator import Operator
from tests.simulation.history import ABSENT, Found, History
from tests.simulation.key_model import KeyModel
from tests.simulation.linearizability import check
from tests.simulation.machines import MapStoreOfChanges, NodeMachine, ReplicatorMachine, Site
from tests.simulation.node_life import Trimming
from tests.simulation.replicator_life import finish
from tests.simulation.scenario import Outcome

operations_min = 160
faults_min = 4
# Where clients get nowhere for so long, the trouble ends before they are through.
trouble_s_max = 20.0
work_s_max = 60.0
# A client's wait, then the retries of a write and a look for what was left unfinished.
quiet_s = 9.0
# In which a value that is there to be freed has been: a look, a sweep, and an operation.
freed_within_ms = 4_000
# Where no lead is refused, a replicator may have to store a later ceiling for the promise of each
# replica that it meets, six of them under a joint map, and it refuses a read for each.
reads_max = 8
skew_ms_near = 400
skew_ms_far = 30_000
# Nodes leave values that have ended to each other's and replicators' clocks, and to operations
# that began before.
trim_margin_ms = 700
# By how much a clock that stamps leads the wall clock of its replicator at the most.
lead_ms = 502


class World:
    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.outcome = Outcome()
        self.timeline = Timeline()
        self.near = draw.random() < 0.75
        self.skew_ms = skew_ms_near if self.near else skew_ms_far
        back = FakeNetwork(draw, Weather())
        front = FakeNetwork(draw, Weather())
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
        self.nodes = [NodeMachine(self.site, n + 1, self._skew()) for n in range(size)]
        self.replicators = [
            ReplicatorMachine(self.site, n + 1, self._skew()) for n in range(draw.randint(1, 3))
        ]
        self.told = Told(History(lambda: self.timeline.now_s))
        names = [machine.name for machine in self.replicators]
        self.clients = [
            Client(self.site, f"client-{n + 1}", names, self.told, self._life_of)
            for n in range(draw.randint(4, 6))
        ]
        client_names = [client.name for client in self.clients]
        self.faults = Faults(self.site, self.nodes, self.replicators, client_names, self.skew_ms)
        self.operator = Operator(self.site, self.nodes, list(key_modes()))
        self.changes_left = draw.choice((0, 0, 1, 2, 3))

    def _skew(self) -> int:
        return self.draw.randint(-self.skew_ms, self.skew_ms)

    def _life_of(self, replicator: str) -> int:
        return next(each.lives for each in self.replicators if each.name == replicator)

    @property
    def wall_ms(self) -> int:
        return FakeClock.epoch_ms + int(self.timeline.now_s * 1000)

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
            self.timeline.advance(0.05)
        self.outcome.count("operations", self.told.operations)
        assert self.told.operations >= operations_min, "the clients got nowhere"
        assert counts["faults"] >= faults_min, "too little went wrong"

    def _mend(self) -> None:
        for client in self.clients:
            client.stopped = True
        self.faults.end()
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


class Judgement:
    """What must hold once everything was mended."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told = world.told
        self.modes = key_modes()
        newest = finish(world.site.store.newest())
        assert newest is not None
        self.map = newest
        self.nodes = {machine.name: machine for machine in world.nodes}

    def run(self) -> None:
        for key in self.modes:
            self._check_freed(key)
        for key, mode in self.modes.items():
            # Hints are for the owners of their time.
            if mode is Mode.EVENTUAL and self.map.epoch == 1:
                self._check_delivered(key)
        strong = [key for key, mode in self.modes.items() if mode is not Mode.EVENTUAL]
        shown = {key: self._read(key) for key in strong}
        self._even_out()
        for key in strong:
            if self.modes[key] is Mode.MIXED:
                # Every replica has by now what was written eventually.
                shown[key] = self._read(key)
        self._even_out()
        for key in self.modes:
            self._check_cells(key, shown.get(key))
        self._check_history()
        self._check_processes()
        self._trace()

    def _cells(self, key: bytes) -> dict[str, bytes]:
        slot = slot_of(key)
        cells = {}
        for name in self.map.owners(slot):
            node = self.nodes[name].node
            assert node is not None, f"{name} is down"
            cells[name] = node.replica.table.peek(slot, key) or b""
        return cells

    def _read(self, key: bytes) -> Found | None:
        """What a strong read shows."""
        for _ in range(reads_max):
            operation = self.world.clients[0].read(key)
            self.world.timeline.advance(1.0)
            if isinstance(operation.outcome, Found):
                return operation.outcome
            if operation.outcome is ABSENT:
                return None
        raise AssertionError(f"nothing is wrong any more, and still: {operation}")

    @property
    def _trimmed_ms(self) -> int:
        """By when a value has ended that the fastest clock may have had trimmed."""
        world = self.world
        assert world.site.trimming is not None
        return world.wall_ms + world.skew_ms - world.site.trimming.after_ms

    def _check_freed(self, key: bytes) -> None:
        """What has ended and was found to has given way to a tombstone."""
        world, slot = self.world, slot_of(key)
        assert world.site.trimming is not None
        freed_ms = world.wall_ms - world.site.trimming.after_ms - freed_within_ms
        for name in self.map.owners(slot):
            node = self.nodes[name].node
            assert node is not None, f"{name} is down"
            record = node.replica.promises.get(slot, key).record
            assert not (record and 0 < expires_at_ms(record) <= freed_ms), (
                f"{key!r}: {name} still has {record!r}, which was to be freed by {freed_ms}"
            )

    def _check_delivered(self, key: bytes) -> None:
        """Every replica has what was acknowledged by replicators that are the same ever since."""
        lives = {machine.name: machine.lives for machine in self.world.replicators}
        cells = self._cells(key)
        for write in self._writes(key):
            if write.acked is None or lives[write.replicator] != write.life:
                continue
            for name, cell in cells.items():
                assert cell[:12] >= write.acked, (
                    f"{key!r}: {write.replicator} has acknowledged {write.acked.hex()}, and {name} "
                    f"has {cell[:12].hex()}"
                )

    def _writes(self, key: bytes) -> list[Write]:
        return [write for write in self.told.writes if write.key == key]

    def _even_out(self) -> None:
        """Give every replica of a key the greatest record, as comparing replicas will."""
        world = self.world
        replicator = next(each.replicator for each in world.replicators if each.up)
        assert replicator is not None
        for key in self.modes:
            cells = self._cells(key)
            greatest = max(cells.values())
            for name, cell in cells.items():
                # As for comparing replicas, one that was trimmed is no other.
                if cell[:12] < greatest[:12]:
                    world.outcome.count("cells evened out")
                    message = encode_write(self.map.epoch, key, greatest)
                    link = replicator.fleet.nodes[name].link
                    assert not link.request(WRITE, message, lambda kind, body: None, 1.0)
        world.timeline.advance(1.0)

    def _check_cells(self, key: bytes, shown: Found | None) -> None:
        """Replicas hold the same, which is what was shown; no acknowledged write is lost, and
        nothing came back under another stamp."""
        mode = self.modes[key]
        cells = self._cells(key)
        cell = max(cells.values())
        wrong = different(cells, self._trimmed_ms)
        if mode is not Mode.EVENTUAL:
            wrong = wrong or hidden(shown, cell)
        if mode is not Mode.STRONG:
            writes = self._writes(key)
            wrong = wrong or lost([each.acked for each in writes if each.acked is not None], cell)
            if cell and mode is Mode.EVENTUAL:
                wrong = wrong or made_by_nobody(writes, cell)
        assert wrong is None, f"{key!r}: {wrong}"

    def _check_history(self) -> None:
        skew_ms = skew_ms_near + lead_ms if self.world.near else math.inf
        model = KeyModel(FakeClock.epoch_ms, skew_ms)
        strong = [
            each for each in self.told.history.operations if self.modes[each.key] is Mode.STRONG
        ]
        report = check(strong, model, 200_000)
        assert not report.violations, report.violations[0]
        outcome = self.world.outcome
        outcome.count("keys undecided", len(report.undecided))
        outcome.count("checker steps", report.steps)
        outcome.count("strong operations", len(strong))

    def _check_processes(self) -> None:
        world = self.world
        for machine in (*world.nodes, *world.replicators):
            machine.check()
        for client in world.clients:
            assert not client.station.counters.bugs, f"a callback of {client.name} failed"
        assert not world.site.wrong, world.site.wrong[0]

    def _trace(self) -> None:
        history = "\n".join(map(str, self.told.history.operations))
        cells = [sorted(self._cells(key).items()) for key in self.modes]
        self.world.outcome.trace = zlib.crc32(f"{history}{cells}".encode())


@contextmanager
def _maps_placed_once() -> Iterator[None]:
    """Placing the slots of a map takes some milliseconds, and maps of the same bytes are the same
    in all processes of all seeds."""
    with patch.object(ClusterMap, "decode", _decode):
        yield


_decode = functools.lru_cache(maxsize=128)(ClusterMap.decode)


def cluster(seed: int) -> Outcome:
    with _maps_placed_once():
        return World(seed).run()
