"""Replicas that differ become equal, whoever is away, late, wrong or new meanwhile."""

from __future__ import annotations

import pytest

from services.core.comparison import (
    SlotDigest,
    encode_digests,
    encode_versions,
    versions_max,
)
from services.core.messages import (
    DIGESTS,
    GET_MANY,
    LEAVES,
    MALFORMED,
    NEWER,
    VERSIONS,
    WRITE,
    WRITE_MANY,
    WRONG_EPOCH,
    Reader,
    decode_write_many,
    encode_records,
    encode_statuses,
    u64,
)
from services.core.record import value_body
from services.core.ring import slot_count, slot_of
from services.core.wire import OK, OVERLOADED
from services.replicator import mending
from services.replicator.mending import DifferingSlot, Mending, versions_in_a_turn
from services.replicator.rounds import answer_s_max
from services.replicator.slot_shares import block_count, block_slots
from services.runtime.peer import Peer
from tests.unit.repair_world import RepairWorld, keys_of_one_slot, old_ms
from tests.unit.replicator_world import key_of


@pytest.fixture
def world() -> RepairWorld:
    return RepairWorld()


def test_what_any_replica_lacks_it_is_sent_from_where_it_is(world: RepairWorld) -> None:
    world.sow(range(100))
    world.sow(range(100, 200), "node-1", "node-2")
    world.sow(range(200, 250), "node-3")
    world.bury(range(250, 270), "node-2", "node-3")
    world.sow(range(270, 280), "node-1", ahead_ms=-50_000, value=b"newer")
    world.sow(range(270, 280), "node-2", "node-3", ahead_ms=-55_000, value=b"older")
    before = world.messages(WRITE)
    world.repair()
    world.assert_equal()
    assert world.counters.keys_differing == 180
    assert world.counters.records_sent == 100 + 2 * 50 + 20 + 2 * 10
    assert world.held(key_of(275)) == [world.owners(key_of(275))[0].holds(key_of(275))] * 3
    assert (world.held(key_of(275))[0] or b"").endswith(b"newer")
    assert world.messages(WRITE) == before


def test_where_nothing_differs_only_digests_are_asked_for(world: RepairWorld) -> None:
    world.sow(range(200))
    before = world.messages(DIGESTS)
    world.repair()
    assert 0 <= world.messages(DIGESTS) - before - 3 * block_count <= 6
    assert world.messages(LEAVES, VERSIONS, GET_MANY, WRITE_MANY) == 0
    assert world.counters.slots_compared >= slot_count
    assert world.counters.slots_unfinished == 0


def test_large_slots_are_compared_by_leaves_and_by_pages(
    world: RepairWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.core.comparison.versions_max", 7)
    keys = keys_of_one_slot(100)
    records = {key: world.version(-60_000) + value_body(b"v") for key in keys}
    world.sow_records(records, "node-1")
    world.sow_records({key: records[key] for key in keys[::3]}, "node-2", "node-3")
    world.repairer.anti_entropy.sizes.slot_keys = 100.0
    world.repair([slot_of(keys[0])])
    world.assert_equal()
    assert world.counters.leaves_differing > 25
    assert world.messages(LEAVES) == 2, "node-2 and node-3 have told the same"
    assert world.messages(VERSIONS) > 2 * (66 // 7)
    assert world.counters.records_sent == 2 * 66


def test_however_large_a_slot_is_no_message_and_no_page_is_larger(
    world: RepairWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "message_records_max", 10)
    monkeypatch.setattr(mending, "message_bytes_max", 3_000)
    keys = keys_of_one_slot(100)
    records = {key: world.version(-60_000) + value_body(bytes(400)) for key in keys}
    world.sow_records(records, "node-1")
    seen: list[int] = []
    node = world.nodes["node-2"]
    real = node.station.handlers[WRITE_MANY]

    def watch(peer: Peer, request_id: int, body: bytes) -> None:
        seen.append(len(decode_write_many(body)[1]))
        del node.instead[WRITE_MANY]
        real(peer, request_id, body)
        node.instead[WRITE_MANY] = watch

    node.instead[WRITE_MANY] = watch
    world.repair()
    world.assert_equal()
    assert sum(seen) == 100
    assert max(seen) <= 3_000 // 400


def test_records_that_do_not_fit_one_answer_are_asked_for_again(world: RepairWorld) -> None:
    keys = keys_of_one_slot(6)
    records = {key: world.version(-60_000) + value_body(bytes(900_000)) for key in keys}
    world.sow_records(records, "node-1")
    world.repair()
    world.assert_equal()
    assert world.counters.records_sent == 12
    assert world.messages(GET_MANY) >= 3


def test_writes_under_way_are_left_alone(world: RepairWorld) -> None:
    world.sow(range(50), "node-1", ahead_ms=-1_000)
    world.sow(range(50, 60), "node-1", ahead_ms=-10_000)
    world.repair()
    assert world.counters.records_sent == 20
    assert world.counters.keys_young == 50
    world.pass_time(2.5)
    world.repair()
    assert world.counters.records_sent == 120
    world.assert_equal()


def test_those_that_are_up_are_compared_and_the_slot_counts_as_not(world: RepairWorld) -> None:
    world.sow(range(60), "node-1")
    world.nodes["node-3"].crash()
    world.pass_time(3.0)
    world.repair()
    assert world.counters.records_sent == 60
    assert world.repairer.anti_entropy.order is not None
    assert world.repairer.anti_entropy.order.left == slot_count
    assert world.repairer.anti_entropy.order.trouble == "without node-3"
    assert world.repairer.anti_entropy.ages().never >= slot_count - 2 * block_slots
    world.nodes["node-3"].begin()
    world.pass_time(3.0)
    world.repair()
    world.assert_equal()
    assert world.repairer.anti_entropy.ages().never == 0


@pytest.mark.parametrize("kind", [DIGESTS, LEAVES, VERSIONS, GET_MANY, WRITE_MANY])
@pytest.mark.parametrize(
    ("answer", "body"),
    [(OK, b"\1\2\3"), (OK, b""), (OVERLOADED, b""), (MALFORMED, b"what?"), (WRONG_EPOCH, b"")],
)
def test_an_answer_that_is_no_use_leaves_the_slot_to_another_time(
    world: RepairWorld, kind: int, answer: int, body: bytes
) -> None:
    world.repairer.anti_entropy.sizes.slot_keys = 100.0
    lost = world.sow([1], "node-1")
    slot = slot_of(next(iter(lost)))
    wrong = world.nodes["node-1" if kind != WRITE_MANY else "node-2"]
    wrong.answer(kind, answer, body)
    world.repair([slot])
    order = world.repairer.anti_entropy.order
    assert order is not None
    assert order.left == 1
    assert order.trouble
    wrong.obey()
    world.repair([slot])
    world.assert_equal()
    assert world.repairer.anti_entropy.order is not None
    assert world.repairer.anti_entropy.order.left == 0


@pytest.mark.parametrize("kind", [DIGESTS, VERSIONS, GET_MANY, WRITE_MANY])
def test_a_node_that_never_answers_holds_nothing_up_for_ever(world: RepairWorld, kind: int) -> None:
    world.sow([1], "node-1")
    world.nodes["node-1" if kind != WRITE_MANY else "node-2"].ignore(kind)
    world.repair([slot_of(key_of(1))], within_s=4 * answer_s_max + 10.0)
    assert world.counters.unanswered >= 1


def test_a_node_that_dies_in_the_middle_is_found_again_later(world: RepairWorld) -> None:
    world.sow(range(400), "node-1")
    world.repairer.anti_entropy.compare(None)
    world.pass_until(lambda: world.counters.records_sent > 100)
    world.nodes["node-2"].crash()
    world.pass_time(30.0)
    world.nodes["node-2"].begin()
    world.pass_time(3.0)
    world.repair()
    world.assert_equal()


def test_keys_of_another_slot_are_not_believed(world: RepairWorld) -> None:
    slot = slot_of(key_of(1))
    world.sow([1], "node-1")
    foreign = encode_versions([(key_of(2), world.version(-60_000))])
    world.nodes["node-1"].answer(VERSIONS, OK, foreign)
    world.repair([slot])
    assert world.messages(GET_MANY, WRITE_MANY) == 0
    assert world.counters.unanswered >= 1


def test_a_replica_that_claims_what_it_does_not_have_spreads_nothing(world: RepairWorld) -> None:
    world.sow([1], "node-1", "node-2", "node-3")
    slot = slot_of(key_of(1))
    claim = world.nodes["node-1"]
    claim.answer(VERSIONS, OK, encode_versions([(key_of(1), world.version(-50_000))]))
    claim.answer(DIGESTS, OK, encode_digests([SlotDigest(b"another.", 0)]))
    world.repair([slot])
    assert world.messages(WRITE_MANY) == 0
    assert world.counters.records_sent == 0


def test_a_record_that_has_rotted_where_it_is_fetched_spreads_to_nobody(
    world: RepairWorld,
) -> None:
    lost = world.sow([1], "node-1")
    [record] = lost.values()
    rotten = record[:12] + b"\xff" + record[13:]
    world.nodes["node-1"].answer(GET_MANY, OK, encode_records([rotten]))
    world.repair([slot_of(key_of(1))])
    assert world.messages(WRITE_MANY) == 0


def test_what_is_collected_meanwhile_is_lacking_nowhere(world: RepairWorld) -> None:
    world.bury([1], "node-1")
    world.nodes["node-1"].answer(GET_MANY, OK, encode_records([b""]))
    world.repair([slot_of(key_of(1))])
    assert world.messages(WRITE_MANY) == 0
    assert world.repairer.anti_entropy.order is not None
    assert world.repairer.anti_entropy.order.left == 0


def test_a_difference_below_the_floor_requests_a_session(world: RepairWorld) -> None:
    world.sow([1], "node-1")
    slot = slot_of(key_of(1))
    floor = world.version(-1_000)
    for name in ("node-2", "node-3"):
        world.nodes[name].replica.floors[slot] = floor
    world.repair([slot])
    assert world.counters.below_floor == 2
    assert slot in world.repairer.requested.slots
    assert world.repairer.anti_entropy.order is not None
    assert world.repairer.anti_entropy.order.left == 0, "it was compared; a session does the rest"
    assert world.repairer.coordinator.stamps.tick() > floor


def test_a_replica_that_has_a_newer_record_by_then_keeps_it(world: RepairWorld) -> None:
    world.sow([1], "node-1")
    other = world.nodes["node-2"]
    newer = world.version(-20_000)
    status = encode_statuses([(NEWER, newer)])
    other.answer(WRITE_MANY, OK, status)
    world.repair([slot_of(key_of(1))])
    assert world.counters.records_newer == 1
    assert world.counters.records_refused == 0


def test_a_map_that_changes_in_the_middle_leaves_the_slot_to_the_next_time(
    world: RepairWorld,
) -> None:
    world.sow([1], "node-1")
    slot = slot_of(key_of(1))
    node = world.nodes["node-2"]
    node.answer(WRITE_MANY, OK, encode_statuses([(WRONG_EPOCH, u64.pack(2))]))
    world.repair([slot])
    assert 2 in world.repairer.coordinator.epochs.told
    assert world.repairer.anti_entropy.order is not None
    assert world.repairer.anti_entropy.order.left == 1


def test_new_owners_of_a_joint_map_are_left_to_their_stream() -> None:
    world = RepairWorld(nodes=4)
    joint = world.map.begin_change(
        [member for member in world.map.members if member.node_id != "node-1"]
    )
    for repairer in world.repairers:
        repairer.coordinator.fleet.adopt(joint)
    world.pass_time(1.0)
    world.sow(range(200))
    world.repair()
    gained = [slot for slot in range(slot_count) if len(joint.placements[slot].owners) == 4]
    assert len(gained) > 1_000
    assert world.counters.records_sent == 0, "what a new owner has not yet is no difference"
    assert world.counters.slots_compared >= slot_count


def test_writes_carry_the_epoch_of_the_comparison(world: RepairWorld) -> None:
    world.sow([1], "node-1")
    epochs: list[int] = []

    def note(peer: Peer, request_id: int, body: bytes) -> None:
        epochs.append(Reader(body).u64())
        peer.reply(request_id, OVERLOADED, b"")

    world.nodes["node-2"].instead[WRITE_MANY] = note
    world.repair([slot_of(key_of(1))])
    assert set(epochs) == {1}


def test_many_versions_are_compared_in_many_turns_of_the_loop(world: RepairWorld) -> None:
    replicator = world.replicator
    comparer = Mending(
        replicator.fleet, replicator.stamps, replicator.epochs, replicator.clock, world.counters
    )
    first = key_of(1)
    found = [(first + b"%04d" % number, world.version(-old_ms)) for number in range(versions_max)]
    one, other = list(replicator.fleet.nodes.values())[:2]
    slot = DifferingSlot(slot_of(found[0][0]), [[one], [other]])
    story = comparer.mend([slot], replicator.fleet.epoch)
    assert [ask.kind for ask in next(story)] == [VERSIONS, VERSIONS]
    asks = story.send([(OK, encode_versions(found)), (OK, encode_versions(found[::2]))])
    turns = 1
    while not asks:
        asks = story.send([])
        turns += 1
    assert turns > versions_max / versions_in_a_turn
    assert [ask.kind for ask in asks] == [GET_MANY]
    assert slot.keys == versions_max // 2
