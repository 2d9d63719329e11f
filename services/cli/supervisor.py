"""Start a table of services in order, keep them up, and stop them in order.

start     stage by stage; a stage begins when every row of the one before is ready
keep up   a service that dies is named and started again; the others go on. When one is given up
          is in process.py, what that means for all in standing.py, and what those lack who are
          up in lookout.py
stop      the stages backwards, each with a limit to its time

A stop has `stop_s_max`. A stage may use all that is left of it but what the stages after it need
at least, counting only those with somebody alive. Who is asked to stop gets SIGTERM; shortly
before the stage's time is up SIGTERM once more, at which services end their drain and PostgreSQL
stops without a checkpoint; then SIGKILL. With every stage there the gateway has 5.8 s, and is
hurried after 5.3 s: longer than the longest request. Nobody else needs to know these figures.
"""

from __future__ import annotations

import asyncio
import os
import random
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from services.cli.announcement import up_document, where_everything_is
from services.cli.datadir import DataDirectory
from services.cli.demo import DemoNews
from services.cli.logs import RotatingFile, ServiceLog, Terminal
from services.cli.lookout import Lookout
from services.cli.ports import refuse_taken_ports
from services.cli.process import Child, Surroundings
from services.cli.rows import Row, Stage
from services.cli.standing import is_ready, no_going_on, together, troubles
from services.cli.stop_requests import StopRequests
from services.core.errors import FatalError

# Ctrl-C is promised to be done within 10 s; the rest is for the last kills and for our own end.
stop_s_max = 9.0
# What the earlier stages of a stop must leave for each later one, however slow they are. Asked
# by nobody any more, a service ends at once; PostgreSQL writes a checkpoint, mostly in 0.2 s.
stop_reserve_s_default = 0.3
stop_reserves_s = {Stage.DATABASE: 2.0}
# How long before the end of its time a child is asked again; of a short time, half.
hurry_s = 0.5
# A killed process is gone at once, unless the kernel itself is stuck in it.
kill_s_max = 0.5
# What a stalled terminal gets to show the last lines.
drain_s_max = 0.3


async def no_demo() -> DemoNews:
    return DemoNews()


async def supervise(
    rows: Sequence[Row],
    directory: DataDirectory,
    *,
    host: str,
    environment: Mapping[str, str],
    find_demo: Callable[[], Awaitable[DemoNews]] = no_demo,
    terminal_fd: int = 1,
) -> None:
    """Run the rows until asked to stop. FatalError when that can't be, with all stopped.

    `host` is where services listen: nothing is started unless every port of the table is free
    there and no row refuses. `find_demo` is asked once all are up, for the demo account that goes
    with them. The directory stays the caller's to close.
    """
    terminal = Terminal(terminal_fd)
    log = ServiceLog("up", RotatingFile(directory.logs / "up.log"), terminal)
    # Nothing is ever written: its end is the message. The writing end closes on exec, so that
    # no child can keep it open.
    reading_end, writing_end = os.pipe()
    try:
        children_lock = await directory.outlast_leftovers(log.say)
        refuse_taken_ports(host, {p: owner for row in rows for p, owner in row.ports().items()})
        for row in rows:
            if row.refuse is not None:
                row.refuse()
        with StopRequests(log.say) as requests:
            supervisor = Supervisor(rows, directory, terminal, log, requests)
            await supervisor.run(environment, reading_end, (children_lock,), find_demo)
    finally:
        log.close()
        await terminal.drain(drain_s_max)
        terminal.close()
        os.close(writing_end)
        os.close(reading_end)


class Supervisor:
    """All children of one `ydht up`, from the first start to the last end."""

    def __init__(
        self,
        rows: Sequence[Row],
        directory: DataDirectory,
        terminal: Terminal,
        log: ServiceLog,
        requests: StopRequests,
    ) -> None:
        self._rows = rows
        self._directory = directory
        self._terminal = terminal
        self._log = log
        self._requests = requests
        self._children: dict[str, Child] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._lookout = Lookout(self._children, log.say, self._changed)
        self._demo = DemoNews()
        # Between the end of the start and the beginning of the stop.
        self._published = False
        self._ready = False
        self._failure: FatalError | None = None
        # There is no going on: because of a failure, or of a bug in watching somebody.
        self._broken = asyncio.Event()

    async def run(
        self,
        environment: Mapping[str, str],
        supervisor_fd: int,
        inherited_fds: tuple[int, ...],
        find_demo: Callable[[], Awaitable[DemoNews]],
    ) -> None:
        """Start everything, keep it up until asked to stop, and stop it."""
        surroundings = Surroundings(
            environment=environment,
            supervisor_fd=supervisor_fd,
            inherited_fds=inherited_fds,
            luck=random.SystemRandom(),
            on_change=self._changed,
        )
        try:
            await self._start(surroundings)
            if not self._stop_due():
                await _first_of(self._find_demo(find_demo), self._until_stop_due())
            if not self._stop_due():
                await _first_of(self._lookout.settle(), self._until_stop_due())
            if not self._stop_due():
                self._announce()
                await _first_of(self._lookout.keep(), self._until_stop_due())
        finally:
            # In order, whatever happened: a bug of ours is no reason to kill anybody.
            self._withdraw()
            await self._stop()
            ended = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        bugs = [bug for bug in ended if isinstance(bug, Exception)]
        if bugs:
            raise ExceptionGroup("services were stopped because of bugs in watching them", bugs)
        if self._failure is not None:
            raise self._failure

    async def _start(self, surroundings: Surroundings) -> None:
        """Start stage after stage, until all are ready, one fails, or a stop is due."""
        for stage in sorted({row.stage for row in self._rows}):
            started = []
            for row in (row for row in self._rows if row.stage is stage):
                self._log.say(f"starting {row.name}")
                file = RotatingFile(self._directory.logs / f"{row.name}.log")
                child = Child(row, ServiceLog(row.name, file, self._terminal), surroundings)
                self._children[row.name] = child
                self._tasks[row.name] = task = asyncio.create_task(child.keep())
                task.add_done_callback(self._kept)
                started.append(child)
            await self._until_started(started)
            if self._stop_due():
                return

    async def _find_demo(self, find: Callable[[], Awaitable[DemoNews]]) -> None:
        """Without a demo account everything is up all the same."""
        try:
            self._demo = await find()
        except Exception as bug:
            for line in "".join(traceback.format_exception(bug)).splitlines():
                self._log.say(line)
            self._demo = DemoNews(remarks=(f"no demo account: looking for it failed with {bug!r}",))

    async def _until_started(self, children: Sequence[Child]) -> None:
        """Wait until all of a stage are ready or failed, or a stop is due.

        One that is needed, of this stage or of one before, is given up when it fails, and with
        that a stop is due.
        """
        stop_due = asyncio.create_task(self._until_stop_due())
        try:
            waiting = {child.started for child in children}
            while waiting and not stop_due.done():
                either: set[asyncio.Future[Any]] = {*waiting, stop_due}
                done, _ = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                waiting -= done
                failed = [why for child in children if (why := _why_failed(child))]
                if len(failed) == len(children):
                    self._fail(together(failed))
        finally:
            stop_due.cancel()
            await asyncio.wait([stop_due])

    def _kept(self, task: asyncio.Task[None]) -> None:
        """A child is kept no more; after a bug everything is stopped, and then it is raised."""
        if not task.cancelled() and task.exception() is not None:
            self._broken.set()

    def _fail(self, failure: FatalError) -> None:
        """Stop everything because of this; the first one counts."""
        if self._failure is None:
            self._failure = failure
        self._broken.set()

    def _stop_due(self) -> bool:
        return self._requests.first.is_set() or self._broken.is_set()

    async def _until_stop_due(self) -> None:
        await _first_of(self._requests.first.wait(), self._broken.wait())

    async def _stop(self) -> None:
        """Stop the stages backwards. However slow one is, the later ones have their reserve."""
        until_s = asyncio.get_running_loop().time() + stop_s_max
        for stage in sorted({child.row.stage for child in self._alive()}, reverse=True):
            alive = self._alive()
            later = {child.row.stage for child in alive if child.row.stage < stage}
            await self._stop_stage(
                [child for child in alive if child.row.stage is stage],
                until_s - sum(stop_reserves_s.get(each, stop_reserve_s_default) for each in later),
                self._requests.third if stage is Stage.DATABASE else self._requests.second,
            )

    def _alive(self) -> list[Child]:
        return [child for child in self._children.values() if not child.ended.is_set()]

    async def _stop_stage(
        self, children: Sequence[Child], until_s: float, kill: asyncio.Event
    ) -> None:
        """Ask, ask again, and kill: in the end all have ended, or nobody waits for them."""
        if not children:
            return
        self._log.say(f"stopping {_names(children)}")
        for child in children:
            child.ask_to_stop()
        left_s = max(0.0, until_s - asyncio.get_running_loop().time())
        late = await _not_ended(children, left_s - min(hurry_s, left_s / 2), kill)
        if late and not kill.is_set():
            for child in late:
                child.ask_to_stop()
            late = await _not_ended(late, until_s - asyncio.get_running_loop().time(), kill)
        if not late:
            return
        why = "as you asked" if kill.is_set() else "not stopped in time"
        self._log.say(f"killing {_names(late)}: {why}")
        for child in late:
            child.kill()
        for child in await _not_ended(late, kill_s_max, asyncio.Event()):
            self._log.say(f"{child.row.name} (pid {child.pid}) did not end when killed")
            task = self._tasks[child.row.name]
            task.cancel()
            await asyncio.wait([task])

    def _pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self._children.items() if child.pid is not None}

    def _announce(self) -> None:
        """The start is over: say where everything is, and from now on keep `up.json` true."""
        self._published = True
        down = troubles(self._children.values())
        self._ready = is_ready(self._rows, down)
        self._publish(down)
        pids, lacking, place = self._pids(), self._lookout.lacking, self._directory.path
        text = where_everything_is(self._rows, pids, down, lacking, place, self._demo)
        # Not by the log: the demo's password and API key are for who sits here.
        self._terminal.print(text)

    def _changed(self) -> None:
        """A child came up, went down, or was given up."""
        if (failure := no_going_on(list(self._children.values()))) is not None:
            self._fail(failure)
        if not self._published:
            return
        down = troubles(self._children.values())
        ready = is_ready(self._rows, down)
        if ready != self._ready:
            self._ready = ready
            self._log.say("ready again" if ready else f"not ready without {', '.join(down)}")
        self._publish(down)

    def _withdraw(self) -> None:
        """A stop begins: nobody may take it for ready any more."""
        self._published = False
        try:
            self._directory.forget()
        except OSError as error:
            self._log.say(f"up.json can't be removed: {error.strerror}")

    def _publish(self, down: Mapping[str, str]) -> None:
        try:
            lacking = self._lookout.lacking
            demo = self._demo.demo
            self._directory.publish(up_document(self._rows, self._pids(), down, lacking, demo))
        except OSError as error:
            # The services do well without it; a full disk has louder witnesses.
            self._log.say(f"up.json can't be written: {error.strerror}")


def _why_failed(child: Child) -> FatalError | None:
    return child.started.result() if child.started.done() else None


def _names(children: Sequence[Child]) -> str:
    return ", ".join(child.row.name for child in children)


async def _not_ended(
    children: Sequence[Child], seconds: float, enough: asyncio.Event
) -> list[Child]:
    """Those that have not ended after so many seconds, or as soon as there is enough of waiting."""

    async def all_ended() -> None:
        for child in children:
            await child.ended.wait()

    await _first_of(all_ended(), enough.wait(), seconds=max(0.0, seconds))
    return [child for child in children if not child.ended.is_set()]


async def _first_of(*works: Coroutine[Any, Any, object], seconds: float | None = None) -> None:
    """Return when one of them is through, or the time is; the others are cancelled. What one
    raises is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
