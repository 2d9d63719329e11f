"""What a replicator coordinates with is put together so that the parts know of each other."""

from __future__ import annotations

import random
from pathlib import Path

from services.replicator.anti_entropy import Rates
from services.replicator.collection import CollectionRates
from services.replicator.coordinator import Coordinator, Parts
from services.replicator.counters import Counters
from services.replicator.directory import ReplicatorDirectory
from services.replicator.repair_counters import RepairCounters
from services.replicator.stamps import Stamps
from services.runtime.fake_disk import FakeDisk
from tests.unit.hint_world import HintWorld


def coordinator_of(world: HintWorld) -> Coordinator:
    keeper = world.keeper
    directory = ReplicatorDirectory.open(
        FakeDisk(random.Random(1), keeper.clock), Path("/coordinator"), keeper.name
    )
    parts = Parts(
        keeper.name,
        keeper.fleet,
        keeper.epochs,
        keeper.clock,
        Counters(),
        RepairCounters(),
        Rates(600, 5_000, 16 << 20),
        CollectionRates(),
        random.Random(7),
    )
    stamps = Stamps(directory, 2, keeper.clock, keeper.failures.append)
    return Coordinator(parts, stamps, keeper.hints, keeper.adoption)


def test_a_slot_in_which_hints_are_refused_below_the_floor_waits_for_its_collection() -> None:
    world = HintWorld()
    made = coordinator_of(world)
    assert not made.collector.is_busy_with(7)
    world.hints.on_below_floor(7)
    assert made.collector.is_busy_with(7)
