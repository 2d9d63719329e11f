"""The ring as it is drawn: all of it, for whoever owns it, and bounded however many do."""

from __future__ import annotations

import math
import re

import pytest

from services.core.cluster import ClusterMap, Member
from services.core.ring import slot_count
from services.usermanager.pages.console_cluster_ring import (
    RingDrawing,
    centre,
    marks,
    slots_per_mark,
)

_arc = re.compile(r"M([\d.]+) ([\d.]+)A([\d.]+) [\d.]+ 0 0 1 ([\d.]+) ([\d.]+)")


def member(number: int, zone: str = "") -> Member:
    port = 1_000 + 2 * number
    return Member(f"node-{number}", f"{number:032x}", "127.0.0.1", port, port + 1, zone)


def cluster(nodes: int, replicas: int = 3) -> ClusterMap:
    return ClusterMap(1, replicas, tuple(member(number) for number in range(1, nodes + 1)))


def turn(x: float, y: float) -> float:
    """The place of a point on the ring, from 0 at the top to 1, clockwise."""
    return math.atan2(x - centre, centre - y) / (2 * math.pi) % 1


def owners_drawn(drawing: RingDrawing, band: int) -> list[str]:
    """Whose each mark of a band is, by the arcs alone."""
    found = [""] * marks
    for arcs in drawing.arcs:
        if arcs.band != band:
            continue
        for match in _arc.finditer(arcs.d):
            x1, y1, _, x2, y2 = map(float, match.groups())
            start, end = round(turn(x1, y1) * marks), round(turn(x2, y2) * marks)
            for mark in range(start, end if end > start else end + marks):
                assert not found[mark % marks], "a mark is drawn twice"
                found[mark % marks] = arcs.node
    return found


@pytest.mark.parametrize(("nodes", "replicas"), [(3, 3), (7, 3), (40, 5), (2, 1)])
def test_every_mark_of_every_band_is_drawn_for_its_owner(nodes: int, replicas: int) -> None:
    known = cluster(nodes, replicas)
    drawing = RingDrawing.of(known)
    for band in range(replicas):
        expected = [known.owners(mark * slots_per_mark)[band] for mark in range(marks)]
        assert owners_drawn(drawing, band) == expected


def test_a_ring_of_one_is_a_whole_circle() -> None:
    drawing = RingDrawing.of(cluster(1, 1))
    assert owners_drawn(drawing, 0) == ["node-1"] * marks
    assert [share.first_of for share in drawing.shares] == [slot_count]


def test_the_largest_cluster_is_drawn_in_bounds() -> None:
    drawing = RingDrawing.of(cluster(256))
    assert len(drawing.shares) == 256
    assert sum(share.first_of for share in drawing.shares) == slot_count
    assert sum(len(arcs.d) for arcs in drawing.arcs) < 150_000


def test_a_ring_that_changes_is_drawn_as_it_will_be() -> None:
    joint = cluster(3).begin_change([member(number) for number in (1, 2, 3, 4)])
    drawing = RingDrawing.of(joint)
    assert drawing.is_changing
    assert "node-4" in owners_drawn(drawing, 0)
    left = cluster(4).begin_change([member(number) for number in (1, 2, 3)])
    assert "node-4" not in owners_drawn(RingDrawing.of(left), 0)


def test_nodes_of_one_colour_are_told_apart_by_its_strength() -> None:
    shares = RingDrawing.of(cluster(10)).shares
    assert len({(share.colour, share.is_pale) for share in shares}) == 10
