"""Finishing what died in the middle: keys that were accepted somewhere and never learned.

A coordinator may end after a majority has accepted its change and before it told anybody, and
then strong reads see the change and eventual ones do not. Acceptors remember such keys. Every
node is asked for its own in turn, and each key is put through an operation that changes nothing:
whatever was chosen is chosen once more, and learned.

Acceptors also name keys of which they have accepted a value that has expired since. The same
operation chooses a tombstone in its place, and only that lets them free the value.

Only the owners of a key are heard of it. What was chosen a majority of them has accepted, and they
name it themselves. What others have left of a slot that was theirs is never finished by asking its
owners: it would be named for ever, and each time leave those with a promise of a key that they have
collected long ago.

Several replicators may do so at once: they stand in each other's way for a moment, and no more.
"""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import Final

from services.core.ballots import UNLEARNED, encode_unlearned
from services.core.change import Changed
from services.core.errors import PeerError
from services.core.hlc import Version, version_ms
from services.core.key import check_storage_key
from services.core.messages import decode_get_many
from services.core.record import version
from services.core.ring import slot_of
from services.core.wire import OK
from services.replicator.strong import StrongOperations
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet, FleetNode
from services.runtime.peer import SENT

# Longer than an operation may take: what is older has lost its coordinator.
age_ms: Final = 3_000
# Between two rounds through the nodes, give or take a quarter, so that replicators do not keep
# meeting each other.
round_s: Final = 1.0
# So many keys of one node in a round; with two round trips each, a thousand take half a second.
keys_max: Final = 1_000
# A small part of what a replicator has under way, so that clients do not feel it.
at_once: Final = 32
ask_s: Final = 1.0

log = telemetry.logger(__name__)

# What is left by the dead is older than age_ms. If what is there is younger than this, which leaves
# room for clocks that differ, somebody else was here first.
_young_ms: Final = age_ms // 2
_had_expired: Final = b"expired"
_was_replaced: Final = b"replaced"


def finish(current: bytes, ballot: Version) -> Changed:
    """Change nothing, and answer what has become of the key: b"" if it was finished."""
    outcome = b""
    if current and version(current) == ballot:
        # The tombstone that takes the place of an expired value.
        outcome = _had_expired
    elif current and version_ms(ballot) - version_ms(version(current)) < _young_ms:
        outcome = _was_replaced
    return None, (OK, outcome)


class Sweeper:
    def __init__(
        self, fleet: Fleet, strong: StrongOperations, clock: Clock, draw: random.Random
    ) -> None:
        # Operations of dead coordinators that were brought to an end, expired values that became
        # tombstones, and keys with which neither could be done, for want of a quorum. What another
        # replicator or a client has done meanwhile is none of them.
        self.finished = 0
        self.expired = 0
        self.unfinished = 0
        self._fleet = fleet
        self._strong = strong
        self._clock = clock
        self._draw = draw
        # Of this round: the nodes that are still to be asked, the keys of the one asked last.
        self._nodes: deque[FleetNode] = deque()
        self._keys: deque[bytes] = deque()
        self._under_way = 0
        self._beginning = False
        self._stopped = False

    def start(self) -> None:
        self._pause()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True
        self._nodes.clear()
        self._keys.clear()

    def _pause(self) -> None:
        if not self._stopped:
            self._clock.call_later(round_s * self._draw.uniform(0.75, 1.25), self._round)

    def _round(self) -> None:
        self._nodes.extend(node for node in self._fleet.nodes.values() if node.live)
        self._next_node()

    def _next_node(self) -> None:
        """Ask the next node that can be asked. What one had is settled before the next is asked,
        so that it is not told of the same keys again."""
        while self._nodes:
            node = self._nodes.popleft()
            message = encode_unlearned(age_ms, keys_max)
            if node.link.request(UNLEARNED, message, partial(self._told, node), ask_s) == SENT:
                return
        self._pause()

    def _told(self, node: FleetNode, kind: int, body: bytes) -> None:
        if self._stopped:
            return
        if kind == OK:
            try:
                keys = [check_storage_key(key) for key in decode_get_many(body)]
            except PeerError as error:
                log.warning("no list of keys", node=node.node_id, reason=str(error))
                keys = []
            # One that our map is too old to know for an owner names them again.
            keys = [key for key in keys if self._is_owner(node, key)]
            if keys:
                log.debug("finishing what was left", node=node.node_id, keys=len(keys))
            # Not in the order in which another replicator has them.
            self._draw.shuffle(keys)
            self._keys.extend(keys)
        self._begin_more()

    def _is_owner(self, node: FleetNode, key: bytes) -> bool:
        """By the newest map, and while it is joint also one that is, or comes, on its way."""
        return node.node_id in self._fleet.route(slot_of(key)).placement.owners

    def _begin_more(self) -> None:
        """One may end at once, as without a quorum; it then has a turn in this loop."""
        if self._beginning:
            return
        self._beginning = True
        while self._keys and self._under_way < at_once:
            self._under_way += 1
            self._strong.change(self._keys.popleft(), finish, self._ended, grows=False)
        self._beginning = False
        if not self._keys and not self._under_way and not self._stopped:
            self._next_node()

    def _ended(self, kind: int, body: bytes) -> None:
        self._under_way -= 1
        if kind != OK:
            self.unfinished += 1
        elif body == _had_expired:
            self.expired += 1
        elif body != _was_replaced:
            self.finished += 1
        self._begin_more()
