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


def figure(row: Row) -> str:
    """The value with its unit, in as many digits as mean something."""
    digits = 0 if row.value >= 1000 else 1 if row.value >= 10 else 2
    return f"{row.value:,.{digits}f} {row.unit}"


def show(title: str, rows: list[Row]) -> None:
    print(title)
    for row in rows:
        value, _, unit = figure(row).partition(" ")
        print(f"  {row.name:<46}{f'{value:>12} {unit}':<32}{row.note}".rstrip())


def quiet() -> None:
    """Keep the log of what is measured out of the figures, but for what went wrong."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
