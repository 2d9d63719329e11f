"""The last word on the keys of a slot that are over: all replicas drop them.

It may be said at any time and as often as need be, in any epoch, for it is about a floor that all
replicas have set. So a replica that does not take it is told again, for a while. If it never does,
it holds tombstones that the others dropped: comparing replicas finds that, and another session
brings them back to all and drops them everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from services.core.ballots import NACK
from services.core.collecting import Over
from services.core.hlc import Version
from services.core.messages import items_max
from services.core.sessions import PURGE, encode_purge
from services.core.wire import OK
from services.replicator.answers import Failures
from services.replicator.collection_asking import answer_s
from services.runtime.clock import Clock
from services.runtime.fleet import FleetNode
from services.runtime.peer import SENT

# Between tries: the first is for one that has too much to do, the last for one that restarts.
pauses_s: Final = (0.1, 0.5, 1.0, 2.0)


class Purging:
    """`done` hears whether all replicas have dropped everything, and if not, why. Messages follow
    one another, and a replica that does not take one is spared the others, as are the rest."""

    def __init__(
        self,
        slot: int,
        session: Version,
        keys: Sequence[Over],
        nodes: Sequence[FleetNode],
        clock: Clock,
        done: Callable[[Failures | None], None],
    ) -> None:
        self._slot = slot
        self._session = session
        self._keys = keys
        self._nodes = nodes
        self._clock = clock
        self._done = done
        self._next = 0
        self._awaited = 0
        self._failures = Failures()
        self._abandoned = False

    def begin(self) -> None:
        if self._failures.by_node:
            self._done(self._failures)
            return
        if self._next >= len(self._keys):
            self._done(None)
            return
        keys = self._keys[self._next : self._next + items_max]
        self._next += items_max
        body = encode_purge(self._slot, self._session, keys)
        self._awaited = len(self._nodes)
        for node in self._nodes:
            self._tell(node, body, 0)

    def abandon(self) -> None:
        """Say nothing more."""
        self._abandoned = True

    def _tell(self, node: FleetNode, body: bytes, tries: int) -> None:
        if self._abandoned:
            return
        told = partial(self._told, node, body, tries)
        asked = node.link.request(PURGE, body, told, answer_s)
        if asked != SENT:
            self._told(node, body, tries, asked, b"")

    def _told(self, node: FleetNode, body: bytes, tries: int, kind: int, answer: bytes) -> None:
        if kind != OK:
            if kind != NACK and tries < len(pauses_s):
                again = partial(self._tell, node, body, tries + 1)
                self._clock.call_later(pauses_s[tries], again)
                return
            self._failures.note(node.node_id, kind)
        self._awaited -= 1
        if not self._awaited:
            self.begin()
