"""What a keygen does besides answering: keep its lease, and tell PostgreSQL what it is done with.

A lease says until when an instance may give out what it has reserved; after that its ranges are
closed by whoever notices, and what was returned of them is given out again. Our own end of it is
counted from before it was asked for, by a clock that nobody sets and that goes on while the machine
is suspended, and a little less: so we stop before anybody else could think that we have.

It is long, because a keygen goes on from its pools while PostgreSQL is away. That costs little:
one that was killed and is started again knows by its directory (home.py) that the former one is
over, and says so.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import asyncpg

from services.core.errors import FatalError, RetryLater, UnknownOutcome
from services.core.permute import Permutation, material_bytes, radix, sizes
from services.keygen.history_store import HistoryStore
from services.keygen.home import Home
from services.keygen.marks import Marks, SetBack, claims_counter
from services.keygen.pools import Pools
from services.keygen.quotas import Quotas
from services.keygen.range_store import Leavings, RangeStore
from services.keygen.watch_store import WatchStore
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.metrics import Metrics
from services.runtime.probes import Condition, Readiness, degraded, ready, unready

# As long as known API keys go on without a user manager.
lease_s: Final = 900.0
# What clocks may differ by in how fast they run, over that time and generously.
lease_margin_s: Final = 15.0
# Others wait for us to look, when PostgreSQL was started anew.
renew_s: Final = 2.0
# For a lease that nobody should be renewing any more.
copy_look_s: Final = 3 * renew_s
# For the leases of others that are over.
look_around_s: Final = 30.0
# Transactions of a size in one of these turns, which merge 20,000 rows a minute.
merges_max: Final = 20
# Soon after PostgreSQL is back.
pause_s: Final = 0.5
# What is done with is told in one go, a moment after the first of it.
gather_s: Final = 0.05
# Long before the last one: with a year's growth there is time to tell everybody.
warn_share: Final = 0.8
# Of the three seconds in which a service closes what it has.
farewell_s_max: Final = 1.5
instance_bits: Final = 62

log = telemetry.logger("services.keygen")


class Keeper:
    """A loop to `run`, then `close`."""

    def __init__(
        self,
        store: RangeStore,
        watch: WatchStore,
        history: HistoryStore,
        marks: Marks,
        pools: Pools,
        quotas: Quotas,
        home: Home,
        address: str,
        clock: Clock,
    ) -> None:
        self._store = store
        self._watch_store = watch
        self._history = history
        self._marks = marks
        self._pools = pools
        self._quotas = quotas
        self._home = home
        self._address = address
        self._clock = clock
        self._permutations: Mapping[int, Permutation] | None = None
        self._renewed_s = self._looked_s = float("-inf")
        self._counters: Mapping[int, int] = {}
        self._rows: dict[str, int] = {}
        self._warned: set[int] = set()
        # What is done every `look_around_s`, in turn.
        self._chores: deque[Callable[[], Awaitable[object]]] = deque(
            (store.bury, self._merge, history.forget, self._count_rows)
        )
        self.chores_failed = 0
        self._set_backs: Sequence[SetBack] = ()
        self.trouble: str | None = "it has not been asked yet"

    def add_to(self, metrics: Metrics) -> None:
        metrics.add(
            "keyspace_used_ratio",
            "gauge",
            "Share of all keys of a size that are in ranges",
            lambda: {str(size): used / radix**size for size, used in self._reserved.items()},
            labels=("size",),
        )
        metrics.add(
            "keyspace_nearly_exhausted",
            "gauge",
            f"1 from {warn_share:.0%} of all keys of a size on: ask for longer ones",
            lambda: {
                str(size): int(used >= warn_share * radix**size)
                for size, used in self._reserved.items()
            },
            labels=("size",),
        )
        metrics.add(
            "key_rows",
            "gauge",
            "Rows of a table, as PostgreSQL has last estimated them",
            lambda: self._rows,
            labels=("table",),
        )
        metrics.add(
            "key_chores_failed",
            "counter",
            "Times that closing what dead keygens had, or merging and forgetting what is over, "
            "came to nothing; it is tried again",
            lambda: self.chores_failed,
        )
        metrics.add(
            "key_counters_set_back",
            "gauge",
            "Counters that the database has forgotten part of: until `ydht ids skip` none is given",
            lambda: len(self._set_backs),
        )
        metrics.add(
            "key_marks_unwritten",
            "gauge",
            "1 while it cannot be noted on disk how far IDs have come",
            lambda: int(self._marks.trouble is not None),
        )

    def watch(self, readiness: Readiness) -> None:
        readiness.add("database", self._condition)

    async def run(self) -> None:
        """Keep the lease until cancelled."""
        while True:
            troubled = self.trouble
            try:
                await self._step()
                trouble = None
            except (RetryLater, UnknownOutcome) as error:
                trouble = error.detail
            except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
                trouble = "its tables are missing: run `ydht migrate`"
            if trouble != troubled:
                self._say(trouble)
            self.trouble = trouble
            if trouble is not None:
                await asyncio.sleep(pause_s)
                continue
            if troubled is not None:
                self._pools.refill_low()
            await self._until_next()

    async def close(self) -> None:
        """Give back what was not given out, if that can be done soon. When nothing is answered any
        more."""
        instance_id = self._pools.instance_id
        self._pools.end()
        if instance_id is None:
            return
        try:
            async with asyncio.timeout(farewell_s_max):
                await self._store.leave(instance_id, self._pools.take_leavings())
                await self._quotas.flush(everything=True)
                await self._store.end_lease(instance_id)
                await self._store.bury()
        except (TimeoutError, RetryLater, UnknownOutcome):
            log.warning("PostgreSQL was not told of the end; the next start, or time, will do")

    async def _step(self) -> None:
        now_s = self._clock.boot_s()
        if self._pools.instance_id is not None and now_s >= self._pools.usable_until_s:
            self._lose_lease()
        if self._pools.instance_id is None or now_s - self._renewed_s >= renew_s or self.trouble:
            await self._hold_lease()
            # Other keygens take keys back too.
            if names := self._pools.used_lately():
                self._pools.give_returned_first(await self._store.with_free(names))
        await self._leave()
        await self._settle_doubts()
        await self._quotas.flush()
        if now_s - self._looked_s >= look_around_s:
            self._looked_s = now_s
            await self._look_around()

    async def _hold_lease(self) -> None:
        instance_id = self._pools.instance_id
        asked_s = self._clock.boot_s()
        if instance_id is not None and await self._store.renew(instance_id, lease_s):
            self._hold_until(asked_s)
            await self._watch(instance_id)
            return
        if instance_id is not None:
            self._lose_lease()
        # In the name of the one that we were.
        await self._leave()
        await self._watch(await self._register())
        # What the former one had is free at once.
        await self._store.bury()

    async def _watch(self, instance_id: int) -> None:
        """Halted, or RollCall, if nothing may be reserved."""
        sight = await self._watch_store.look(instance_id, self._marks)
        self._counters = sight.counters
        self._set_backs = sight.set_backs
        self._warn_of_exhaustion()
        if sight.refusal is not None:
            raise sight.refusal

    async def _register(self) -> int:
        if self._permutations is None:
            material = await self._store.material(secrets.token_bytes(material_bytes))
            self._marks.open(material)
            made: dict[int, Permutation] = {}
            for size in sizes:
                # Some 10 ms each.
                made[size] = Permutation(material, size)
                await asyncio.sleep(0)
            self._permutations = made
        former = self._home.former
        if former is not None and not self._home.is_former_over:
            await self._refuse_to_be_copy(former)
            # It is left to run out by itself.
            former = None
        instance_id = secrets.randbits(instance_bits)
        asked_s = self._clock.boot_s()
        await self._store.register(instance_id, self._address, lease_s, former)
        # Before anything is reserved: who finds this knows whose ranges are to be closed.
        await self._home.keep(instance_id)
        self._pools.begin(instance_id, self._permutations)
        self._hold_until(asked_s)
        return instance_id

    async def _refuse_to_be_copy(self, former: int) -> None:
        """FatalError if somebody else runs as the instance that our directory names."""
        first = await self._store.lease(former)
        if first is None:
            return
        self.trouble = f"whether {self._home.instance_path} is in use elsewhere is being looked at"
        until_s = self._clock.boot_s() + copy_look_s
        while self._clock.boot_s() < until_s:
            await asyncio.sleep(pause_s)
            lease = await self._store.lease(former)
            if lease is None:
                return
            if lease.until != first.until:
                raise FatalError(
                    f"{self._home.instance_path} is a copy: the keygen that it names runs at "
                    f"{lease.address or 'an address that it does not tell'}. Give this one a "
                    "DATA_DIR of its own, or remove that file and no other of the directory"
                )

    async def _look_around(self) -> None:
        """Of each chore a little: it is not urgent, and no reason not to reserve if it fails. The
        one that fails comes last the next time, so that it does not keep the others waiting."""
        for _ in range(len(self._chores)):
            chore = self._chores[0]
            self._chores.rotate(-1)
            try:
                await chore()
            except (RetryLater, UnknownOutcome) as error:
                self.chores_failed += 1
                log.warning("what is over was not put in order", why=error.detail)
                return

    async def _merge(self) -> None:
        for size in sizes:
            for _ in range(merges_max):
                if not await self._history.merge(size):
                    break

    async def _count_rows(self) -> None:
        self._rows = await self._history.rows()

    @property
    def _reserved(self) -> dict[int, int]:
        """Of each size, how many indexes are in ranges, as they were last looked at."""
        return {one: used for one, used in self._counters.items() if one != claims_counter}

    def _hold_until(self, asked_s: float) -> None:
        self._renewed_s = asked_s
        self._pools.usable_until_s = asked_s + lease_s - lease_margin_s

    def _lose_lease(self) -> None:
        log.warning("lease is over: all pools are dropped", keys=self._pools.left)
        self._pools.end()

    async def _leave(self) -> None:
        leavings: Leavings = self._pools.take_leavings()
        instance_id = self._pools.lots_of
        if not leavings or instance_id is None:
            return
        try:
            freed = await self._store.leave(instance_id, leavings)
        except BaseException:
            self._pools.keep_leavings(leavings)
            raise
        self._pools.give_returned_first(freed)

    async def _settle_doubts(self) -> None:
        """Let go of reservations that were not confirmed: each as soon as it has happened, or
        cannot happen any more. Told before that, PostgreSQL would know of nothing to let go of."""
        doubts = list(self._pools.doubts)
        if not doubts:
            return
        under_way = await self._store.under_way([doubt.transaction_id for doubt in doubts])
        for doubt in doubts:
            if doubt.transaction_id not in under_way:
                freed = await self._store.leave(doubt.instance_id, doubt.leavings)
                self._pools.give_returned_first(freed)
                self._pools.doubts.remove(doubt)

    def _warn_of_exhaustion(self) -> None:
        for size, used in self._reserved.items():
            share = used / radix**size
            if share >= warn_share and size not in self._warned:
                self._warned.add(size)
                log.warning("keys run out: ask for longer ones", size=size, used=f"{share:.1%}")

    async def _until_next(self) -> None:
        left_s = self._renewed_s + renew_s - self._clock.boot_s()
        try:
            async with asyncio.timeout(max(left_s, 0.0)):
                await self._pools.left_something.wait()
        except TimeoutError:
            return
        await asyncio.sleep(gather_s)

    def _say(self, trouble: str | None) -> None:
        if trouble is None:
            log.info("keys can be reserved")
        else:
            log.warning("no keys can be reserved", trouble=trouble)

    def _condition(self) -> Condition:
        if self._set_backs:
            told = "; ".join(map(str, self._set_backs))
            return unready(
                "no IDs are given out, for the database was set back to an earlier state and they "
                f"would come twice ({told}): start all keygens that there are on their DATA_DIR, "
                "so that each tells how far it had come, then run `ydht ids skip`"
            )
        if self._clock.boot_s() >= self._pools.usable_until_s:
            return unready(f"keys are reserved in PostgreSQL, and {self.trouble or 'not yet'}")
        if self.trouble is not None:
            return degraded(f"keys come from the pools as long as there are any: {self.trouble}")
        if self._marks.trouble is not None:
            return degraded(
                f"a database that is set back might not be noticed: {self._marks.trouble}"
            )
        return ready
