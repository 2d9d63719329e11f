"""Which of the forms on offer a client asked for: the Accept header of RFC 9110.

Not here: parameters other than `q` and `version`. Of several ranges that match an offer with
the same precision the one with the greatest q counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Prometheus sends about 350 characters; a header of many thousand ranges is not from a client.
accept_chars_max = 4096
_q_value = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Offer:
    """A form we can answer in. `version_min` refuses ranges that ask for an older version."""

    media_type: str
    content_type: str
    version_min: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Range:
    kind: str
    version: tuple[int, ...] | None
    q: float

    def precision(self, offer: Offer) -> int:
        """How precisely this range names the offer: 3 exactly, 2 its type, 1 anything, 0 not."""
        if self.kind == offer.media_type:
            too_old = self.version is not None and self.version < offer.version_min
            return 0 if too_old else 3
        if self.kind == f"{offer.media_type.split('/')[0]}/*":
            return 2
        return 1 if self.kind == "*/*" else 0


def choose(accept: str, offers: Sequence[Offer]) -> Offer:
    """The offer that the header likes best; on a tie, or when it wants none of them, the first."""
    ranges = list(_ranges(accept[:accept_chars_max]))

    def liking(offer: Offer) -> float:
        matches = [(found.precision(offer), found.q) for found in ranges]
        precision, q = max(matches, default=(0, 0.0))
        return q if precision else 0.0

    return max(offers, key=liking)


def _ranges(accept: str) -> Iterator[_Range]:
    for element in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in element.split(";"))
        q, version = 1.0, None
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                q = float(value) if _q_value.fullmatch(value.strip()) else 0.0
            elif name.strip() == "version" and re.fullmatch(r"\d{1,4}(\.\d{1,4}){0,3}", value):
                version = tuple(map(int, value.split(".")))
        if kind:
            yield _Range(kind, version, q)
