"""The clock that stamps everything a replicator writes, with its ceiling kept on disk.

`HybridClock` knows the rules; this gives it the wall clock and the disk. The disk is asked for
about one small write a second, from a timer, so that `tick` and `merge` are plain calls, fit for
callbacks, and never wait: whoever comes while the ceiling is late is told to retry.

    opened ──start──► waiting ──first ceiling durable──► stamping ──seal──► sealed
                         └──────────── the disk failed ──────┴──► failed
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Final

from services.core.errors import RetryLater
from services.core.hlc import HybridClock, Version
from services.replicator.directory import ReplicatorDirectory
from services.replicator.stamper_file import Kept
from services.runtime import telemetry
from services.runtime.clock import Clock, Timer

# A quarter of the reserve of a ceiling: of the second that is left when a new one is wanted, the
# disk has the greater part.
upkeep_s: Final = 0.25
# Conditions that pass: somebody makes space, or closes files. Whatever else a disk reports, what
# it holds is not known any more.
passing_errors: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})


class Stamps:
    """Versions for one replicator, each greater than all before it, in this life and earlier ones.

    `stamper` is the one found in the directory, or a new one. `on_failure` is called once if the
    disk fails: nothing is stamped any more, and the process should end. `refuse_leads` is as in
    `HybridClock`.
    """

    def __init__(
        self,
        directory: ReplicatorDirectory,
        stamper: int,
        clock: Clock,
        on_failure: Callable[[OSError], None],
        *,
        refuse_leads: bool = True,
    ) -> None:
        found = directory.found
        if found is not None and found.stamper != stamper:
            raise ValueError(f"the directory has stamper {found.stamper}, not {stamper}")
        self.ceilings_stored = 0
        self._directory = directory
        self._stamper = stamper
        self._clock = clock
        self._on_failure = on_failure
        # The first ceiling of a new stamper is 0: no stamp was ever made.
        stored_ms = 0 if found is None else found.ceiling_ms
        self._hybrid = HybridClock(stamper, stored_ms, refuse_leads=refuse_leads)
        self._timer: Timer | None = None
        self._storing = False
        self._ended = False
        self._failure: OSError | None = None
        # Why the last attempt to store a ceiling has come to nothing, while that may pass.
        self._shortage: OSError | None = None
        self._said = telemetry.logger("services.replicator")

    @property
    def stamper(self) -> int:
        return self._stamper

    @property
    def time_ms(self) -> int:
        """Where the clock stands: the time of its latest stamp or merged version."""
        return self._hybrid.time_ms

    @property
    def ready(self) -> bool:
        """Whether a ceiling of this life is durable, so that stamps can be expected."""
        return self.ceilings_stored > 0 and not self._ended

    @property
    def trouble(self) -> str | None:
        """Why nothing can be stamped for want of a ceiling, now or in a second; None if one is
        there, or is on its way as it should be."""
        if self._shortage is not None:
            return f"the ceiling of the clock cannot be stored: {self._shortage}"
        if self.ceilings_stored and self._hybrid.ceiling_ms <= self._clock.wall_ms():
            return "the ceiling of the clock is not stored in time: the disk is slow"
        return None

    def start(self) -> None:
        """Have the first ceiling stored, and from then on each one before it is needed.

        After a crash that may take until the wall clock comes near the ceiling that was reserved
        before it, about a second.
        """
        if self._timer is not None or self._ended:
            raise RuntimeError("stamps are started once")
        self._tend()

    def tick(self) -> Version:
        """A new version, later than every one before.

        Raises `RetryLater`, with nothing stamped: `clock_skew` while the clock leads the wall
        clock too far; `no_replicator` while the ceiling is late, for another replicator may be able
        to, `storage_full` if for want of space; `shutting_down` once sealed, or after the disk has
        failed.
        """
        try:
            return self._hybrid.tick(self._clock.wall_ms())
        except RetryLater as refusal:
            raise self._explained(refusal) from None

    def merge(self, version: Version) -> None:
        """Have every later tick exceed this version, which a replica has shown us.

        Raises `RetryLater` (`clock_skew`) instead if it leads the wall clock too far.
        """
        self._hybrid.merge(version, self._clock.wall_ms())

    def seal(self) -> None:
        """Stamp no more, and have the lowest ceiling stored that will do, so that the next start
        need not wait. It is durable once the disk has been closed; if that fails, or the process
        ends first, the next start waits as after a crash."""
        if not self._ended:
            # Behind a ceiling that may be on its way: the disk does them in this order.
            self._keep(self._end(), self._seal_kept)

    # -- the ceiling

    def _tend(self) -> None:
        self._timer = self._clock.call_later(upkeep_s, self._tend)
        self._store_if_due()

    def _store_if_due(self) -> None:
        # One at a time: on a slow disk a second one would only lie behind the first.
        if self._storing or self._ended:
            return
        ceiling_ms = self._hybrid.ceiling_due(self._clock.wall_ms())
        if ceiling_ms is not None:
            self._storing = True
            self._keep(ceiling_ms, partial(self._stored, ceiling_ms))

    def _keep(self, ceiling_ms: int, done: Callable[[OSError | None], None]) -> None:
        self._directory.keep_soon(Kept(self._stamper, ceiling_ms), done)

    def _stored(self, ceiling_ms: int, error: OSError | None) -> None:
        self._storing = False
        if self._ended:
            return
        if error is None:
            self._hybrid.raise_ceiling(ceiling_ms)
            self.ceilings_stored += 1
            if self._shortage is not None:
                self._said.info("the ceiling of the clock can be stored again")
            self._shortage = None
        elif error.errno in passing_errors:
            # The ceiling that there is holds for another second; the timer tries again.
            if self._shortage is None:
                self._said.warning("the ceiling of the clock cannot be stored", reason=str(error))
            self._shortage = error
        else:
            self._fail(error)

    def _seal_kept(self, error: OSError | None) -> None:
        if error is not None:
            self._said.warning("the clock was not sealed; the next start waits", reason=str(error))

    def _fail(self, error: OSError) -> None:
        self._failure = error
        self._end()
        self._on_failure(error)

    def _end(self) -> int:
        """Stamp no more; the lowest ceiling that covers every stamp."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        return self._hybrid.seal()

    # -- refusals

    def _explained(self, refusal: RetryLater) -> RetryLater:
        if self._failure is not None:
            return RetryLater(
                "shutting_down",
                f"the disk of this replicator has failed ({self._failure.strerror}), and it is "
                "stopping: nothing was written",
            )
        if refusal.code != "no_replicator":
            return refusal
        # The wall clock has jumped, or the process was stopped for a while: do not wait for the
        # timer.
        self._store_if_due()
        if self._shortage is not None:
            return RetryLater(
                "storage_full",
                "the ceiling of the clock cannot be stored on the disk of this replicator "
                f"({self._shortage.strerror}): nothing was written",
            )
        return refusal
