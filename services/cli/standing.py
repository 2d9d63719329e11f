"""Who is up, who is not and why, and whether that is enough.

A stage of redundant services does its work with one of them missing, and so everything is ready
with that many. The start goes on with fewer, as long as one is up: what it holds can be read, and
an operator sees what is wrong. With none left, all stop; and so they do when any other service is
given up, for nobody does its work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from services.cli.process import Child
from services.cli.rows import Row
from services.core.errors import FatalError, RestartLater


def enough(stage: Sequence[Row]) -> int:
    """How many rows of one stage must be up for everything to be ready."""
    spare = 1 if all(row.redundant for row in stage) else 0
    return max(1, len(stage) - spare)


def troubles(children: Iterable[Child]) -> dict[str, str]:
    """By name, why those are down that are."""
    return {child.row.name: child.trouble for child in children if child.trouble is not None}


def is_ready(rows: Sequence[Row], down: Mapping[str, str]) -> bool:
    return all(
        sum(row.name not in down for row in stage) >= enough(stage) for stage in by_stage(rows)
    )


def no_going_on(children: Sequence[Child]) -> FatalError | None:
    """Why all must stop: one that is needed is given up, or every redundant one of a stage."""
    needed = [child.given_up for child in children if child.given_up and not child.row.redundant]
    if needed:
        return together(needed)
    for stage in by_stage([child.row for child in children if child.row.redundant]):
        reasons = [child.given_up for child in children if child.row in stage]
        if all(reasons):
            return together([reason for reason in reasons if reason is not None])
    return None


def together(failures: Sequence[FatalError]) -> FatalError:
    """All of them as one: starting again helps if it helps any."""
    if len(failures) == 1:
        return failures[0]
    passing = any(isinstance(failure, RestartLater) for failure in failures)
    kind = RestartLater if passing else FatalError
    return kind("; ".join(str(failure) for failure in failures))


def by_stage(rows: Sequence[Row]) -> Iterator[list[Row]]:
    for _, stage in groupby(sorted(rows, key=lambda row: row.stage), key=lambda row: row.stage):
        yield list(stage)
