"""How figures are shown."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import structlog


@dataclass(slots=True, frozen=True)
class Row:
    name: str
    value: float
    unit: str
    note: str = ""


def show(title: str, rows: list[Row]) -> None:
    print(title)
    for row in rows:
        digits = 0 if row.value >= 1000 else 1 if row.value >= 10 else 2
        figure = f"{row.value:>12,.{digits}f} {row.unit}"
        print(f"  {row.name:<46}{figure:<32}{row.note}".rstrip())


def quiet() -> None:
    """Keep the log of what is measured out of the figures, but for what went wrong."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
