"""Clients that take keys and return them, to keygens that stop and are killed: what somebody has is
never given to anybody else. Of any size, for a test and for `make stress-ids`.

A range lasts for minutes, and what is returned of it goes out again only when it is closed; so here
keygens are started anew all the time, which closes what they had.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx

from services.keygen.returns import in_use
from services.runtime.database_url import DatabaseAddress
from tests.cluster.keygen.hard_client import hard_client
from tests.cluster.keygen.installation import running_keygens
from tests.integration.keygen_process import KeygenProcess
from tests.integration.usermanager_process import UserManagerProcess, usermanager_process
from tests.waiting import patience_s, wait_until

clients = 64
# Who are asked: pools of one account would be one pool in each keygen.
accounts = 3
take_counts = (1, 20, 200)
return_max = 200
# Of each client; what is more goes back.
kept = 100
pause_s = 0.05
restart_pause_s = 0.5


@dataclass(slots=True)
class Lives:
    """Of all keys, as their holders see them."""

    live: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    twice: list[str] = field(default_factory=list)
    given: int = 0
    reissued: int = 0
    returned: int = 0
    # Their keygen could not be asked about them just then.
    put_off: int = 0
    lost: int = 0
    restarts: int = 0

    def begin(self, keys: Sequence[str]) -> None:
        for key in keys:
            if key in self.live:
                self.twice.append(key)
            self.reissued += key in self.seen
        self.live.update(keys)
        self.seen.update(keys)
        self.given += len(keys)

    def __str__(self) -> str:
        return (
            f"{self.given:,} keys given, {self.returned:,} of them returned and {self.reissued:,} "
            f"given again; {self.put_off:,} not taken back at once; {self.lost:,} answers lost by "
            f"{self.restarts} restarts"
        )


class Holder:
    """One client. Runs until it is told to stop."""

    def __init__(
        self,
        lives: Lives,
        keygens: Sequence[KeygenProcess],
        http: httpx.AsyncClient,
        api_key: str,
        seed: int,
    ) -> None:
        self._lives = lives
        self._keygens = keygens
        self._http = http
        self._headers = {"X-API-Key": api_key}
        self._draw = random.Random(seed)
        self._mine: list[str] = []

    async def run(self, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            url = self._draw.choice(self._keygens).url
            try:
                # Whoever waits for longer is one whose request hangs.
                async with asyncio.timeout(patience_s):
                    done = await self._take_or_give_back(url)
            except httpx.TransportError:
                # Whoever was asked is gone. What it gave is nobody's, and what it was given back
                # may be somebody else's.
                self._lives.lost += 1
                done = False
            if not done:
                await asyncio.sleep(pause_s)

    async def _take_or_give_back(self, url: str) -> bool:
        return await (self._give_back(url) if len(self._mine) > kept else self._take(url))

    async def _take(self, url: str) -> bool:
        count = self._draw.choice(take_counts)
        answer = await self._http.get(f"{url}/api/keys/{count}", headers=self._headers)
        if not _is_good(answer):
            return False
        keys = [told["key"] for told in answer.json()]
        assert len(keys) == count
        self._lives.begin(keys)
        self._mine += keys
        return True

    async def _give_back(self, url: str) -> bool:
        self._draw.shuffle(self._mine)
        some = [self._mine.pop() for _ in range(self._draw.randint(1, return_max)) if self._mine]
        # From here on somebody else may be given them.
        self._lives.live.difference_update(some)
        answer = await self._http.post(
            f"{url}/api/ReturnKeys", headers=self._headers, json={"keys": some}
        )
        if not _is_good(answer):
            return False
        told = answer.json()
        for rejected in told["rejected"]:
            assert rejected["reason"] == in_use, rejected
            self._mine.append(rejected["key"])
        self._lives.live.update(rejected["key"] for rejected in told["rejected"])
        self._lives.put_off += len(told["rejected"])
        self._lives.returned += told["returned"]
        return bool(told["returned"])


async def returning(
    path: Path,
    address: DatabaseAddress,
    keys: int,
    told: Callable[[Lives], None] = lambda _: None,
) -> Lives:
    """Until so many keys were returned, and so many given out again."""
    lives, draw = Lives(), random.Random(5)

    def goes_on() -> bool:
        return min(lives.returned, lives.reissued) < keys

    async with (
        usermanager_process(path / "data", address) as usermanager,
        running_keygens(
            path, address.url(), 3, USERMANAGER_URL=usermanager.url, RETURN_REST="0"
        ) as keygens,
        hard_client(clients) as http,
    ):
        api_keys = [await _api_key(usermanager, address) for _ in range(accounts)]
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                holder = Holder(lives, keygens, http, api_keys[number % accounts], number)
                group.create_task(holder.run(goes_on))
            while goes_on():
                before = lives.given, lives.returned
                victim = draw.choice(keygens)
                await draw.choice([victim.kill, victim.terminate])()
                await victim.serve()
                lives.restarts += 1
                await wait_until(
                    lambda before=before: (lives.given, lives.returned) > before,  # type: ignore[misc]
                    "keys are given out or returned again",
                )
                told(lives)
                await asyncio.sleep(restart_pause_s)
    return lives


def _is_good(answer: httpx.Response) -> bool:
    """False if it is to be tried again, or nobody knows what has happened."""
    if answer.status_code == 200:
        return True
    assert answer.status_code in (503, 504), answer.text
    return False


async def _api_key(usermanager: UserManagerProcess, address: DatabaseAddress) -> str:
    """Of a new account that may have as many keys as it likes."""
    person = await usermanager.person()
    connection = await asyncpg.connect(**address.asyncpg())
    await connection.execute("UPDATE users SET plan = 'developer' WHERE id = $1", person.id)
    await connection.close()
    made = await person.post("/apikeys", {"name": "robot"})
    found: str = made.json()["key"]
    return found
