"""What a node makes of cluster maps: which it takes, keeps, forgets, and which epoch follows."""

from __future__ import annotations

import errno

import pytest

from services.core import messages as m
from services.core.cluster import ClusterMap, Member
from services.core.errors import PeerError
from services.core.wire import OK, Role
from services.dhtnode.membership import Membership
from services.dhtnode.replica import epochs_ahead_max
from tests.unit.hand_peer import hand_peer
from tests.unit.replica_world import World, key_of, value


def cluster_map(epoch: int, *, replicas: int = 1) -> bytes:
    """A stable map of two nodes; its epoch is odd."""
    members = tuple(
        Member(f"node-{number}", f"{number:032x}", "127.0.0.1", 8000 + number, 9000 + number)
        for number in (1, 2)
    )
    return ClusterMap(epoch, replicas, members).encode()


class Node:
    """A replica and its membership; what would be written to the map's file is in `kept`."""

    def __init__(self) -> None:
        self.world = World()
        self.kept: list[bytes] = []
        self.membership = Membership(self.world.replica, self.kept.append)

    def epochs(self) -> tuple[int, int | None]:
        known = self.membership.map
        return self.world.replica.epoch, None if known is None else known.epoch


def test_a_newer_map_is_taken_with_its_epoch_and_an_older_one_is_not() -> None:
    node = Node()
    node.membership.adopt(cluster_map(3))
    node.membership.adopt(cluster_map(1))
    assert node.epochs() == (3, 3)
    assert node.kept == [cluster_map(3)]
    with pytest.raises(PeerError, match="replication factor"):
        node.membership.adopt(cluster_map(5, replicas=2))
    assert node.epochs() == (3, 3)


def test_a_lost_map_is_sent_again_and_an_older_one_does_not_take_its_place() -> None:
    node = Node()
    node.world.replica.adopt_epoch(5)
    node.membership.adopt(cluster_map(3))
    assert node.epochs() == (5, None)
    assert node.kept == []
    node.membership.adopt(cluster_map(5))
    assert node.epochs() == (5, 5)
    assert node.kept == [cluster_map(5)]


def test_a_kept_map_of_an_epoch_that_was_left_is_forgotten() -> None:
    node = Node()
    node.world.replica.adopt_epoch(5)
    node.membership.remember(cluster_map(3))
    assert node.epochs() == (5, None)
    node.membership.remember(cluster_map(5))
    assert node.epochs() == (5, 5)


def test_a_map_that_was_kept_before_its_epoch_was_durable_is_adopted_when_it_is_met_again() -> None:
    node = Node()
    node.membership.remember(cluster_map(5))
    assert node.epochs() == (0, 5)
    node.membership.adopt(cluster_map(5))
    assert node.epochs() == (5, 5)


def test_a_map_of_an_epoch_that_cannot_be_changes_nothing() -> None:
    node = Node()
    node.membership.adopt(cluster_map(3))
    with pytest.raises(PeerError, match="ahead of ours, 3"):
        node.membership.adopt(cluster_map(epochs_ahead_max + 5))
    assert node.epochs() == (3, 3)
    assert node.kept == [cluster_map(3)]


def test_without_room_for_its_epoch_a_map_is_not_taken() -> None:
    node = Node()
    world = node.world
    world.write(key_of(1), value(1))
    world.disk.fail("allocate", errno.ENOSPC, "*log-*", times=None)
    world.log.rotate()
    while world.log.has_room(m.u64.size):
        assert world.log.append(7, bytes(1_000 if world.log.has_room(2_000) else 1))
        world.settle()
    node.membership.adopt(cluster_map(3))
    assert (node.epochs(), node.kept) == ((0, None), [])
    world.disk.heal()
    world.settle(10.0)
    node.membership.adopt(cluster_map(3))
    assert (node.epochs(), node.kept) == ((3, 3), [cluster_map(3)])
    assert world.get(key_of(1)) == (OK, value(1))


def test_a_map_is_taken_without_working_out_who_owns_what() -> None:
    node = Node()
    node.membership.adopt(cluster_map(3))
    known = node.membership.map
    assert known is not None
    assert not {"ring", "placements"} & vars(known).keys(), "that holds the loop for long"


# Catching up.

behind = (m.STATE, m.encode_state(catching_up=True))
through = (m.STATE, m.encode_state(catching_up=False))


def test_a_replicator_with_two_connections_is_heard_once_and_gone_with_the_last() -> None:
    membership = Node().membership
    dialled, dialling = (hand_peer(Role.REPLICATOR, "replicator-1") for _ in range(2))
    other = hand_peer(Role.REPLICATOR, "replicator-2")
    for peer in (dialled, other, dialling):
        membership.came(peer)
    membership.caught_up(dialling)
    assert membership.catching_up
    membership.caught_up(other)
    assert not membership.catching_up
    membership.went(dialled)
    assert not membership.catching_up
    # It cannot reach us, and keeps what we miss.
    membership.came(dialled)
    membership.went(dialling)
    assert membership.catching_up
    again = hand_peer(Role.REPLICATOR, "replicator-1")
    membership.came(again)
    assert membership.catching_up
    membership.caught_up(again)
    assert not membership.catching_up


def test_a_node_that_was_through_and_loses_all_replicators_is_it_still() -> None:
    membership = Node().membership
    peers = [hand_peer(Role.REPLICATOR, "replicator-1") for _ in range(2)]
    for peer in peers:
        membership.came(peer)
    membership.caught_up(peers[0])
    for peer in peers:
        membership.went(peer)
    assert not membership.catching_up
    # It comes back, and may have kept something for us.
    membership.came(peers[0])
    assert membership.catching_up


def test_one_that_went_is_not_waited_for() -> None:
    membership = Node().membership
    one, other = (hand_peer(Role.REPLICATOR, f"replicator-{number}") for number in (1, 2))
    membership.came(one)
    membership.came(other)
    membership.caught_up(one)
    assert membership.catching_up
    membership.went(other)
    assert not membership.catching_up


def test_a_replicator_that_was_not_even_tried_is_waited_for() -> None:
    membership = Node().membership
    untried = [True]
    membership.untried = lambda: untried[0]
    one = hand_peer(Role.REPLICATOR, "replicator-1")
    membership.came(one)
    membership.caught_up(one)
    assert membership.catching_up
    untried.clear()
    untried.append(False)
    membership.look()
    assert not membership.catching_up


def test_a_word_of_somebody_who_is_no_replicator_or_is_gone_means_nothing() -> None:
    membership = Node().membership
    gateway = hand_peer(Role.GATEWAY, "gateway-1")
    gone = hand_peer(Role.REPLICATOR, "replicator-1")
    membership.came(gateway)
    membership.caught_up(gateway)
    membership.caught_up(gone)
    assert membership.catching_up


def test_those_who_ask_are_told_when_they_come_and_when_it_changes() -> None:
    membership = Node().membership
    replicator, gateway = (
        hand_peer(Role.REPLICATOR, "replicator-1"),
        hand_peer(Role.GATEWAY, "gateway-1"),
    )
    node = hand_peer(Role.NODE, "node-2")
    for peer in (replicator, gateway, node):
        membership.came(peer)
    gateway.full = True
    membership.caught_up(replicator)
    membership.look()
    assert replicator.notified == [behind, through]
    assert gateway.notified == [behind]
    gateway.full = False
    membership.look()
    membership.look()
    assert gateway.notified == [behind, through]
    membership.went(gateway)
    late = hand_peer(Role.GATEWAY, "gateway-2")
    membership.came(late)
    assert late.notified == [through]
    assert node.notified == []
