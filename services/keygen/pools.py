"""All pools of a keygen, and how they are filled.

    hot      pool.ready and not pool.returned_first, and boot_s < pools.usable_until_s: pool.take()
    rare     await pools.take(tenant, size, count)

A pool is refilled when it falls to its low-water mark, by one task, whoever has noticed. Those who
find too little in it wait for that task, and a refill that begins knows how much they want. While
PostgreSQL is away what is there is given out; then RetryLater, as soon as that is known.

All that is here hangs on a lease: once it may be over, nothing is given out that came with it, for
somebody else may think of these keys as closed. So the keeper (keeper.py) tells under what id, and
until when, anything may be given out.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from services.core.errors import ClientError, FixRequest, InternalError, RetryLater
from services.core.permute import Permutation
from services.keygen.lots import ClaimLot, Drawn, Lot, RangeLot
from services.keygen.pool import Pool
from services.keygen.range_store import Doubt, Leavings, Refill, Unconfirmed, Wish
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.histogram import Histogram
from services.runtime.metrics import Metrics

# Of tenants and sizes; up to 10 KB each. Whoever serves more at once reserves a little more often.
pools_max: Final = 10_000
# Requests; a client that waits is given an answer within the seconds that it has.
waiting_max: Final = 5_000
take_s_max: Final = 4.0
# A reservation that was not confirmed is a gap; the next one usually is.
tries_max: Final = 3
# While PostgreSQL is away and the pool still has keys.
failure_known_s: Final = 1.0
# Of returned keys: they are rows, so it does not take many of them at once.
claim_keys_max: Final = 1_000
# Looked at for one that nobody uses; so many in a row are in use only where nearly all are.
_pools_looked_at_max: Final = 100

log = telemetry.logger("services.keygen")


class Ranges(Protocol):
    """PostgreSQL (range_store.py), or what stands for it."""

    async def refill(self, instance_id: int, wish: Wish) -> Refill:
        """FixRequest `limit_reached`, RetryLater, or Unconfirmed."""
        ...


@dataclass(slots=True)
class PoolCounters:
    """Since the start, for `/metrics`."""

    refills: int = 0
    refills_failed: int = 0
    # Reservations whose commit was not answered, and were let go of.
    unconfirmed: int = 0
    # Keys that are nobody's: of those, of pools that were dropped, and of leases that ended.
    gaps: int = 0
    reissued: int = 0
    dropped_pools: int = 0


class Pools:
    """Use as an async context manager; `begin` once there is a lease."""

    def __init__(
        self, ranges: Ranges, range_size: int, clock: Clock, pools_max: int = pools_max
    ) -> None:
        self._ranges = ranges
        self._range_size = range_size
        self._clock = clock
        self._pools_max = pools_max
        self.permutations: Mapping[int, Permutation] = {}
        self._pools: OrderedDict[tuple[int, int], Pool] = OrderedDict()
        self._tasks = asyncio.TaskGroup()
        self._requests_waiting = 0
        # Put into pools since the start, and taken out of them by nobody.
        self._keys_added = 0
        self._keys_dropped = 0
        self.instance_id: int | None = None
        # The same, or the last one: whose lots are in what the keeper has to tell.
        self.lots_of: int | None = None
        # By the clock that goes on while the machine is suspended, as the lease does.
        self.usable_until_s = -math.inf
        # What the keeper has to tell PostgreSQL, and whether there is any.
        self._ranges_done: list[int] = []
        self._claims_done: list[int] = []
        self._unused: list[tuple[int, int]] = []
        self._void_claims: list[int] = []
        self.left_something = asyncio.Event()
        # Reservations that PostgreSQL has to be asked about before it can be told.
        self.doubts: list[Doubt] = []
        self.counters = PoolCounters()
        self.refill_ms = Histogram()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pool in self._pools.values():
            if pool.refilling is not None:
                pool.refilling.cancel()
        await self._tasks.__aexit__(kind, error, traceback)

    def __len__(self) -> int:
        return len(self._pools)

    @property
    def left(self) -> int:
        return sum(pool.left for pool in self._pools.values())

    @property
    def issued(self) -> int:
        """Keys given out since the start. Nothing is counted when one is."""
        return self._keys_added - self._keys_dropped - self.left

    def add_to(self, metrics: Metrics) -> None:
        metrics.add("pools", "gauge", "Tenants and sizes that keys are ready for", self.__len__)
        metrics.add("pool_keys", "gauge", "Keys in all pools", lambda: self.left)
        metrics.add(
            "pool_requests_waiting", "gauge", "Requests that wait", lambda: self._requests_waiting
        )
        metrics.add("keys_issued", "counter", "Keys given out", lambda: self.issued)
        metrics.add(
            "pool_reservations_in_doubt",
            "gauge",
            "Reservations of which PostgreSQL has not said yet whether they have happened",
            lambda: len(self.doubts),
        )
        metrics.add(
            "pool_lots_untold",
            "gauge",
            "Ranges and claims that are done with, of which PostgreSQL has not been told yet",
            lambda: len(self._ranges_done) + len(self._claims_done),
        )
        metrics.add_counters("pool", "of the pools of keys", self.counters)
        metrics.add_histogram("pool_refill_ms", "Time that a reservation takes", self.refill_ms)

    # What the keeper tells.

    def begin(self, instance_id: int, permutations: Mapping[int, Permutation]) -> None:
        """Reserve under this id from now on; what is given out needs `usable_until_s` too."""
        self.instance_id = self.lots_of = instance_id
        self.permutations = permutations

    def end(self) -> None:
        """Give nothing out any more, and reserve nothing: all lots are done with."""
        self.instance_id = None
        self.usable_until_s = -math.inf
        for pool in self._pools.values():
            self._let_go(pool)
        self._pools.clear()

    def take_leavings(self) -> Leavings:
        """What is done with since the last time."""
        leavings = Leavings(self._ranges_done, self._claims_done, self._unused, self._void_claims)
        self._ranges_done, self._claims_done, self._unused, self._void_claims = [], [], [], []
        self.left_something.clear()
        return leavings

    def keep_leavings(self, leavings: Leavings) -> None:
        """They could not be told."""
        self._ranges_done += leavings.ranges
        self._claims_done += leavings.claims
        self._unused += leavings.unused
        self._void_claims += leavings.void_claims

    def give_returned_first(self, names: Iterable[tuple[int, int]]) -> None:
        """Keys of these tenants and sizes were returned, and are to go out next."""
        for name in names:
            pool = self._pools.get(name)
            if pool is not None:
                pool.returned_first = True

    def used_lately(self) -> list[tuple[int, int]]:
        """Tenants and sizes of which keys went out since the last time."""
        names = []
        for name, pool in self._pools.items():
            if pool.left != pool.left_when_last_listed:
                pool.left_when_last_listed = pool.left
                names.append(name)
        return names

    def refill_low(self) -> None:
        """Refill whatever wants it: PostgreSQL is back."""
        for pool in self._pools.values():
            pool.retry_at_s = -math.inf
            if pool.left <= pool.low_water:
                self._refill_soon(pool)

    # Taking.

    def pool(self, tenant: int, size: int) -> Pool:
        """The pool of this tenant and size; RetryLater if there is none, nor room for it."""
        pool = self._pools.get((tenant, size))
        if pool is None:
            permutation = self.permutations.get(size)
            if permutation is None or self.instance_id is None:
                raise _unavailable()
            if len(self._pools) >= self._pools_max:
                self._make_room()
            pool = Pool(tenant, permutation, self._range_size, self._refill_soon, self._finished)
            self._pools[tenant, size] = pool
        return pool

    def _is_usable(self, pool: Pool, count: int) -> bool:
        now_s = self._clock.boot_s()
        # Whether keys were returned is not asked again and again while nobody answers.
        may_take = not pool.returned_first or now_s < pool.retry_at_s
        return pool.left >= count and may_take and now_s < self.usable_until_s

    async def take(self, tenant: int, size: int, count: int) -> list[Lot | Drawn]:
        """So many keys, of which those that are lots are the caller's to draw.

        FixRequest `limit_reached`; RetryLater, within `take_s_max`.
        """
        pool = self.pool(tenant, size)
        if self._is_usable(pool, count):
            return pool.take_many(count)
        if self._requests_waiting >= waiting_max:
            raise RetryLater("overloaded", f"{waiting_max} requests wait for keys already")
        self._requests_waiting += 1
        try:
            async with asyncio.timeout(take_s_max):
                return await self._take_later(tenant, size, count)
        except TimeoutError:
            raise RetryLater(
                "database_unavailable", f"No keys were reserved within {take_s_max:g} s"
            ) from None
        finally:
            self._requests_waiting -= 1

    async def _take_later(self, tenant: int, size: int, count: int) -> list[Lot | Drawn]:
        while True:
            # It may have been dropped meanwhile.
            pool = self.pool(tenant, size)
            if self._is_usable(pool, count):
                return pool.take_many(count)
            pool.keys_wanted += count
            pool.requests_waiting += 1
            try:
                error = await self._refilled(pool)
            finally:
                pool.keys_wanted -= count
                pool.requests_waiting -= 1
            if error is None:
                continue
            if pool.left >= count and self._clock.boot_s() < self.usable_until_s:
                # Whether any were returned cannot be told now.
                return pool.take_many(count)
            raise _copy_of(error)

    async def pool_after_refill(self, tenant: int, size: int) -> Pool | None:
        """The pool, with all in it that PostgreSQL knows to be in it; None if there is none."""
        pool = self._pools.get((tenant, size))
        if pool is not None and pool.refilling is not None:
            await asyncio.wait((pool.refilling,))
        return pool

    # Filling.

    async def _refilled(self, pool: Pool) -> ClientError | None:
        """Wait for a refill; why it came to nothing, if so."""
        refilling = pool.refilling or self._start_refill(pool)
        # Others wait for it too, and one that leaves does not take it along.
        await asyncio.wait((refilling,))
        if refilling.cancelled():
            return RetryLater("shutting_down", "This keygen ends; another one may have keys")
        outcome = refilling.result()
        return outcome if isinstance(outcome, ClientError) else None

    def _refill_soon(self, pool: Pool) -> None:
        if pool.refilling is None and self._clock.boot_s() >= pool.retry_at_s:
            self._start_refill(pool)

    def _start_refill(self, pool: Pool) -> asyncio.Task[object]:
        pool.refilling = self._tasks.create_task(self._refill(pool))
        return pool.refilling

    async def _refill(self, pool: Pool) -> object:
        """None, or the error: it is an answer to those who wait, not a failure of the task."""
        try:
            # Whoever else comes in this turn of the loop is counted in.
            await asyncio.sleep(0)
            await self._fill(pool)
        except ClientError as error:
            self.counters.refills_failed += 1
            pool.retry_at_s = self._clock.boot_s() + failure_known_s
            return error
        except Exception:
            log.exception("a pool could not be refilled", size=pool.size)
            self.counters.refills_failed += 1
            pool.retry_at_s = self._clock.boot_s() + failure_known_s
            return InternalError()
        finally:
            pool.refilling = None
        return None

    async def _fill(self, pool: Pool) -> None:
        for _ in range(tries_max):
            instance_id = self.instance_id
            began_s = self._clock.boot_s()
            if instance_id is None or began_s >= self.usable_until_s:
                raise _unavailable()
            # What comes in from here on may not be seen by this transaction.
            pool.returned_first = False
            wish = self._wish(pool, began_s)
            try:
                refill = await self._ranges.refill(instance_id, wish)
            except Unconfirmed as error:
                pool.returned_first = True
                self.counters.unconfirmed += 1
                self.counters.gaps += error.keys
                self.doubts.append(error.doubt)
                self.left_something.set()
                continue
            except BaseException:
                pool.returned_first = True
                raise
            now_s = self._clock.boot_s()
            self.refill_ms.observe((now_s - began_s) * 1000)
            self.counters.refills += 1
            self._fill_with(pool, refill, instance_id, wish.count, now_s)
            return
        raise RetryLater(
            "database_unavailable", f"PostgreSQL confirmed none of {tries_max} reservations"
        )

    def _wish(self, pool: Pool, now_s: float) -> Wish:
        needed = max(pool.keys_wanted - pool.left, 0)
        wanted = needed
        if pool.left <= pool.low_water:
            wanted = max(needed, pool.low_water + 1 - pool.left)
        return Wish(
            pool.tenant,
            pool.size,
            needed,
            wanted,
            pool.next_range_keys(now_s),
            max(claim_keys_max, needed),
        )

    def _fill_with(
        self, pool: Pool, refill: Refill, instance_id: int, planned: int, now_s: float
    ) -> None:
        if instance_id != self.instance_id or self._pools.get((pool.tenant, pool.size)) is not pool:
            # The lease has ended, or the pool was dropped: let go of at once.
            for lot in (refill.claimed, refill.reserved):
                if lot is not None:
                    self._let_go_of(lot, 0)
            raise _unavailable()
        for part in (refill.claimed, refill.reserved):
            self._keys_added += part.left if part is not None else 0
        self.counters.reissued += len(refill.claimed) if refill.claimed is not None else 0
        pool.add(refill.claimed, refill.reserved, planned, now_s)

    # Letting go.

    def _make_room(self) -> None:
        """Drop a pool that was not used since somebody last looked; any, if all of those looked at
        were."""
        usable = None
        for _ in range(min(_pools_looked_at_max, len(self._pools))):
            name, pool = next(iter(self._pools.items()))
            if not pool.keys_wanted and pool.refilling is None:
                usable = name
                if pool.left_at_last_look == pool.left:
                    break
            pool.left_at_last_look = pool.left
            self._pools.move_to_end(name)
        if usable is None:
            raise RetryLater("overloaded", "Keys are being reserved for too many accounts at once")
        self._let_go(self._pools.pop(usable))
        self.counters.dropped_pools += 1

    def _let_go(self, pool: Pool) -> None:
        for lot, drawn in pool.empty():
            self._keys_dropped += lot.left + drawn
            self._let_go_of(lot, drawn)

    def _let_go_of(self, lot: Lot, drawn: int) -> None:
        if isinstance(lot, ClaimLot):
            self._unused += [(lot.claim_id, index) for index, _ in lot.unused(drawn)]
        else:
            self.counters.gaps += lot.left + drawn
        self._finished(lot)

    def _finished(self, lot: Lot) -> None:
        if isinstance(lot, RangeLot):
            self._ranges_done.append(lot.range_id)
        else:
            self._claims_done.append(lot.claim_id)
        self.left_something.set()


def _unavailable() -> RetryLater:
    return RetryLater("database_unavailable", "No keys can be reserved: PostgreSQL is away")


def _copy_of(error: ClientError) -> ClientError:
    """One for each who waited: an exception that several raise grows a traceback of all."""
    if isinstance(error, RetryLater):
        return RetryLater(error.code, error.detail, retry_after_s=error.retry_after_s)
    if isinstance(error, FixRequest):
        return FixRequest(error.code, error.detail)
    return InternalError()
