"""For which periods usage can be asked: how long they are unless somebody says, and at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

Step = Literal["minute", "hour", "day"]


@dataclass(slots=True, frozen=True)
class Span:
    """How long a period is when nobody says, and how long it may be."""

    usual: timedelta
    longest: timedelta

    def __str__(self) -> str:
        usual, longest = (length // timedelta(hours=1) for length in (self.usual, self.longest))
        return f"{usual} h, at most {longest} h"


# As many steps as fit on a chart, and no more days than there can be; each a little longer than
# the round number, so that "the last 31 days" may begin and end on a full hour.
spans: Final[Mapping[Step, Span]] = {
    "minute": Span(timedelta(hours=1), timedelta(hours=25)),
    "hour": Span(timedelta(hours=24), timedelta(days=32)),
    "day": Span(timedelta(days=30), timedelta(days=100)),
}
stats_span: Final = Span(timedelta(days=30), timedelta(days=100))
