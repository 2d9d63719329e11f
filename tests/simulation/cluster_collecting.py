"""Collections of a simulated cluster, asked for at any time, of any replicator, often of several
at once, and some of which die in the middle of it."""

from __future__ import annotations

import random
from functools import partial

from services.core.ring import slot_of
from tests.simulation.cluster_faults import Faults
from tests.simulation.cluster_keys import keys_of_one_slot, slots_of_keys
from tests.simulation.machines import ReplicatorMachine, Site

# Most are of the slot that has the most keys.
first_share = 0.75
# What a collection takes, about, where nothing is in its way.
takes_s = 0.06
# Between those that are to meet; where messages are slow, one may overtake the other.
apart_s = (0.01, 0.03, 0.3)


class Collecting:
    def __init__(self, site: Site, replicators: list[ReplicatorMachine], faults: Faults) -> None:
        self.site = site
        self.draw: random.Random = site.draw
        self.replicators = replicators
        self.faults = faults
        self.stopped = False
        self._pause_s = self.draw.choice((0.05, 0.15, 0.4))
        # How many of those who collect die of it.
        self._deaths = self.draw.choice((0.0, 0.05, 0.3))

    def begin(self) -> None:
        self._plan()

    def end(self) -> None:
        self.stopped = True

    def ask_for_all(self) -> None:
        """As an operator does once all is well."""
        for slot in slots_of_keys():
            self.draw.choice(self.replicators).request_collection(slot)

    def _plan(self) -> None:
        self.site.timeline.schedule(self.draw.uniform(0.0, 2 * self._pause_s), self._strike)

    def _strike(self) -> None:
        if self.stopped:
            return
        draw = self.draw
        busiest = slot_of(keys_of_one_slot()[0])
        slot = busiest if draw.random() < first_share else draw.choice(slots_of_keys())
        at_once = min(draw.choice((1, 2, 2, 3)), len(self.replicators))
        within_s = draw.choice(apart_s)
        for machine in draw.sample(self.replicators, at_once):
            begin = partial(self._collect, machine, slot)
            self.site.timeline.schedule(draw.random() * within_s, begin)
        self._plan()

    def _collect(self, machine: ReplicatorMachine, slot: int) -> None:
        if self.stopped or not machine.up:
            return
        machine.collect(slot, lambda collected: None)
        if self.draw.random() < self._deaths:
            self.faults.end_replicator_soon(machine, self.draw.random() * takes_s)
