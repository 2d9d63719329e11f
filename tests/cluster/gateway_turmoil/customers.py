"""Customers of a gateway who remember what they wrote, and judge what they read.

Each has a connection and keys of its own, so it knows what they hold. A value tells whose it is,
of which key, and the how manieth it is.

    strong    a read shows the last write that was acknowledged, or a later one of unknown outcome
    eventual  it may show an older one, as another replica answers when one is gone; never one that
              was not written there; and in the end, the last one
    counters  each acknowledged increment counts once, each of unknown outcome once or not at all
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.cluster.gateway_platform import Caller
from tests.integration.lane_world import Answer, Client, request

keys_of_a_kind = 8
value_bytes = 100
strong_line = "X-Consistency: strong"
# A client that asks again without a pause only burns the core that it shares.
pause_s = 0.002
# By then every replica has what was acknowledged.
converged_s_max = 10.0
Work = Mapping[str, int]
"""What is asked, and how often of a hundred times."""

usual_work: Work = {
    "GET": 35,
    "PUT": 25,
    "strong GET": 15,
    "strong PUT": 15,
    "incr": 10,
}
# What is done twice shows in these.
counting_work: Work = {"GET": 25, "PUT": 10, "strong GET": 10, "strong PUT": 10, "incr": 45}


@dataclass(slots=True)
class Kept:
    """What a key may hold: numbers of values, or what a counter stands at; 0 for nothing."""

    settled: int = 0
    # Of unknown outcome, and later than what is settled.
    pending: set[int] = field(default_factory=set)
    newest: int = 0

    def settle(self, number: int) -> None:
        self.settled = number
        self.pending.clear()

    def may_be(self, number: int) -> bool:
        return number == self.settled or number in self.pending


@dataclass(slots=True)
class Report:
    """What all customers met."""

    took_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    # By kind of request, status and code: no answer, or one that was not asked for.
    errors: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    first_errors: list[str] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    # Eventual reads of an older state.
    older: int = 0

    @property
    def answers(self) -> int:
        return sum(map(len, self.took_s.values()))

    def lines(self) -> Iterator[str]:
        yield (
            f"{self.answers:,} answers, {self.errors.total()} errors {dict(self.errors)}, "
            f"{self.unknown.total()} unknown outcomes {dict(self.unknown)}, "
            f"{len(self.wrong)} wrong, {self.older} of an older state"
        )
        for name in usual_work:
            took_ms = sorted(took_s * 1e3 for took_s in self.took_s[name])
            if took_ms:
                p50, p99 = (took_ms[int(len(took_ms) * share)] for share in (0.5, 0.99))
                yield (
                    f"  {name:<12}{len(took_ms):>8,}   p50 {p50:>7.1f} ms   p99 {p99:>7.1f} ms   "
                    f"longest {took_ms[-1]:>7.1f} ms"
                )

    def __str__(self) -> str:
        return "\n".join(self.lines())


class Customer:
    """One after the other it asks what its own random numbers say."""

    def __init__(self, robot: Caller, number: int, work: Work, report: Report) -> None:
        self.name = f"customer-{number:03}"
        self._gateway = robot.gateway
        self._lines = robot.lines
        self._work = work
        self._report = report
        self._draw = random.Random(self.name)
        self._kept: defaultdict[str, Kept] = defaultdict(Kept)
        self._client: Client | None = None
        self.leaving = False

    async def visit(self) -> None:
        """Until it is told to leave."""
        names, weights = list(self._work), list(self._work.values())
        while not self.leaving:
            [name] = self._draw.choices(names, weights)
            await self._do(name)
            await asyncio.sleep(pause_s)

    async def look_back(self) -> None:
        """Look whether everything is as it must be, once nothing is written any more."""
        for key in sorted(self._kept):
            strongly = "/e/" not in key
            until_s = time.monotonic() + (0 if strongly else converged_s_max)
            while not await self._is_kept(key, strongly=strongly):
                if time.monotonic() >= until_s:
                    self._report.wrong.append(f"{key} is not {self._kept[key]}")
                    break
                await asyncio.sleep(0.05)
        if self._client is not None:
            await self._client.close()

    async def _is_kept(self, key: str, *, strongly: bool) -> bool:
        answer = await self._ask("GET", key, "last", *([strong_line] if strongly else []))
        if answer is None:
            return False
        if "/c/" in key:
            return self._kept[key].may_be(int(answer.body) if answer.status == 200 else 0)
        return self._kept[key].may_be(self._number_in(key, answer))

    async def _do(self, name: str) -> None:
        kind = {"GET": "e", "PUT": "e", "incr": "c"}.get(name, "s")
        key = f"{self.name}/{kind}/{self._draw.randrange(keys_of_a_kind)}"
        lines = [strong_line] if kind == "s" else []
        if name == "incr":
            await self._increment(key)
        elif name.endswith("PUT"):
            await self._put(name, key, lines)
        else:
            await self._get(name, key, lines)

    async def _get(self, name: str, key: str, lines: list[str]) -> None:
        answer = await self._ask("GET", key, name, *lines)
        if answer is None:
            return
        kept, found = self._kept[key], self._number_in(key, answer)
        if kept.may_be(found):
            if lines and found in kept.pending:
                # It has been done. What else is pending may have been, or may yet be.
                kept.settled = found
                kept.pending.discard(found)
        elif lines or not 0 <= found <= kept.newest:
            self._report.wrong.append(f"{name} {key}: {found} instead of {kept}: {answer}")
        else:
            self._report.older += 1

    async def _put(self, name: str, key: str, lines: list[str]) -> None:
        kept = self._kept[key]
        kept.newest += 1
        answer = await self._ask("PUT", key, name, *lines, body=self._value(key, kept.newest))
        if answer is None:
            kept.pending.add(kept.newest)
        elif json.loads(answer.body)["key"] != key:
            self._report.wrong.append(f"{name} {key}: {answer}")
        else:
            kept.settle(kept.newest)

    async def _increment(self, key: str) -> None:
        kept = self._kept[key]
        answer = await self._ask("POST", f"{key}/incr", "incr")
        if answer is None:
            kept.pending.add(kept.settled + len(kept.pending) + 1)
            return
        value = json.loads(answer.body)["value"]
        if not kept.may_be(value - 1):
            self._report.wrong.append(f"incr {key}: {value} after {kept}")
        kept.settle(value)

    async def _ask(
        self, method: str, key: str, name: str, *lines: str, body: bytes = b""
    ) -> Answer | None:
        """The answer, unless it is none or a failure, which is noted."""
        expected = (200, 404) if method == "GET" else (200,)
        began_s = time.perf_counter()
        try:
            if self._client is None:
                self._client = await self._gateway.connect()
            target = f"/v1/kv/{key}"
            answer = await self._client.ask(
                request(method, target, *self._lines, *lines, body=body)
            )
        except (OSError, EOFError, TimeoutError) as error:
            self._note(name, 0, type(error).__name__, f"{key}: {error!r}")
            if self._client is not None:
                await self._client.close()
                self._client = None
            await asyncio.sleep(0.1)
            return None
        self._report.took_s[name].append(time.perf_counter() - began_s)
        if answer.closes:
            await self._client.close()
            self._client = None
        if answer.status in expected:
            return answer
        document = json.loads(answer.body)
        if answer.status == 504 and document["code"] == "unknown_outcome":
            self._report.unknown[name] += 1
            if not document.get("operation_id"):
                self._report.wrong.append(f"{name} {key}: no operation_id: {answer}")
        else:
            self._note(name, answer.status, document["code"], f"{key}: {document['detail']}")
        return None

    def _note(self, name: str, status: int, code: str, told: str) -> None:
        self._report.errors[name, status, code] += 1
        if len(self._report.first_errors) < 5:
            self._report.first_errors.append(f"{name} {status} {code}: {told}")

    def _value(self, key: str, number: int) -> bytes:
        mark = f"{key} {number} "
        return (mark * value_bytes)[:value_bytes].encode()

    def _number_in(self, key: str, answer: Answer) -> int:
        """The how manieth value of this key it is: 0 for none, -1 for none of its own."""
        if answer.status == 404:
            return 0
        digits = answer.body[len(key) + 1 :].partition(b" ")[0]
        number = int(digits) if digits.isdigit() else -1
        return number if answer.body == self._value(key, number) else -1


@asynccontextmanager
async def customers(robot: Caller, count: int, work: Work = usual_work) -> AsyncIterator[Report]:
    """Have so many come and go on until the block ends; then each looks at all that it has."""
    report = Report()
    crowd = [Customer(robot, number, work, report) for number in range(count)]
    async with asyncio.TaskGroup() as visits:
        for one in crowd:
            visits.create_task(one.visit())
        yield report
        for one in crowd:
            one.leaving = True
    for one in crowd:
        await one.look_back()
