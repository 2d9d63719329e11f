"""What those who serve tenants report of it to a user manager."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

# The largest integer that every JSON reader keeps exact. Sums stop there instead of overflowing.
count_max: Final = 2**53 - 1
# As many as take the event loop 3 ms, from their JSON to the arguments of a statement; then others
# have their turn. A gateway that has counted more sends it in parts. Rows of the longest numbers
# and names have 600 bytes each.
rows_per_report_max: Final = 1_000
report_bytes_max: Final = 1024 * 1024
# Latencies are counted by how many bits their microseconds have: below 64 us, below 128 us, and so
# on to 4.2 s, and what took longer. So a percentile is known to within a factor of two, and by how
# many lie where in between mostly to within a tenth.
latency_bits_least: Final = 6
latency_buckets: Final = 18
# In place of an API key's, where a person asks by pages of the console. No API key has it.
no_key_id: Final = 0
# Nothing was counted before, and no clock that is further ahead is to be believed. Within these
# PostgreSQL and datetime agree on what a time is, in any time zone.
earliest: Final = datetime(2020, 1, 1, tzinfo=UTC)
latest: Final = datetime(2200, 1, 1, tzinfo=UTC)

Count = Annotated[int, Meta(ge=0, le=count_max)]
Time = Annotated[datetime, Meta(tz=True)]


class Rollup(msgspec.Struct, frozen=True, gc=False):
    """What one API key asked of one operation, with one status, in part of a minute.

    Members that are not known are passed over, here and in a report: a gateway may be newer than
    the user manager, and what it counts must not be lost for what it counts besides.
    """

    minute: Time
    user_id: Count
    key_id: Count
    # A pattern and no list: a gateway may be newer than the user manager. `$` alone would let a
    # line feed pass at the end.
    operation: Annotated[str, Meta(pattern=r"^[a-z][a-z_]{0,31}$(?!\n)")]
    status: Annotated[int, Meta(ge=100, le=599)]
    requests: Count
    bytes_in: Count
    bytes_out: Count
    # The sum over all requests.
    latency_us: Count
    # How many there were of each bucket; an older gateway does not tell.
    latency_counts: Annotated[list[Count], Meta(max_length=latency_buckets)] = msgspec.field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        minute = self.minute
        if not earliest <= minute < latest:
            raise ValueError(f"minute is not between the years {earliest.year} and {latest.year}")
        # Not even those of a time zone: offsets of fractions of a minute are long gone.
        if minute.second or minute.microsecond:
            raise ValueError("minute is not the beginning of a minute")


class UsageReport(msgspec.Struct, frozen=True):
    """What a gateway has counted since its last report."""

    # Of one process: a gateway that starts anew takes another name, or goes on counting.
    sender: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,100}$(?!\n)")]
    sequence: Count
    rollups: Annotated[list[Rollup], Meta(max_length=rows_per_report_max)]


class UsageTaken(msgspec.Struct, frozen=True):
    """`counted` is false for a report that was counted before. `dropped` of its rows are of days
    that are too long ago to be kept, or too far ahead."""

    counted: bool
    dropped: int
