"""Ctrl-C and its relatives, counted."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import TracebackType

stop_signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """The first request is for an orderly stop, the second for one now, the third for anything.

    While entered, the signals that ask a program to stop do nothing but count. Ctrl-Z is
    explained instead of obeyed: services whose supervisor is suspended would stall as soon as
    nobody reads what they print.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.third = asyncio.Event()
        self._say = say
        self._taken: list[signal.Signals] = []

    def __enter__(self) -> StopRequests:
        loop = asyncio.get_running_loop()
        for number in stop_signals:
            # Under nohup the terminal's end is no reason to stop.
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            loop.add_signal_handler(number, self.ask, number.name)
            self._taken.append(number)
        loop.add_signal_handler(signal.SIGTSTP, self._explain)
        self._taken.append(signal.SIGTSTP)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in self._taken:
            loop.remove_signal_handler(number)
        self._taken.clear()

    def ask(self, why: str) -> None:
        if not self.first.is_set():
            self.first.set()
            self._say(f"{why}: stopping; once more to hurry")
        elif not self.second.is_set():
            self.second.set()
            self._say(f"{why}: killing all but PostgreSQL, which may finish; once more for it too")
        else:
            self.third.set()
            self._say(f"{why}: killing what is left")

    def _explain(self) -> None:
        self._say("Ctrl-Z would stall the services, so it does nothing here; Ctrl-C stops them")
