"""What a client that loads the platform remembers of its keys, and judges answers by.

Nobody else writes its keys, so it knows what they hold. A value tells whose it is, of which key,
and the how manieth it is: one that is not the expected one is older, or mixed up.

    eventual  a read shows the latest write that was acknowledged to the same client, unless one of
              the two took so long that another replica answered instead
    strong    it does in any case
    unknown   a write without an answer, or with 504, has been applied or not: both are right
              until a later one is acknowledged
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

# How long the gateway waits before it asks a further replica, and the replicator for the replica
# that is asked first. As a client sees it, answers take longer than they took in there.
hedge_s: Final = 0.025
awaited_s: Final = 0.25
absent: Final = 0
# In place of a number: some value that is not the expected one.
older: Final = -1

value_bytes: Final = 100
# Every so manieth value is large: it comes in several reads, and leaves in several writes.
large_every: Final = 64
large_bytes: Final = 20_000


class Judgement(enum.Enum):
    RIGHT = "right"
    # Of an older state, which the time that it took excuses.
    LATE = "late"
    STALE = "an older state"
    FOREIGN = "a value that was never written there"


@dataclass(slots=True)
class Kept:
    """What one key may hold: numbers of values, `absent`, or several after an unknown outcome."""

    possible: tuple[int, ...] = (absent,)
    # The last number that was given to a value of it, whatever became of that.
    newest: int = absent
    etag: str | None = None
    # The latest write took so long that another replica than the first may have answered it.
    slow: bool = False

    def next_number(self) -> int:
        self.newest += 1
        return self.newest

    def written(self, number: int, etag: str | None, took_s: float) -> None:
        self.possible = (number,)
        self.etag = etag
        self.slow = took_s >= awaited_s

    def unknown(self, number: int) -> None:
        if number not in self.possible:
            self.possible = (*self.possible, number)
        self.etag = None

    @property
    def certain(self) -> bool:
        return len(self.possible) == 1


def value_of(owner: str, key: str, number: int) -> bytes:
    size = large_bytes if number % large_every == 0 else value_bytes
    mark = f"{owner} {key} {number} "
    return (mark * (size // len(mark) + 1))[:size].encode()


def number_in(owner: str, key: str, value: bytes) -> int | None:
    """The how manieth value of this key this is; None: it is none of them."""
    mark = f"{owner} {key} ".encode()
    digits, end, _ = value[len(mark) : len(mark) + 20].partition(b" ")
    if not value.startswith(mark) or not end or not digits.isdigit():
        return None
    number = int(digits)
    return number if value == value_of(owner, key, number) else None


def judge(kept: Kept, found: int | None, took_s: float, *, strong: bool) -> Judgement:
    """An answer to a read; `found` is the number of its value, None for a foreign one."""
    if found is None or found > kept.newest:
        return Judgement.FOREIGN
    if found in kept.possible:
        return Judgement.RIGHT
    excused = not strong and (kept.slow or took_s >= hedge_s)
    return Judgement.LATE if excused else Judgement.STALE
