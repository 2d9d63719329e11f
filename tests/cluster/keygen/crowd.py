"""Clients that collect keys from keygens that come and go, and keep every one of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

import httpx

from services.runtime.clock import SystemClock
from services.runtime.signing import SignedAuth, Signer
from tests.cluster.keygen.collected import Collected
from tests.integration.keygen_process import KeygenProcess
from tests.integration.node_process import secret
from tests.waiting import patience_s

pause_s = 0.05
single = "one key"
batch = "a batch"
# How large batches are, and how often: a few of the largest keep a keygen busy as it is.
batch_counts = {1: 20, 10: 20, 200: 20, 1_000: 10, 10_000: 1}
sizes = (7, 7, 8, 11, 16)
tenants = range(1, 6)


class Crowd:
    """Asks until it is stopped. `took` is told what was asked for, and how long an answer took.

    While there are as many keys as are `allowed` they come one by one.
    """

    def __init__(
        self,
        keygens: Sequence[KeygenProcess],
        http: httpx.AsyncClient,
        *,
        allowed: int,
        took: Callable[[str, float], None] = lambda _, __: None,
    ) -> None:
        self.keygens = keygens
        self.allowed = allowed
        self.collected = Collected()
        self.requests: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.lost = 0
        self.stopped = False
        self._http = http
        self._took = took
        self._auth = SignedAuth(Signer(secret, SystemClock()))

    @property
    def total(self) -> int:
        return self.collected.total

    async def run(self, clients: int, seed: int = 1) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(random.Random(f"{seed} {number}")))

    async def _client(self, draw: random.Random) -> None:
        while not self.stopped:
            keygen = draw.choice(self.keygens)
            try:
                # Whoever waits for longer is one whose request hangs.
                async with asyncio.timeout(patience_s):
                    keys = await self._ask(keygen, draw)
            except httpx.TransportError:
                # It is killed, or was while it answered: what it gave is lost, which is no harm.
                self.lost += 1
                keys = []
            self.collected.add(keys)
            if not keys or self.total >= self.allowed:
                await asyncio.sleep(pause_s)

    async def _ask(self, keygen: KeygenProcess, draw: random.Random) -> list[str]:
        if draw.random() < 0.7 or self.total >= self.allowed:
            answer = await self._timed(
                single, self._http.build_request("GET", f"{keygen.url}/get-key")
            )
            return self._keys(answer, [answer.text], 1, 7)
        (count,) = draw.choices([*batch_counts], [*batch_counts.values()])
        size = draw.choice(sizes)
        asked = self._http.build_request(
            "POST",
            f"{keygen.url}/ids?count={count}&size={size}",
            headers={
                "X-Ydht-Tenant": str(draw.choice(tenants)),
                "X-Ydht-Key-Id": "1",
                "X-Ydht-Ids-Per-Day": "unlimited",
            },
        )
        answer = await self._timed(batch, asked)
        given = answer.json()["ids"] if answer.status_code == 200 else []
        return self._keys(answer, given, count, size)

    async def _timed(self, what: str, asked: httpx.Request) -> httpx.Response:
        began_s = time.perf_counter()
        answer = await self._http.send(asked, auth=self._auth if what == batch else None)
        if answer.status_code == 200:
            self.requests[what] += 1
            self._took(what, time.perf_counter() - began_s)
        return answer

    def _keys(self, answer: httpx.Response, keys: list[str], count: int, size: int) -> list[str]:
        if answer.status_code == 200:
            assert len(keys) == count
            assert all(len(key) == size and key.isascii() and key.isalnum() for key in keys)
            return keys
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) >= 1
        self.refusals[answer.json()["code"]] += 1
        return []
