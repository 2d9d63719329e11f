"""Usage as pages tell it: in words of people, in tables, and in the series of charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from services.usermanager.usage_series import Sums, UsageSeries, total_of

# As many as have colours of their own; what has fewer requests is drawn as one.
drawn_max: Final = 5
# What the gateway and keygen count, as people call it.
operations: Final[Mapping[str, str]] = {
    "get": "Get",
    "get_strong": "Get, strong",
    "head": "Head",
    "head_strong": "Head, strong",
    "put": "Put",
    "delete": "Delete",
    "patch": "Change expiry",
    "incr": "Increment",
    "list": "List",
    "batch": "Batch",
    "delete_prefix": "Delete by prefix",
    "namespaces": "Namespaces",
    "ids": "Make IDs",
    "return_ids": "Return IDs",
    "quota": "Quota of IDs",
}


@dataclass(slots=True, frozen=True)
class Line:
    """One row of a table of sums."""

    name: str
    sums: Sums
    # Of all requests, from 0 to 1.
    share: float
    # Of an API key, its number; else of no meaning.
    key_id: int = 0


def operation_named(operation: str) -> str:
    """Of one that this version does not know, its own name."""
    return operations.get(operation, operation.replace("_", " ").capitalize())


def lines_of(parts: Mapping[str, Mapping[datetime, Sums]]) -> list[Line]:
    """The most requests first."""
    sums = {name: total_of(of.values()) for name, of in parts.items()}
    return _in_order(sums.items())


def key_lines(series: UsageSeries, names: Mapping[int, str]) -> list[Line]:
    total = series.total.requests or 1
    lines = []
    for key_id, of in series.by_key.items():
        sums = total_of(of.values())
        lines.append(Line(_key_named(key_id, names), sums, sums.requests / total, key_id))
    return sorted(lines, key=lambda line: (-line.sums.requests, line.key_id))


def _key_named(key_id: int, names: Mapping[int, str]) -> str:
    """Of one that is gone, its number."""
    return names.get(key_id) or f"API key {key_id}"


def operation_lines(series: UsageSeries) -> list[Line]:
    return lines_of({operation_named(name): of for name, of in series.by_operation.items()})


def status_lines(series: UsageSeries) -> list[Line]:
    return lines_of({str(status): of for status, of in series.by_status.items()})


def chart_of(series: UsageSeries, names: Mapping[int, str]) -> dict[str, Any]:
    """What js/pages/usage.js draws: times in seconds, and a list of numbers for each line."""
    points = series.points()
    operations = {operation_named(name): of for name, of in series.by_operation.items()}
    statuses = {str(status): of for status, of in series.by_status.items()}
    # Two may be called the same even so; then each has its number too.
    often = Counter(_key_named(key_id, names) for key_id in series.by_key)
    keys = {
        name if often[name] == 1 else f"{name} ({key_id})": of
        for key_id, of in series.by_key.items()
        for name in [_key_named(key_id, names)]
    }
    return {
        "times": [int(time.timestamp()) for time in series.times()],
        "step": series.step,
        "requests": {
            "operation": _drawn(series, operations),
            "status": _drawn(series, statuses),
            "key": _drawn(series, keys),
        },
        "latency": [
            {"label": "p50", "values": [_rounded(point.percentile_ms(0.5)) for point in points]},
            {"label": "p99", "values": [_rounded(point.percentile_ms(0.99)) for point in points]},
            {"label": "average", "values": [_rounded(point.average_ms) for point in points]},
        ],
        "bytes": [
            {"label": "in", "values": [point.bytes_in for point in points]},
            {"label": "out", "values": [point.bytes_out for point in points]},
        ],
        "limited": [{"label": "429", "values": [point.limited for point in points]}],
    }


def _drawn(
    series: UsageSeries, parts: Mapping[str, Mapping[datetime, Sums]]
) -> list[dict[str, Any]]:
    ordered = [line.name for line in lines_of(parts)]
    alone, others = ordered[:drawn_max], ordered[drawn_max:]
    if len(others) == 1:
        alone, others = ordered, []
    drawn = [{"label": name, "values": _requests(series, [parts[name]])} for name in alone]
    if others:
        values = _requests(series, [parts[name] for name in others])
        drawn.append({"label": "others", "values": values})
    return drawn


def _requests(series: UsageSeries, parts: Sequence[Mapping[datetime, Sums]]) -> list[int]:
    columns = [[point.requests for point in series.points(part)] for part in parts]
    return [sum(column) for column in zip(*columns, strict=True)]


def _in_order(sums: Iterable[tuple[str, Sums]]) -> list[Line]:
    found = sorted(sums, key=lambda each: (-each[1].requests, each[0]))
    total = sum(each.requests for _, each in found) or 1
    return [Line(name, each, each.requests / total) for name, each in found]


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)
