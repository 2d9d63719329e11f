"""Usage on its way in: each report of each gateway counts once, however often it is sent.

A gateway numbers its reports. It sends one again until it is answered, and may have several on
their way; they may overtake each other. Which numbers of a sender were counted is remembered in
the transaction that counts them, so neither a lost answer nor a lost commit counts one twice.

Usage of an account that was closed meanwhile is kept: it says what the platform has done, and of
nobody but an id that is never used again; like all usage it goes with its day. Nobody is looked up
to count it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.core.errors import FixRequest, RetryLater
from services.core.usage_report import UsageReport, UsageTaken, report_bytes_max
from services.runtime import telemetry
from services.runtime.endpoints import Access, Call, Endpoint
from services.runtime.metrics import Metrics
from services.runtime.postgres import Database
from services.runtime.probes import Readiness
from services.usermanager import usage_store as store
from services.usermanager.partitions import Partitions, days_ahead, days_kept

# A report that comes again after its sender was forgotten is of days that have been dropped by
# then, however far ahead they were; so it is not counted twice. A week more for good measure.
senders_kept_days: Final = days_kept + days_ahead + 7
# As many as gateways that were started since the last upkeep are forgotten at the next.
senders_forgotten_max: Final = 1_000


@dataclass(slots=True)
class UsageCounters:
    """Since the start, for `/metrics`."""

    reports: int = 0
    repeated: int = 0
    rows: int = 0
    dropped: int = 0


class Usage:
    """What gateways have counted."""

    def __init__(
        self,
        database: Database,
        partitions: Partitions,
        note: Callable[[UsageReport], None] | None = None,
    ) -> None:
        """`note` is told of every report once it is counted."""
        self._database = database
        self._partitions = partitions
        self._tell = note
        self._log = telemetry.logger("usermanager.usage")
        self.counters = UsageCounters()

    def add_to(self, metrics: Metrics) -> None:
        metrics.add_counters("usage", "of the usage that gateways report", self.counters)
        self._partitions.add_to(metrics)

    def watch(self, readiness: Readiness) -> None:
        readiness.add("usage", self._partitions.condition)

    async def take(self, report: UsageReport) -> UsageTaken:
        """Count this report, unless it has been counted.

        RetryLater and UnknownOutcome mean: send the very same again. FixRequest if it is so far
        behind the others of its sender that nobody knows any more.
        """
        try:
            taken = await self._count(report)
        except store.DaysMissingError as missing:
            # Nobody was on to make them in time, or somebody has removed them.
            await self._partitions.make_for(missing.days)
            taken = await self._count_now(report)
        self._note(report, taken)
        return taken

    async def tidy(self) -> None:
        """Keep the days at hand, and forget senders that are long gone."""
        await self._partitions.tidy()
        async with self._database.transaction() as connection:
            await store.forget_senders(
                connection, older_than_days=senders_kept_days, rows_max=senders_forgotten_max
            )

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "POST",
                "/usage",
                "reportUsage",
                "Count what a gateway has served",
                self._take,
                access=Access.INTERNAL,
                body_type=UsageReport,
                body_bytes_max=report_bytes_max,
                answer_type=UsageTaken,
                tag="Internal",
            )
        ]

    async def _take(self, call: Call[None, None, UsageReport]) -> UsageTaken:
        return await self.take(call.body)

    async def _count(self, report: UsageReport) -> UsageTaken:
        async with self._database.transaction() as connection:
            if await store.claim(connection, report.sender, report.sequence):
                dropped = await store.add(connection, report.rollups)
                counted = True
            elif await store.is_forgotten(connection, report.sender, report.sequence):
                raise FixRequest(
                    "invalid_body",
                    f"sequence {report.sequence} is more than {store.reports_remembered} behind "
                    f"the latest of {report.sender}: whether it was counted is forgotten; who "
                    "begins anew takes another name as sender",
                    members={"member": "sequence"},
                )
            else:
                dropped, counted = 0, False
        return UsageTaken(counted, dropped)

    async def _count_now(self, report: UsageReport) -> UsageTaken:
        """The same when its days have just been made: nothing is thrown away if they are not."""
        try:
            return await self._count(report)
        except store.DaysMissingError as missing:
            raise RetryLater("database_unavailable", f"Usage waits: {missing}") from None

    def _note(self, report: UsageReport, taken: UsageTaken) -> None:
        if not taken.counted:
            self.counters.repeated += 1
            return
        self.counters.reports += 1
        self.counters.rows += len(report.rollups) - taken.dropped
        self.counters.dropped += taken.dropped
        if self._tell is not None:
            self._tell(report)
        if taken.dropped:
            self._log.warning(
                "usage dropped: of days that are not kept",
                sender=report.sender,
                sequence=report.sequence,
                rows=taken.dropped,
                of=len(report.rollups),
                days_kept=days_kept,
                days_ahead=days_ahead,
            )
