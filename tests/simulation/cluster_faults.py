"""What befalls a simulated cluster: one fault after another, each for a while, many at a time."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.simulation.machines import Machine, NodeMachine, ReplicatorMachine, Site

# Between the beginnings of two faults.
pause_s = (0.02, 0.5)
loss_max = 0.3
straggle_s = (0.05, 0.05, 0.3, 1.5)
# One takes as long to simulate as a dozen operations.
snapshot_share = 0.02


class Faults:
    def __init__(
        self,
        site: Site,
        nodes: list[NodeMachine],
        replicators: list[ReplicatorMachine],
        clients: list[str],
        skew_ms_max: int,
    ) -> None:
        self.site = site
        self.draw: random.Random = site.draw
        self.nodes = nodes
        self.replicators = replicators
        self.clients = clients
        self.skew_ms_max = skew_ms_max
        self.stopped = False
        # How much of each is allowed at most, so that seeds differ in kind.
        self.loss_max = self.draw.choice((0.0, 0.05, loss_max))
        self._blocks: list[tuple[str, str]] = []
        # By how often each comes.
        kinds: list[tuple[int, Callable[[], None]]] = [
            (5, self._end_node), (3, self._pause), (3, self._partition), (2, self._isolate),
            (2, self._freeze), (3, self._storm), (3, self._end_replicator), (1, self._jump),
            (1, self._break), (3, self._slow),
        ]  # fmt: skip
        # A seed mostly has a few kinds of trouble, and much of these.
        some = [(weight, kind) for weight, kind in kinds if self.draw.random() < 0.6] or kinds
        self._kinds = [kind for weight, kind in some for _ in range(weight)]
        self._pause_s = self.draw.choice((0.1, 0.3, pause_s[1]))

    def begin(self) -> None:
        self._plan()

    def end(self) -> None:
        """Mend everything there is. What was planned to end later finds nothing to end."""
        self.stopped = True
        site = self.site
        site.back.late_s.clear()
        for network in (site.back, site.front):
            network.heal()
            weather = network.weather
            weather.loss = weather.duplicate = weather.reorder = 0.0
        for machine in self._machines():
            machine.resume()
            machine.disk.thaw()
            machine.disk.heal()
            machine.set_clock(0)
            machine.start()

    def _plan(self) -> None:
        delay_s = self.draw.uniform(pause_s[0], self._pause_s)
        self.site.timeline.schedule(delay_s, self._strike)

    def _strike(self) -> None:
        if not self.stopped:
            self.draw.choice(self._kinds)()
            if self.draw.random() < snapshot_share:
                self._take_snapshot()
            self._plan()

    def _later(self, delay_s: float, mend: Callable[[], None]) -> None:
        self.site.timeline.schedule(delay_s, lambda: None if self.stopped else mend())

    def _count(self, name: str) -> None:
        self.site.count(f"fault {name}")
        self.site.count("faults")

    def _machines(self) -> list[Machine]:
        return [*self.nodes, *self.replicators]

    # -- processes

    def _end_node(self) -> None:
        machine = self.draw.choice(self.nodes)
        power_cut = self.draw.random() < 0.6
        if not machine.up:
            return
        self._count("node: power cut" if power_cut else "node: kill")
        machine.stop(power_cut=power_cut)
        self._start_later(machine)

    def _start_later(self, machine: Machine) -> None:
        lives = machine.lives

        def start() -> None:
            if machine.lives == lives:
                machine.start()

        self._later(self.draw.choice((0.01, 0.2, 1.0)) * self.draw.random(), start)

    def _end_replicator(self) -> None:
        self._end(self.draw.choice(self.replicators))

    def end_replicator_soon(self, machine: ReplicatorMachine, delay_s: float) -> None:
        """In the middle of what it has begun just now."""
        lives = machine.lives

        def end() -> None:
            if machine.lives == lives:
                self._end(machine)

        self._later(delay_s, end)

    def _end(self, machine: ReplicatorMachine) -> None:
        if not machine.up:
            return
        power_cut = self.draw.random() < 0.5
        machine.stop(power_cut=power_cut)
        if self.draw.random() < 0.2:
            machine.lose_directory()
            self._count("replicator: directory lost")
        else:
            self._count("replicator: power cut" if power_cut else "replicator: kill")
        self._start_later(machine)

    def _pause(self) -> None:
        machine = self.draw.choice(self._machines())
        if not machine.up or machine.paused:
            return
        self._count("pause")
        machine.pause()
        lives = machine.lives

        def resume() -> None:
            if machine.lives == lives:
                machine.resume()

        self._later(self.draw.choice((0.05, 0.5, 2.5)) * self.draw.random(), resume)

    def _take_snapshot(self) -> None:
        """No fault; but what a node recovers from is another file from here on."""
        machine = self.draw.choice(self.nodes)
        if machine.node is not None and not machine.node.ended:
            machine.node.take_snapshot()
            self.site.count("snapshots begun")

    # -- networks

    def _partition(self) -> None:
        """Nothing that one sends reaches the other."""
        node = self.draw.choice(self.nodes).name
        replicator = self.draw.choice(self.replicators).name
        pair = (node, replicator) if self.draw.random() < 0.5 else (replicator, node)
        self._count("one-way partition")
        self._block([pair])

    def _isolate(self) -> None:
        """Nothing that one sends reaches anybody, or nothing reaches it, or both."""
        one = self.draw.choice(self._machines())
        others = [each.name for each in self._machines() if each is not one] + self.clients
        out = [(one.name, other) for other in others]
        to = [(other, one.name) for other in others]
        self._count("isolation")
        self._block(self.draw.choice((out, to, out + to)))

    def _slow(self) -> None:
        """What one sends arrives when others have gone on: a replicator to one node or to all of
        them, or these to it."""
        draw, late_s = self.draw, self.site.back.late_s
        replicator = draw.choice(self.replicators).name
        nodes = [node.name for node in self.nodes]
        one = [draw.choice(nodes)]
        nodes = draw.choice((nodes, one, one))
        pairs = [(replicator, node) for node in nodes]
        if draw.random() < 0.25:
            pairs = [(node, replicator) for node in nodes]
        seconds = draw.choice((0.02, 0.1, 0.3))
        self._count("slow path")
        late_s.update(dict.fromkeys(pairs, seconds))

        def hasten() -> None:
            for pair in pairs:
                late_s.pop(pair, None)

        self._later(draw.choice((0.3, 1.0, 3.0)) * draw.random(), hasten)

    def _block(self, pairs: list[tuple[str, str]]) -> None:
        self._blocks += pairs
        self._apply_blocks()

        def unblock() -> None:
            for pair in pairs:
                self._blocks.remove(pair)
            self._apply_blocks()

        self._later(self.draw.choice((0.1, 0.6, 3.0)) * self.draw.random(), unblock)

    def _apply_blocks(self) -> None:
        for network in (self.site.back, self.site.front):
            network.heal()
            for pair in self._blocks:
                network.block(*pair)

    def _storm(self) -> None:
        draw = self.draw
        self._count("storm")
        weather = self.site.back.weather
        weather.loss = draw.random() * self.loss_max
        weather.duplicate = draw.choice((0.0, 0.1, 0.3))
        weather.reorder = draw.choice((0.0, 0.1, 0.3))
        # Some messages come when everybody has gone on to other things.
        weather.straggle_s_max = draw.choice(straggle_s)
        self.site.front.weather.loss = weather.loss / 10
        self.site.front.weather.reorder = weather.reorder

    # -- disks and clocks

    def _freeze(self) -> None:
        machine = self.draw.choice(self._machines())
        if not machine.up:
            return
        self._count("frozen disk")
        machine.disk.freeze()
        disk = machine.disk
        self._later(self.draw.choice((0.05, 0.3, 1.0)) * self.draw.random(), disk.thaw)

    def _break(self) -> None:
        machine = self.draw.choice(self.nodes)
        if machine.up:
            self._count("broken disk")
            machine.break_disk()

    def _jump(self) -> None:
        machine = self.draw.choice(self._machines())
        self._count("clock jump")
        machine.set_clock(self.draw.randint(-self.skew_ms_max, self.skew_ms_max))
