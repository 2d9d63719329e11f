"""Lines on their way to a gateway: many together, some of these at once, and how far that is.

    lines ──► units: a batch of lines with different keys, or one line that has to go alone
                ├── a key that is under way is waited for, so that its last line wins
                └── refused for now, or unknown: sent again, as long as there is patience

The position is the first line of which it is not known that it was put or refused. To put a line
again puts the same: going on from there loses nothing and doubles nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import msgspec

from services.cli.endings import KeyNotAllowedError, RefusedError
from services.cli.kv_client import (
    KvClient,
    Patience,
    Refusal,
    ending,
    passing,
    path_of,
    told,
    unclear,
)
from services.cli.kv_lines import Put
from services.core.errors import FatalError

# What a gateway does in some tens of milliseconds, and five of its tokens.
unit_items_max: Final = 500
unit_bytes_max: Final = 2 << 20
units_max: Final = 8

Refuse = Callable[[int, str, str], None]


class _Results(msgspec.Struct, frozen=True):
    results: list[Refusal]


@dataclass(slots=True)
class Unit:
    """What is sent together. No two of its lines have one key."""

    first: int
    puts: list[Put] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    size: int = 0
    settled: bool = False

    def takes(self, put: Put) -> bool:
        return (
            not put.line.goes_alone
            and len(self.puts) < unit_items_max
            and self.size + len(put.item) <= unit_bytes_max
            and put.line.key not in self.keys
        )

    def add(self, put: Put) -> None:
        self.puts.append(put)
        self.keys.add(put.line.key)
        self.size += len(put.item) + 1


class Sender:
    """Enter it, `add` lines in their order, and `flush`. Leaving it waits for all of them;
    FatalError is the first that has ended it. `progress` is called when something is settled."""

    def __init__(
        self,
        client: KvClient,
        consistency: str | None,
        from_line: int,
        refuse: Refuse,
        progress: Callable[[], None],
    ) -> None:
        self.put = 0
        self._client = client
        self._headers = {"X-Consistency": consistency} if consistency else {}
        self._refuse = refuse
        self._progress = progress
        self._tasks = asyncio.TaskGroup()
        self._room = asyncio.Semaphore(units_max)
        self._settled = asyncio.Condition()
        # In their order; those at the front are not settled yet.
        self._open: deque[Unit] = deque()
        self._keys: set[str] = set()
        self._gathering: Unit | None = None
        # Behind the last line that was passed.
        self._next = from_line

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._tasks.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            # The first that went wrong has ended the others.
            raise group.exceptions[0] from None

    @property
    def position(self) -> int:
        first = self._open[0] if self._open else self._gathering
        return self._next if first is None else first.first

    def passed(self, number: int) -> None:
        """This line has been looked at; if there is something to put, it is added first."""
        self._next = number + 1

    async def add(self, put: Put) -> None:
        if self._gathering is not None and not self._gathering.takes(put):
            await self.flush()
        if self._gathering is None:
            self._gathering = Unit(put.number)
        self._gathering.add(put)
        if put.line.goes_alone:
            await self.flush()

    async def flush(self) -> None:
        """Send what has gathered, once there is room and none of its keys is under way."""
        unit = self._gathering
        if unit is None:
            return
        await self._room.acquire()
        async with self._settled:
            await self._settled.wait_for(lambda: self._keys.isdisjoint(unit.keys))
        self._open.append(unit)
        self._keys |= unit.keys
        self._gathering = None
        self._tasks.create_task(self._send(unit))

    async def _send(self, unit: Unit) -> None:
        if unit.puts[0].line.goes_alone:
            await self._put_alone(unit.puts[0])
        else:
            await self._put_together(unit.puts)
        unit.settled = True
        while self._open and self._open[0].settled:
            self._open.popleft()
        self._keys -= unit.keys
        self._room.release()
        async with self._settled:
            self._settled.notify_all()
        self._progress()

    async def _put_together(self, puts: Sequence[Put]) -> None:
        patience = Patience(self._client.access.patience_s)
        while puts:
            answer = await self._client.ask(
                "POST",
                "/v1/batch",
                headers={"Content-Type": "application/json", **self._headers},
                content=b'{"operations":[%b]}' % b",".join(put.item for put in puts),
                repeatable=True,
            )
            results = told(answer, _Results).results
            again: list[Put] = []
            troubles: list[Refusal] = []
            for put, one in zip(puts, results, strict=True):
                if one.status == 200:
                    self.put += 1
                elif one.status in passing or one.status in unclear:
                    again.append(put)
                    troubles.append(one)
                else:
                    self._refuse(put.number, put.line.key, one.text)
            if again and not await patience.wait():
                raise _worst(troubles)
            puts = again

    async def _put_alone(self, put: Put) -> None:
        line = put.line
        headers = dict(self._headers)
        if line.content_type:
            headers["Content-Type"] = line.content_type
        headers |= {f"X-Metadata-{name}": text for name, text in (line.metadata or {}).items()}
        try:
            await self._client.ask(
                "PUT",
                path_of(line.key),
                params=None if put.ttl is None else {"ttl": put.ttl},
                headers=headers,
                content=put.content,
                repeatable=True,
            )
        except (RefusedError, KeyNotAllowedError, ValueError) as error:
            self._refuse(put.number, line.key, str(error))
        else:
            self.put += 1


def _worst(troubles: Sequence[Refusal]) -> FatalError:
    """What nobody knows the outcome of is told before what was refused."""
    return ending(next((one for one in troubles if one.status in unclear), troubles[0]))
