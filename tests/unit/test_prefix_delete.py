"""Deleting by prefix: every key once, nothing newer, and exact numbers whatever fails."""

from __future__ import annotations

import random

import pytest

from services.core.deletions import PrefixDeleted, PrefixDeletion, prefix_keys_max
from services.core.hlc import lead_ms_max
from services.core.key import namespace_prefix
from services.core.listings import ScanPage
from services.core.messages import SCAN, WRITE_MANY, encode_statuses
from services.core.operations import REFUSED, UNKNOWN, decode_refused
from services.core.packed_bodies import decode_body, encode_body
from services.core.record import is_tombstone, value_body
from services.core.ring import slot_count, slot_of
from services.core.wire import FAILED, OK, OVERLOADED
from services.replicator.prefix_delete import calls_max, work_s
from services.runtime.speakers import Speakers, UnspokenError
from tests.unit.replicator_world import Asked, World, key_of, prefix


@pytest.fixture
def world() -> World:
    return World()


def fill(world: World, count: int, name: bytes = b"key-") -> list[bytes]:
    keys = [prefix + name + b"%05d" % number for number in range(count)]
    for start in range(0, count, 1_000):
        asked = world.put_many(keys[start : start + 1_000])
        world.pass_time(0.2)
        assert all(one.answered for one in asked)
    return keys


def delete(
    world: World,
    of: bytes = b"key-",
    start: bytes = b"",
    limit: int = prefix_keys_max,
    *,
    dry_run: bool = False,
) -> Asked:
    asked = Asked()
    world.replicator.prefixes.run(PrefixDeletion(prefix, of, start, limit, dry_run), asked)
    return asked


def told(asked: Asked) -> PrefixDeleted:
    assert asked.kind == OK, asked.answers
    return decode_body(asked.body, PrefixDeleted)


def refused(asked: Asked) -> tuple[str, str]:
    assert asked.kind == REFUSED, asked.answers
    return decode_refused(asked.body)


def gone(record: bytes | None) -> bool:
    return record is not None and is_tombstone(record)


def deleted(world: World, keys: list[bytes]) -> list[bytes]:
    """Of these, those that are deleted on every replica."""
    return [key for key in keys if all(map(gone, world.held(key)))]


def test_all_keys_with_the_prefix_are_deleted_on_every_replica_and_no_others(
    world: World,
) -> None:
    keys = fill(world, 300)
    others = fill(world, 50, b"kez-") + fill(world, 50, b"ke")
    asked = delete(world)
    world.pass_time(0.5)
    assert told(asked) == PrefixDeleted(300, 300, None)
    assert deleted(world, keys) == keys
    assert deleted(world, others) == []
    assert told_again(world) == PrefixDeleted(0, 0, None)


def told_again(world: World) -> PrefixDeleted:
    asked = delete(world)
    world.pass_time(0.5)
    return told(asked)


def test_other_namespaces_are_left_alone(world: World) -> None:
    fill(world, 5)
    other = namespace_prefix(8, b"default") + b"key-0000"
    world.put(other)
    world.pass_time()
    delete(world)
    world.pass_time(0.5)
    assert deleted(world, [other]) == []


def test_the_whole_of_a_namespace_goes_when_that_is_meant(world: World) -> None:
    keys = fill(world, 30) + fill(world, 30, b"\xff") + fill(world, 30, b"\0")
    other = namespace_prefix(7, b"default2") + b"key"
    world.put(other)
    world.pass_time()
    asked = Asked()
    world.replicator.prefixes.run(PrefixDeletion(prefix, b"", whole=True), asked)
    world.pass_time(0.5)
    assert told(asked) == PrefixDeleted(90, 90, None)
    assert deleted(world, [*keys, other]) == keys


def test_a_dry_run_counts_and_changes_nothing(world: World) -> None:
    keys = fill(world, 300)
    sent = world.writes_sent
    asked = delete(world, dry_run=True)
    world.pass_time(0.5)
    assert told(asked) == PrefixDeleted(300, 0, None)
    assert world.writes_sent == sent
    assert deleted(world, keys) == []


@pytest.mark.parametrize("nodes", [3, 6])
def test_pages_follow_each_other_exactly(nodes: int) -> None:
    world = World(nodes=nodes)
    keys = fill(world, 250)
    start, pages = b"", []
    for _ in range(10):
        asked = delete(world, start=start, limit=60)
        world.pass_time(0.5)
        page = told(asked)
        pages.append(page.matched)
        done = deleted(world, keys)
        assert done == keys[: len(done)], "in the order of keys"
        if page.next is None:
            break
        start = page.next
        assert prefix + start == keys[len(done)]
    assert pages == [60, 60, 60, 60, 10]
    assert deleted(world, keys) == keys


def test_pages_of_a_count_meet_each_key_once_where_nodes_tell_of_them_at_their_own_pace() -> None:
    """Each node looks at a thousand keys a time, and has others than its neighbours."""
    world = World(nodes=6)
    keys = fill(world, 4_500)
    start, counted = b"", 0
    for _ in range(10):
        asked = delete(world, start=start, limit=1_900, dry_run=True)
        world.pass_time(0.5)
        page = told(asked)
        counted += page.matched
        if page.next is None:
            break
        start = page.next
        assert prefix + start == keys[counted]
    assert counted == 4_500


def test_a_limit_that_is_just_met_ends_without_a_cursor(world: World) -> None:
    fill(world, 40)
    asked = delete(world, limit=40)
    world.pass_time(0.5)
    assert told(asked) == PrefixDeleted(40, 40, None)


def test_a_full_call_goes_through_ten_thousand_keys_in_its_time(world: World) -> None:
    keys = fill(world, prefix_keys_max + 1)
    asked = delete(world)
    world.pass_time(work_s)
    page = told(asked)
    assert (page.matched, page.deleted) == (prefix_keys_max, prefix_keys_max)
    assert page.next is not None
    assert prefix + page.next == keys[-1]


def test_deleted_and_expired_keys_are_not_matched(world: World) -> None:
    keys = fill(world, 3)
    world.delete(keys[0])
    short = Asked()
    expiry = world.replicator.clock.wall_ms() + 300
    world.replicator.writes.write(keys[1], value_body(b"x", expiry), short)
    world.pass_time(0.5)
    assert told_again(world).matched == 1


def test_a_put_that_is_newer_than_the_tombstone_is_never_stamped_over(world: World) -> None:
    keys = fill(world, 20)
    newer = world.version(ahead_ms=400) + value_body(b"newer")
    stale = [(key[len(prefix) :], world.held(key)[0] or b"") for key in keys]
    for node in world.owners(keys[7]):
        world.plant(node, keys[7], newer)
    for node in world.nodes.values():
        # They tell what was there before the put.
        slots = [key for key in stale if world.owners(prefix + key[0])[0] is node]
        page = ScanPage([(key, record[:12]) for key, record in slots], None)
        node.answer(SCAN, OK, encode_body(page))
    asked = delete(world)
    world.pass_time(0.3)
    assert told(asked).deleted == 20
    assert world.held(keys[7]) == [newer] * 3
    assert deleted(world, keys) == keys[:7] + keys[8:]


def test_a_value_from_a_fast_clock_is_deleted_above_its_version(world: World) -> None:
    keys = fill(world, 3)
    ahead = world.version(ahead_ms=450) + value_body(b"ahead")
    for node in world.owners(keys[1]):
        world.plant(node, keys[1], ahead)
    asked = delete(world)
    world.pass_time(0.5)
    assert told(asked).deleted == 3
    assert deleted(world, keys) == keys


def test_a_value_from_too_far_ahead_stops_it_before_anything_is_deleted(world: World) -> None:
    keys = fill(world, 5)
    for node in world.nodes.values():
        page = ScanPage([(b"key-00001", world.version(lead_ms_max + 60_000))], None)
        node.answer(SCAN, OK, encode_body(page))
    asked = delete(world)
    world.pass_time(0.2)
    assert refused(asked)[0] == "clock_skew"
    assert deleted(world, keys) == []


# When something fails.


def test_a_slot_without_a_live_owner_refuses_it_all() -> None:
    world = World(nodes=6, replicas=2)
    keys = fill(world, 100)
    lost = world.owners(keys[0])
    for node in lost:
        node.crash()
    world.pass_time(0.3)
    for dry_run in (True, False):
        code, text = refused(delete(world, dry_run=dry_run))
        assert code == "no_quorum"
        assert all(node.node_id in text for node in lost)
    assert world.messages(SCAN) == 0
    assert world.replicator.prefixes.under_way == 0


def test_with_one_node_down_others_speak_for_it(world: World) -> None:
    keys = fill(world, 100)
    world.nodes["node-2"].crash()
    world.pass_time(0.3)
    asked = delete(world)
    world.pass_time(0.5)
    assert told(asked) == PrefixDeleted(100, 100, None)
    for key in keys:
        assert gone(world.nodes["node-1"].holds(key))


def test_a_node_that_dies_under_a_look_is_spoken_for_by_the_others(world: World) -> None:
    fill(world, 1_500)
    asked = delete(world, dry_run=True)
    world.pass_until(lambda: world.messages(SCAN) > 3)
    world.nodes["node-3"].crash()
    world.pass_time(1.0)
    assert told(asked) == PrefixDeleted(1_500, 0, None)


@pytest.mark.parametrize("kind", [FAILED, OVERLOADED])
def test_a_node_that_will_not_look_is_spoken_for_by_the_others(world: World, kind: int) -> None:
    fill(world, 100)
    world.nodes["node-1"].answer(SCAN, kind)
    asked = delete(world)
    world.pass_time(0.5)
    assert told(asked) == PrefixDeleted(100, 100, None)


@pytest.mark.parametrize(
    "page",
    [
        b"\xc1",
        encode_body(ScanPage([(b"other", bytes(12))], None)),
        encode_body(ScanPage([(b"key-1", b"short")], None)),
    ],
)
def test_a_page_that_makes_no_sense_is_not_believed(world: World, page: bytes) -> None:
    keys = fill(world, 50)
    world.nodes["node-1"].answer(SCAN, OK, page)
    asked = delete(world)
    world.pass_time(0.5)
    assert told(asked) == PrefixDeleted(50, 50, None)
    assert deleted(world, keys) == keys


def test_when_nobody_can_look_it_is_refused(world: World) -> None:
    fill(world, 10)
    for node in world.nodes.values():
        node.answer(SCAN, FAILED)
    asked = delete(world)
    world.pass_time(0.5)
    code, text = refused(asked)
    assert code == "no_quorum"
    assert "failed" in text


def test_a_node_that_does_not_answer_costs_a_look_and_no_more(world: World) -> None:
    fill(world, 100)
    world.nodes["node-1"].ignore(SCAN)
    asked = delete(world)
    world.pass_time(2.0)
    assert told(asked) == PrefixDeleted(100, 100, None)


def test_when_the_first_deletes_are_refused_so_is_the_call(world: World) -> None:
    fill(world, 10)
    for node in world.nodes.values():
        node.answer(WRITE_MANY, OVERLOADED)
    asked = delete(world)
    world.pass_time(0.5)
    assert refused(asked)[0] == "overloaded"


def test_when_later_deletes_are_refused_the_call_tells_what_was_done(world: World) -> None:
    keys = fill(world, 2_500)
    writes = world.messages(WRITE_MANY)
    asked = delete(world)
    world.pass_until(lambda: world.messages(WRITE_MANY) >= writes + 3)
    world.pass_until(lambda: any(map(gone, world.held(keys[0]))))
    for node in world.nodes.values():
        node.answer(WRITE_MANY, OVERLOADED)
    world.pass_time(1.0)
    page = told(asked)
    assert page.matched == page.deleted > 0
    assert page.next is not None
    assert prefix + page.next == keys[page.deleted]
    for node in world.nodes.values():
        node.obey()
    rest = delete(world, start=page.next)
    world.pass_time(1.0)
    assert page.deleted + told(rest).deleted == 2_500
    assert deleted(world, keys) == keys


def test_deletes_that_failed_in_between_are_met_again_and_counted_once(world: World) -> None:
    keys = fill(world, 6)
    statuses = [(OK, b""), (OK, b""), (OVERLOADED, b""), (OK, b""), (OVERLOADED, b""), (OK, b"")]
    for node in world.nodes.values():
        node.answer(WRITE_MANY, OK, encode_statuses(statuses))
    asked = delete(world)
    world.pass_time(0.2)
    page = told(asked)
    assert (page.matched, page.deleted) == (4, 4)
    assert page.next is not None
    assert prefix + page.next == keys[2]


def test_an_unknown_outcome_of_one_delete_is_that_of_the_call(world: World) -> None:
    fill(world, 3)
    for node in world.nodes.values():
        node.answer(WRITE_MANY, OK, encode_statuses([(OK, b""), (FAILED, b""), (OK, b"")]))
    asked = delete(world)
    world.pass_time(0.2)
    assert asked.kind == UNKNOWN


def test_a_call_ends_in_its_time_and_says_where_to_go_on(world: World) -> None:
    keys = fill(world, 6_000)
    world.weather.delay_s_min = world.weather.delay_s_max = 0.3
    asked = delete(world)
    world.pass_time(work_s)
    assert not asked.answered
    world.pass_time(2.0)
    page = told(asked)
    assert 0 < page.deleted < 6_000
    assert page.next is not None
    assert prefix + page.next == keys[page.deleted]


def test_calls_are_bounded_and_a_place_is_given_back(world: World) -> None:
    fill(world, 10)
    asked = [delete(world, dry_run=True) for _ in range(calls_max + 1)]
    assert refused(asked[-1])[0] == "overloaded"
    world.pass_time(0.5)
    assert all(told(one).matched == 10 for one in asked[:-1])
    assert world.replicator.prefixes.under_way == 0


def test_in_bad_weather_numbers_stay_exact(world: World) -> None:
    keys = fill(world, 400)
    world.weather.loss = 0.05
    world.weather.reorder = 0.2
    start, total = b"", 0
    for _ in range(40):
        asked = delete(world, start=start, limit=70)
        world.pass_time(6.0)
        if asked.kind != OK:
            continue
        page = told(asked)
        total += page.deleted
        if page.next is None:
            break
        start = page.next
    assert total <= 400
    world.weather.loss = 0.0
    world.pass_time(5.0)
    matched = told_again(world).matched
    assert len(deleted(world, keys)) == 400
    assert total + matched <= 400


# Who speaks.


def test_every_slot_is_spoken_for_once_by_its_first_live_owner() -> None:
    world = World(nodes=6)
    world.replicator.fleet.catching_up("node-2", catching_up=True)
    world.nodes["node-4"].crash()
    world.pass_time(0.3)
    fleet = world.replicator.fleet
    spoken = Speakers(fleet).assign()
    draw = random.Random(1)
    for slot in [*draw.sample(range(slot_count), 500), 0, slot_count - 1, slot_of(key_of(1))]:
        speakers = [
            node.node_id for node, bitmap in spoken.items() if bitmap[slot >> 3] >> (slot & 7) & 1
        ]
        assert speakers == [fleet.route(slot).owners[0].node.node_id]
        assert speakers[0] != "node-4"


@pytest.mark.parametrize("seed", range(4))
def test_whoever_comes_goes_or_is_passed_over_each_slot_is_spoken_for_as_its_route_says(
    seed: int,
) -> None:
    """One that is asked again and again says the same as one that was never asked before."""
    world = World(nodes=6)
    fleet, draw = world.replicator.fleet, random.Random(seed)
    speakers = Speakers(fleet)
    away: set[str] = set()
    for _ in range(12):
        name = f"node-{draw.randint(1, 6)}"
        if name in away:
            world.nodes[name].begin()
            away.remove(name)
        elif len(away) < 2:
            world.nodes[name].crash()
            away.add(name)
        else:
            fleet.catching_up(name, draw.random() < 0.5)
        world.pass_time(2.5)
        without = {f"node-{draw.randint(1, 6)}"} if draw.random() < 0.5 and not away else set()
        expected: dict[str, set[int]] = {}
        for slot in range(slot_count):
            route = fleet.route(slot)
            first = next(o.node.node_id for o in route.owners if o.node.node_id not in without)
            expected.setdefault(first, set()).add(slot)
        for of in (speakers, speakers, Speakers(fleet)):
            spoken = of.assign(without)
            assert {
                node.node_id: {s for s in range(slot_count) if bitmap[s >> 3] >> (s & 7) & 1}
                for node, bitmap in spoken.items()
            } == expected
        assert speakers.owned(fleet.nodes.values()) == 3 * slot_count


def test_without_all_owners_of_some_slot_there_are_no_speakers() -> None:
    speakers = Speakers(World().replicator.fleet)
    assert len(speakers.assign({"node-1", "node-2"})) == 1
    with pytest.raises(UnspokenError):
        speakers.assign({"node-1", "node-2", "node-3"})
