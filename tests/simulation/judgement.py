"""What must hold of a simulated cluster: at any time, and once everything was mended."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.core.hlc import version_ms, version_zero
from services.core.record import expires_at_ms
from services.core.ring import slot_of
from services.runtime.clock import FakeClock
from tests.simulation.cells import different, hidden, lost, made_by_nobody
from tests.simulation.cluster_clients import Write
from tests.simulation.cluster_keys import Mode, key_modes, slots_of_keys
from tests.simulation.collected import ended
from tests.simulation.history import ABSENT, Found
from tests.simulation.key_model import KeyModel
from tests.simulation.linearizability import check
from tests.simulation.node_life import NodeLife
from tests.simulation.replicator_life import finish

if TYPE_CHECKING:
    from tests.simulation.cluster import World

# In which a value that is there to be freed has been: a look, a sweep, and an operation.
freed_within_ms = 4_000
# Where no lead is refused, a replicator may have to store a later ceiling for the promise of each
# replica that it meets, six of them under a joint map, and it refuses a read for each.
reads_max = 8
# By how much a clock that stamps leads the wall clock of its replicator at the most.
lead_ms = 502
# Until replicas are the same, and until all that has ended is collected: passes that find what
# the ones before could not mend, and collections that a pause was drawn for. What was stamped by a
# clock far ahead is collected by one that has got there.
even_within_s = 30.0
collected_within_s = 30.0
# Whoever has something to finish or to free is asked for it more often than that.
stays_s = 5.0
look_s = 0.25
read_s = 0.02
looks_before_asking = 20


def shown_again(world: World) -> str | None:
    """Whether the replicas of a key, whoever asks one of them, show what was collected before."""
    newest = finish(world.site.store.newest())
    collected = world.site.collected
    if newest is None or not collected.records:
        return None
    for machine in world.nodes:
        node = machine.node
        if node is None or node.ended:
            continue
        for key in collected.records:
            slot = slot_of(key)
            # What is left where it does not belong any more, or not yet, nobody is shown.
            if slot in machine.not_ready or machine.name not in newest.owners(slot):
                continue
            cell = node.replica.table.peek(slot, key) or b""
            wrong = collected.came_back(key, cell, world.site.wall_ms + world.site.ahead_ms)
            if wrong is not None:
                return f"{key!r} at {machine.name}: {wrong}"
    return None


class Judgement:
    """What must hold once everything was mended."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.site = world.site
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
        mixed = [key for key in strong if self.modes[key] is Mode.MIXED]
        # One is left alone until all is collected: reading it would settle what has ended there.
        alone = self.world.draw.choice(mixed)
        shown = {key: self._read(key) for key in strong if key != alone}
        self._await("replicas become the same", self._differing, even_within_s)
        for key in mixed:
            if key != alone:
                # Every replica has by now what was written eventually.
                shown[key] = self._read(key)
        self._await("replicas become the same again", self._differing, even_within_s)
        self._check_cells(shown)
        ahead_s = 0.0 if self.world.near else 2 * self.world.skew_ms / 1000
        within_s = collected_within_s + ahead_s
        self._await("tombstones are collected", self._tombstones, within_s)
        self._await("everything is", self._left_over, within_s, self.world.collecting.ask_for_all)
        self._check_floors()
        self._check_stays_collected()
        # What is left is what was there, and reads show it.
        self._check_cells({key: self._read(key) for key in strong})
        self._check_history()
        self._check_processes()
        self._trace()

    def _await(
        self,
        what: str,
        missing: Callable[[], str | None],
        within_s: float,
        ask: Callable[[], None] = lambda: None,
    ) -> None:
        """Let the cluster get there by itself, or by what somebody asks for now and then."""
        looks = 0
        while (why_not := missing()) is not None:
            assert looks * look_s < within_s, f"{within_s} s go by before {what}: {why_not}"
            if not looks % looks_before_asking:
                ask()
            self.world.timeline.advance(look_s)
            self.world.watch()
            looks += 1
        self.world.outcome.count(f"ms until {what}", round(looks * look_s * 1000))

    def _owners(self, slot: int) -> dict[str, NodeLife]:
        lives = {}
        for name in self.map.owners(slot):
            node = self.nodes[name].node
            assert node is not None, f"{name} is down"
            lives[name] = node
        return lives

    def _cells(self, key: bytes) -> dict[str, bytes]:
        slot = slot_of(key)
        return {
            name: node.replica.table.peek(slot, key) or b""
            for name, node in self._owners(slot).items()
        }

    def _read(self, key: bytes) -> Found | None:
        """What a strong read shows."""
        for _ in range(reads_max):
            operation = self.world.clients[0].read(key)
            while operation.returned_s is None:
                self.world.timeline.advance(read_s)
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
        return self.site.wall_ms + world.skew_ms - world.site.trimming.after_ms

    def _check_freed(self, key: bytes) -> None:
        """What has ended and was found to has given way to a tombstone."""
        slot = slot_of(key)
        assert self.site.trimming is not None
        freed_ms = self.site.wall_ms - self.site.trimming.after_ms - freed_within_ms
        for name, node in self._owners(slot).items():
            record = node.replica.promises.get(slot, key).record
            assert not (record and 0 < expires_at_ms(record) <= freed_ms), (
                f"{key!r}: {name} still has {record!r}, which was to be freed by {freed_ms}"
            )

    def _check_delivered(self, key: bytes) -> None:
        """Every replica has what was acknowledged by replicators that are the same ever since, or
        has had it until it was collected."""
        lives = {machine.name: machine.lives for machine in self.world.replicators}
        cells = self._cells(key)
        for write in self._writes(key):
            if write.acked is None or lives[write.replicator] != write.life:
                continue
            for name, cell in cells.items():
                has = self.site.collected.known(key, cell)[:12]
                assert has >= write.acked, (
                    f"{key!r}: {write.replicator} has acknowledged {write.acked.hex()}, and {name} "
                    f"has {has.hex()}"
                )

    def _writes(self, key: bytes) -> list[Write]:
        return [write for write in self.told.writes if write.key == key]

    # -- what comparing replicas brings about

    def _differing(self) -> str | None:
        for key in self.modes:
            if (wrong := different(self._cells(key), self._trimmed_ms)) is not None:
                return f"{key!r}: {wrong}"
        return self._other_digests()

    def _other_digests(self) -> str | None:
        for slot in slots_of_keys():
            leaves = {node.replica.table.leaves(slot) for node in self._owners(slot).values()}
            if len(leaves) != 1:
                return f"slot {slot} has other digests on other replicas"
        return None

    def _check_cells(self, shown: dict[bytes, Found | None]) -> None:
        """Replicas hold the same, which is what was shown; no acknowledged write is lost, and
        nothing came back, under another stamp or under its own."""
        wrong = self._differing()
        assert wrong is None, wrong
        for key, mode in self.modes.items():
            cell = max(self._cells(key).values())
            wrong = self.site.collected.came_back(key, cell, self.site.wall_ms)
            # One that was collected was there, and has ended.
            known = self.site.collected.known(key, cell)
            if key in shown and (cell or shown[key] is not None):
                wrong = wrong or hidden(shown[key], known)
            if mode is not Mode.STRONG:
                writes = self._writes(key)
                acked = [each.acked for each in writes if each.acked is not None]
                wrong = wrong or lost(acked, known)
                if known and mode is Mode.EVENTUAL:
                    wrong = wrong or made_by_nobody(writes, known)
            assert wrong is None, f"{key!r}: {wrong}"

    # -- what collecting brings about

    def _tombstones(self) -> str | None:
        """What is left of all that counts as a tombstone by the floor of its slot."""
        for slot in slots_of_keys():
            for name, node in self._owners(slot).items():
                floor_ms = version_ms(node.replica.floors.get(slot, version_zero))
                if (left := _ended_on(node, slot, floor_ms)) is not None:
                    return f"{name} still has {left}"
        return self._other_digests()

    def _left_over(self) -> str | None:
        """What is left of all that has ended by now, promises without any value, and replicas that
        know of other floors: all this may stay until the slot is collected for another reason."""
        for slot in slots_of_keys():
            lives = self._owners(slot)
            floors = {node.replica.floors.get(slot, version_zero) for node in lives.values()}
            if len(floors) != 1:
                return f"slot {slot} has the floors {sorted(floor.hex() for floor in floors)}"
            for name, node in lives.items():
                if (left := _ended_on(node, slot, self.site.wall_ms)) is not None:
                    return f"{name} still has {left}"
                for key, promise in node.replica.promises.items(slot):
                    if node.replica.table.peek(slot, key) is None:
                        return f"{name} has for {key!r} a promise of nothing: {promise}"
        return self._other_digests()

    def _check_stays_collected(self) -> None:
        """Of a key that its owners have nothing of, none gets anything while nobody asks for it:
        not even a promise, which would have to be collected as well, time and again."""
        known = self._known()
        self.world.timeline.advance(stays_s)
        self.world.watch()
        assert not (come := self._known() - known), (
            f"all was collected, and {stays_s} s later there is something of {sorted(come)}"
        )

    def _known(self) -> set[bytes]:
        """The keys that some owner has a cell or a promise of."""
        return {
            key
            for key in self.modes
            for node in self._owners(slot_of(key)).values()
            if node.replica.table.peek(slot_of(key), key) is not None
            or node.replica.promises.holds(slot_of(key), key)
        }

    def _check_floors(self) -> None:
        """No floor is above every clock."""
        latest_ms = self.site.wall_ms + self.site.ahead_ms
        for slot in slots_of_keys():
            for name, node in self._owners(slot).items():
                floor = node.replica.floors.get(slot, version_zero)
                assert version_ms(floor) <= latest_ms, f"{name} has a floor of {floor.hex()}"
                assert floor >= max(
                    (self.site.collected.latest(key) for key in self.modes if slot_of(key) == slot),
                    default=version_zero,
                ), f"{name} may be given what was collected: its floor is {floor.hex()}"

    # -- the rest

    def _check_history(self) -> None:
        skew_ms = self.world.skew_ms + lead_ms if self.world.near else math.inf
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


def _ended_on(node: NodeLife, slot: int, now_ms: int) -> str | None:
    replica = node.replica
    for key in replica.table.keys(slot):
        cell = replica.table.peek(slot, key)
        if cell is not None and ended(cell, now_ms):
            return f"of {key!r} what has ended: {cell!r}"
    for key, promise in replica.promises.items(slot):
        if any(promise.ballot) and (not promise.record or ended(promise.record, now_ms)):
            return f"for {key!r} a promise of what has ended: {promise}"
    return None
