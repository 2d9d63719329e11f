"""Start a table of services in order, keep them up, and stop them in order.

start     stage by stage; a stage begins when every row of the one before is ready
keep up   a service that dies is named and started again; the others go on
stop      the stages backwards, each with a limit to its time; who is late is killed
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

from services.cli.announcement import up_document, where_everything_is
from services.cli.datadir import DataDirectory
from services.cli.logs import RotatingFile, ServiceLog, Terminal
from services.cli.ports import refuse_taken_ports
from services.cli.process import Child, Surroundings
from services.cli.rows import Row, Stage
from services.cli.stop_requests import StopRequests
from services.core.errors import FatalError

# Ctrl-C is promised to be done within 10 s; the rest is for the last kills and for our own end.
stop_s_max = 9.0
# What the earlier stages of a stop must leave for each later one, however slow they are.
# PostgreSQL has a checkpoint to write; the others end at once unless something is wrong.
stop_reserve_s_default = 0.5
stop_reserves_s = {Stage.DATABASE: 4.5}
# A killed process is gone at once, unless the kernel itself is stuck in it.
kill_s_max = 0.5
# What a stalled terminal gets to show the last lines.
drain_s_max = 0.3


async def supervise(
    rows: Sequence[Row],
    directory: DataDirectory,
    *,
    host: str,
    environment: Mapping[str, str],
    terminal_fd: int = 1,
) -> None:
    """Run the rows until asked to stop. FatalError when they can't be started, with all stopped.

    `host` is where services listen: nothing is started unless every port of the table is free
    there. The directory stays the caller's to close.
    """
    terminal = Terminal(terminal_fd)
    log = ServiceLog("up", RotatingFile(directory.logs / "up.log"), terminal)
    # Nothing is ever written: its end is the message. The writing end closes on exec, so that
    # no child can keep it open.
    reading_end, writing_end = os.pipe()
    try:
        children_lock = await directory.outlast_leftovers(log.say)
        refuse_taken_ports(host, {p: owner for row in rows for p, owner in row.ports().items()})
        with StopRequests(log.say) as requests:
            supervisor = Supervisor(rows, directory, terminal, log, requests)
            await supervisor.run(environment, reading_end, (children_lock,))
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
        self._ready = False

    async def run(
        self, environment: Mapping[str, str], supervisor_fd: int, inherited_fds: tuple[int, ...]
    ) -> None:
        """Start everything, keep it up until asked to stop, and stop it."""
        surroundings = Surroundings(
            environment=environment,
            supervisor_fd=supervisor_fd,
            inherited_fds=inherited_fds,
            luck=random.SystemRandom(),
            on_pid_change=self._publish,
        )
        async with asyncio.TaskGroup() as group:
            failure = await self._start(group, surroundings)
            if failure is None and not self._requests.first.is_set():
                self._ready = True
                self._publish()
                self._terminal.print(
                    where_everything_is(self._rows, self._pids(), self._directory.path)
                )
                await self._requests.first.wait()
            self._ready = False
            await self._stop()
        if failure is not None:
            raise failure

    async def _start(
        self, group: asyncio.TaskGroup, surroundings: Surroundings
    ) -> FatalError | None:
        """Start stage after stage, until all are ready, one fails, or a stop is asked for."""
        for stage in sorted({row.stage for row in self._rows}):
            started = []
            for row in (row for row in self._rows if row.stage is stage):
                self._log.say(f"starting {row.name}")
                file = RotatingFile(self._directory.logs / f"{row.name}.log")
                child = Child(row, ServiceLog(row.name, file, self._terminal), surroundings)
                self._children[row.name] = child
                self._tasks[row.name] = group.create_task(child.keep())
                started.append(child.started)
            failure = await self._first_failure(started)
            if failure is not None or self._requests.first.is_set():
                return failure
        return None

    async def _first_failure(
        self, started: Sequence[asyncio.Future[FatalError | None]]
    ) -> FatalError | None:
        """Wait until all are ready, or one failed, or a stop is asked for."""
        stop_asked = asyncio.ensure_future(self._requests.first.wait())
        try:
            waiting = set(started)
            while waiting and not stop_asked.done():
                either: set[asyncio.Future[Any]] = {*waiting, stop_asked}
                done, _ = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                waiting -= done
                for future in started:
                    if future.done() and (failure := future.result()) is not None:
                        return failure
            return None
        finally:
            stop_asked.cancel()

    async def _stop(self) -> None:
        """Stop the stages backwards. However slow one is, the later ones have their reserve."""
        begun_s = asyncio.get_running_loop().time()
        stages = sorted({child.row.stage for child in self._children.values()}, reverse=True)
        for position, stage in enumerate(stages):
            reserved_s = sum(
                stop_reserves_s.get(later, stop_reserve_s_default)
                for later in stages[position + 1 :]
            )
            await self._stop_stage(stage, begun_s + stop_s_max - reserved_s)

    async def _stop_stage(self, stage: Stage, until_s: float) -> None:
        alive = [
            child
            for child in self._children.values()
            if child.row.stage is stage and not child.ended.is_set()
        ]
        if not alive:
            return
        self._log.say(f"stopping {', '.join(child.row.name for child in alive)}")
        for child in alive:
            child.ask_to_stop()
        hurry = self._requests.third if stage is Stage.DATABASE else self._requests.second
        await _until_ended(alive, until_s, hurry)
        late = [child for child in alive if not child.ended.is_set()]
        if not late:
            return
        self._log.say(f"killing {', '.join(child.row.name for child in late)}: not stopped in time")
        for child in late:
            child.kill()
        await _until_ended(late, asyncio.get_running_loop().time() + kill_s_max, asyncio.Event())
        for child in late:
            if not child.ended.is_set():
                self._log.say(f"{child.row.name} (pid {child.pid}) did not end when killed")
                self._tasks[child.row.name].cancel()

    def _pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self._children.items() if child.pid is not None}

    def _publish(self) -> None:
        """Bring `up.json` up to date, once and as long as everything is up."""
        if not self._ready:
            return
        try:
            self._directory.publish(up_document(self._rows, self._pids()))
        except OSError as error:
            # The services do well without it; a full disk has louder witnesses.
            self._log.say(f"up.json can't be written: {error.strerror}")


async def _until_ended(children: Sequence[Child], until_s: float, hurry: asyncio.Event) -> None:
    """Wait for all to end, at most until the given time of the loop's clock or a hurry."""
    ended = asyncio.gather(*(child.ended.wait() for child in children))
    hurried = asyncio.ensure_future(hurry.wait())
    either: set[asyncio.Future[Any]] = {ended, hurried}
    left_s = max(0.0, until_s - asyncio.get_running_loop().time())
    try:
        await asyncio.wait(either, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
        hurried.cancel()
