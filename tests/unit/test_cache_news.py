"""Whom a replicator tells of caches, what, how often, and whom it waits for."""

from __future__ import annotations

import pytest

from services.core.cluster import ClusterMap, Member
from services.core.key import namespace_prefix
from services.core.messages import CACHES, MALFORMED
from services.core.namespaces import (
    Cache,
    CacheList,
    Edition,
    decode_caches,
    encode_edition,
)
from services.core.wire import LOST, OK, Role
from services.replicator.cache_news import CacheNews, awaited_s_max, told_every_s
from services.replicator.declarations import Declarations
from services.replicator.declared import Declared
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fleet import Fleet
from services.runtime.peer import Peer
from tests.integration.link_ends import log_lines
from tests.unit.hand_peer import HandPeer, hand_peer
from tests.unit.test_replicator_membership import Away

cached = namespace_prefix(7, b"cached")
members = tuple(
    Member(f"node-{n}", f"{n:032x}", "127.0.0.1", 8000 + n, 9000 + n) for n in range(1, 5)
)


def is_member(peer: Peer) -> bool:
    return peer.hello.role is Role.NODE and peer.hello.id in {node.node_id for node in members}


class World:
    def __init__(self) -> None:
        self.timeline = Timeline()
        self.clock = FakeClock(self.timeline)
        self.fleet = Fleet(Away, self.clock)
        self.declared = Declared()
        self.news = CacheNews(self.declared, self.fleet, is_member, self.clock)
        self.declared.on_change = self.news.remind

    def form(self, epoch: int = 1) -> None:
        self.fleet.adopt(ClusterMap(epoch, 3, members))

    def declare(self, version: int, max_items: int) -> None:
        self.declared.adopt(Declarations.of(version, [(cached, max_items)]))

    def come(self, name: str, role: Role = Role.NODE) -> HandPeer:
        peer = hand_peer(role, name)
        self.news.came(peer)
        return peer


@pytest.fixture
def world() -> World:
    world = World()
    world.form()
    return world


def told(peer: HandPeer) -> list[CacheList]:
    assert all(kind == CACHES for kind, _, _ in peer.asked)
    return [decode_caches(body) for _, body, _ in peer.asked]


def answer(peer: HandPeer, edition: Edition, which: int = -1) -> None:
    peer.asked[which][2](OK, encode_edition(edition))


def test_nodes_are_told_their_share_gateways_all_and_strangers_nothing(world: World) -> None:
    world.declare(1, 10)
    node, gateway = world.come("node-1"), world.come("gateway-1", Role.GATEWAY)
    edition = Edition(1, 1)
    assert told(node) == [CacheList(edition, [Cache(cached, 8)])]
    assert told(gateway) == [CacheList(edition, [Cache(cached, 10)])]
    strangers = [
        world.come("node-9"),
        world.come("tool", Role.TOOL),
        world.come("replicator-2", Role.REPLICATOR),
    ]
    assert [told(peer) for peer in strangers] == [[], [], []]


def test_without_a_map_nobody_is_told() -> None:
    world = World()
    world.declare(1, 10)
    gateway = world.come("gateway-1", Role.GATEWAY)
    assert told(gateway) == []
    world.form()
    world.news.remind()
    assert [known.edition for known in told(gateway)] == [Edition(1, 1)]


def test_of_changes_in_a_row_a_peer_hears_the_last_and_one_at_a_time(world: World) -> None:
    gateway = world.come("gateway-1", Role.GATEWAY)
    for version in range(1, 6):
        world.declare(version, version)
    assert [known.edition.version for known in told(gateway)] == [0]
    answer(gateway, Edition(0, 1))
    world.timeline.advance(told_every_s)
    assert [known.edition.version for known in told(gateway)] == [0, 5]
    answer(gateway, Edition(5, 1))
    world.timeline.advance(told_every_s)
    world.news.remind()
    assert len(gateway.asked) == 2


def test_the_list_is_told_once_a_second_unless_somebody_waits_for_it(world: World) -> None:
    node, gateway = world.come("node-1"), world.come("gateway-1", Role.GATEWAY)
    version = 0
    for _ in range(100):
        world.timeline.advance(0.1)
        version += 1
        world.declare(version, version)
        for peer in (node, gateway):
            answer(peer, told(peer)[-1].edition)
    for peer in (node, gateway):
        assert 5 <= len(peer.asked) <= 11
    # The last of all is told, although nothing follows it.
    world.timeline.advance(told_every_s)
    assert [told(peer)[-1].edition.version for peer in (node, gateway)] == [version, version]
    for peer in (node, gateway):
        answer(peer, Edition(version, 1))
    heard: list[list[str]] = []
    for _ in range(3):
        version += 1
        world.declare(version, version)
        world.news.await_nodes(heard.append)
        for peer in (node, gateway):
            assert told(peer)[-1].edition.version == version
            answer(peer, Edition(version, 1))
    assert heard == [[], [], []]


def test_who_was_lost_or_refuses_is_told_again_and_said_so_once(world: World) -> None:
    gateway = world.come("gateway-1", Role.GATEWAY)
    gateway.asked[-1][2](LOST, b"")
    assert len(gateway.asked) == 1
    with log_lines() as lines:
        for count in range(2, 5):
            world.timeline.advance(told_every_s)
            world.news.remind()
            assert len(gateway.asked) == count
            gateway.asked[-1][2](MALFORMED, b"no")
    assert len([line for line in lines if "refuses" in str(line["event"])]) == 1


def test_another_epoch_is_news_to_everybody(world: World) -> None:
    world.declare(4, 10)
    node = world.come("node-1")
    answer(node, Edition(4, 1))
    world.fleet.adopt(
        ClusterMap(3, 3, (Member("node-1", f"{1:032x}", "127.0.0.2", 8001, 9001), *members[1:]))
    )
    world.timeline.advance(told_every_s)
    world.news.remind()
    assert [known.edition for known in told(node)] == [Edition(4, 1), Edition(4, 3)]


def test_who_declares_waits_for_each_node_that_is_connected_by_either_link(world: World) -> None:
    one, twin, two = world.come("node-1"), world.come("node-1"), world.come("node-2")
    for peer in (one, twin, two):
        answer(peer, Edition(0, 1))
    world.declare(1, 10)
    heard: list[list[str]] = []
    world.news.await_nodes(heard.append)
    answer(twin, Edition(1, 1))
    assert heard == []
    # What is refused or older does not count, and who goes is waited for no more.
    answer(two, Edition(0, 1))
    assert heard == []
    world.news.went(two)
    assert heard == [[]]
    world.timeline.advance(2 * awaited_s_max)
    assert heard == [[]]


def test_after_a_second_those_who_did_not_say_so_are_named(world: World) -> None:
    for name in ("node-1", "node-2", "node-3"):
        world.come(name)
    gateway = world.come("gateway-1", Role.GATEWAY)
    answer(gateway, Edition(0, 1))
    world.declare(1, 10)
    heard: list[list[str]] = []
    world.news.await_nodes(heard.append)
    world.timeline.advance(awaited_s_max / 2)
    assert heard == []
    world.timeline.advance(awaited_s_max)
    assert heard == [["node-1", "node-2", "node-3"]]


def test_where_no_node_is_connected_nobody_waits(world: World) -> None:
    heard: list[list[str]] = []
    world.news.await_nodes(heard.append)
    assert heard == [[]]
