"""Changes of a simulated cluster's members, one at a time, through joint epochs.

    stable ──► joint map published ──► each new owner of a slot is given what it needs ──► stable

Moving the members of a running cluster is not part of the product yet, so this operator does what
it will do. For each slot that a node comes to own, it reads at the joint epoch, over links that
lose messages as all others, what a majority of the old owners and every leaving one hold: the
floor, and of each key what was accepted last and the cell. A node that has answered at that epoch
has left the one before for good. The greatest floor, the highest accepted ballot and the merged
cell go through the log of the new owner; until they are durable there, it is not ready. What it was
given as accepted, and no cell has learned, it names to be finished as if it had accepted it itself:
those that leave are not asked any more.

A node forgets what it did not own any more before it is given the same slot anew: what it has of
it may have been collected everywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from services.core.ballots import READ, decode_seen, encode_read
from services.core.cluster import ClusterMap
from services.core.messages import u16
from services.core.paxos import Seen
from services.core.placement import Placement
from services.core.ring import slot_of
from services.core.wire import OK, Role
from services.dhtnode import frame
from services.dhtnode.promises import encode_accepted
from services.runtime.clock import FakeClock
from services.runtime.fake_link import FakeLink
from services.runtime.link import Station
from services.runtime.opening import Identity
from tests.simulation.machines import NodeMachine, Site
from tests.simulation.node_life import secret

look_s = 0.1
ask_s = 0.5


@dataclass(slots=True)
class Rules:
    """How a new owner is provided for; less than the default is too little."""

    floor: bool = True
    # Read from a majority of the old owners and every leaving one, or from the first that answers.
    every_source: bool = True


@dataclass(slots=True)
class Move:
    """A slot on its way to one node."""

    slot: int
    target: str
    placement: Placement
    # By old owner, what it holds of each key.
    found: dict[str, dict[bytes, Seen]] = field(default_factory=dict)
    done: bool = False
    # The life of the target in which what was found was logged, and the last sequence of it.
    logged: tuple[int, int] | None = None


class Operator:
    def __init__(
        self,
        site: Site,
        nodes: list[NodeMachine],
        keys: list[bytes],
        rules: Rules | None = None,
    ) -> None:
        self.site = site
        self.nodes = nodes
        self.rules = rules or Rules()
        self.clock = FakeClock(site.timeline)
        self.station = Station(Identity(Role.TOOL, "operator", secret))
        self.moves: list[Move] = []
        self.joint: ClusterMap | None = None
        # While not, a change stays joint, also when all its data have moved.
        self.may_finish = True
        self._keys: dict[int, list[bytes]] = {}
        for key in keys:
            self._keys.setdefault(slot_of(key), []).append(key)
        self._links: dict[str, FakeLink] = {}
        site.back.attach(self.station, self.clock)

    @property
    def busy(self) -> bool:
        return self.joint is not None

    def begin(self, current: ClusterMap, members: list[NodeMachine]) -> None:
        """Lead from the present members to these."""
        joint = current.begin_change(machine.member for machine in members)
        self.joint = joint
        self.moves = []
        for slot in self._keys:
            placement = joint.placements[slot]
            for bit, name in enumerate(placement.owners):
                if not placement.old_mask >> bit & 1:
                    self.moves.append(Move(slot, name, placement))
        # A node knows that it is not ready before it hears of the epoch.
        for machine in self.nodes:
            machine.be_not_ready({move.slot for move in self.moves if move.target == machine.name})
        self.site.store.publish(joint)
        self._look()

    def _look(self) -> None:
        assert self.joint is not None
        for move in self.moves:
            if not move.done:
                self._go_on(move)
        if self.may_finish and all(move.done for move in self.moves):
            self.site.store.publish(self.joint.finish_change())
            self.joint = None
        else:
            self.clock.call_later(look_s, self._look)

    def _go_on(self, move: Move) -> None:
        if self._sufficient(move):
            self._provide(move)
            return
        assert self.joint is not None
        owners = move.placement.owners
        for bit, name in enumerate(owners):
            if move.placement.old_mask >> bit & 1 and name not in move.found:
                found: dict[bytes, Seen] = {}
                for key in self._keys[move.slot]:
                    heard = partial(self._heard, move, name, found, key)
                    message = encode_read(self.joint.epoch, key)
                    self._link(name).request(READ, message, heard, ask_s)

    def _heard(
        self, move: Move, name: str, found: dict[bytes, Seen], key: bytes, kind: int, body: bytes
    ) -> None:
        if kind == OK:
            found[key] = decode_seen(body)
            if len(found) == len(self._keys[move.slot]):
                move.found.setdefault(name, found)

    def _sufficient(self, move: Move) -> bool:
        if not self.rules.every_source:
            return bool(move.found)
        placement = move.placement
        read = placement.mask(move.found)
        leaving = placement.old_mask & ~placement.new_mask
        return placement.is_old_quorum(read) and not leaving & ~read

    def _provide(self, move: Move) -> None:
        """Have the new owner log what was found, and be ready once that is durable."""
        machine = self._machine(move.target)
        life = machine.node
        if life is None or life.ended or machine.paused:
            return
        if move.logged is None or move.logged[0] != machine.lives:
            life.wipe(move.slot)
            for kind, body in self._frames(move):
                life.replica.replay(kind, body)
                life.log.append(kind, body)
            for _ in life.acceptor.settle():
                pass
            move.logged = machine.lives, life.log.next_sequence - 1
        if life.log.durable_sequence < move.logged[1]:
            return
        move.done = True
        machine.be_ready(move.slot)
        self.site.count("slots moved")

    def _frames(self, move: Move) -> list[tuple[int, bytes]]:
        frames: list[tuple[int, bytes]] = []
        sources = list(move.found.values())
        floor = max(seen.floor for found in sources for seen in found.values())
        if self.rules.floor and any(floor):
            frames.append((frame.FLOOR, u16.pack(move.slot) + floor))
        for key in self._keys[move.slot]:
            held = [found[key] for found in sources]
            accepted = max(held, key=lambda seen: seen.ballot)
            if any(accepted.ballot):
                body = encode_accepted(accepted.ballot, accepted.operation, key, accepted.record)
                frames.append((frame.ACCEPTED, body))
            cell = max(seen.cell for seen in held)
            if cell:
                frames.append((frame.RECORD, u16.pack(len(key)) + key + cell))
        return frames

    def _machine(self, name: str) -> NodeMachine:
        return next(machine for machine in self.nodes if machine.name == name)

    def _link(self, name: str) -> FakeLink:
        link = self._links.get(name)
        if link is None:
            link = self._links[name] = FakeLink(self.site.back, "operator", name)
            link.start()
        return link
