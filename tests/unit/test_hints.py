"""Hints: what is said to be kept reaches the node, whatever happens in between."""

from __future__ import annotations

import errno
import random

import pytest

from services.core.hlc import pack_version
from services.core.messages import (
    BELOW_FLOOR,
    CAUGHT_UP,
    NEWER,
    NOT_READY,
    STORAGE_FULL,
    WRITE_MANY,
    WRONG_EPOCH,
    decode_write_many,
    encode_statuses,
    u64,
)
from services.core.ring import slot_of
from services.core.wire import OK, OVERLOADED
from services.replicator.hints import absent_s_max, linger_s
from services.replicator.overflow import overflow_name
from services.replicator.replay import messages_max
from services.runtime.peer import Peer
from tests.unit.hint_world import HintWorld, segment_bytes
from tests.unit.replicator_world import key_of, prefix

hour_ms = 3_600_000


def test_a_hint_is_kept_once_it_is_durable_and_not_before() -> None:
    world = HintWorld()
    world.disk.freeze()
    world.keep(3)
    world.pass_time()
    assert not world.kept
    assert world.hints.waiting["node-1"] == 3
    world.disk.thaw()
    world.pass_time()
    assert world.kept == {0, 1, 2}


def test_a_node_that_is_back_gets_what_it_missed_and_nothing_is_left_of_it() -> None:
    world = HintWorld()
    world.keep(500)
    world.pass_time()
    assert len(world.keeper.files()) > 4
    assert not world.node.holds(key_of(0))
    world.come_back()
    world.pass_time(2.0)
    assert len(world.kept) == 500
    assert not world.missing()
    assert world.hints.waiting["node-1"] == 0
    assert world.hints.counters.delivered == 500
    world.pass_time(2 * linger_s)
    assert world.keeper.files() == []
    assert world.hints.waiting_bytes["node-1"] == 0


def test_hints_go_in_the_order_in_which_they_were_kept() -> None:
    world = HintWorld()
    order: list[bytes] = []

    def watch(peer: Peer, request_id: int, body: bytes) -> None:
        _, items = decode_write_many(body)
        order.extend(key for key, _ in items)
        peer.reply(request_id, OK, encode_statuses([(OK, b"")] * len(items)))

    world.node.instead[WRITE_MANY] = watch
    world.keep(700)
    world.pass_time()
    world.come_back()
    world.pass_time(2.0)
    assert order == [key_of(number) for number in range(700)]


def test_what_is_kept_while_hints_are_sent_goes_too() -> None:
    world = HintWorld()
    world.keep(300)
    world.pass_time()
    world.come_back()
    for _ in range(200):
        world.keep(5)
        world.pass_time(0.005)
    world.pass_time(1.0)
    assert len(world.kept) == 1_300
    assert not world.missing()
    world.pass_time(2 * linger_s)
    world.keep(10)
    world.pass_time()
    assert len(world.kept) == 1_310
    assert not world.missing()


@pytest.mark.parametrize("seed", range(60))
def test_a_power_cut_at_any_moment_loses_no_hint_that_was_said_to_be_kept(seed: int) -> None:
    draw = random.Random(seed)
    world = HintWorld(seed)
    if draw.random() < 0.5:
        world.come_back()
    for _ in range(draw.randint(1, 4)):
        for _ in range(draw.randint(1, 40)):
            world.keep(draw.randint(1, 12), size=draw.choice((20, 400)))
            world.pass_time(draw.choice((0.0, 0.000_2, 0.001, 0.01)))
        world.restart(draw.choice((world.disk.crash, world.disk.kill)))
        assert not world.keeper.failures
    world.come_back()
    world.pass_time(5.0)
    assert not world.missing()
    assert world.hints.waiting["node-1"] == 0
    assert world.hints.overflowed["node-1"] == 0
    assert world.times_told()


def test_a_node_that_dies_while_hints_are_sent_has_them_all_in_the_end() -> None:
    world = HintWorld()
    world.keep(3_000)
    world.pass_time(1.0)
    world.come_back()
    for _ in range(4):
        before = world.hints.counters.delivered
        world.pass_until(lambda: world.hints.counters.delivered > before)  # noqa: B023  Called now.
        world.node.crash()
        world.pass_time(0.2)
        world.node.begin()
    assert world.hints.waiting["node-1"] > 0
    world.pass_time(5.0)
    assert len(world.kept) == 3_000
    assert not world.missing()


def test_messages_that_are_lost_or_come_twice_lose_no_hint() -> None:
    world = HintWorld()
    world.keep(2_000)
    world.pass_time(1.0)
    world.weather.loss = world.weather.duplicate = world.weather.reorder = 0.3
    world.come_back()
    world.pass_until(lambda: world.hints.waiting["node-1"] == 0, within_s=600)
    assert not world.missing()


def test_a_node_is_told_that_it_has_caught_up_only_when_nothing_is_left() -> None:
    world = HintWorld()
    world.keep(100)
    world.node.answer(WRITE_MANY, NOT_READY, b"not yet")
    world.come_back()
    world.pass_time(5.0)
    assert world.node.asked[WRITE_MANY] > 3
    assert not world.times_told()
    world.node.obey()
    world.pass_time(5.0)
    assert not world.missing()
    assert world.times_told() == 1


def test_hints_that_are_not_durable_yet_keep_a_node_from_being_caught_up() -> None:
    world = HintWorld()
    world.disk.freeze()
    world.keep(1)
    world.come_back()
    world.pass_time(2.0)
    assert not world.times_told()
    world.disk.thaw()
    world.pass_time(1.0)
    assert world.times_told() == 1


def test_a_node_is_told_on_every_connection_also_if_it_missed_nothing() -> None:
    world = HintWorld()
    world.come_back()
    world.pass_time(1.0)
    assert world.times_told() == 1
    world.node.crash()
    world.pass_time(0.2)
    world.node.begin()
    world.pass_time(5.0)
    assert world.times_told() == 2
    assert world.keeper.files() == []


def test_it_is_said_again_that_a_node_has_caught_up_until_that_is_heard() -> None:
    world = HintWorld()
    world.node.ignore(CAUGHT_UP)
    world.come_back()
    world.pass_time(12.0)
    assert world.times_told() >= 2
    world.node.obey()
    world.pass_time(12.0)
    heard = world.times_told()
    world.pass_time(12.0)
    assert world.times_told() == heard


@pytest.mark.parametrize("kind", [OVERLOADED, STORAGE_FULL, NOT_READY])
def test_a_node_in_trouble_is_asked_ever_more_seldom(kind: int) -> None:
    world = HintWorld()
    world.keep(10)
    world.node.answer(WRITE_MANY, kind, b"")
    world.come_back()
    world.pass_time(60.0)
    assert 30 <= world.node.asked[WRITE_MANY] < 90
    world.node.obey()
    world.pass_time(3.0)
    assert not world.missing()


@pytest.mark.parametrize("kind", [NEWER, BELOW_FLOOR])
def test_what_a_node_has_no_use_for_counts_as_delivered(kind: int) -> None:
    world = HintWorld()
    world.keep(10)

    def refuse(peer: Peer, request_id: int, body: bytes) -> None:
        _, items = decode_write_many(body)
        statuses = [(kind, record[:12]) for _, record in items]
        peer.reply(request_id, OK, encode_statuses(statuses))

    world.node.instead[WRITE_MANY] = refuse
    world.come_back()
    world.pass_time(2.0)
    assert world.hints.waiting["node-1"] == 0
    assert world.node.asked[WRITE_MANY] == 1
    assert world.times_told() == 1


def test_slots_in_which_hints_are_below_the_floor_are_collected_once_all_hints_are_through() -> (
    None
):
    world = HintWorld()
    requested: dict[int, int] = {}

    def request(slot: int) -> None:
        assert slot not in requested, "once is enough"
        requested[slot] = world.hints.waiting["node-1"]

    world.hints.on_below_floor = request
    world.keep(1_000)
    refused = [slot_of(key_of(number)) for number in (3, 4, 3, 900)]
    floor = pack_version((world.keeper.clock.wall_ms() + 100) << 16, 1)
    for slot in refused:
        world.node.replica.raise_floor(slot, floor)
    world.come_back()
    world.pass_time(3.0)
    assert world.times_told() == 1
    assert requested == dict.fromkeys(refused, 0), "each, when no hint waited any more"


def test_only_what_was_not_taken_is_sent_again() -> None:
    world = HintWorld()
    world.keep(10)
    asked: list[int] = []

    def take_half(peer: Peer, request_id: int, body: bytes) -> None:
        _, items = decode_write_many(body)
        asked.append(len(items))
        half = (len(items) + 1) // 2
        statuses = [(OK, b"")] * half + [(STORAGE_FULL, b"")] * (len(items) - half)
        peer.reply(request_id, OK, encode_statuses(statuses))

    world.node.instead[WRITE_MANY] = take_half
    world.pass_time()
    world.come_back()
    world.pass_time(5.0)
    assert asked == [10, 5, 2, 1]
    assert world.hints.counters.delivered == 10


def test_a_hint_that_a_node_takes_for_no_write_does_not_stand_in_the_way_for_ever() -> None:
    world = HintWorld()
    world.hints.keep("node-1", prefix + b"odd", b"no record at all", None)
    world.keep(20)
    world.come_back()
    world.pass_time(3.0)
    assert not world.missing()
    assert world.hints.waiting["node-1"] == 0
    assert world.hints.counters.dropped.refused == 1
    assert not world.times_told()


def test_hints_carry_the_present_epoch_and_an_older_one_is_looked_into() -> None:
    world = HintWorld()
    world.keep(5)
    world.node.answer(WRITE_MANY, WRONG_EPOCH, u64.pack(7))
    world.come_back()
    world.pass_time(1.0)
    assert set(world.keeper.epochs.told) == {7}
    world.node.obey()
    world.pass_time(3.0)
    assert not world.missing()


def test_nonsense_from_a_node_is_not_taken_for_delivery() -> None:
    world = HintWorld()
    world.keep(5)
    world.node.answer(WRITE_MANY, OK, b"")
    world.come_back()
    world.pass_time(1.0)
    world.node.answer(WRITE_MANY, OK, encode_statuses([(OK, b"")]))
    world.pass_time(3.0)
    assert world.hints.counters.delivered == 0
    assert not world.times_told()
    world.node.obey()
    world.pass_time(3.0)
    assert not world.missing()


@pytest.mark.parametrize("kind", [WRONG_EPOCH, NEWER, STORAGE_FULL])
def test_a_detail_that_makes_no_sense_costs_the_hints_beside_it_nothing(kind: int) -> None:
    world = HintWorld()
    world.keep(50)
    asked: list[int] = []

    def take_all_but_one(peer: Peer, request_id: int, body: bytes) -> None:
        _, items = decode_write_many(body)
        asked.append(len(items))
        statuses = [(kind, b"?")] + [(OK, b"")] * (len(items) - 1)
        peer.reply(request_id, OK, encode_statuses(statuses))

    world.node.instead[WRITE_MANY] = take_all_but_one
    world.pass_time()
    world.come_back()
    world.pass_time(10.0)
    assert sum(size for size in asked if size > 1) == 50, "what was taken is sent again"
    assert len(asked) < 40, "the others are sent again without a pause"
    assert world.hints.counters.delivered >= 50 - messages_max


def test_an_answer_of_another_epoch_that_names_none_is_an_answer_all_the_same() -> None:
    world = HintWorld()
    world.keep(5)
    world.node.answer(WRITE_MANY, WRONG_EPOCH, b"?")
    world.pass_time()
    world.come_back()
    world.pass_time(10.0)
    assert world.node.asked[WRITE_MANY] < 20
    assert set(world.keeper.epochs.told) == {0}
    world.node.obey()
    world.pass_time(3.0)
    assert not world.missing()


def test_a_node_that_keeps_up_gets_30_000_hints_a_second() -> None:
    world = HintWorld()
    world.limits["segment_bytes"] = 1 << 20
    world.restart()
    for _ in range(300):
        world.keep(100)
        world.pass_time(0.001)
    world.pass_time()
    world.come_back()
    world.pass_until(lambda: world.hints.counters.delivered > 0)
    began_s = world.timeline.now_s
    world.pass_until(lambda: world.hints.waiting["node-1"] == 0)
    assert world.timeline.now_s - began_s < 30_000 / 30_000
    assert world.timeline.now_s - began_s > 30_000 / 45_000, "the node would be swamped"


# -- bounds


def test_the_limit_in_bytes_holds_and_what_was_kept_before_is_delivered() -> None:
    world = HintWorld(bytes_max=20_000)
    world.keep(1_000)
    world.pass_time()
    counters = world.hints.counters
    assert counters.kept + counters.dropped.bytes == 1_000
    assert 100 < counters.kept < 250
    assert world.hints.waiting_bytes["node-1"] <= 20_000
    # Their writes go on all the same.
    assert len(world.kept) == 1_000
    world.come_back()
    world.pass_time(3.0)
    assert len(world.missing()) == counters.dropped.bytes
    assert world.missing() == set(range(counters.kept, 1_000))
    assert not world.times_told()


def test_what_was_dropped_is_remembered_until_replicas_were_compared() -> None:
    world = HintWorld(bytes_max=2_000)
    world.keep(100)
    world.pass_time()
    world.restart()
    world.come_back()
    world.pass_time(5.0)
    assert world.hints.waiting["node-1"] == 0
    assert overflow_name in world.keeper.files()
    assert not world.times_told()
    early = world.hints.mark("node-1")
    world.hints.lost("node-1")
    world.hints.mended("node-1", early)
    world.pass_time(1.0)
    assert not world.times_told(), "something was lost after that comparison began"
    world.hints.mended("node-1", world.hints.mark("node-1"))
    world.pass_time(1.0)
    assert world.times_told() == 1
    world.restart()
    world.pass_time(2.0)
    assert world.times_told() == 2


def test_nobody_is_told_of_a_dropped_hint_before_that_is_durable() -> None:
    world = HintWorld(bytes_max=1)
    world.disk.freeze()
    world.keep(2)
    world.pass_time(1.0)
    assert not world.kept
    world.disk.thaw()
    world.pass_until(lambda: bool(world.kept))
    world.restart()
    assert world.hints.overflowed["node-1"] == 1


def test_a_node_that_is_away_for_longer_than_the_window_gets_no_hints() -> None:
    world = HintWorld(window_ms=hour_ms)
    world.keep(50)
    world.pass_time(3_590)
    assert world.hints.waiting["node-1"] == 50
    assert 3_580_000 < world.hints.oldest_ms < 3_600_000
    world.pass_time(20)
    assert world.hints.waiting["node-1"] == 0
    assert world.hints.oldest_ms == 0
    assert world.hints.counters.dropped.window == 50
    world.keep(10)
    world.pass_time(1.0)
    assert world.hints.counters.dropped.window == 60
    assert world.keeper.files() == [overflow_name]
    assert len(world.kept) == 60
    world.come_back()
    world.pass_time(5.0)
    assert not world.times_told()
    world.node.crash()
    world.pass_time(5.0)
    world.keep(10)
    world.node.begin()
    world.pass_time(5.0)
    assert world.missing() == set(range(60)), "hints are kept again once it has been back"


def test_a_node_that_is_back_is_not_given_up_while_it_takes_its_time() -> None:
    world = HintWorld(window_ms=hour_ms)
    world.keep(50)
    world.pass_time(3_500)
    world.node.answer(WRITE_MANY, OVERLOADED)
    world.come_back()
    world.pass_time(300)
    world.node.obey()
    world.pass_time(5.0)
    assert not world.missing()


def test_a_node_that_left_the_cluster_is_forgotten() -> None:
    world = HintWorld()
    world.keep(100)
    world.pass_time()
    without = type(world.map)(3, 2, world.map.members[1:])
    world.keeper.fleet.adopt(without)
    world.pass_time(absent_s_max / 2)
    assert world.hints.waiting["node-1"] == 100
    world.pass_time(absent_s_max)
    assert "node-1" not in world.hints.waiting
    assert world.hints.counters.dropped.gone == 100
    assert world.keeper.files() == []


# -- disks


def test_a_full_disk_refuses_hints_and_lets_their_writes_go_on() -> None:
    world = HintWorld()
    world.disk.capacity_bytes = 0
    world.keep(20)
    world.pass_time(1.0)
    world.keep(5)
    world.pass_time(1.0)
    assert len(world.kept) == 25
    assert world.hints.counters.dropped.disk_full == 25
    assert not world.keeper.failures
    assert world.hints.overflowed["node-1"]
    world.disk.capacity_bytes = 1 << 30
    world.pass_time(10.0)
    world.keep(5)
    world.pass_time(1.0)
    assert len(world.kept) == 30
    world.come_back()
    world.pass_time(3.0)
    assert not world.missing() & {25, 26, 27, 28, 29}
    assert not world.times_told()


def test_a_disk_that_fills_while_hints_are_kept_loses_none_that_was_durable() -> None:
    world = HintWorld()
    world.disk.capacity_bytes = 4 * segment_bytes
    for _ in range(100):
        world.keep(10)
        world.pass_time(0.01)
    world.pass_time(1.0)
    assert len(world.kept) == 1_000
    dropped = world.hints.counters.dropped.disk_full
    assert 500 < dropped < 950
    world.come_back()
    world.pass_time(5.0)
    assert len(world.missing()) <= dropped
    assert world.hints.waiting["node-1"] == 0


@pytest.mark.parametrize("operation", ["sync", "write", "sync_directory"])
def test_an_error_of_the_disk_ends_the_process_and_nothing_is_kept_after_it(
    operation: str,
) -> None:
    world = HintWorld()
    world.keep(5)
    world.pass_time()
    kept = set(world.kept)
    path = "*" if operation == "sync_directory" else "*/log-*"
    world.disk.fail(operation, errno.EIO, path, times=None)  # type: ignore[arg-type]
    world.keep(100)
    world.pass_time(1.0)
    assert [failure.errno for failure in world.keeper.failures] == [errno.EIO]
    durable = set(world.kept)
    world.keep(5)
    world.pass_time(1.0)
    assert world.kept == durable
    assert kept <= durable
    assert len(world.kept) < 105
    world.disk.heal()
    world.restart()
    world.come_back()
    world.pass_time(3.0)
    assert not world.missing()


def damage(world: HintWorld, name: str, byte: int = 2_000) -> None:
    world.disk.flip_bit(world.keeper.path(name), byte, 3)


def test_a_damaged_segment_is_put_aside_and_those_behind_it_are_delivered() -> None:
    world = HintWorld()
    for _ in range(40):
        world.keep(10)
        world.pass_time(0.02)
    world.restart()
    logs = [name for name in world.keeper.files() if name.startswith("log")]
    assert len(logs) > 6
    damage(world, logs[2])
    world.come_back()
    world.pass_time(5.0)
    assert world.hints.waiting["node-1"] == 0
    assert world.hints.counters.dropped.damaged == 1
    assert 0 < len(world.missing()) < 40
    assert not world.times_told()
    world.pass_time(2 * linger_s)
    assert world.keeper.files() == [logs[2] + ".damaged", overflow_name]
    world.keep(10)
    world.pass_time(2.0)
    assert not world.missing() & set(range(400, 410))


def test_damage_where_hints_are_being_kept_is_left_behind() -> None:
    world = HintWorld()
    world.keep(10)
    world.pass_time()
    damage(world, "log-0000000001", 300)
    world.come_back()
    world.pass_time(2.0)
    assert world.hints.waiting["node-1"] == 0
    assert 0 < len(world.missing()) <= 10
    lost = world.missing()
    world.keep(10)
    world.pass_time(2.0)
    assert world.missing() == lost
    world.pass_time(2 * linger_s)
    assert world.keeper.files() == ["log-0000000001.damaged", overflow_name]


def test_damage_at_the_end_of_a_log_does_not_stop_the_next_start() -> None:
    world = HintWorld()
    for _ in range(8):
        world.keep(2)
        world.pass_time(0.02)
    damage(world, "log-0000000001", 300)
    world.restart()
    assert world.hints.waiting["node-1"] == 0
    assert world.hints.counters.dropped.damaged == 1
    world.pass_time()
    assert world.keeper.files() == [
        "log-0000000001.damaged",
        "log-0000000002.damaged",
        overflow_name,
    ]
    world.keep(10)
    world.pass_time()
    world.come_back()
    world.pass_time(3.0)
    assert world.missing() == set(range(16))
    assert not world.times_told()


def test_a_segment_that_is_gone_is_damage_and_not_the_end() -> None:
    world = HintWorld()
    world.keep(200)
    world.pass_time()
    logs = [name for name in world.keeper.files() if name.startswith("log")]
    world.disk.remove(world.keeper.path(logs[1]))
    world.restart(world.disk.kill)
    assert world.hints.counters.dropped.damaged == 1
    assert not world.keeper.failures


def test_a_device_that_cannot_read_a_hint_does_not_stop_the_others() -> None:
    world = HintWorld()
    for _ in range(20):
        world.keep(10)
        world.pass_time(0.02)
    logs = [name for name in world.keeper.files() if name.startswith("log")]
    world.disk.fail("read", errno.EIO, f"*/{logs[1]}", times=None)
    world.come_back()
    world.pass_time(5.0)
    assert world.hints.waiting["node-1"] == 0
    assert 0 < len(world.missing()) < 60
    assert not world.keeper.failures


def test_only_a_few_damaged_segments_are_kept_for_a_look() -> None:
    world = HintWorld()
    for _ in range(30):
        world.keep(10)
        world.pass_time(0.02)
    world.restart()
    for name in [name for name in world.keeper.files() if name.startswith("log")][:5]:
        damage(world, name)
    world.come_back()
    world.pass_time(5.0)
    assert sum(name.endswith(".damaged") for name in world.keeper.files()) == 2


def test_figures_tell_what_waits_for_each_node() -> None:
    world = HintWorld()
    world.keep(30)
    world.pass_time(10.0)
    world.keep(5, "node-2")
    world.pass_time(10.0)
    assert world.hints.waiting == {"node-1": 30, "node-2": 5, "node-3": 0}
    assert world.hints.waiting_bytes["node-1"] > 5 * world.hints.waiting_bytes["node-2"] > 0
    assert 19_900 < world.hints.oldest_ms < 20_100
    world.come_back()
    world.pass_time(2.0)
    assert 11_000 < world.hints.oldest_ms < 13_000
    world.restart()
    assert world.hints.waiting["node-2"] == 5
    assert world.hints.oldest_ms > 11_000
