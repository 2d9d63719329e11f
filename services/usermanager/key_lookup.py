"""Finding keys by their hashes, many with one statement.

To borrow a connection, ask and give it back costs far more than one more key in a statement. So
while one statement is under way, all who ask meanwhile are gathered for the next: alone nobody
waits, and under load there are few statements. With 64 requests in flight a signed /validate-key
takes 240 us of CPU and 25 us in PostgreSQL; with a statement for each it takes 550 us and 250 us,
and half as many a second are answered (bench/usermanager.py). An answer is never older than its
question.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import Final

from services.core.errors import ClientError, RetryLater
from services.runtime.metrics import Metrics
from services.runtime.postgres import Database
from services.usermanager import api_key_store as store
from services.usermanager.api_key_store import LiveKey

# One statement, a few milliseconds at most.
batch_max: Final = 256
# What is answered within a second or so; all gateways together do not have more under way.
pending_max: Final = 2_000
# A gateway that waits for longer has a client that gave up.
answer_s_max: Final = 4.0


class KeyLookups:
    """Keys that are good now, by hash. Usable while `run` runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: dict[bytes, asyncio.Future[LiveKey | None]] = {}
        self._asked = asyncio.Event()
        self.statements = 0
        self.found = 0
        self.missed = 0

    def add_to(self, metrics: Metrics) -> None:
        metrics.add(
            "key_lookups",
            "counter",
            "API keys looked up, by whether they were good",
            lambda: {"found": self.found, "missed": self.missed},
            labels=("end",),
        )
        metrics.add(
            "key_lookup_statements",
            "counter",
            "Statements that API keys were looked up with",
            lambda: self.statements,
        )

    async def find(self, key_hash: bytes) -> LiveKey | None:
        """The key, if it is good now; RetryLater if that cannot be told."""
        answer = self._pending.get(key_hash)
        if answer is None:
            if len(self._pending) >= pending_max:
                raise RetryLater("overloaded", f"{pending_max} keys wait to be looked up already")
            answer = self._pending[key_hash] = asyncio.get_running_loop().create_future()
            self._asked.set()
        try:
            async with asyncio.timeout(answer_s_max):
                # Several may wait for this one, and one that leaves does not take it along.
                key = await asyncio.shield(answer)
        except TimeoutError:
            raise RetryLater(
                "database_unavailable", f"PostgreSQL did not answer within {answer_s_max:g} s"
            ) from None
        # The index has compared the hashes already, but not in a time that tells nothing.
        if key is None or not hmac.compare_digest(key.key_hash, key_hash):
            self.missed += 1
            return None
        self.found += 1
        return key

    async def run(self) -> None:
        while True:
            await self._asked.wait()
            batch = dict(list(self._pending.items())[:batch_max])
            # Taken out before the statement is sent: whoever asks from now on needs a later one.
            for key_hash in batch:
                del self._pending[key_hash]
            if not self._pending:
                self._asked.clear()
            await self._answer(batch)

    async def _answer(self, batch: dict[bytes, asyncio.Future[LiveKey | None]]) -> None:
        self.statements += 1
        try:
            async with self._database.connection() as connection:
                keys = await store.look_up(connection, list(batch))
        except BaseException as error:
            for answer in batch.values():
                _refuse(answer, error)
            if not isinstance(error, ClientError):
                raise
            return
        found = {key.key_hash: key for key in keys}
        for key_hash, answer in batch.items():
            answer.set_result(found.get(key_hash))


def _refuse(answer: asyncio.Future[LiveKey | None], error: BaseException) -> None:
    detail = error.detail if isinstance(error, ClientError) else "The key could not be looked up"
    answer.set_exception(RetryLater("database_unavailable", detail))
    # That it was told is enough where nobody waits for it any more.
    answer.exception()
