"""One supervised child: started, watched until ready, started again when it dies, stopped.

A child runs in its own session, so that the terminal's Ctrl-C reaches the supervisor alone. It
inherits the reading end of a pipe whose only writing end the supervisor holds: however the
supervisor dies, the child reads the end of the pipe and stops by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.cli.logs import OutputPipe, ServiceLog
from services.cli.rows import Probe, Row, probe_s_max
from services.core.errors import FatalError, RestartLater
from services.runtime.supervised import descriptor_variable

# A child that is starting is asked this often whether it is ready; a start takes 1 s or so.
probe_every_s = 0.1
# What a process wrote before it ended is in the pipe already; longer than this only a process
# that it left behind can keep the pipe open.
output_s_max = 0.5
# What a process left behind in its group gets to end by itself before it is killed, so that
# its successor finds ports and locks free. PostgreSQL is not among it: it has a session of its
# own, and the next owner waits for the end of the last one.
leftovers_s_max = 5.0
leftovers_poll_s = 0.05


@dataclass(slots=True, frozen=True)
class Surroundings:
    """What all children of one supervisor share."""

    environment: Mapping[str, str]
    supervisor_fd: int
    inherited_fds: tuple[int, ...]
    luck: random.Random
    # A child has another pid, or another trouble.
    on_change: Callable[[], None]


@dataclass(slots=True, frozen=True)
class Ending:
    """How one life of a process ended; no code when it could not even be started."""

    code: int | None
    words: str

    @classmethod
    def of(cls, code: int) -> Ending:
        if code >= 0:
            return cls(code, f"ended with exit code {code}")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return cls(code, f"was killed by {name}")


class Child:
    """The process of one row, over all its lives.

    `keep` runs until the child is asked to stop, the command of a one-shot row ends well, or the
    child is given up. `started` is done at the first readiness, with None, or when the start of
    everything should wait no longer, with the FatalError that says why; others than a redundant
    child are given up then.

    Once started, a child that is needed is given up only when it refuses for good: whatever else
    ends it may pass, and nobody does its work meanwhile. A redundant one is also given up when it
    dies again and again, since the others of its stage are better off without its restarts.
    """

    def __init__(self, row: Row, log: ServiceLog, surroundings: Surroundings) -> None:
        self.row = row
        self.log = log
        # Of the process that lives; its group may outlive it for a while.
        self.pid: int | None = None
        self._group: int | None = None
        # Why it is not up; None while it is.
        self.trouble: str | None = "not started yet"
        # Why it is not started any more, if it is not.
        self.given_up: FatalError | None = None
        self.started: asyncio.Future[FatalError | None]
        self.started = asyncio.get_running_loop().create_future()
        # Set when no process is left and none will be started.
        self.ended = asyncio.Event()
        self._surroundings = surroundings
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._ready_at_s: float | None = None
        self._never_ready: str | None = None
        # The last one that was logged: it may come back ten times a second.
        self._probe_bug: str | None = None
        # In a row, since the last healthy period.
        self._deaths = 0

    async def keep(self) -> None:
        try:
            while not self._stopping.is_set():
                ending = await self._live_once()
                if self._stopping.is_set() or self._is_over(ending):
                    return
                await self._wait_before_restart(ending)
        finally:
            # Given up or broken off, with nobody left to watch it, nothing of it may go on.
            self._kill_group()
            self.ended.set()
            self.log.close()

    def ask_to_stop(self) -> None:
        """SIGTERM, and no more restarts. Asked again, services and PostgreSQL hurry."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to the process and everything in its group, and no more restarts."""
        self._stopping.set()
        self._kill_group()

    async def _live_once(self) -> Ending:
        """Start the command and see it through to its end."""
        self.log.forget()
        self._ready_at_s = self._never_ready = None
        pipe = OutputPipe(self.log)
        try:
            process = await self._spawn(pipe)
        except OSError as error:
            pipe.close()
            return Ending(None, f"could not be started: {error.strerror} ({error.filename})")
        self._process = process
        self.pid = self._group = process.pid
        self._surroundings.on_change()
        if self._stopping.is_set():
            # Asked while the process came into being: there was nobody to ask yet.
            self.ask_to_stop()
        async with asyncio.TaskGroup() as group:
            watching = None
            if self.row.probe is not None:
                watching = group.create_task(self._watch_readiness(self.row.probe, process.pid))
            code = await process.wait()
            if watching is not None:
                watching.cancel()
        ending = Ending.of(code)
        self._process = self.pid = None
        self._now(None if self._has_ended_well(ending) else ending.words)
        await self._clear_group(process.pid)
        await pipe.finish(output_s_max)
        self._group = None
        return ending

    async def _spawn(self, pipe: OutputPipe) -> asyncio.subprocess.Process:
        shared = self._surroundings
        process = await asyncio.create_subprocess_exec(
            *self.row.command,
            stdin=subprocess.DEVNULL,
            stdout=pipe.writing_end,
            stderr=pipe.writing_end,
            env={
                **shared.environment,
                **self.row.environment,
                descriptor_variable: str(shared.supervisor_fd),
                # A line must not sit in a buffer when its process is killed.
                "PYTHONUNBUFFERED": "1",
            },
            start_new_session=True,
            pass_fds=(shared.supervisor_fd, *shared.inherited_fds),
        )
        pipe.read()
        return process

    async def _watch_readiness(self, probe: Probe, pid: int) -> None:
        """Ask until ready. A first start that takes too long is over; a later one is only named.

        A restarted service may have a long log to recover from: killing it would make it begin
        again, and never end.
        """
        loop = asyncio.get_running_loop()
        limit_s = self.row.ready_s_max
        named_at_s = loop.time()
        while (reason := await self._why_not_ready(probe)) is not None:
            if loop.time() - named_at_s > limit_s:
                if not self.started.done():
                    self._never_ready = reason
                    self._kill_group()
                    return
                self._say(f"not ready for {limit_s:g} s more: {reason}")
                self._now(f"not ready: {reason}")
                named_at_s = loop.time()
            await asyncio.sleep(probe_every_s)
        self._ready_at_s = loop.time()
        self._say(f"ready (pid {pid})")
        self._now(None)
        if not self.started.done():
            self.started.set_result(None)

    async def _why_not_ready(self, probe: Probe) -> str | None:
        try:
            async with asyncio.timeout(probe_s_max):
                return await probe()
        except TimeoutError:
            return f"no answer within {probe_s_max:g} s"
        except Exception as bug:
            # A bug in asking is one service's trouble, and no reason to let go of all others.
            reason = f"its probe failed with {bug!r}"
            if reason != self._probe_bug:
                self._probe_bug = reason
                for line in "".join(traceback.format_exception(bug)).splitlines():
                    self._say(line)
            return reason

    def _is_over(self, ending: Ending) -> bool:
        """Count the death, and decide whether it was the last."""
        if self._has_ended_well(ending):
            self.started.set_result(None)
            return True
        if self._was_healthy():
            self._deaths = 0
        self._deaths += 1
        restarts, redundant = self.row.restarts, self.row.redundant
        failure = self._failure(ending)
        # It says itself that the next start would meet the same.
        over = ending.code == FatalError.exit_code or (
            redundant and self._deaths >= restarts.deaths_max
        )
        if over and redundant:
            # Otherwise everything stops now, and ends with the same words.
            self._say(f"{failure}; it stays out until you start everything again")
        if not self.started.done() and (
            over or self._never_ready is not None or self._deaths >= restarts.tries
        ):
            self.started.set_result(failure)
            over = over or not redundant
        self.given_up = failure if over else None
        failing = "failing: " if self._deaths >= restarts.failing_deaths and not over else ""
        self._now(f"{failing}{failure}")
        return over

    def _has_ended_well(self, ending: Ending) -> bool:
        return self.row.one_shot and ending.code == 0

    def _was_healthy(self) -> bool:
        if self._ready_at_s is None:
            return False
        ready_s = asyncio.get_running_loop().time() - self._ready_at_s
        return ready_s >= self.row.restarts.healthy_s

    def _failure(self, ending: Ending) -> FatalError:
        """What this death was, quoting what the process itself said of it."""
        name, where = self.row.name, f"(see {self.log.path})"
        # Who was killed had no time to say why: its last line is about something else.
        said = "" if ending.code is None or ending.code < 0 else f": {self.log.last_word or '-'}"
        if ending.code == FatalError.exit_code:
            return FatalError(f"{name} refuses to run{said} {where}")
        if self._never_ready is not None:
            limit_s = self.row.ready_s_max
            return RestartLater(
                f"{name} was not ready within {limit_s:g} s: {self._never_ready} {where}"
            )
        if self.started.done():
            when = f" ({self._deaths} deaths in a row)" if self._deaths > 1 else ""
        else:
            when = f" before it was ready, {self._deaths} times in a row"
        return RestartLater(f"{name} {ending.words}{when}{said} {where}")

    async def _wait_before_restart(self, ending: Ending) -> None:
        wait_s = self.row.restarts.wait_s(self._deaths, self._surroundings.luck.random())
        failing = self._deaths >= self.row.restarts.failing_deaths
        often = f" and is failing ({self._deaths} deaths in a row)" if failing else ""
        self._say(f"{self.row.name} {ending.words}{often}; starting it again in {wait_s:.1f} s")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._stopping.wait()

    def _now(self, trouble: str | None) -> None:
        self.trouble = trouble
        self._surroundings.on_change()

    def _say(self, text: str) -> None:
        """A line of our own in the service's log, told apart from the service's."""
        self.log.say(f"[up] {text}")

    async def _clear_group(self, group: int) -> None:
        """See to it that nothing of the ended process's group is left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(leftovers_s_max):
                while _group_exists(group):  # noqa: ASYNC110  Only its members' parents are told.
                    await asyncio.sleep(leftovers_poll_s)
        self._kill_group()

    def _kill_group(self) -> None:
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        # Empty, or the number is by now that of somebody else's.
        return False
    return True
