"""Background work with an owner: named loops that are restarted when they fail.

    async with Loops(fail, clock) as loops:
        loops.start("repair", repair.run)

A loop that raises is logged, counted, and started again after a pause that doubles up to a limit.
A loop that raises FatalError, alone or in the group of its own tasks' errors, ends the process
by way of `fail`. One that returns is finished.
Leaving the block cancels all and waits for each. A CancelledError that is not this is raised by
what a loop has awaited, when somebody else cancelled that: a failure like any other.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType

from services.core.errors import FatalError
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.metrics import Metrics

# Soon enough to ride out a lost connection, seldom enough that a broken loop costs nothing.
pause_s_min = 0.1
pause_s_max = 30.0
# A loop that ran this long was well: its next failure begins with the shortest pause.
well_after_s = 60.0


class Loops:
    """The background loops of a process; use as an async context manager, in one task."""

    def __init__(
        self,
        fail: Callable[[FatalError], None],
        clock: Clock,
        rng: random.Random | None = None,
    ) -> None:
        self._fail = fail
        self._clock = clock
        # Jitter only has to differ between processes.
        self._rng = rng or random.Random()  # noqa: S311
        self._group = asyncio.TaskGroup()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._log = telemetry.logger("services.loops")
        self.restarts: Counter[str] = Counter()

    async def __aenter__(self) -> Loops:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks.values():
            task.cancel()
        await self._group.__aexit__(kind, error, traceback)

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        if name in self._tasks:
            raise ValueError(f"the loop {name} is there already")
        self._tasks[name] = self._group.create_task(self._supervise(name, run), name=name)

    @property
    def running(self) -> int:
        return sum(not task.done() for task in self._tasks.values())

    def add_to(self, metrics: Metrics) -> None:
        metrics.add("loops_running", "gauge", "Background loops running", lambda: self.running)
        metrics.add(
            "loop_restarts",
            "counter",
            "Restarts of background loops after an unexpected error",
            lambda: self.restarts,
            labels=("loop",),
        )

    async def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        pause_s = pause_s_min
        while True:
            began_s = self._clock.monotonic_s()
            try:
                await run()
            except FatalError as error:
                self._fail(error)
                return
            except (Exception, asyncio.CancelledError) as error:
                if (fatal := _fatal_in(error)) is not None:
                    # The group may hold a bug as well, which nobody else would hear of.
                    self._log.exception("loop failed for good", loop=name)
                    self._fail(fatal)
                    return
                if _is_being_cancelled():
                    if isinstance(error, asyncio.CancelledError):
                        raise
                    self._log.exception("loop failed while it was ended", loop=name)
                    return
                # One part's bug must not take down the others; it is logged, counted and paced.
                if self._clock.monotonic_s() - began_s >= well_after_s:
                    pause_s = pause_s_min
                self.restarts[name] += 1
                jittered_s = pause_s * self._rng.uniform(0.5, 1.0)
                self._log.exception("loop failed", loop=name, restart_in_s=round(jittered_s, 3))
            else:
                return
            await self._pause(jittered_s)
            pause_s = min(pause_s * 2, pause_s_max)

    async def _pause(self, seconds: float) -> None:
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        timer = self._clock.call_later(seconds, end)
        try:
            await over
        finally:
            timer.cancel()


def _fatal_in(error: BaseException) -> FatalError | None:
    """The first FatalError of a group, which a loop with a TaskGroup of its own raises."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_fatal_in, error.exceptions)), None)
    return error if isinstance(error, FatalError) else None


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
