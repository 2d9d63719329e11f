"""Which namespaces a tenant has: all that some slot's speaker knows of, and how much is in each."""

from __future__ import annotations

import pytest

from services.core.key import namespace_prefix, tenant_max
from services.core.listings import list_limit_max
from services.core.messages import NAMESPACES
from services.core.namespaces import NamespaceCount, NamespacesPage, NamespacesQuery
from services.core.operations import REFUSED, decode_refused
from services.core.packed_bodies import decode_body, encode_body
from services.core.record import tombstone_body, value_body
from services.core.wire import FAILED, OK, OVERLOADED, UNKNOWN_KIND
from services.replicator.namespaces import calls_max, work_s
from tests.unit.replicator_world import Asked, Node, World, member_of


@pytest.fixture
def world() -> World:
    return World()


def fill(world: World, sizes: dict[bytes, int], tenant: int = 7) -> None:
    """So many keys in each namespace; of each key 3 bytes, and 5 of its value."""
    keys = [
        namespace_prefix(tenant, name) + b"%03d" % number
        for name, size in sizes.items()
        for number in range(size)
    ]
    for start in range(0, len(keys), 1_000):
        asked = world.put_many(keys[start : start + 1_000])
        world.pass_time(0.2)
        assert all(one.answered for one in asked)


def ask(world: World, start: bytes = b"", limit: int = list_limit_max, tenant: int = 7) -> Asked:
    asked = Asked()
    world.replicator.namespaces.run(NamespacesQuery(tenant, start, limit), asked)
    return asked


def told(asked: Asked) -> NamespacesPage:
    assert asked.kind == OK, asked.answers
    return decode_body(asked.body, NamespacesPage)


def listed(world: World, limit: int = list_limit_max, tenant: int = 7) -> list[NamespaceCount]:
    """All pages."""
    found: list[NamespaceCount] = []
    start: bytes | None = b""
    while start is not None:
        asked = ask(world, start, limit, tenant)
        world.pass_time(0.2)
        page = told(asked)
        assert len(page.found) <= limit
        assert page.next is None or page.next > start
        found += page.found
        start = page.next
    assert world.replicator.namespaces.under_way == 0
    return found


def exactly(sizes: dict[bytes, int]) -> list[NamespaceCount]:
    return [NamespaceCount(name, size, 8 * size) for name, size in sorted(sizes.items())]


def refused(asked: Asked) -> tuple[str, str]:
    assert asked.kind == REFUSED, asked.answers
    return decode_refused(asked.body)


@pytest.mark.parametrize("nodes", [3, 6])
def test_each_key_is_counted_once_while_all_owners_are_there(nodes: int) -> None:
    world = World(nodes=nodes)
    sizes = {b"b": 40, b"a": 1, b"long" * 60: 7, b"\xff": 2}
    fill(world, sizes)
    fill(world, {b"theirs": 5}, tenant=8)
    assert listed(world) == exactly(sizes)
    assert listed(world, tenant=8) == exactly({b"theirs": 5})
    assert listed(world, tenant=tenant_max) == []


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_pages_follow_each_other_exactly_where_each_node_knows_of_others(limit: int) -> None:
    world = World(nodes=6)
    sizes = {b"ns-%02d" % number: 1 for number in range(30)}
    fill(world, sizes)
    assert listed(world, limit) == exactly(sizes)


def test_what_was_deleted_is_not_there_any_more(world: World) -> None:
    fill(world, {b"gone": 3, b"left": 3})
    for number in range(3):
        world.delete(namespace_prefix(7, b"gone") + b"%03d" % number)
    world.pass_time()
    assert listed(world) == exactly({b"left": 3})


def test_a_namespace_of_one_key_is_seen_whatever_node_is_away() -> None:
    for away in range(1, 7):
        world = World(nodes=6)
        sizes = {b"ns-%02d" % number: 1 for number in range(40)}
        fill(world, sizes)
        world.nodes[f"node-{away}"].crash()
        world.pass_time(0.3)
        found = listed(world, 9)
        assert [one.name for one in found] == sorted(sizes)
        assert {one.keys for one in found} == {1}


def test_with_a_node_away_counts_are_near(world: World) -> None:
    fill(world, {b"some": 900})
    world.nodes["node-2"].crash()
    world.pass_time(0.3)
    # As many nodes as replicas: each has everything.
    assert listed(world) == exactly({b"some": 900})
    wide = World(nodes=6)
    fill(wide, {b"some": 900})
    wide.nodes["node-2"].crash()
    wide.pass_time(0.3)
    (found,) = listed(wide)
    assert 800 < found.keys < 1_000
    assert 800 < found.size_bytes / 8 < 1_000


def test_a_node_that_catches_up_is_neither_asked_nor_counted(world: World) -> None:
    world.nodes["node-3"].crash()
    world.pass_time(0.3)
    fill(world, {b"some": 60})
    world.nodes["node-3"].begin()
    world.replicator.fleet.catching_up("node-3", catching_up=True)
    world.pass_time(3.0)
    asked = world.nodes["node-3"].asked[NAMESPACES]
    assert world.replicator.fleet.nodes["node-3"].link.connected
    assert listed(world) == exactly({b"some": 60})
    assert world.nodes["node-3"].asked[NAMESPACES] == asked


def test_while_a_node_joins_what_it_already_has_shows_and_counts_stay_near(world: World) -> None:
    sizes = {b"ns-%02d" % number: 30 for number in range(10)}
    fill(world, sizes)
    joining = member_of(4)
    world.nodes[joining.node_id] = Node(world, joining)
    world.replicator.fleet.adopt(world.map.begin_change((*world.map.members, joining)))
    world.pass_time(1.0)
    found = listed(world, 4)
    assert [one.name for one in found] == sorted(sizes)
    assert all(25 <= one.keys <= 35 for one in found)


# When something fails.


def test_a_slot_without_a_live_owner_refuses_it() -> None:
    world = World(nodes=6, replicas=2)
    fill(world, {b"some": 50})
    lost = world.owners(namespace_prefix(7, b"some") + b"000")
    for node in lost:
        node.crash()
    world.pass_time(0.3)
    code, text = refused(ask(world))
    assert code == "no_quorum"
    assert all(node.node_id in text for node in lost)
    assert world.messages(NAMESPACES) == 0


@pytest.mark.parametrize("kind", [FAILED, OVERLOADED, UNKNOWN_KIND])
def test_a_node_that_will_not_tell_is_spoken_for_by_the_others(world: World, kind: int) -> None:
    fill(world, {b"some": 50})
    world.nodes["node-1"].answer(NAMESPACES, kind)
    assert listed(world) == exactly({b"some": 50})


def test_a_node_that_dies_meanwhile_is_spoken_for_by_the_others(world: World) -> None:
    fill(world, {b"some": 50})
    asked = ask(world)
    world.nodes["node-2"].crash()
    world.pass_time(0.3)
    assert told(asked).found == exactly({b"some": 50})


@pytest.mark.parametrize(
    "page",
    [
        b"\xc1",
        encode_body(NamespacesPage([NamespaceCount(b"b", 1, 1), NamespaceCount(b"b", 1, 1)], None)),
        encode_body(NamespacesPage([NamespaceCount(b"a", 1, 1)], None)),
        encode_body(NamespacesPage([NamespaceCount(b"c", 1, 1)], b"c")),
        encode_body(NamespacesPage([], b"b")),
        encode_body(NamespacesPage([], b"a")),
        encode_body(NamespacesPage([NamespaceCount(b"c", -5, 1)], None)),
        encode_body(NamespacesPage([NamespaceCount(b"c%03d" % n, 1, 1) for n in range(101)], None)),
    ],
    ids=["no page", "twice", "before", "next", "nowhere", "back", "less than nothing", "too many"],
)
def test_a_page_that_makes_no_sense_is_not_believed(world: World, page: bytes) -> None:
    fill(world, {b"bee": 50})
    world.nodes["node-1"].answer(NAMESPACES, OK, page)
    asked = ask(world, b"b", 100)
    world.pass_time(0.2)
    assert told(asked) == NamespacesPage(exactly({b"bee": 50}), None)


def test_when_nobody_tells_it_is_refused_with_the_reasons(world: World) -> None:
    for node in world.nodes.values():
        node.answer(NAMESPACES, UNKNOWN_KIND)
    asked = ask(world)
    world.pass_time(0.2)
    code, text = refused(asked)
    assert code == "no_quorum"
    assert "node-3 is of an older version" in text


def test_nodes_that_do_not_answer_cost_no_more_than_its_time() -> None:
    world = World(nodes=6)
    for node in world.nodes.values():
        node.ignore(NAMESPACES)
    asked = ask(world)
    world.pass_time(work_s + 0.2)
    assert refused(asked)[0] == "no_quorum"
    assert world.replicator.namespaces.under_way == 0


def test_past_so_many_at_once_the_next_is_refused(world: World) -> None:
    fill(world, {b"some": 5})
    asked = [ask(world) for _ in range(calls_max + 1)]
    assert refused(asked[-1])[0] == "overloaded"
    world.pass_time()
    assert all(told(one).found == exactly({b"some": 5}) for one in asked[:-1])
    assert listed(world) == exactly({b"some": 5})


def test_a_replica_that_has_what_others_deleted_shows_it_until_it_has_heard(world: World) -> None:
    key = namespace_prefix(7, b"ghost") + b"key"
    version = world.version()
    late, *others = world.owners(key)
    world.plant(late, key, version + value_body(b"value"))
    later = world.version(ahead_ms=5)
    for node in others:
        world.plant(node, key, later + tombstone_body)
    assert [found.name for found in listed(world)] == [b"ghost"]
    world.plant(late, key, later + tombstone_body)
    assert listed(world) == []
