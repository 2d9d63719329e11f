"""What tenants ask of their usage, and are told."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from services.core.usage_report import Time, no_key_id
from services.runtime.text_members import code
from services.usermanager.row_ids import id_max
from services.usermanager.usage_spans import Step, spans, stats_span

# About 2 MB of JSON.
page_rows_max: Final = 10_000
cursor_chars_max: Final = 128

_form: Final = "A time such as 2026-11-21T00:00:00Z; the + of an offset is written %2B."
_by_step: Final = "; ".join(f"step={step} {span}" for step, span in spans.items())
_Until = Annotated[
    Time | None, Meta(description=f"Where the period ends, itself not in it; else now. {_form}")
]
_KeyId = Annotated[
    Annotated[int, Meta(ge=no_key_id, le=id_max)] | None,
    Meta(
        description="Only what this API key has used, or with 0 what was done in the console; "
        "else all"
    ),
]


class StatsQuery(msgspec.Struct, frozen=True, rename={"from_": "from", "until": "to"}):
    """Minutes that begin at `from` or later, and before `to`."""

    from_: Annotated[
        Time | None,
        Meta(description=f"Where the period begins, before `to`: else {stats_span}. {_form}"),
    ] = None
    until: _Until = None
    key_id: _KeyId = None


class UsageQuery(msgspec.Struct, frozen=True, rename={"from_": "from", "until": "to"}):
    """Likewise, added up by steps in UTC."""

    from_: Annotated[
        Time | None,
        Meta(description=f"Where the period begins, before `to`: else by {_by_step}. {_form}"),
    ] = None
    until: _Until = None
    step: Annotated[Step, Meta(description="What is added up in one row, in UTC")] = "hour"
    key_id: _KeyId = None
    limit: Annotated[
        int, Meta(ge=1, le=page_rows_max, description="Of rows; with more there is a Link")
    ] = page_rows_max
    cursor: (
        Annotated[
            str,
            Meta(
                max_length=cursor_chars_max,
                description="As the Link of the page before has it, with all other parameters",
                extra=code("invalid_cursor"),
            ),
        ]
        | None
    ) = None


class UsageHeaders(msgspec.Struct, frozen=True, rename={"link": "Link"}):
    link: Annotated[
        str | None,
        Meta(description='Where the next page is, if there is one: </usage?...>; rel="next"'),
    ] = None


class UsageRow(msgspec.Struct, frozen=True, gc=False):
    """Usage by one API key of one operation with one status, from `start` on for a step. The API
    key 0 is the console."""

    start: datetime
    key_id: int
    operation: str
    status: int
    requests: int
    bytes_in: int
    bytes_out: int
    average_latency_ms: float


class UsageStats(msgspec.Struct, frozen=True, rename={"from_": "from", "until": "to"}):
    """Totals of a period; requests with a status below 400 are successful."""

    from_: datetime
    until: datetime
    total_requests: int
    successful_requests: int
    failed_requests: int
    total_bytes_transferred: int
    average_latency_ms: float
    requests_by_operation: dict[str, int]
