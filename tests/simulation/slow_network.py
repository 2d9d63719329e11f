"""A network with slow paths: what one process sends another arrives long after what others send."""

from __future__ import annotations

import random
from collections.abc import Callable

from services.runtime.clock import Timeline
from services.runtime.fake_connection import FakeEnd
from services.runtime.fake_link import FakeNetwork, Weather


class SlowNetwork(FakeNetwork):
    def __init__(
        self, draw: random.Random, timeline: Timeline, weather: Weather | None = None
    ) -> None:
        super().__init__(draw, weather)
        # By sender and receiver, how much longer a message takes.
        self.late_s: dict[tuple[str, str], float] = {}
        self._timeline = timeline

    def carry(self, end: FakeEnd, deliver: Callable[[FakeEnd], None], *, sure: bool) -> None:
        late_s = self.late_s.get((end.name, end.peer_name))
        if late_s is None or sure:
            super().carry(end, deliver, sure=sure)
        else:
            carry = super().carry
            self._timeline.schedule(late_s, lambda: carry(end, deliver, sure=False))
