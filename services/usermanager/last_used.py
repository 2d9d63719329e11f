"""When each API key was last asked for, noted in memory and written in batches.

A gateway asks once a minute or so for each key that it serves, so this is no more precise than
that. What is not yet written when a process is killed is lost: it says when, not how often.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final

from services.core.errors import ClientError
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.metrics import Metrics
from services.runtime.postgres import Database

period_s: Final = 5.0
# Keys of several periods, for when PostgreSQL is away: about 10 MB. Of more, the use is not noted.
marks_max: Final = 100_000
# One statement: some 100 ms, in which a key that is used is not to be rotated.
batch_max: Final = 5_000

# Never back, as another process may have seen the key later, and never into the database's
# future, where a clock that is ahead would leave it. Rows that somebody else holds are passed
# over: whoever waited for several at a time could wait for somebody who waits for one of them,
# and whoever holds one is about to revoke it, or writes another such time.
_WRITE: Final = """
    WITH used AS (
        SELECT key.id, least(mark.at, now()) AS at
        FROM api_keys AS key JOIN unnest($1::bigint[], $2::timestamptz[]) AS mark (id, at)
            ON mark.id = key.id
        WHERE key.last_used_at IS NULL OR key.last_used_at < mark.at
        FOR NO KEY UPDATE OF key SKIP LOCKED
    )
    UPDATE api_keys AS key SET last_used_at = used.at FROM used WHERE key.id = used.id
"""

log = telemetry.logger("services.usermanager")


class LastUsed:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._marks: dict[int, int] = {}
        self.dropped = 0

    @property
    def marked(self) -> int:
        """Keys whose use has not been written yet."""
        return len(self._marks)

    def add_to(self, metrics: Metrics) -> None:
        metrics.add("key_uses_marked", "gauge", "API keys to note as used", lambda: self.marked)
        metrics.add(
            "key_uses_dropped",
            "counter",
            "Uses of API keys that there was no room to note",
            lambda: self.dropped,
        )

    def mark(self, key_id: int) -> None:
        """The key is being used now."""
        if len(self._marks) >= marks_max and key_id not in self._marks:
            self.dropped += 1
            return
        self._marks[key_id] = self._clock.wall_ms()

    async def run(self) -> None:
        """Write now and then. While PostgreSQL is away, marks wait for it."""
        while True:
            await asyncio.sleep(period_s)
            await self._write_if_possible()

    async def close(self) -> None:
        """Write what is left, if that is possible."""
        await self._write_if_possible()

    async def write(self) -> None:
        """Write all that is marked; what could not be written stays marked."""
        while self._marks:
            batch = dict(list(self._marks.items())[:batch_max])
            times = [datetime.fromtimestamp(ms / 1000, UTC) for ms in batch.values()]
            async with self._database.transaction() as connection:
                await connection.execute(_WRITE, list(batch), times)
            for key_id, at_ms in batch.items():
                if self._marks.get(key_id) == at_ms:
                    del self._marks[key_id]

    async def _write_if_possible(self) -> None:
        try:
            await self.write()
        except ClientError as error:
            log.warning("uses of API keys not written", keys=self.marked, why=str(error))
