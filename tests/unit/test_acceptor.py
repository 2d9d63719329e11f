"""What an acceptor refuses from a peer that has gone wrong."""

from __future__ import annotations

import pytest

from services.core.ballots import LEARN, encode_learn
from services.core.hlc import pack_version, version_zero
from services.core.record import value_body
from tests.unit.replicator_world import World, key_of

key = key_of(1)


@pytest.mark.parametrize(
    "record",
    [
        version_zero,
        version_zero + b"\xff" * 11,
        pack_version(1 << 63, 1) + value_body(b"later than its ballot"),
    ],
)
def test_nothing_is_learned_that_nobody_can_have_proposed(record: bytes) -> None:
    """It would be logged, and the next start would find the log damaged."""
    world = World()
    node = world.nodes["node-1"]
    link = world.replicator.fleet.nodes["node-1"].link
    assert link.notify(LEARN, encode_learn(1, world.version(), key, record))
    world.pass_time()
    assert node.asked[LEARN] == 1
    assert node.replica.counters.malformed == 1
    assert node.holds(key) is None
    node.crash()
    node.begin()
