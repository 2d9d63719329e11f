"""What a replicator coordinates with, once it has a stamper: made, started and stopped together."""

from __future__ import annotations

import random
from dataclasses import dataclass

from services.replicator.adoption import Adoption
from services.replicator.anti_entropy import AntiEntropy, Rates
from services.replicator.collection import CollectionRates, Collector
from services.replicator.counters import Counters
from services.replicator.eventual import EventualWrites
from services.replicator.hints import Hints
from services.replicator.repair_counters import RepairCounters
from services.replicator.seams import Epochs
from services.replicator.slot_shares import Shares
from services.replicator.stamps import Stamps
from services.replicator.strong import StrongOperations
from services.replicator.sweeper import Sweeper
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet


@dataclass(slots=True, frozen=True)
class Parts:
    """What a coordinator is made of."""

    replicator_id: str
    fleet: Fleet
    epochs: Epochs
    clock: Clock
    counters: Counters
    repair_counters: RepairCounters
    rates: Rates
    collection_rates: CollectionRates
    draw: random.Random


class Coordinator:
    """`start` it once hints are looked after, and `stop` it before they are not any more."""

    def __init__(self, parts: Parts, stamps: Stamps, hints: Hints, adoption: Adoption) -> None:
        fleet, clock, epochs, draw = parts.fleet, parts.clock, parts.epochs, parts.draw
        shared = (fleet, stamps, hints, epochs, clock, parts.counters, draw)
        self.stamps = stamps
        self.hints = hints
        self.adoption = adoption
        self.eventual = EventualWrites(*shared)
        self.strong = StrongOperations(*shared)
        self.sweeper = Sweeper(fleet, self.strong, clock, draw)
        self.collector = Collector(
            fleet, stamps, self.strong, epochs, clock, draw, parts.collection_rates
        )
        hints.on_below_floor = self.collector.request
        self.shares = Shares(parts.replicator_id, fleet, clock)
        self.anti_entropy = AntiEntropy(
            fleet,
            stamps,
            hints,
            epochs,
            self.shares,
            self.collector,
            clock,
            parts.rates,
            parts.repair_counters,
        )

    def start(self) -> None:
        """Do from now on what nobody has asked for."""
        self.sweeper.start()
        self.collector.start()
        self.shares.start()
        self.anti_entropy.start()

    def stop(self) -> None:
        """Begin nothing more of that."""
        self.anti_entropy.stop()
        self.shares.stop()
        self.collector.stop()
        self.sweeper.stop()
