"""What a command writes for others to read: exactly, to the end, or quietly not at all."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from services.cli.endings import NotDoneError

T = TypeVar("T")

stdout_descriptor: Final = 1
# What a shell says of a program that SIGTERM has ended.
terminated_exit_code: Final = 128 + signal.SIGTERM
# What is being written to: a pipe that nobody empties holds up the loop, and all else with it.
_writing: Final[list[int]] = []


def write_out(data: bytes) -> None:
    """Write all of it to stdout. Who has stopped reading ends this process, as it ends others.

    Not by Python's buffers, which would try again at the end, and complain then.
    """
    # Closed by who has started us, its number may be a socket's by now.
    if sys.stdout is None:
        raise NotDoneError("there is no stdout to write to")
    try:
        write_all(stdout_descriptor, data)
    except BrokenPipeError:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    except OSError as error:
        raise NotDoneError(f"stdout cannot be written: {error.strerror}") from error


def write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    _writing.append(descriptor)
    try:
        while left:
            try:
                left = left[os.write(descriptor, left) :]
            except BlockingIOError:
                # Others who share it may have set it so.
                select.select([], [descriptor], [])
    finally:
        _writing.pop()


def write_line(text: str) -> None:
    write_out(text.encode() + b"\n")


def interruptible(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it so that Ctrl-C and SIGTERM cancel it, and whoever called can say how far it has come:
    they end as KeyboardInterrupt and SystemExit, also from amidst a write that waits."""
    stopped_by: list[BaseException] = []

    async def run() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(number: int, _: object) -> None:
            terminated = SystemExit(terminated_exit_code)
            reason = KeyboardInterrupt() if number == signal.SIGINT else terminated
            if _writing:
                raise reason
            stopped_by.append(reason)
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)

        for number in (signal.SIGINT, signal.SIGTERM):
            # Unless it is ignored, as in a job that a shell has put into the background.
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, stop)
        return await work()

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise stopped_by[0] from None
