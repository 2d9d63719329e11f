"""What an acceptor refuses from a peer that has gone wrong."""

from __future__ import annotations

import pytest

from services.core.ballots import LEARN, READ, encode_learn, encode_read
from services.core.hlc import pack_version, version_zero
from services.core.messages import MALFORMED
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


@pytest.mark.parametrize("broken", [b"", b"no storage key", key[:9]])
def test_a_read_of_no_key_brings_no_epoch_along(broken: bytes) -> None:
    world = World()
    node = world.nodes["node-1"]
    link = world.replicator.fleet.nodes["node-1"].link
    epoch = node.replica.epoch
    answers: list[int] = []
    link.request(READ, encode_read(epoch + 7, broken), lambda kind, _: answers.append(kind), 1.0)
    world.pass_time()
    assert answers == [MALFORMED]
    assert node.replica.epoch == epoch
