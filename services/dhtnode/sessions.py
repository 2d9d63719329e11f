"""A replica while tombstones of its slots are collected: floors, sessions, and what a purge takes.

    FREEZE ──► floor = session ──► COMPARE · REPAIR ──► PURGE ──► no session
                                         └── another epoch, or a restart ──► no session

All decisions are those of one replica alone; that a key may go is found out by whoever compares
all of them. What this replica has to see to: once it is frozen nothing at or below the floor is
written but by REPAIR in the session that froze it, and nothing of that comes late. So a session
ends with the first PURGE, with an epoch, and with a restart, and no message brings it back.

The floor is durable before FREEZE is answered. A session is not: a REPAIR after a restart would
find the floor and no session, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from services.core.ballots import NACK
from services.core.errors import PeerError
from services.core.hlc import Version, version_bytes, version_ms, version_zero
from services.core.key import check_storage_key
from services.core.messages import NOT_READY, STORAGE_FULL, Status, u16
from services.core.record import check, is_tombstone, visible
from services.core.ring import place_of, slot_of
from services.core.sessions import (
    COMPARE,
    FREEZE,
    NO_SESSION,
    PURGE,
    REPAIR,
    REPLICATORS,
    STALE,
    Compared,
    Repair,
    compared_max,
    decode_compare,
    decode_freeze,
    decode_purge,
    decode_repair,
    decode_stale,
    encode_compared,
    encode_key_page,
    encode_replicators,
    ended,
    lives,
    no_cell,
    stale_max,
)
from services.core.wire import OK, OVERLOADED
from services.dhtnode import frame
from services.dhtnode.membership import Membership
from services.dhtnode.promises import has_ended
from services.dhtnode.purging import take_away, what_goes
from services.dhtnode.replica import Replica
from services.runtime.peer import Handler, Peer

# Each is looked up, removed from table, digest and index, and logged: together half a millisecond.
purged_in_a_piece: Final = 64
# What such a piece takes in the log at most, with keys as long as they may be.
piece_bytes_max: Final = 100_000


class Sessions:
    """Answers what collectors ask. Those of its handlers that are about many keys are generators,
    which yield where others may have their turn."""

    def __init__(self, replica: Replica, membership: Membership) -> None:
        self._replica = replica
        self._table = replica.table
        self._promises = replica.promises
        self._membership = membership

    def at_once(self) -> dict[int, Handler]:
        return {FREEZE: self.freeze, REPLICATORS: self.replicators}

    def reading(self) -> dict[int, Callable[[Peer, int, bytes], Iterator[None]]]:
        return {STALE: self.stale, COMPARE: self.compare}

    def changing(self) -> dict[int, Callable[[Peer, int, bytes], Iterator[None]]]:
        return {REPAIR: self.repair, PURGE: self.purge}

    def replicators(self, peer: Peer, request_id: int, body: bytes) -> None:
        if body:
            raise PeerError(f"{len(body)} bytes where none are due")
        peer.reply(request_id, OK, encode_replicators(self._membership.sharing(peer)))

    # -- which keys there are

    def stale(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        slot, at_ms, after = decode_stale(body)
        yield
        if not self._meets(peer, request_id, body, slot):
            return
        found: list[bytes] = []
        for keys in self._replica.orders.behind(slot, after, promised=True):
            found += [key for key in keys if self._is_stale(slot, key, at_ms)]
            if len(found) > stale_max:
                break
            yield
        if self._meets(peer, request_id, body, slot):
            self._replica.after_changes(peer, request_id, OK, encode_key_page(found))

    def _is_stale(self, slot: int, key: bytes, at_ms: int) -> bool:
        if not self._promises.holds(slot, key) or key[: 9 + key[8]] in self._replica.caches:
            return False
        held = self._promises.get(slot, key)
        if has_ended(held) or (held.record and not visible(held.record, at_ms)):
            return True
        cell = self._table.peek(slot, key)
        return cell is not None and not visible(cell, at_ms)

    def freeze(self, peer: Peer, request_id: int, body: bytes) -> None:
        replica = self._replica
        slot, session, _ = decode_freeze(body)
        if not self._meets(peer, request_id, body, slot):
            return
        if replica.sessions.get(slot) == session:
            # The same once more. It may have come before its first was durable.
            replica.after_changes(peer, request_id, OK, b"")
            return
        floor = replica.floors.get(slot, version_zero)
        if session <= floor or not self._is_stable():
            replica.counters.nacked += 1
            replica.reply_in_epoch(peer, request_id, NACK, floor)
            return
        refused = replica.refusal(slot, session, len(body))
        if refused is not None:
            replica.reply_in_epoch(peer, request_id, *refused)
            return
        replica.raise_floor(slot, session)
        replica.sessions[slot] = session
        batch = replica.log.append(frame.FLOOR, u16.pack(slot) + session)
        replica.counters.freezes += 1
        replica.reply_with(batch, peer, request_id, OK, b"")

    def _is_stable(self) -> bool:
        """Whether we know the placement of our epoch, and none is on its way out."""
        known = self._membership.map
        return known is not None and known.epoch == self._replica.epoch and not known.is_joint

    # -- in a session

    def compare(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        slot, session, after = decode_compare(body)
        yield
        if not self._meets(peer, request_id, body, slot):
            return
        if not self._is_in(slot, session):
            self._say_no_session(peer, request_id)
            return
        found: list[Compared] = []
        for keys in self._replica.orders.behind(slot, after):
            found += self._compared(slot, version_ms(session), keys)
            if len(found) > compared_max:
                break
            yield
        # Others have had their turn, but no session is ever opened twice: if it is open now, it was
        # all the time.
        if self._is_in(slot, session):
            self._replica.after_changes(peer, request_id, OK, encode_compared(found))
        else:
            self._say_no_session(peer, request_id)

    def _compared(self, slot: int, at_ms: int, keys: Sequence[bytes]) -> Iterator[Compared]:
        """What there is of these keys, in order."""
        cells = dict(self._table.compared(slot, keys))
        caches = self._replica.caches
        for key in keys:
            promised, ballot = version_zero, version_zero
            holds = self._promises.holds(slot, key) and key[: 9 + key[8]] not in caches
            if holds:
                promised, ballot, *_ = self._promises.get(slot, key)
            cell = cells.get(key)
            if cell is not None:
                kind = lives if visible(cell, at_ms) else ended
                yield Compared(key, kind, cell[:version_bytes], promised, ballot)
            elif holds:
                yield Compared(key, no_cell, version_zero, promised, ballot)

    def repair(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        """Have at least these records. What a session has stored before it was refused stays."""
        told = decode_repair(body)
        _check_repair(told)
        yield
        replica, slot = self._replica, told.slot
        if not self._meets(peer, request_id, body, slot):
            return
        for key, record in told.items:
            # Others have had their turn since the item before.
            if not self._is_in(slot, told.session):
                self._say_no_session(peer, request_id)
                return
            if (refused := self._take(slot, told.session, key, record)) is not None:
                replica.reply_in_epoch(peer, request_id, *refused)
                return
            yield
        # What was there already may not be durable yet either.
        replica.after_changes(peer, request_id, OK, b"")

    def _take(self, slot: int, session: Version, key: bytes, record: bytes) -> Status | None:
        """Store a record if it is the greater one; why that cannot be done now, or None."""
        replica = self._replica
        old = self._table.peek(slot, key)
        if (old is not None and old >= record) or key[: 9 + key[8]] in replica.caches:
            return None
        change = u16.pack(len(key)) + key + record
        refused = replica.refusal(slot, session, len(change))
        if refused is None and replica.full is not None and not is_tombstone(record):
            replica.counters.full += 1
            refused = STORAGE_FULL, replica.full.encode()
        if refused is None:
            replica.counters.repaired += 1
            replica.take(place_of(key), key, old, record, change)
        return refused

    # -- the end of a session

    def purge(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        """Every piece is logged as it is taken away, so that a refusal leaves no piece half done:
        the same keys may come again."""
        replica = self._replica
        slot, session, keys = decode_purge(body)
        for key, _ in keys:
            _check_in_slot(key, slot)
        yield
        floor = replica.floors.get(slot, version_zero)
        if floor < session:
            replica.counters.nacked += 1
            replica.reply_in_epoch(peer, request_id, NACK, floor)
            return
        if self._is_in(slot, session):
            del replica.sessions[slot]
        for start in range(0, len(keys), purged_in_a_piece):
            log = replica.log
            if log.overloaded:
                replica.counters.overloaded += 1
                replica.reply_in_epoch(peer, request_id, OVERLOADED, b"")
                return
            if log.shortage is not None and not log.has_room(piece_bytes_max):
                replica.counters.full += 1
                replica.reply_in_epoch(peer, request_id, *replica.no_room())
                return
            self._purge(slot, session, keys[start : start + purged_in_a_piece])
            yield
        # What went by an earlier PURGE, or an epoch, may not be durable yet.
        replica.after_changes(peer, request_id, OK, b"")

    def _purge(self, slot: int, session: Version, keys: list[tuple[bytes, Version]]) -> None:
        replica = self._replica
        told = [(key, ballot) for key, ballot in keys if key[: 9 + key[8]] not in replica.caches]
        floor = replica.floors[slot]
        purged = what_goes(self._table, self._promises, slot, session, floor, told)
        if not purged.gone:
            return
        take_away(self._table, self._promises, purged)
        batch = replica.log.append(frame.PURGED, purged.encode())
        for key, _, _ in purged.gone:
            replica.note_change(key, batch)
        replica.counters.purged_cells += purged.cells
        replica.counters.purged_promises += purged.promises

    # -- what all have in common

    def _meets(self, peer: Peer, request_id: int, body: bytes, slot: int) -> bool:
        """Whether the message is of our epoch, and the slot is ready. If not, it is answered."""
        if not self._replica.meets_epoch(peer, request_id, body):
            return False
        if slot in self._replica.not_ready:
            self._replica.reply_in_epoch(peer, request_id, NOT_READY, b"")
            return False
        return True

    def _is_in(self, slot: int, session: Version) -> bool:
        return self._replica.sessions.get(slot) == session

    def _say_no_session(self, peer: Peer, request_id: int) -> None:
        self._replica.counters.no_session += 1
        self._replica.reply_in_epoch(peer, request_id, NO_SESSION, b"")


def _check_repair(told: Repair) -> None:
    """PeerError for what no collector sends."""
    for key, record in told.items:
        _check_in_slot(key, told.slot)
        if check(record)[:version_bytes] > told.session:
            raise PeerError("a record that is newer than the session which is to repair it")


def _check_in_slot(key: bytes, slot: int) -> None:
    found = slot_of(check_storage_key(key))
    if found != slot:
        raise PeerError(f"a key of slot {found} in a message about slot {slot}")
