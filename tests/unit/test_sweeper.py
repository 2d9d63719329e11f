"""Finishing what was left, also where some of it cannot be finished, or has expired since."""

from __future__ import annotations

import pytest

from services.core.ballots import ACCEPT, LEARN, NACK, PREPARE, encode_accept, encode_learn
from services.core.change import Put
from services.core.messages import WRITE
from services.core.operations import CHANGED, refused_answer
from services.core.record import is_tombstone, value_body
from services.core.ring import slot_count, slot_of
from services.dhtnode.upkeep import trim_after_ms
from services.replicator.answers import Failures, refusal
from services.replicator.sweeper import Sweeper, age_ms
from tests.unit.replicator_world import World, key_of


def sweeper_of(world: World) -> Sweeper:
    replicator = world.replicator
    return Sweeper(replicator.fleet, replicator.strong, replicator.clock, replicator.draw)


def test_what_cannot_be_finished_does_not_hide_what_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.replicator.sweeper.keys_max", 5)
    world = World(nodes=5)
    down = {"node-4", "node-5"}
    keys = [key_of(number) for number in range(200)]
    blocked = [key for key in keys if down <= set(world.placement(key).owners)]
    # On the node that is left to them.
    alone = {owner for key in blocked for owner in world.placement(key).owners} - down
    open_ones = [key for key in keys if not down & set(world.placement(key).owners)][:3]
    assert len(blocked) >= 20
    assert alone == {"node-1", "node-2", "node-3"}
    for node in world.nodes.values():
        node.ignore(LEARN)
    for some in (blocked, open_ones):
        asked = [world.change(key, Put(b"x")) for key in some]
        world.pass_time(0.3)
        assert {one.kind for one in asked} == {CHANGED}
    for node in world.nodes.values():
        node.obey()
    for name in down:
        world.nodes[name].crash()
    world.pass_time(age_ms / 1000)
    sweeper = sweeper_of(world)
    sweeper.start()
    world.pass_time(25.0)
    sweeper.stop()
    assert sweeper.unfinished > 0
    for key in open_ones:
        assert None not in world.held(key)


def test_what_only_others_than_its_owners_have_of_a_key_is_not_finished() -> None:
    """They had the slot once. Were it finished, its owners would have promises of nothing, however
    often they are collected."""
    world = World(nodes=5)
    left, ended = key_of(1), key_of(2)
    soon_ms = world.replicator.clock.wall_ms() + 1_000
    others = {}
    for key, expires_at_ms in ((left, 0), (ended, soon_ms)):
        name = min(world.nodes.keys() - set(world.placement(key).owners))
        others[key] = world.nodes[name]
        ballot = world.version()
        record = ballot + value_body(b"of another time", expires_at_ms)
        link = world.replicator.fleet.nodes[name].link
        link.notify(ACCEPT, encode_accept(world.map.epoch, ballot, ballot, key, record))
        if key == ended:
            link.notify(LEARN, encode_learn(world.map.epoch, ballot, key, b""))
    world.pass_time(trim_after_ms / 1000 + 2)
    others[ended].replica.trim_slice(soon_ms + 1, 2 * slot_count)
    assert others[left].acceptor.unlearned == 1
    assert others[ended].replica.promises.expired == 1
    for node in world.nodes.values():
        node.ignore(LEARN)
    own = world.change(key_of(3), Put(b"of an owner"))
    world.pass_time(age_ms / 1000)
    for node in world.nodes.values():
        node.obey()
    before = world.messages(PREPARE)
    sweeper = sweeper_of(world)
    sweeper.start()
    world.pass_time(10.0)
    sweeper.stop()
    # Both were named, and one of them time and again.
    assert others[left].acceptor.unlearned == 1
    assert others[ended].replica.promises.expired == 0
    for key in (left, ended):
        slot = slot_of(key)
        assert not any(node.replica.promises.holds(slot, key) for node in world.owners(key))
    assert world.held(key_of(3)) == [own.version + value_body(b"of an owner")] * 3
    assert (sweeper.finished, sweeper.expired, sweeper.unfinished) == (1, 0, 0)
    assert world.messages(PREPARE) == before + 2


def test_accepted_values_that_have_expired_become_tombstones_and_are_freed_everywhere() -> None:
    world = World()
    replicas = [node.replica for node in world.nodes.values()]
    keys = [key_of(number) for number in range(30)]
    before = sum(replica.memory_bytes for replica in replicas)
    soon_ms = world.replicator.clock.wall_ms() + 1_000
    for key in keys:
        world.change(key, Put(bytes(50_000), soon_ms))
    world.pass_time(1.0)
    assert sum(replica.memory_bytes for replica in replicas) > before + 90 * 50_000
    world.pass_time(trim_after_ms / 1000 + 1)
    for replica in replicas:
        replica.trim_slice(soon_ms + 1, 2 * slot_count)
    assert sum(replica.memory_bytes for replica in replicas) > before + 90 * 50_000
    sweeper = sweeper_of(world)
    sweeper.start()
    world.pass_time(5.0)
    sweeper.stop()
    assert (sweeper.expired, sweeper.finished) == (len(keys), 0)
    assert sum(replica.memory_bytes for replica in replicas) < before + 90 * 1_000
    for key in keys:
        assert all(cell is not None and is_tombstone(cell) for cell in world.held(key))
        for replica in replicas:
            assert is_tombstone(replica.promises.get(slot_of(key), key).record)
    assert world.messages(WRITE) == 0


def test_two_replicators_count_each_expired_value_once_and_finish_nothing() -> None:
    world = World(replicators=2)
    keys = [key_of(number) for number in range(60)]
    soon_ms = world.replicator.clock.wall_ms() + 1_000
    for key in keys:
        world.change(key, Put(b"x", soon_ms))
    world.pass_time(trim_after_ms / 1000 + 2)
    for node in world.nodes.values():
        node.replica.trim_slice(soon_ms + 1, 2 * slot_count)
    sweepers = [
        Sweeper(other.fleet, other.strong, other.clock, other.draw) for other in world.replicators
    ]
    for sweeper in sweepers:
        sweeper.start()
    world.pass_time(10.0)
    for sweeper in sweepers:
        sweeper.stop()
    assert [sweeper.finished for sweeper in sweepers] == [0, 0]
    # Where both propose at once, the one that comes later finds the tombstone of the other.
    assert 0 < sum(sweeper.expired for sweeper in sweepers) <= len(keys) + 10
    for key in keys:
        assert all(cell is not None and is_tombstone(cell) for cell in world.held(key))


def test_what_a_client_has_written_since_is_not_counted_as_finished() -> None:
    world = World(replicators=2)
    for node in world.nodes.values():
        node.ignore(LEARN)
    world.change(key_of(1), Put(b"left"))
    world.change(key_of(2), Put(b"left"))
    world.pass_time(age_ms / 1000 + 0.1)
    world.change(key_of(1), Put(b"of a client"))
    world.pass_time(0.1)
    for node in world.nodes.values():
        node.obey()
    sweeper = sweeper_of(world)
    sweeper.start()
    world.pass_time(1.5)
    sweeper.stop()
    assert (sweeper.finished, sweeper.expired, sweeper.unfinished) == (1, 0, 0)


def test_a_later_ballot_is_named_as_what_stood_in_the_way() -> None:
    failures = Failures()
    failures.note("node-1", NACK)
    kind, body = failures.refusal()
    text = "node-1 has promised a later ballot"
    assert (kind, body) == refusal("overloaded", text)
    assert body == refused_answer("overloaded", text)
