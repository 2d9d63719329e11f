"""What tenants ask of their usage, and are told."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from services.core.usage_report import Time

Step = Literal["minute", "hour", "day"]


class StatsQuery(msgspec.Struct, frozen=True, rename={"from_": "from", "until": "to"}):
    """Minutes that begin at `from` or later, and before `to`."""

    from_: Time | None = None
    until: Time | None = None


class UsageQuery(msgspec.Struct, frozen=True, rename={"from_": "from", "until": "to"}):
    """Likewise, added up by steps in UTC."""

    from_: Time | None = None
    until: Time | None = None
    step: Step = "hour"


class UsageRow(msgspec.Struct, frozen=True, gc=False):
    """Usage by one API key of one operation with one status, from `start` on for a step."""

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
