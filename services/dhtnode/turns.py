"""The queue of what takes a node long: listings, digests, messages about many keys.

The loop is held by one of these at a time, for about a millisecond in a turn, however many wait;
between two turns it reads, answers and commits. Work is a generator that answers itself and stops
wherever it may be interrupted, at the latest after a millisecond or two.

There are two lanes. What clients wait for, writes and reads of many keys, has the first part of
each turn; whatever else there is has the rest, and one step at least, so that neither lane keeps
the other one waiting. In a lane a few works take turns, so that a short one does not wait for all
of a long one. The others are not begun: a listing that is half done holds a thousand objects, and
of two thousand listings the garbage collector would walk through all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from services.core.errors import RetryLater
from services.runtime.clock import Clock

# With the step that exceeds it, half of what may hold the loop at the longest.
turn_s: Final = 0.001
# What the first lane may take of a turn while there is work in the other one.
first_s: Final = 0.000_75
# Of each lane.
side_by_side_max: Final = 4
# Of each lane, so that listings never have a write refused. At a millisecond each the last one is
# answered when its asker is about to give up.
waiting_max: Final = 2_048
# As much as a good disk takes in half a second.
waiting_bytes_max: Final = 64 << 20

Soon = Callable[[Callable[[], None]], object]


class Asker(Protocol):
    """Whom a work is for."""

    @property
    def waiting(self) -> bool:
        """Whether anybody still wants to hear of it."""
        ...

    def dropped(self) -> None:
        """It will not be gone on with, as nobody waits; nothing was done."""
        ...

    def failed(self, error: Exception) -> None:
        """A step raised this, in the context of which it is called."""
        ...


@dataclass(slots=True, eq=False)
class _Work:
    asker: Asker
    steps: Iterator[None]
    size_bytes: int
    changes: bool
    # Something may be changed already: it cannot be said any more that nothing was done.
    begun: bool = False


class Turns:
    """Of every work that `add` takes its asker hears once: by its own steps, by `failed`, or by
    `dropped`.

    For an asker that does not wait any more no work is done; only what `changes` something goes on
    to its end once it has begun.
    """

    def __init__(self, clock: Clock, soon: Soon) -> None:
        self._monotonic_s = clock.monotonic_s
        self._soon = soon
        self._first = _Lane(clock.monotonic_s)
        self._others = _Lane(clock.monotonic_s)
        self._turning = False

    def add(
        self,
        asker: Asker,
        steps: Iterator[None],
        *,
        size_bytes: int = 0,
        first: bool = False,
        changes: bool = False,
    ) -> bool:
        """Have these steps made. False, and none of them will be, if too many wait already.

        `size_bytes` is what the work holds while it waits.
        """
        lane = self._first if first else self._others
        if not lane.take(_Work(asker, steps, size_bytes, changes)):
            return False
        self._go_on()
        return True

    async def do(self, steps: Iterator[None]) -> None:
        """Return once these steps are made; what one of them raises is raised here. RetryLater if
        too many works wait already."""
        visitor = _Visitor()
        if not self.add(visitor, visitor.see(steps)):
            raise RetryLater("overloaded", "too many listings and the like are waiting already")
        await visitor.seen

    def _go_on(self) -> None:
        if (self._first or self._others) and not self._turning:
            self._turning = True
            self._soon(self._turn)

    def _turn(self) -> None:
        now_s = self._monotonic_s()
        try:
            self._first.turn(now_s + (first_s if self._others else turn_s))
            self._others.turn(now_s + turn_s)
        finally:
            # Whatever happens to one, the others have their turn.
            self._turning = False
            self._go_on()


class _Lane:
    """Works of one urgency, of which a few are begun."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._begun: deque[_Work] = deque()
        self._waiting: deque[_Work] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._begun or self._waiting)

    def take(self, work: _Work) -> bool:
        """Whether there was room for it."""
        if (
            len(self._begun) + len(self._waiting) >= waiting_max
            or self._bytes + work.size_bytes > waiting_bytes_max
        ):
            return False
        self._bytes += work.size_bytes
        self._waiting.append(work)
        return True

    def turn(self, until_s: float) -> None:
        """Make steps until then, and one at least if there is any."""
        while self:
            while self._waiting and len(self._begun) < side_by_side_max:
                self._begun.append(self._waiting.popleft())
            work = self._begun.popleft()
            more = False
            try:
                more = self._advance(work, until_s)
            finally:
                if more:
                    self._begun.append(work)
                else:
                    self._bytes -= work.size_bytes
            if self._monotonic_s() >= until_s:
                break

    def _advance(self, work: _Work, until_s: float) -> bool:
        """Do some of it; whether there may be more to do."""
        if not (work.asker.waiting or work.begun):
            work.asker.dropped()
            return False
        work.begun = work.changes
        try:
            for _ in work.steps:
                if self._monotonic_s() >= until_s:
                    return True
        except Exception as error:
            # A bug in one request fails that request alone, and its asker says so.
            work.asker.failed(error)
        return False


class _Visitor:
    """Somebody in this process who awaits a work."""

    def __init__(self) -> None:
        self.seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def see(self, steps: Iterator[None]) -> Iterator[None]:
        yield from steps
        self.seen.set_result(None)

    @property
    def waiting(self) -> bool:
        return not self.seen.done()

    def dropped(self) -> None:
        """Who has given up needs no answer."""

    def failed(self, error: Exception) -> None:
        self.seen.set_exception(error)
