"""Time, passed in: the real clock, and one that stands still until a test moves it.

A `Clock` tells wall time (for stamps and people), monotonic time (for timeouts) and the time since
the machine has booted (for leases), and runs a callback later. Whatever decides by time and can run
in a simulation takes one. Only the edges that no simulation reaches (real connections, child
processes, the time a request took) ask the event loop or the machine themselves.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol


class Timer(Protocol):
    """A callback that has not run yet."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    def wall_ms(self) -> int:
        """Milliseconds since 1970. May jump either way."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some fixed point. Never goes back."""
        ...

    def boot_s(self) -> float:
        """As `monotonic_s`, from another point, and goes on while the machine is suspended: for
        what others, on other machines, count meanwhile, such as a lease. Takes a little longer."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Run the callback once, `delay_s` from now, unless the timer is cancelled first."""
        ...


class SystemClock:
    """The machine's clock and the running event loop's timers."""

    # Asked several times in each request, and so without a step between: 50 ns instead of 90.
    monotonic_s = staticmethod(time.monotonic)
    # Linux has such a clock; elsewhere a machine that is suspended counts as one that stands still.
    boot_s = staticmethod(
        partial(time.clock_gettime, time.CLOCK_BOOTTIME)
        if sys.platform == "linux"
        else time.monotonic
    )

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay_s, callback)


class Timeline:
    """The one queue of future events that the clocks of a simulation share.

    Events run in order of time, and in order of arrival at equal times, so that a run is a
    function of its seed alone.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, FakeTimer]] = []
        self._order = itertools.count()

    def schedule(self, delay_s: float, callback: Callable[[], None]) -> FakeTimer:
        return self.add(delay_s, FakeTimer(callback))

    def add(self, delay_s: float, timer: FakeTimer) -> FakeTimer:
        if delay_s < 0:
            raise ValueError(f"a delay of {delay_s} s lies in the past")
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._order), timer))
        return timer

    def step(self) -> bool:
        """Run the next event, moving time to it. False when none is left."""
        while self._events:
            at_s, _, timer = heapq.heappop(self._events)
            if timer.callback is not None:
                self.now_s = at_s
                timer.fire()
                return True
        return False

    def advance(self, seconds: float) -> None:
        """Run everything due within the next `seconds`, then stand at the end of them."""
        until_s = self.now_s + seconds
        while self._events:
            at_s, _, timer = self._events[0]
            if timer.callback is None:
                heapq.heappop(self._events)
            elif at_s > until_s:
                break
            else:
                self.step()
        self.now_s = until_s


class FakeTimer:
    """Of a clock, if one was asked for it: then it runs as that says."""

    __slots__ = ("callback", "clock")

    def __init__(self, callback: Callable[[], None], clock: FakeClock | None = None) -> None:
        self.callback: Callable[[], None] | None = callback
        self.clock = clock

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        if self.clock is not None and self.clock.holds(self):
            return
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()


class FakeClock:
    """One process's view of a timeline: its wall clock may be skewed, its timers held or dead.

    `skew_ms` is added to wall time only and may be changed at any moment. While paused, as by
    SIGSTOP, timers that fall due are held and run, in order, on `resume`. After `stop`, as after
    a crash, none runs any more.
    """

    # Stamps of a simulation look like real ones: 2026-01-01T00:00:00Z.
    epoch_ms = 1_767_225_600_000

    def __init__(self, timeline: Timeline, skew_ms: int = 0) -> None:
        self.timeline = timeline
        self.skew_ms = skew_ms
        self._suspended_s = 0.0
        self._stopped = False
        self._paused = False
        self._held: list[FakeTimer] = []

    def wall_ms(self) -> int:
        return self.epoch_ms + int(self.timeline.now_s * 1000) + self.skew_ms

    def monotonic_s(self) -> float:
        return self.timeline.now_s

    def boot_s(self) -> float:
        return self.timeline.now_s + self._suspended_s

    def suspend(self, seconds: float) -> None:
        """The machine has just stood still for so long."""
        self._suspended_s += seconds
        self.skew_ms += round(seconds * 1000)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return self.timeline.add(delay_s, FakeTimer(callback, self))

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        held, self._held = self._held, []
        for timer in held:
            self.timeline.add(0.0, timer)

    def stop(self) -> None:
        self._stopped = True
        self._held = []

    def holds(self, timer: FakeTimer) -> bool:
        """Whether a timer that is due must not run, now or ever."""
        if self._paused:
            self._held.append(timer)
        return self._paused or self._stopped
