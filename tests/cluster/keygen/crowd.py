"""Clients that collect keys from keygens that come and go, and look at every one of them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import httpx

from services.runtime.clock import SystemClock
from services.runtime.signing import SignedAuth, Signer
from tests.integration.keygen_process import KeygenProcess
from tests.integration.node_process import secret

# Who waits for longer is one whose request hangs.
request_s_max = 8.0
pause_s = 0.05


class Crowd:
    """Asks until it is stopped. `seen` has every key that any of them was given."""

    def __init__(self, keygens: Sequence[KeygenProcess], http: httpx.AsyncClient) -> None:
        self.keygens = keygens
        self.seen: set[str] = set()
        self.total = 0
        self.duplicates: list[str] = []
        self.statuses: Counter[int] = Counter()
        self.refusals: Counter[str] = Counter()
        self.lost = 0
        self.stopped = False
        self._http = http
        self._auth = SignedAuth(Signer(secret, SystemClock()))

    async def run(self, clients: int, seed: int = 1) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(random.Random(f"{seed} {number}")))

    async def _client(self, draw: random.Random) -> None:
        while not self.stopped:
            keygen = draw.choice(self.keygens)
            try:
                async with asyncio.timeout(request_s_max):
                    keys = await self._ask(keygen, draw)
            except httpx.TransportError:
                # It is killed, or was while it answered: what it gave is lost, which is no harm.
                self.lost += 1
                keys = []
            if not keys:
                await asyncio.sleep(pause_s)
            for key in keys:
                self.total += 1
                if key in self.seen:
                    self.duplicates.append(key)
                self.seen.add(key)

    async def _ask(self, keygen: KeygenProcess, draw: random.Random) -> list[str]:
        if draw.random() < 0.7:
            answer = await self._http.get(f"{keygen.url}/get-key")
            keys = [answer.text]
        else:
            count, tenant = draw.choice([1, 10, 200, 1_000]), draw.randrange(1, 6)
            answer = await self._http.post(
                f"{keygen.url}/ids?count={count}",
                headers={
                    "X-Ydht-Tenant": str(tenant),
                    "X-Ydht-Key-Id": "1",
                    "X-Ydht-Ids-Per-Day": "unlimited",
                },
                auth=self._auth,
            )
            keys = answer.json()["ids"] if answer.status_code == 200 else []
        self.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            return keys
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) >= 1
        self.refusals[answer.json()["code"]] += 1
        return []
