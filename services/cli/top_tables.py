"""How `ydht top` shows its rows: tables that fit 80 columns, and a document of each row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from services.cli.top_figures import Row, kinds
from services.core.cluster_health import age_in_words

sort_names: Final = ("name", "rate", "latency", "cpu", "memory")
_sorted_by: Final = {
    "rate": "per_s",
    "latency": "p99_ms",
    "cpu": "cpu",
    "memory": "memory_bytes",
}
_digits: Final = re.compile(r"(\d+)")
_styles: Final = {"ready": "", "degraded": "yellow", "unready": "yellow", "away": "red"}
_unknown: Final = "-"

Words = Callable[[float], str]


def count(number: float) -> str:
    """In at most five characters: 950, 12.3k, 1.2M."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.0f}" if not unit or number >= 99.95 else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.0f}P"


def size(number: float) -> str:
    for unit in ("B", "K", "M", "G", "T"):
        if number < 1023.5:
            return f"{number:.0f}{unit}"
        number /= 1024
    return f"{number:.0f}P"


def milliseconds(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number / 1000:.3g}s"


def share(number: float) -> str:
    return f"{number * 100:.0f}%"


def lag(number: float) -> str:
    return age_in_words(number / 1000) if number else _unknown


_columns: Final[dict[str, tuple[tuple[str, str, Words], ...]]] = {
    "edge": (
        ("req/s", "per_s", count),
        ("5xx/s", "failed_per_s", count),
        ("p50 ms", "p50_ms", milliseconds),
        ("p99 ms", "p99_ms", milliseconds),
        ("busy", "in_flight", count),
        ("IDs/s", "ids_per_s", count),
        ("pool", "pool_keys", count),
        ("cpu", "cpu", share),
        ("mem", "memory_bytes", size),
    ),
    "replicator": (
        ("ops/s", "per_s", count),
        ("ref/s", "refused_per_s", count),
        ("p50 ms", "p50_ms", milliseconds),
        ("p99 ms", "p99_ms", milliseconds),
        ("queue", "queue", count),
        ("hints", "hints", count),
        ("lag", "lag_ms", lag),
        ("cpu", "cpu", share),
        ("mem", "memory_bytes", size),
    ),
    "node": (
        ("reads/s", "reads_per_s", count),
        ("wr/s", "writes_per_s", count),
        ("sync/s", "syncs_per_s", count),
        ("keys", "keys", count),
        ("log", "log_bytes", size),
        ("hints", "hints", count),
        ("lag", "lag_ms", lag),
        ("cpu", "cpu", share),
        ("mem", "memory_bytes", size),
    ),
}
_tables: Final = {"service": kinds[:3], "replicator": ("replicator",), "node": ("node",)}


def document_of(row: Row) -> dict[str, Any]:
    figures = {
        name: None if number is None else round(number, 3) for name, number in row.figures.items()
    }
    return {
        "kind": row.kind,
        "name": row.name,
        "url": row.url,
        "state": row.state,
        "reasons": list(row.reasons),
        **figures,
    }


def shown(rows: Sequence[Row], sort: str) -> Iterator[RenderableType]:
    """A table for each kind, and what is not well in words."""
    for title, wanted in _tables.items():
        found = [row for row in rows if row.kind in wanted]
        if found:
            yield _table(title, sorted(found, key=lambda row: _place(row, sort)))
    for row in rows:
        for reason in row.reasons:
            style = _styles.get(row.state, "")
            yield Text(f"{row.name} ({row.url}) is {row.state}: {reason}", style=style)


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(title, min_width=12, max_width=16, no_wrap=True, overflow="ellipsis")
    columns = _columns.get(title, _columns["edge"])
    for name, _, _ in columns:
        table.add_column(name, justify="right", no_wrap=True, min_width=4)
    for row in rows:
        cells = [_cell(row, figure, words) for _, figure, words in columns]
        table.add_row(row.name, *cells, style=_styles.get(row.state, ""))
    return table


def _cell(row: Row, figure: str, words: Words) -> str:
    number = row.figures.get(figure)
    return _unknown if number is None else words(number)


def _place(row: Row, sort: str) -> tuple[Any, ...]:
    """The most first; those of which it is not known last; then by name, node-2 before node-10."""
    name = [int(part) if part.isdecimal() else part for part in _digits.split(row.name)]
    if sort == "name":
        return (kinds.index(row.kind), name)
    number = row.figures.get(_sorted_by[sort])
    return (number is None, -(number or 0), name)
