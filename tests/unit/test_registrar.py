"""How a node registers: what it makes of every answer, and of none."""

from __future__ import annotations

import random

import pytest

from services.core import messages as m
from services.core.cluster import ClusterMap, Member
from services.core.errors import FatalError
from services.core.packed_bodies import decode_body
from services.core.wire import FAILED, LOST, OK, OVERLOADED, TIMEOUT, UNKNOWN_KIND, Role
from services.dhtnode.membership import Membership
from services.dhtnode.registrar import Registrar, pause_s_max
from tests.integration.link_ends import log_lines
from tests.unit.hand_peer import HandPeer, hand_peer
from tests.unit.replica_world import World
from tests.unit.test_membership import cluster_map

member = Member("node-1", f"{1:032x}", "127.0.0.1", 8001, 9001)


class Node:
    """A registrar, and a replicator that it has reached."""

    def __init__(self) -> None:
        self.world = World()
        self.membership = Membership(self.world.replica, lambda data: None)
        self.failures: list[FatalError] = []
        self.registrar = Registrar(
            member, self.membership, self.world.clock, self.failures.append, random.Random(1)
        )
        self.replicator = self.reach("replicator-1")

    def reach(self, name: str) -> HandPeer:
        peer = hand_peer(Role.REPLICATOR, name)
        self.registrar.came(peer)
        return peer

    def epoch(self) -> int | None:
        known = self.membership.map
        return None if known is None else known.epoch

    def wait(self, seconds: float) -> None:
        self.world.timeline.advance(seconds)


def test_a_node_says_who_it_is_and_takes_the_map() -> None:
    node = Node()
    [(kind, body, _)] = node.replicator.asked
    assert (kind, decode_body(body, Member)) == (m.REGISTER, member)
    node.replicator.answer(OK, m.encode_registered(0, cluster_map(3)))
    assert node.epoch() == 3
    node.wait(60)
    assert node.replicator.asked == []


def test_while_others_are_missing_a_node_waits_to_be_told() -> None:
    node = Node()
    node.replicator.answer(OK, m.encode_registered(2, b""))
    node.wait(60)
    assert (node.replicator.asked, node.epoch(), node.failures) == ([], None, [])
    # Another link to it is another chance, as after a restart of the replicator.
    node.registrar.went(node.replicator)
    again = node.reach("replicator-1")
    again.answer(OK, m.encode_registered(0, cluster_map(1)))
    assert node.epoch() == 1


def test_a_node_that_is_refused_ends_with_the_reason() -> None:
    node = Node()
    node.replicator.answer(m.NOT_WELCOME, b"it has lost\nits directory")
    [failure] = node.failures
    assert failure.exit_code == FatalError.exit_code
    assert str(failure) == "the cluster refuses this node: it has lost?its directory"


def test_one_replicator_cannot_end_a_node_that_another_has_taken() -> None:
    node = Node()
    node.replicator.answer(OK, m.encode_registered(0, cluster_map(1)))
    with log_lines() as lines:
        for _ in range(3):
            other = node.reach("replicator-2")
            other.answer(m.NOT_WELCOME, b"of another cluster")
    assert [line["event"] for line in lines] == ["a replicator refuses this node"]
    assert (node.failures, node.epoch()) == ([], 1)


@pytest.mark.parametrize(
    "kind", [m.TRY_LATER, m.MALFORMED, OVERLOADED, UNKNOWN_KIND, FAILED, TIMEOUT, LOST]
)
def test_whatever_else_is_answered_it_asks_again_ever_more_seldom(kind: int) -> None:
    node = Node()
    waited_s = []
    with log_lines() as lines:
        for _ in range(12):
            node.replicator.answer(kind, b"PostgreSQL is away")
            began_s = node.world.timeline.now_s
            while not node.replicator.asked:
                node.wait(0.01)
            waited_s.append(node.world.timeline.now_s - began_s)
    assert waited_s[0] <= 0.15
    assert pause_s_max / 2 <= waited_s[-1] <= pause_s_max + 0.1
    assert len(lines) == 1
    node.replicator.answer(OK, m.encode_registered(0, cluster_map(1)))
    assert node.epoch() == 1


def test_a_link_that_takes_nothing_is_tried_again_and_one_that_is_gone_is_not() -> None:
    node = Node()
    full = hand_peer(Role.REPLICATOR, "replicator-2")
    full.full = True
    node.registrar.came(full)
    node.wait(1)
    full.full = False
    node.wait(10)
    assert len(full.asked) == 1
    node.registrar.went(full)
    full.answer(LOST)
    node.wait(60)
    assert full.asked == []


def test_a_map_that_cannot_follow_ours_is_not_taken_and_is_said_aloud() -> None:
    node = Node()
    node.replicator.answer(OK, m.encode_registered(0, cluster_map(1)))
    other = node.reach("replicator-2")
    with log_lines() as lines:
        other.answer(OK, m.encode_registered(0, cluster_map(3, replicas=2)))
        node.wait(1)
        other.answer(OK, b"?")
        node.wait(1)
        other.answer(OK, m.encode_registered(0, b"no map"))
    assert node.epoch() == 1
    assert {line["event"] for line in lines} == {"the cluster map is refused"}
    node.wait(20)
    assert len(other.asked) == 1


def test_who_is_no_replicator_is_not_asked() -> None:
    node = Node()
    gateway = hand_peer(Role.GATEWAY, "gateway-1")
    node.registrar.came(gateway)
    node.registrar.went(gateway)
    assert gateway.asked == []


def maps_of(place: Member) -> tuple[bytes, bytes]:
    """A map with this node where it is, and the next one with it at `place`."""
    others = (Member("node-2", f"{2:032x}", "127.0.0.1", 8002, 9002),)
    ours = ClusterMap(1, 2, (member, *others))
    return ours.encode(), ours.begin_change((place, *others)).finish_change().encode()


def test_a_node_whose_place_another_has_taken_says_so_and_registers_until_it_has_it_back() -> None:
    ours, theirs = maps_of(Member("node-1", f"{1:032x}", "127.0.0.9", 8701, 9701))
    node = Node()
    node.replicator.answer(OK, m.encode_registered(0, ours))
    assert node.registrar.trouble is None
    with log_lines() as lines:
        node.membership.adopt(theirs)
        node.registrar.look()
        node.registrar.look()
    [line] = lines
    assert line["event"] == "another process has taken the place of this node"
    assert "the cluster has node-1 at 127.0.0.9 port 9701, and this is 127.0.0.1" in line["reason"]
    assert "no replicator has followed it yet" in (node.registrar.trouble or "")
    for _ in range(5):
        node.wait(2)
        node.replicator.answer(m.TRY_LATER, b"it is live at 127.0.0.9")
        assert "replicator-1: it is live at 127.0.0.9" in (node.registrar.trouble or "")
    node.wait(10)
    back = ClusterMap.decode(theirs).begin_change(ClusterMap.decode(ours).members)
    node.replicator.answer(OK, m.encode_registered(0, back.finish_change().encode()))
    assert node.registrar.trouble is None
    node.wait(60)
    assert node.replicator.asked == []


def test_an_answer_that_is_older_than_the_map_with_another_in_our_place_settles_nothing() -> None:
    ours, theirs = maps_of(Member("node-1", f"{1:032x}", "127.0.0.9", 8701, 9701))
    node = Node()
    node.membership.adopt(theirs)
    node.registrar.look()
    assert "the cluster has node-1 at 127.0.0.9" in (node.registrar.trouble or "")
    node.replicator.answer(OK, m.encode_registered(0, ours))
    node.wait(1)
    assert len(node.replicator.asked) == 1
    assert "the cluster has node-1 at 127.0.0.9" in (node.registrar.trouble or "")


def test_what_keeps_a_node_from_being_used_is_told() -> None:
    node = Node()
    assert node.registrar.trouble == "no replicator has taken this node yet"
    node.replicator.answer(m.TRY_LATER, b"PostgreSQL is away")
    expected = "no replicator has taken this node: replicator-1: PostgreSQL is away"
    assert node.registrar.trouble == expected
    node.wait(1)
    node.replicator.answer(OK, m.encode_registered(2, b""))
    assert (
        node.registrar.trouble == "the cluster is forming: 2 of its nodes have not registered yet"
    )
    elsewhere = Member("node-1", f"{1:032x}", "127.0.0.9", 8701, 9701)
    node.membership.adopt(maps_of(elsewhere)[0])
    assert node.registrar.trouble is None
    other = node.reach("replicator-2")
    other.answer(m.NOT_WELCOME, b"of another cluster")
    expected = "not every replicator has taken this node: replicator-2: of another cluster"
    assert node.registrar.trouble == expected
    for peer in (node.replicator, other):
        node.registrar.went(peer)
    assert node.registrar.trouble == "no replicator has taken this node yet"
