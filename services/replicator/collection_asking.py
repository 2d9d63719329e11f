"""The owners of a slot, as an attempt to collect it asks them: whatever is not OK ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from services.core.ballots import NACK
from services.core.errors import PeerError, RetryLater
from services.core.hlc import check_version
from services.core.messages import WRONG_EPOCH, epoch_of
from services.core.wire import OK
from services.replicator.answers import Failures
from services.replicator.collection_end import End, end_by
from services.replicator.seams import Epochs
from services.replicator.stamps import Stamps
from services.replicator.strong import StrongOperations
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet, FleetNode
from services.runtime.peer import SENT

# A page takes milliseconds, and so does a megabyte of repair on a disk that keeps up. A node that
# is silent for less than half of this is a lost connection before.
answer_s: Final = 5.0


@dataclass(slots=True, frozen=True)
class Means:
    """What attempts are made with."""

    fleet: Fleet
    stamps: Stamps
    strong: StrongOperations
    epochs: Epochs
    clock: Clock


class Asking:
    """`fail` is called once at most, with how and why the attempt ends; nothing is heard then, or
    after `over` was set."""

    def __init__(
        self, slot: int, means: Means, nodes: list[FleetNode], fail: Callable[[End, str], None]
    ) -> None:
        self.slot = slot
        self.means = means
        # All owners, each known by its place in this list. And the one epoch of it all.
        self.nodes = nodes
        self.epoch = means.fleet.epoch
        self.over = False
        self._fail = fail

    def fail(self, end: End, reason: str) -> None:
        if not self.over:
            self.over = True
            self._fail(end, reason)

    def goes_on(self) -> bool:
        """Whether there is still an attempt, in its epoch."""
        if not self.over and self.means.fleet.epoch != self.epoch:
            self.fail(End.WRONG_EPOCH, f"epoch {self.epoch} is over")
        return not self.over

    def later(self, delay_s: float, step: Callable[[], None]) -> None:
        """Go on in another turn of the loop."""

        def go_on() -> None:
            if self.goes_on():
                step()

        self.means.clock.call_later(delay_s, go_on)

    def ask(self, place: int, kind: int, body: bytes, heard: Callable[[bytes], None]) -> None:
        """`heard` is given the body of OK. What it raises as PeerError ends the attempt."""
        if not self.goes_on():
            return
        link = self.nodes[place].link
        asked = link.request(kind, body, partial(self._answered, place, heard), answer_s)
        if asked != SENT:
            self._refused(place, asked, b"")

    def _answered(self, place: int, heard: Callable[[bytes], None], kind: int, body: bytes) -> None:
        if not self.goes_on():
            return
        if kind != OK:
            self._refused(place, kind, body)
            return
        try:
            heard(body)
        except PeerError as error:
            self.fail(End.REFUSED, f"{self.nodes[place].node_id} made no sense: {error}")

    def _refused(self, place: int, kind: int, body: bytes) -> None:
        failures = Failures()
        failures.note(self.nodes[place].node_id, kind)
        end = end_by(kind)
        if kind == WRONG_EPOCH:
            self.means.epochs.outdated(epoch_of(body))
        elif kind == NACK:
            try:
                self.means.stamps.merge(check_version(body))
            except (PeerError, RetryLater):
                # No version, or so far ahead that the next session cannot be above it either.
                end = End.CLOCK
        self.fail(end, str(failures))
