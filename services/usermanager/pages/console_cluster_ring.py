"""The ring as arcs of SVG: for each replica of a slot a band, the first one outermost.

A slot of 16384 is too thin to be seen, so a mark stands for several, and is drawn for the owners of
the first of them. Angles are clockwise from the top, as the ring's own positions are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from services.core.cluster import ClusterMap
from services.core.ring import Owners, slot_count

# About a pixel of the outer band each; and so a page is bounded, however large the cluster is.
marks: Final = 1024
slots_per_mark: Final = slot_count // marks
# Of the drawing, in its own units.
size: Final = 400
centre: Final = size / 2
outermost: Final = 186.0
bands_width: Final = 66.0
band_width_max: Final = 20.0
gap: Final = 2.0
# Colours that tokens.css has for series; further nodes get the same ones, paler.
colours: Final = 5


@dataclass(slots=True, frozen=True)
class Arcs:
    """All of a node's arcs in one band, as the `d` of a path that is stroked."""

    node: str
    band: int
    d: str


@dataclass(slots=True, frozen=True)
class Share:
    """How much of the ring is a node's."""

    node: str
    zone: str
    colour: int
    is_pale: bool
    # Slots of which it is the first replica; of how many it has one, replicators tell.
    first_of: int


@dataclass(slots=True, frozen=True)
class RingDrawing:
    epoch: int
    is_changing: bool
    band_width: float
    shares: Sequence[Share]
    arcs: Sequence[Arcs]

    @classmethod
    def of(cls, known: ClusterMap) -> RingDrawing:
        """While the membership changes, the ring as it will be."""
        slots = known.ring.slots
        bands = len(slots[0])
        width = min(band_width_max, bands_width / bands)
        seen = slots[::slots_per_mark]
        members = sorted(known.members, key=lambda member: member.node_id)
        firsts: dict[str, int] = {}
        for owners in slots:
            firsts[owners[0]] = firsts.get(owners[0], 0) + 1
        return cls(
            epoch=known.epoch,
            is_changing=known.is_joint,
            band_width=width - gap,
            shares=[
                Share(
                    member.node_id,
                    member.zone,
                    place % colours + 1,
                    bool(place // colours % 2),
                    firsts.get(member.node_id, 0),
                )
                for place, member in enumerate(members)
            ],
            arcs=[
                arcs
                for band in range(bands)
                for arcs in _band(seen, band, outermost - (band + 0.5) * width)
            ],
        )

    def share_of(self, node: str) -> Share | None:
        return next((share for share in self.shares if share.node == node), None)


def _band(seen: Sequence[Owners], band: int, radius: float) -> Iterator[Arcs]:
    parts: dict[str, list[str]] = {}
    for node, start, end in _runs([owners[band] for owners in seen]):
        parts.setdefault(node, []).append(_arc(radius, start, end))
    for node, arcs in sorted(parts.items()):
        yield Arcs(node, band, "".join(arcs))


def _runs(names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    start = 0
    for place in range(1, len(names) + 1):
        if place == len(names) or names[place] != names[start]:
            yield names[start], start, place
            start = place


def _arc(radius: float, start: int, end: int) -> str:
    # An arc that ends where it begins is none, so what is more than half is drawn as two.
    if end - start > marks // 2:
        middle = (start + end) // 2
        return _arc(radius, start, middle) + _arc(radius, middle, end)
    begin, stop = _point(radius, start / marks), _point(radius, end / marks)
    return f"M{begin}A{radius:g} {radius:g} 0 0 1 {stop}"


def _point(radius: float, turn: float) -> str:
    angle = 2 * math.pi * turn
    x, y = centre + radius * math.sin(angle), centre - radius * math.cos(angle)
    return f"{x:.1f} {y:.1f}"
