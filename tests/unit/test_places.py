"""Nodes that were started alike take the first directory that is free, and its number for an id."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from services.core.cluster import members_max
from services.core.errors import FatalError, RestartLater
from services.dhtnode.directory import NodeDirectory, store_name
from services.dhtnode.node import Node
from services.dhtnode.places import take_place
from services.dhtnode.settings import NodeSettings
from services.runtime.clock import FakeClock, SystemClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.service import Service
from services.runtime.settings import load
from tests.integration.node_process import secret

shared = Path("/data")


class World:
    def __init__(self) -> None:
        self.timeline = Timeline()
        self.disk = FakeDisk(random.Random(1), FakeClock(self.timeline))
        self._made = 0

    def take(self) -> NodeDirectory:
        self._made += 1
        return take_place(self.disk, shared, self._made.to_bytes(16, "big"))


def test_each_takes_the_first_directory_that_is_free_and_its_number_for_an_id() -> None:
    world = World()
    taken = [world.take() for _ in range(3)]
    assert [place.node_id for place in taken] == ["node-1", "node-2", "node-3"]
    assert [place.path for place in taken] == [shared / "1", shared / "2", shared / "3"]
    assert len({place.store_id for place in taken}) == 3


def test_who_comes_after_one_that_has_gone_is_that_node() -> None:
    world = World()
    first, second, third = (world.take() for _ in range(3))
    second.close()
    successor = world.take()
    assert (successor.node_id, successor.store_id) == ("node-2", second.store_id)
    assert world.take().node_id == "node-4"
    assert {first.node_id, third.node_id} == {"node-1", "node-3"}


def test_a_damaged_directory_is_told_and_not_passed_over() -> None:
    world = World()
    world.take().close()
    world.disk.replace(shared / "1" / store_name, b"not JSON")
    with pytest.raises(FatalError, match=r"/data/1/store does not say whose data this is"):
        world.take()
    assert not world.disk.exists(shared / "2")


def test_a_directory_that_belongs_to_a_node_by_another_name_is_not_taken() -> None:
    world = World()
    NodeDirectory.open(world.disk, shared / "1", "rack-7", b"7" * 16).close()
    with pytest.raises(FatalError, match="belongs to node 'rack-7', and this is 'node-1'"):
        world.take()


def test_more_nodes_than_a_cluster_can_have_are_refused_and_may_come_again() -> None:
    world = World()
    taken = [world.take() for _ in range(members_max)]
    with pytest.raises(RestartLater, match=f"all {members_max} directories in /data are in use"):
        world.take()
    taken[-1].close()
    assert world.take().node_id == f"node-{members_max}"


def test_a_node_is_who_its_directory_says() -> None:
    world = World()
    world.take()
    environ = {"CLUSTER_SECRET": secret, "NODES_DIR": str(shared)}
    node = Node(load(NodeSettings, environ), Service("dhtnode", SystemClock()), world.disk)
    node.open()
    assert node.settings.node_id == "node-2"
    assert node.directory.path == shared / "2"


def test_an_id_of_its_own_beside_a_shared_directory_is_refused() -> None:
    environ = {"CLUSTER_SECRET": secret, "NODES_DIR": "/data", "NODE_ID": "node-2"}
    with pytest.raises(FatalError, match="NODE_ID is node-2 and NODES_DIR is set"):
        load(NodeSettings, environ)
