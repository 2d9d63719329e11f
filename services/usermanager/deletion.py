"""Deleting what closed accounts have stored: all keys of all their namespaces.

    closed ──► first pass, at once ──► … ──► last pass, when nobody can write any more ──► done
                    └──── in trouble: put off, longer each time, and tried again ────┘

A gateway that is cut off from user managers takes an API key for good for a while after it was
revoked, so more may be written after the account is closed. The last pass begins when that is over
and goes on until it finds nothing.

A pass goes through the namespaces by their names and deletes each from its first key to its last. A
pass that was interrupted, by an error or the end of this process, begins anew and finds what is
left. Several user managers share the work, an account each; one that dies is replaced after its
lease (deletion_store.py). An account is never given up: whatever is wrong is logged, is in the
account's row, and is tried again. `/metrics`, which anybody may read, only counts such accounts.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Final

from services.core.errors import ClientError
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.metrics import Metrics
from services.usermanager.deletion_store import (
    Backlog,
    ClosedAccount,
    DeletionStore,
    LostError,
)
from services.usermanager.tenant_data import TenantData, TroubleError

# How long a gateway that cannot ask may go on with what it knows of an API key.
stale_credentials_s: Final = 15 * 60.0
# For writes that were under way then, and for clocks that do not run at quite the same pace.
settling_s: Final = 60.0
# Far longer than any step takes whose end renews it: a deletion of some keys and a statement.
lease_s_default: Final = 60.0
# How soon a closed account is found; one short statement each time.
look_s_default: Final = 1.0
# After trouble, twice as long each time.
pause_s_min_default: Final = 1.0
pause_s_max_default: Final = 300.0
# A sweep that finds something is followed by another. Somebody still writes if this many in a row
# do, and is outwaited rather than raced.
sweeps_max: Final = 5
# After each step as long a rest as it took, within bounds: clients come first.
rest_s_max: Final = 1.0
# So that one late renewal does not lose the lease.
renewals_per_lease: Final = 4

log = telemetry.logger("services.usermanager")


@dataclass(slots=True, frozen=True)
class Pace:
    """When things are done; shorter in tests."""

    # How long an account has been closed when its last pass may begin.
    last_pass_s: float = stale_credentials_s + settling_s
    lease_s: float = lease_s_default
    look_s: float = look_s_default
    pause_s_min: float = pause_s_min_default
    pause_s_max: float = pause_s_max_default


@dataclass(slots=True)
class DeletionCounters:
    """Since the start, for `/metrics`; of this process alone."""

    accounts_done: int = 0
    keys_deleted: int = 0
    passes: int = 0
    put_off: int = 0


class Deletion:
    def __init__(
        self,
        store: DeletionStore,
        data: TenantData,
        clock: Clock,
        draw: random.Random,
        pace: Pace | None = None,
    ) -> None:
        self.counters = DeletionCounters()
        # As it was when an account was last looked for.
        self.backlog = Backlog()
        self._store = store
        self._data = data
        self._clock = clock
        self._draw = draw
        self._pace = pace or Pace()
        self._renewed_s = 0.0
        # What the database was last in the way with, which need not be logged again.
        self._heard: str | None = None

    def add_to(self, metrics: Metrics) -> None:
        metrics.add_counters("deletion", "of data of closed accounts", self.counters)
        for name, text, read in (
            ("waiting", "Closed accounts that have data left", lambda: self.backlog.waiting),
            ("in_trouble", "Of these, those put off", lambda: self.backlog.in_trouble),
            ("oldest_s", "For how long the first one is closed", lambda: self.backlog.oldest_s),
        ):
            metrics.add(f"deletion_{name}", "gauge", text, read)

    async def run(self) -> None:
        """Delete whatever is due, until cancelled."""
        while True:
            if not await self._next():
                await asyncio.sleep(self._pace.look_s * self._draw.uniform(0.5, 1.0))

    async def _next(self) -> bool:
        """Take on an account; False if none is due, or the database is away."""
        try:
            self.backlog = await self._store.backlog()
            account = await self._store.take(self._pace.lease_s)
            if account is not None:
                self._renewed_s = self._clock.monotonic_s()
                await self._work_on(account)
        except ClientError as error:
            # Who takes it on after the lease finds what is left.
            if str(error) != self._heard:
                log.warning("deleting the data of closed accounts waits", why=str(error))
            self._heard = str(error)
            return False
        self._heard = None
        return account is not None

    async def _work_on(self, account: ClosedAccount) -> None:
        try:
            await self._pass(account)
        except LostError:
            log.info("another user manager deletes this account's data", user_id=account.user_id)
        except TroubleError as error:
            await self._put_off(account, str(error))

    async def _put_off(self, account: ClosedAccount, trouble: str) -> None:
        pace = self._pace
        # No longer than the longest, and no number so great that it cannot be had.
        longest_s = min(pace.pause_s_min * 2 ** min(account.attempts, 30), pace.pause_s_max)
        pause_s = longest_s * self._draw.uniform(0.5, 1.0)
        self.counters.put_off += 1
        log.warning(
            "deleting the data of a closed account is put off",
            user_id=account.user_id,
            trouble=trouble,
            attempts=account.attempts + 1,
            again_in_s=round(pause_s, 1),
        )
        try:
            await self._store.put_off(account, pause_s, trouble)
        except LostError:
            return

    # -- a pass

    async def _pass(self, account: ClosedAccount) -> None:
        is_last = account.closed_s >= self._pace.last_pass_s
        for _ in range(sweeps_max if is_last else 1):
            found = await self._sweep(account)
            if is_last and not found:
                break
        else:
            if is_last:
                raise TroubleError(f"{sweeps_max} sweeps in a row found keys: who writes them?")
        self.counters.passes += 1
        if not is_last:
            await self._store.come_back(account, self._pace.last_pass_s)
            return
        deleted = await self._store.finish(account)
        self.counters.accounts_done += 1
        log.info("data of a closed account deleted", user_id=account.user_id, keys=deleted)

    async def _sweep(self, account: ClosedAccount) -> int:
        """Go through all namespaces once; how many keys there were."""
        found = 0
        start: bytes | None = b""
        while start is not None:
            began_s = self._clock.monotonic_s()
            page = await self._data.namespaces(account.user_id, start)
            await self._go_on(account, began_s)
            for name in page.names:
                found += await self._empty(account, name)
            start = page.next
        return found

    async def _empty(self, account: ClosedAccount, namespace: bytes) -> int:
        found = 0
        start: bytes | None = b""
        while start is not None:
            began_s = self._clock.monotonic_s()
            told = await self._data.delete(account.user_id, namespace, start)
            found += told.matched
            self.counters.keys_deleted += told.deleted
            await self._go_on(account, began_s, told.deleted)
            start = told.next
        return found

    async def _go_on(self, account: ClosedAccount, began_s: float, deleted: int = 0) -> None:
        """After a step that began then: say that we are at it, and rest."""
        now_s = self._clock.monotonic_s()
        # Looking through many namespaces in which there is nothing is not worth a commit each.
        if deleted or now_s - self._renewed_s > self._pace.lease_s / renewals_per_lease:
            await self._store.go_on(account, self._pace.lease_s, deleted)
            self._renewed_s = now_s
        await asyncio.sleep(min(now_s - began_s, rest_s_max))
