"""The queue of what takes a node long: listings, digests, messages about many keys.

The loop is held by one of these at a time, for about a millisecond in a turn, however many wait;
between two turns it reads, answers and commits. Work is a generator that replies itself and stops
wherever it may be interrupted, at the latest after a millisecond or two. Works take turns, so
that a short one is not kept waiting by all of a long one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from services.core.errors import PeerError
from services.core.wire import FAILED, OVERLOADED
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.link_limits import LinkCounters
from services.runtime.peer import Peer

# With the step that exceeds it, half of what may hold the loop at the longest.
turn_s: Final = 0.001
# At a millisecond each the last one is answered when its asker is about to give up.
waiting_max: Final = 2_048

Soon = Callable[[Callable[[], None]], object]
Malformed = Callable[[Peer, int, PeerError], None]


class _Work(NamedTuple):
    peer: Peer
    request_id: int
    steps: Iterator[None]
    changes: bool
    # Something may be changed already: it cannot be said any more that nothing was done.
    begun: bool = False


class Turns:
    """Every request given to `add` is answered once: by its own steps; with OVERLOADED when too
    many wait; by `malformed` when a step raises PeerError; and with FAILED after a bug.

    A peer that is parting, or gone, is answered OVERLOADED without more work, as nothing was done
    for it; only work that `changes` something goes on to its end once it has begun.
    """

    def __init__(
        self, clock: Clock, soon: Soon, malformed: Malformed, counters: LinkCounters
    ) -> None:
        self._clock = clock
        self._soon = soon
        self._counters = counters
        self._malformed = malformed
        self._waiting: deque[_Work] = deque()
        self._turning = False
        self._said = telemetry.logger("services.dhtnode")

    def add(
        self, peer: Peer, request_id: int, steps: Iterator[None], *, changes: bool = False
    ) -> None:
        if len(self._waiting) >= waiting_max:
            self._counters.overloaded += 1
            peer.reply(request_id, OVERLOADED, b"")
            return
        self._waiting.append(_Work(peer, request_id, steps, changes))
        self._go_on()

    def _go_on(self) -> None:
        if self._waiting and not self._turning:
            self._turning = True
            self._soon(self._turn)

    def _turn(self) -> None:
        now_s = self._clock.monotonic_s
        until_s = now_s() + turn_s
        try:
            while self._waiting:
                rest = self._advance(self._waiting.popleft(), until_s)
                if rest is not None:
                    self._waiting.append(rest)
                if now_s() >= until_s:
                    break
        finally:
            # Whatever happens to one, the others have their turn.
            self._turning = False
            self._go_on()

    def _advance(self, work: _Work, until_s: float) -> _Work | None:
        """Do some of it; what is left to do, if anything."""
        peer, request_id = work.peer, work.request_id
        if not (peer.connected or work.begun):
            peer.reply(request_id, OVERLOADED, b"")
            return None
        now_s = self._clock.monotonic_s
        try:
            for _ in work.steps:
                if now_s() >= until_s:
                    return work._replace(begun=work.changes)
        except PeerError as error:
            self._malformed(peer, request_id, error)
        except Exception:
            # As a link does: a bug in one request fails that request alone.
            self._counters.bugs += 1
            self._said.exception("a request over a link failed", peer=peer.hello.id)
            peer.reply(request_id, FAILED, b"")
        return None
