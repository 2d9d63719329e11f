"""What a scrub does about rot, in memory and on disk, on one node."""

from __future__ import annotations

import asyncio

import pytest

from services.core.messages import NOT_READY
from services.core.record import head_bytes, value_body
from services.core.ring import slot_of
from services.core.wire import OK
from services.dhtnode.frame import PROMISES
from services.dhtnode.rot import RottenSlot
from services.runtime.log.frame import Corrupt
from tests.unit.replica_world import (
    cached,
    declare,
    key_of,
    records_of,
    replayed,
    tombstone,
    value,
    version,
    wrong_leaves,
)
from tests.unit.scrub_world import ScrubWorld, copy_of, hour_ms, rot

here = key_of(3)
slot = slot_of(here)


def filled(world: ScrubWorld, keys: int = 50) -> ScrubWorld:
    for number in range(keys):
        world.write(key_of(number), value(number + 1))
    return world


def is_right(world: ScrubWorld) -> bool:
    return world.table.sound(slot) and not wrong_leaves(world.table)


# Memory.


@pytest.mark.parametrize("byte", [0, 7, 11, 12, 13, 20, 21, 22, head_bytes, -1])
@pytest.mark.parametrize("snapshots", [0, 1, 2])
async def test_a_record_with_a_flipped_bit_is_put_back_from_the_files(
    byte: int, snapshots: int
) -> None:
    world = filled(ScrubWorld())
    for number in range(snapshots):
        await world.snapshot()
        world.write(key_of(100 + number), value(200))
    sound = copy_of(world.record(here))
    rot(world.record(here), byte)
    assert world.table.peek(slot, here) != sound
    await world.scrub()
    assert world.record(here) == sound
    assert world.found == (1, 0, 1)
    assert is_right(world)
    assert (await world.scrub())["found_in_memory"] == 1


async def test_rot_never_reaches_a_snapshot_which_is_written_once_it_is_mended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.dhtnode.upkeep.watch_s", 0.001)
    world = filled(ScrubWorld())
    await world.snapshot()
    world.write(key_of(100), value(200))
    sound = copy_of(world.record(here))
    rot(world.record(here), -1)
    with pytest.raises(RottenSlot):
        list(world.replica.frames())
    world.upkeep.want_snapshot()

    async def until_written() -> None:
        while world.upkeep.snapshots < 2:
            await world.scrubber._rest(0.01)
            if world.scrubber.running:
                await world.scrubber.scrub()

    await world.drive(until_written())
    assert world.found == (1, 0, 1)
    assert world.record(here) == sound
    assert records_of(world.recovered().table) == records_of(world.table)


async def test_rot_in_a_record_that_has_been_replaced_since_leaves_nothing_wrong() -> None:
    world = filled(ScrubWorld())
    rot(world.record(here), 5)
    world.table.put(slot, here, value(300))
    assert not world.table.sound(slot)
    world.log.append(2, len(here).to_bytes(2, "big") + here + value(300))
    await world.scrub()
    assert world.record(here) == value(300)
    assert world.found == (1, 0, 1)
    assert is_right(world)


async def test_several_records_of_one_slot_are_mended_together() -> None:
    world = ScrubWorld()
    same = [key for n in range(200_000) if slot_of(key := key_of(n)) == slot][:4]
    for number, key in enumerate(same):
        world.write(key, value(number + 1))
    sound = [copy_of(world.record(key)) for key in same]
    rot(world.record(same[0]), -1)
    rot(world.record(same[1]), 3)
    rot(world.record(same[2]), 12)
    await world.scrub()
    assert [world.record(key) for key in same] == sound
    assert is_right(world)
    assert world.found == (3, 0, 3)


async def test_a_flipped_leaf_is_rebuilt() -> None:
    world = filled(ScrubWorld())
    right = world.table.leaves(slot)
    world.table.load_leaves(slot, bytes([right[0] ^ 4]) + right[1:])
    await world.scrub()
    assert world.table.leaves(slot) == right
    assert world.found == (1, 0, 1)


@pytest.mark.parametrize("byte", [2, 8, 12, -1])
async def test_a_key_with_a_flipped_bit_is_found_under_its_name_again(byte: int) -> None:
    world = filled(ScrubWorld())
    key = world.key_object(here)
    sound = copy_of(world.record(here))
    rot(key, byte)
    assert world.table.peek(slot, copy_of(here)) is None or key is here
    await world.scrub()
    assert world.table.peek(slot, key_of(3)) == sound
    assert world.table.keys(slot) == [key_of(3)]
    assert world.found == (1, 0, 1)


async def test_tombstones_and_trimmed_values_are_mended_as_they_were() -> None:
    world = ScrubWorld()
    expiring = version(7) + value_body(b"for a while", world.clock.wall_ms() + 1000)
    world.write(here, expiring)
    world.write(key_of(4), value(1))
    world.write(key_of(4), tombstone(2))
    await world.snapshot()
    world.table.trim_slice(world.clock.wall_ms() + 10_000, 1 << 30)
    assert len(world.record(here)) == head_bytes
    await world.scrub()
    assert world.found == (0, 0, 0)
    rot(world.record(here), 20)
    rot(world.record(key_of(4)), 12)
    await world.scrub()
    assert world.record(here) == expiring[:21] + bytes(2)
    assert world.record(key_of(4)) == tombstone(2)
    assert world.found == (2, 0, 2)


async def test_keys_of_a_cache_are_mended_too() -> None:
    world = ScrubWorld()
    declare(world, 1, {cached: 10})
    for number in range(30):
        world.write(key_of(number, cached), value(number + 1))
    key = key_of(25, cached)
    sound = copy_of(world.record(key))
    await world.scrub()
    assert world.found == (0, 0, 0)
    rot(world.record(key), -1)
    await world.scrub()
    assert world.record(key) == sound
    assert world.found == (1, 0, 1)


async def test_what_has_no_sound_copy_left_is_taken_out_for_the_others_to_bring_it_back() -> None:
    world = filled(ScrubWorld())
    sound = copy_of(world.record(here))
    world.damage(world.log.segments[0].path, here + sound, len(here + sound) - 1)
    rot(world.record(here), -2)
    leaves = world.table.leaves(slot)
    told = await world.scrub()
    assert world.table.peek(slot, here) is None
    assert (told["waiting_for_others"], told["unmendable"]) == (1, 0)
    # By which the other replicas are told apart from this one.
    assert world.table.leaves(slot) != leaves
    assert is_right(world)
    # They bring it back by an ordinary write, of a version that this replica has had.
    assert world.write(here, sound) == (OK, b"")
    assert world.table.leaves(slot) == leaves
    assert world.scrubber.waiting == 0
    assert records_of(world.recovered().table) == records_of(world.table)


async def test_a_bad_frame_serves_where_the_sum_proves_its_record() -> None:
    world = filled(ScrubWorld())
    sound = copy_of(world.record(here))
    # Of its frame, the number of the batch: key and record are as they were.
    world.damage(world.log.segments[0].path, here + sound, 23 - 25 - 2)
    rot(world.record(here), -1)
    await world.scrub()
    assert world.record(here) == sound
    assert world.scrubber.waiting == 0


async def test_a_replica_without_others_keeps_what_it_cannot_mend_and_says_so() -> None:
    world = filled(ScrubWorld(others=False))
    world.damage(world.log.segments[0].path, here + world.record(here), len(here) + head_bytes)
    rot(world.record(here), -2)
    told = await world.scrub()
    assert told["unmendable"] == 1
    assert world.table.peek(slot, here) is not None
    assert is_right(world)


# What was accepted.


async def test_a_record_that_a_promise_shares_is_mended_in_both_places() -> None:
    world = ScrubWorld()
    world.accept(here, version(5), value(5))
    world.learn(here, version(5))
    world.settle()
    sound = copy_of(world.record(here))
    assert world.replica.promises.get(slot, here).record is world.record(here)
    rot(world.record(here), -1)
    await world.scrub()
    assert world.record(here) == sound
    assert world.replica.promises.get(slot, here).record is world.record(here)
    assert world.found == (1, 0, 1)


async def test_what_was_accepted_and_not_learned_is_mended_from_the_log() -> None:
    world = ScrubWorld()
    world.accept(here, version(5), value(5))
    world.settle()
    rot(world.replica.promises.get(slot, here).record, -1)
    await world.scrub()
    assert world.replica.promises.get(slot, here).record == value(5)
    assert world.found == (1, 0, 1)


async def test_a_promise_whose_record_is_lost_is_in_no_snapshot_that_is_under_way() -> None:
    world = ScrubWorld()
    world.accept(here, version(5), value(5))
    world.settle()
    frames = world.replica.frames()
    next(frames)
    world.replica.promises.doubt(here)
    with pytest.raises(RottenSlot, match=f"slot {slot} "):
        list(frames)
    world.accept(here, version(7), value(5))
    assert [kind for kind, _ in world.replica.frames()].count(PROMISES) == 1


async def test_what_was_accepted_anew_at_its_ballot_is_what_a_restart_brings_back() -> None:
    world = ScrubWorld()
    world.accept(here, version(5), value(5))
    world.settle()
    rot(world.replica.promises.get(slot, here).record, -1)
    world.replica.promises.doubt(here)
    rotten = list(world.replica.promises.export_slot(slot, 1_000))
    world.accept(here, version(5), value(5))
    world.settle()
    again = replayed([*((PROMISES, chunk) for chunk in rotten), *world.frames])
    assert again.promises.get(slot, here).record == value(5)


async def test_a_slot_that_was_wiped_before_it_could_be_mended_is_left_alone() -> None:
    world = filled(ScrubWorld())
    rot(world.record(here), -1)
    suspects = await world.drive(world.scrubber._look_at_memory())
    assert suspects == [slot]
    world.table.wipe(slot)
    await world.drive(world.scrubber._look_at_files(suspects))
    assert (world.table.items(slot), world.scrubber.waiting) == ([], 0)
    assert is_right(world)


async def test_a_promise_whose_record_is_lost_answers_nothing_until_one_is_accepted_anew() -> None:
    world = ScrubWorld()
    world.write(key_of(1), value(1))
    world.accept(here, version(5), value(5))
    world.learn(here, version(5))
    world.settle()
    world.damage(world.log.segments[0].path, here + value(5), len(here) + head_bytes)
    rot(world.record(here), -1)
    await world.drive(world.scrubber._look_at_files(await world.scrubber._look_at_memory()))
    assert world.table.peek(slot, here) is None
    assert world.scrubber.holds_snapshots
    for asked in (world.read(here), world.promised(here, version(6))):
        world.settle()
        assert world.answer(asked) == (NOT_READY, b"")
    assert world.acceptor.unlearned == 1
    asked = world.accept(here, version(7), value(5))
    world.settle()
    assert world.answer(asked) == (OK, b"")
    assert not world.scrubber.holds_snapshots
    assert world.replica.promises.get(slot, here).record == value(5)
    asked = world.promised(here, version(8))
    world.settle()
    assert world.asker.answers[asked][0] == OK


# Files.


async def test_a_damaged_snapshot_is_replaced_and_never_removed_before() -> None:
    world = filled(ScrubWorld())
    await world.snapshot()
    world.write(key_of(100), value(200))
    newest = await world.snapshot()
    world.damage(newest, here, 1)
    removed_early: list[str] = []

    def look() -> None:
        if not world.disk.exists(newest) and len(world.directory.snapshots()) < 2:
            removed_early.append("gone")

    told = await world.scrub(look)
    assert told["found_on_disk"] == told["mended"] == 1
    assert told["damaged_files"] == []
    assert not removed_early
    assert newest not in [path for _, path in world.directory.snapshots()]
    assert (await world.scrub())["found_on_disk"] == 1
    assert records_of(world.recovered().table) == records_of(world.table)


@pytest.mark.parametrize("snapshots", [0, 1, 2])
async def test_a_damaged_segment_is_made_unnecessary_also_where_nothing_is_written(
    snapshots: int,
) -> None:
    world = filled(ScrubWorld())
    for _ in range(snapshots):
        await world.snapshot()
        world.write(key_of(100), value(200))
    path = world.log.segments[0].path
    # What the second snapshot has made unnecessary is gone already.
    world.damage(path, here if snapshots < 2 else key_of(100), 1)
    if not snapshots:
        with pytest.raises(Corrupt):
            world.recovered()
    told = await world.scrub()
    assert told["found_on_disk"] == told["mended"] == 1
    assert path not in [segment.path for segment in world.log.segments]
    assert records_of(world.recovered().table) == records_of(world.table)
    assert (await world.scrub())["found_on_disk"] == 1


async def test_each_bad_frame_is_reported_with_its_file_and_offset_and_no_value(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = filled(ScrubWorld())
    path = world.log.segments[0].path
    offsets = [
        world.damage(path, key_of(number) + world.record(key_of(number))) - 2 - 25
        for number in (3, 9, 20)
    ]
    rot(world.record(key_of(30)), -1)
    assert (await world.scrub())["found_on_disk"] == 3
    for offset in offsets:
        assert f"'file': '{path}', 'offset': {offset}," in caplog.text
    assert f"'slot': {slot_of(key_of(30))}, 'tenant': 7, 'namespace': 'default'" in caplog.text
    assert "value-" not in caplog.text
    assert "key-" not in caplog.text


async def test_a_frame_that_lies_about_its_length_ends_the_look_at_its_file_alone() -> None:
    world = filled(ScrubWorld())
    await world.snapshot()
    world.write(key_of(100), value(200))
    world.settle()
    path = world.log.segments[0].path
    offset = world.disk.read(path, 1 << 30).index(here) - 2 - 25
    world.disk.flip_bit(path, offset + 4, 7)
    told = await world.scrub()
    assert told["found_on_disk"] == told["mended"] == 1


# When.


async def test_the_time_of_the_last_scrub_is_known_to_the_next_start() -> None:
    world = filled(ScrubWorld())
    first = world.scrubber._first_due_ms() - world.clock.wall_ms()
    assert 0 <= first <= 24 * hour_ms
    await world.scrub()
    ended_ms = world.scrubber.ended_ms
    world.settle(5.0)
    assert ended_ms is not None
    again = world.new_scrub()
    assert again._first_due_ms() == ended_ms + 24 * hour_ms
    assert again.ended_ms == ended_ms
    world.clock.skew_ms += 30 * hour_ms
    late_ms = world.new_scrub(seed=2)._first_due_ms() - world.clock.wall_ms()
    assert 0 <= late_ms <= hour_ms
    # A clock that was wrong then does not keep it from scrubbing now.
    world.clock.skew_ms -= 1000 * hour_ms
    assert world.new_scrub()._first_due_ms() <= world.clock.wall_ms() + 24 * hour_ms


async def test_nodes_do_not_scrub_together() -> None:
    world = ScrubWorld()
    due = {world.new_scrub(seed=seed)._first_due_ms() for seed in range(20)}
    assert max(due) - min(due) > 12 * hour_ms


async def test_the_loop_scrubs_when_it_is_asked_to() -> None:
    world = filled(ScrubWorld())

    async def asked() -> None:
        loop = asyncio.create_task(world.scrubber.run())
        world.scrubber.request()
        assert world.scrubber.told()["state"] == "requested"
        while not world.scrubber.counters.passes:
            await world.scrubber._rest(0.01)
        loop.cancel()

    await world.drive(asked())
    assert world.scrubber.counters.passes == 1
    assert not world.scrubber.running
