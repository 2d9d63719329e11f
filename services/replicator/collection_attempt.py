"""One attempt to collect the tombstones of a slot. The order of its steps, and every condition of
each, is what makes it safe to forget.

    STALE ──► settle ──► FREEZE ──► COMPARE ⇄ REPAIR ──► PURGE ──► completed
    all       each key   a floor    until a round of     what that
    replicas  by all N   on all N   all N shows no lack  round allows

It takes a stable map and all owners. It is about one epoch: whoever is found in another ends it,
and so does anything else that is not as it should be, up to the PURGE. That may be repeated at any
time, and is, for a while, for replicas that did not take it.

All waiting is for answers of links or of strong operations, and all of those come within a time.
There is no task, and no timer but for pauses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from services.core.collecting import Round, Settled, settled_end
from services.core.errors import PeerError, RetryLater
from services.core.hlc import Version, version_zero
from services.core.sessions import (
    FREEZE,
    STALE,
    decode_key_page,
    encode_freeze,
    encode_stale,
)
from services.replicator.answers import Failures
from services.replicator.collection_asking import Asking, Means
from services.replicator.collection_end import Collected, End
from services.replicator.collection_purge import Purging
from services.replicator.collection_rounds import Rounds
from services.replicator.strong_operation import Chosen
from services.runtime.fleet import FleetNode

# Keys that one attempt settles; each takes about 200 bytes until its end. It may be two pages of
# each replica more, and the rest is left to the next attempt.
stale_max: Final = 16_384
# Strong operations of one attempt at a time: a small part of what a replicator has under way, so
# that clients do not feel it.
settled_at_once: Final = 32
# What is not settled by then is left to the next attempt as well.
settle_s_max: Final = 10.0
# A key that clients keep changing is left out. So many of them mean that something is wrong.
unsettled_max: Final = 64
# What this replicator proposes in a slot has so long to be chosen before it is frozen: many times
# what it mostly takes. Those of other replicators cannot be waited for; they are hit if they
# meet the freeze between one replica and the next.
propose_s_max: Final = 0.1
propose_look_s: Final = 0.002


class Attempt:
    """`done` is called once, maybe before `begin` returns."""

    def __init__(self, slot: int, means: Means, done: Callable[[Collected], None]) -> None:
        self._slot = slot
        self._means = means
        self._done = done
        self._asking = Asking(slot, means, [], self._end)
        self._awaited = 0
        # Whether there is more to collect than this attempt takes.
        self._more = False
        # Keys that may be over: first as they are found, then those that are to be settled.
        self._stale: dict[bytes, None] = {}
        self._unsettled: deque[bytes] = deque()
        self._settling = 0
        self._settling_more = False
        self._settle_until_s = 0.0
        self._failed_keys = 0
        self._settled: dict[bytes, Settled] = {}
        # The floor that makes the session, above every ballot that a key was settled at.
        self._session: Version = version_zero
        self._rounds: Rounds | None = None
        self._purging: Purging | None = None

    def begin(self) -> None:
        fleet = self._means.fleet
        if fleet.map is None or fleet.map.is_joint:
            self._asking.fail(End.JOINT, f"members are being changed in epoch {fleet.epoch}")
            return
        nodes = [owner.node for owner in fleet.route(self._slot).owners]
        self._asking.nodes = nodes
        if self._all_up(nodes):
            self._list_stale()

    def abandon(self) -> None:
        """End it here. What it has begun on the nodes is left, and harms nobody."""
        if self._purging is not None:
            self._purging.abandon()
            self._end(End.STOPPED)
        else:
            self._asking.fail(End.STOPPED, "")

    # -- ending

    def _end(self, end: End, reason: str = "", equal: Round | None = None) -> None:
        """With the round that was clean if all of it was purged."""
        done, self._done = self._done, _ignore
        rounds = self._rounds
        done(
            Collected(
                self._slot,
                end,
                reason,
                tombstones=0 if equal is None else equal.tombstones,
                promises=0 if equal is None else equal.promises,
                repaired=0 if rounds is None else rounds.repaired,
                repaired_bytes=0 if rounds is None else rounds.repaired_bytes,
                more=equal is not None and self._more,
            )
        )

    def _all_up(self, nodes: list[FleetNode]) -> bool:
        away = ", ".join(
            sorted(node.node_id for node in nodes if not (node.live and node.link.connected))
        )
        if away:
            self._asking.fail(End.NOT_ALL_UP, f"not to be reached: {away}")
        return not away

    # -- which keys may be over

    def _list_stale(self) -> None:
        self._awaited = len(self._asking.nodes)
        # Every ballot that follows is later, so whatever has expired by now is found to have.
        at_ms = self._means.clock.wall_ms()
        for place in range(len(self._asking.nodes)):
            self._ask_stale(place, at_ms, b"")

    def _ask_stale(self, place: int, at_ms: int, after: bytes) -> None:
        asking = self._asking
        body = encode_stale(asking.epoch, asking.slot, at_ms, after)
        asking.ask(place, STALE, body, partial(self._stale_page, place, at_ms, after))

    def _stale_page(self, place: int, at_ms: int, after: bytes, body: bytes) -> None:
        page = decode_key_page(body)
        if page.keys and page.keys[0] <= after:
            raise PeerError("a page of keys begins before the one before it ended")
        self._stale.update(dict.fromkeys(page.keys))
        if page.more and len(self._stale) < stale_max:
            self._ask_stale(place, at_ms, page.keys[-1])
            return
        self._more = self._more or page.more
        self._awaited -= 1
        if not self._awaited:
            self._unsettled.extend(self._stale)
            self._stale.clear()
            self._settle_until_s = self._means.clock.monotonic_s() + settle_s_max
            self._settle_more()

    # -- settling them

    def _settle_more(self) -> None:
        """One may fail at once; the next has its turn in this loop then."""
        if self._settling_more:
            return
        self._settling_more = True
        keys, settle = self._unsettled, self._means.strong.settle
        while keys and self._settling < settled_at_once and self._asking.goes_on():
            self._settling += 1
            key = keys.popleft()
            settle(key, partial(self._settled_one, key))
        self._settling_more = False
        if not keys and not self._settling:
            # In another turn, so that all replicas are told what was chosen before they freeze.
            until_s = self._means.clock.monotonic_s() + propose_s_max
            self._asking.later(0.0, partial(self._freeze_in_peace, until_s))

    def _settled_one(self, key: bytes, chosen: Chosen | None) -> None:
        self._settling -= 1
        asking = self._asking
        if not asking.goes_on():
            return
        if chosen is None:
            self._failed_keys += 1
            if not self._all_up(asking.nodes):
                return
            if self._failed_keys > unsettled_max:
                text = f"{self._failed_keys} keys were not accepted by all replicas"
                asking.fail(End.UNSETTLED, text)
                return
        elif chosen.epoch != asking.epoch:
            asking.fail(End.WRONG_EPOCH, f"a key was settled in epoch {chosen.epoch}")
            return
        elif (settled := settled_end(chosen.ballot, chosen.record)) is not None:
            self._settled[key] = settled
        if self._unsettled and self._means.clock.monotonic_s() >= self._settle_until_s:
            self._unsettled.clear()
            self._more = True
        self._settle_more()

    # -- freezing

    def _freeze_in_peace(self, until_s: float) -> None:
        """Whatever this replicator begins after the freeze is above it; let it first finish what it
        began before, within bounds."""
        means = self._means
        if means.strong.is_proposing(self._slot) and means.clock.monotonic_s() < until_s:
            self._asking.later(propose_look_s, partial(self._freeze_in_peace, until_s))
        else:
            self._freeze()

    def _freeze(self) -> None:
        asking = self._asking
        try:
            self._session = self._means.stamps.tick()
        except RetryLater as error:
            asking.fail(End.CLOCK, error.detail)
            return
        body = encode_freeze(asking.epoch, asking.slot, self._session)
        self._awaited = len(asking.nodes)
        for place in range(len(asking.nodes)):
            asking.ask(place, FREEZE, body, self._frozen)

    def _frozen(self, body: bytes) -> None:
        self._awaited -= 1
        if not self._awaited:
            self._rounds = Rounds(self._asking, self._session, self._settled, self._purge)
            self._rounds.begin()

    # -- purging

    def _purge(self, equal: Round) -> None:
        # From here on no answer ends the attempt, and no epoch.
        asking = self._asking
        asking.over = True
        self._more = self._more or equal.overflowed
        purged = partial(self._purged, equal)
        self._purging = Purging(
            asking.slot, self._session, equal.over, asking.nodes, self._means.clock, purged
        )
        self._purging.begin()

    def _purged(self, equal: Round, failures: Failures | None) -> None:
        if failures is None:
            self._end(End.COMPLETED, equal=equal)
        else:
            self._end(End.PURGED_IN_PART, str(failures))


def _ignore(collected: Collected) -> None:
    """It has ended before."""
