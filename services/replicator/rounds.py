"""Asking several nodes at once, again and again, as one story told from its beginning to its end.

What is asked in rounds is a generator: it yields the questions of a round, is sent the answers to
all of them in the same order, and yields the next ones.

    answers = yield [Ask(node, LEAVES, …), Ask(other, LEAVES, …)]

A question that could not be sent is answered with why not (DOWN, OVERLOADED), one that was lost
with LOST, TIMEOUT or FAILED: every round ends. There is no task and no future in this, so that a
simulation runs it on its own time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

from services.core.wire import DOWN
from services.replicator.pace import Pace
from services.runtime.clock import Clock, Timer
from services.runtime.fleet import FleetNode
from services.runtime.peer import SENT

T = TypeVar("T")
Answer = tuple[int, bytes]
# A node has to write a message of records behind what else waits for its disk.
answer_s_max: Final = 5.0


class Ask(NamedTuple):
    """A question to a node, and what it costs there in records."""

    node: FleetNode
    kind: int
    body: bytes
    records: int = 1


Rounds = Generator[Sequence[Ask], list[Answer], T]


class Course(Generic[T]):
    """Has the rounds made at a pace; `ended` hears what they return, or None after a bug in them,
    which is raised to whoever brought the answer."""

    def __init__(
        self, rounds: Rounds[T], pace: Pace, clock: Clock, ended: Callable[[T | None], None]
    ) -> None:
        self._rounds = rounds
        self._pace = pace
        self._clock = clock
        self._ended = ended
        self._answers: list[Answer] = []
        self._waiting = 0
        self._timer: Timer | None = None
        self._stopped = False

    def start(self) -> None:
        self._go_on(partial(next, self._rounds))

    def stop(self) -> None:
        """Ask nothing more; nobody hears of it."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._rounds.close()

    def _go_on(self, step: Callable[[], Sequence[Ask]]) -> None:
        """Take the rounds' next questions, and ask them when the pace allows it."""
        try:
            asks = step()
        except StopIteration as end:
            self._ended(end.value)
            return
        except BaseException:
            self._ended(None)
            raise
        wait_s = self._pace.wait_s if asks else 0.0
        # Never at once: a story whose nodes are all away would be told in one turn of the loop.
        self._timer = self._clock.call_later(wait_s, partial(self._send, asks))

    def _send(self, asks: Sequence[Ask]) -> None:
        self._timer = None
        self._answers = [(DOWN, b"")] * len(asks)
        # One more until all are sent: a lost link may answer meanwhile.
        self._waiting = 1
        for place, ask in enumerate(asks):
            heard = partial(self._heard, place)
            sent = ask.node.link.request(ask.kind, ask.body, heard, answer_s_max)
            if sent == SENT:
                self._waiting += 1
                self._pace.spend(ask.records, len(ask.body))
            else:
                self._answers[place] = sent, b""
        self._settle()

    def _heard(self, place: int, kind: int, body: bytes) -> None:
        if self._stopped:
            return
        self._answers[place] = kind, body
        self._pace.spend(0, len(body))
        self._settle()

    def _settle(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._go_on(partial(self._rounds.send, self._answers))
