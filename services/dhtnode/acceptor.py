"""The acceptor of strong operations on this replica: `paxos` made durable.

What is promised or accepted is logged like any write, and answered once its batch is durable;
messages of one batch see each other in the order in which they came. A read of a key waits for
whatever undurable change there is of it, of its cell or of its promise.

    READ · PREPARE · ACCEPT ──► Seen, NACK or OK          LEARN ──► the cell, not answered

A key that was accepted and not yet learned is remembered with the time: its coordinator may have
died after a majority had accepted, and then some replicator finishes it (UNLEARNED). The same is
asked to put a tombstone in the place of an accepted value that has expired, which frees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.core import paxos
from services.core.ballots import (
    ACCEPT,
    LEARN,
    NACK,
    PREPARE,
    READ,
    UNLEARNED,
    decode_accept,
    decode_learn,
    decode_prepare,
    decode_unlearned,
    encode_seen,
    epoch_bytes,
)
from services.core.errors import PeerError
from services.core.hlc import Version, version_bytes, version_zero
from services.core.key import check_storage_key
from services.core.messages import NOT_READY, STORAGE_FULL, encode_get_many, u16
from services.core.paxos import Promise
from services.core.record import expires_at_ms, is_tombstone
from services.core.ring import leaf_bits, place_of, slot_of
from services.core.wire import OK
from services.dhtnode import frame
from services.dhtnode.cells import trimmed
from services.dhtnode.promises import check_accepted, encode_accepted, encode_promised
from services.dhtnode.replica import Replica
from services.runtime.clock import Clock
from services.runtime.log.log import Batch
from services.runtime.peer import Handler, Peer

# About a millisecond.
settled_in_a_turn: Final = 1_000
# Of the keys that a replicator is told at once, one in so many is left to values that have expired,
# as long as there are any. The others come first: there eventual reads miss what was acknowledged.
expired_share: Final = 4


@dataclass(slots=True)
class AcceptorCounters:
    """What the acceptor did since its start."""

    reads: int = 0
    prepares: int = 0
    accepts: int = 0
    nacks: int = 0
    learns: int = 0


class Acceptor:
    """The rules of one replica for what is promised. It shares log, table and epoch with the
    replica's own, which are for eventual writes."""

    def __init__(self, replica: Replica, clock: Clock) -> None:
        self.counters = AcceptorCounters()
        self.promises = replica.promises
        self._replica = replica
        self._table = replica.table
        self._clock = clock
        self._unlearned = self.promises.unlearned

    @property
    def unlearned(self) -> int:
        return len(self._unlearned)

    def handlers(self) -> dict[int, Handler]:
        return {
            READ: self.read,
            PREPARE: self.prepare,
            ACCEPT: self.accept,
            LEARN: self.learn,
            UNLEARNED: self.list_unlearned,
        }

    def settle(self) -> Iterator[None]:
        """The log was replayed: find what was accepted and not learned, and hold records once.
        It yields where others may have their turn."""
        now_s = self._clock.monotonic_s()
        for number, (slot, key, held) in enumerate(self.promises):
            if number % settled_in_a_turn == 0:
                yield
            if not held.record:
                continue
            cell = self._table.peek(slot, key) or b""
            if cell == held.record:
                self.promises.put(slot, key, held._replace(record=cell))
                continue
            # Replay has replaced cells without a look at promises.
            self.promises.weigh(slot, key)
            if not _has_learned(cell, held.record):
                self._unlearned[key] = now_s

    # -- reading and promising

    def read(self, peer: Peer, request_id: int, body: bytes) -> None:
        replica = self._replica
        key = check_storage_key(body[epoch_bytes:])
        if not replica.meets_epoch(peer, request_id, body):
            return
        self.counters.reads += 1
        slot = slot_of(key)
        if slot in replica.not_ready or key in self.promises.doubtful:
            replica.reply_in_epoch(peer, request_id, NOT_READY, b"")
            return
        seen = self._seen(slot, key, self.promises.get(slot, key))
        batch = replica.changing(key)
        if batch is None:
            replica.reply_in_epoch(peer, request_id, OK, seen)
        else:
            replica.reply_with(batch, peer, request_id, OK, seen)

    def prepare(self, peer: Peer, request_id: int, body: bytes) -> None:
        replica = self._replica
        ballot, grows, key = decode_prepare(body)
        check_storage_key(key)
        if not replica.meets_epoch(peer, request_id, body):
            return
        self.counters.prepares += 1
        slot = slot_of(key)
        refused = replica.refusal(slot, ballot, len(body))
        if refused is None and grows and replica.full is not None:
            refused = STORAGE_FULL, replica.full.encode()
        if refused is None and key in self.promises.doubtful:
            refused = NOT_READY, b""
        if refused is not None:
            replica.reply_in_epoch(peer, request_id, *refused)
            return
        held = self.promises.get(slot, key)
        floor = replica.floors.get(slot, version_zero)
        promise = paxos.prepare(held, floor, ballot)
        if promise is None:
            self._nack(peer, request_id, paxos.hindrance(held, floor))
            return
        seen = self._seen(slot, key, held)
        self.promises.put(slot, key, promise)
        batch = self._log(frame.PROMISED, encode_promised(ballot, key), key, ballot)
        batch.replies.append((peer, request_id, OK, seen))

    def _seen(self, slot: int, key: bytes, held: Promise) -> bytes:
        cell = self._table.peek(slot, key) or b""
        floor = self._replica.floors.get(slot, version_zero)
        return encode_seen(held.ballot, held.operation, floor, held.record, cell)

    # -- accepting and learning

    def accept(self, peer: Peer, request_id: int, body: bytes) -> None:
        replica = self._replica
        ballot, operation, key, record = decode_accept(body)
        check_storage_key(key)
        _check_proposed(record, ballot)
        if not replica.meets_epoch(peer, request_id, body):
            return
        self.counters.accepts += 1
        slot = slot_of(key)
        refused = replica.refusal(slot, ballot, len(body))
        if refused is None and replica.full is not None and self._grows(slot, key, ballot, record):
            refused = STORAGE_FULL, replica.full.encode()
        if refused is not None:
            replica.reply_in_epoch(peer, request_id, *refused)
            return
        held = self.promises.get(slot, key)
        floor = replica.floors.get(slot, version_zero)
        promise = paxos.accept(held, floor, ballot, operation, record)
        if promise is held and key in self.promises.doubtful:
            # What has rotted here comes once more.
            promise = held._replace(operation=operation, record=record)
        if promise is None:
            self._nack(peer, request_id, paxos.hindrance(held, floor))
        elif promise is held:
            # The same once more, from a retry.
            batch = replica.changing(key)
            if batch is None:
                replica.reply_in_epoch(peer, request_id, OK, b"")
            else:
                replica.reply_with(batch, peer, request_id, OK, b"")
        else:
            self._hold(slot, key, promise)
            accepted = encode_accepted(ballot, operation, key, record)
            batch = self._log(frame.ACCEPTED, accepted, key, ballot)
            batch.replies.append((peer, request_id, OK, b""))

    def _grows(self, slot: int, key: bytes, ballot: Version, record: bytes) -> bool:
        """Whether this is a change that takes more room than what is there. A record that is older
        than its ballot is only absorbed or repeated, as by a read, which goes on also when full."""
        if not record or is_tombstone(record) or record[:version_bytes] < ballot:
            return False
        return len(record) > len(self._table.peek(slot, key) or b"")

    def _hold(self, slot: int, key: bytes, promise: Promise) -> None:
        cell = self._table.peek(slot, key) or b""
        self._unlearned.pop(key, None)
        if cell == promise.record:
            promise = promise._replace(record=cell)
        elif not _has_learned(cell, promise.record):
            self._unlearned[key] = self._clock.monotonic_s()
        self.promises.put(slot, key, promise)

    def learn(self, peer: Peer, request_id: int, body: bytes) -> None:
        """Take what was chosen into the cell. Whatever is wrong, it is dropped: a replicator finds
        what is accepted and not learned, and comparing replicas the rest."""
        replica = self._replica
        ballot, key, record = decode_learn(body)
        check_storage_key(key)
        _check_proposed(record, ballot)
        if not replica.meets_epoch(peer, request_id, body):
            return
        place = place_of(key)
        slot = place >> leaf_bits
        held = self.promises.get(slot, key)
        mine = held.ballot == ballot
        if (not record and mine) or record == held.record:
            # The very object, so that it is held once.
            record = held.record
        size = len(key) + len(record)
        if not record or replica.refusal(slot, ballot, size) or self._floored(slot, ballot):
            return
        self.counters.learns += 1
        old = self._table.peek(slot, key)
        if old is None or old < record:
            if mine and not self._floored(slot, record[:version_bytes]):
                # The log has the record already. At or below the floor it is logged with its
                # record: a purge in the log takes away all such that came before it.
                kind, change = frame.LEARNED, encode_promised(ballot, key)
            else:
                kind, change = frame.RECORD, u16.pack(len(key)) + key + record
            self._table.replace(place, key, old, record)
            self.promises.weigh(slot, key)
            self._log(kind, change, key, ballot)
        elif old == held.record and old is not held.record:
            # A write or a hint has brought it before.
            self.promises.put(slot, key, held._replace(record=old))
        if held.record <= record:
            self._unlearned.pop(key, None)

    def _floored(self, slot: int, version: Version) -> bool:
        return version <= self._replica.floors.get(slot, version_zero)

    def list_unlearned(self, peer: Peer, request_id: int, body: bytes) -> None:
        age_ms, limit = decode_unlearned(body)
        few = min(limit // expired_share, self.promises.expired)
        found = self._take_unlearned(age_ms, limit - few)
        found += self.promises.take_expired(limit - len(found))
        self._replica.after_changes(peer, request_id, OK, encode_get_many(found))

    def _take_unlearned(self, age_ms: int, limit: int) -> list[bytes]:
        """The oldest, which then become the youngest: some cannot be finished for now, and those
        behind them shall have their turn."""
        now_s = self._clock.monotonic_s()
        before_s = now_s - age_ms / 1000
        old: list[bytes] = []
        for key, since_s in self._unlearned.items():
            if since_s > before_s or len(old) == limit:
                break
            old.append(key)
        found: list[bytes] = []
        for key in old:
            del self._unlearned[key]
            slot = slot_of(key)
            cell = self._table.peek(slot, key) or b""
            # By a hint or a write that came later it may have been learned. Nobody else would ever
            # take it off the list of a replica that is no owner any more.
            if not _has_learned(cell, self.promises.get(slot, key).record):
                self._unlearned[key] = now_s
                found.append(key)
        return found

    # -- what all have in common

    def _nack(self, peer: Peer, request_id: int, by: Version) -> None:
        self.counters.nacks += 1
        self._replica.reply_in_epoch(peer, request_id, NACK, by)

    def _log(self, kind: int, change: bytes, key: bytes, ballot: Version) -> Batch:
        replica = self._replica
        replica.high_water.take(ballot)
        batch = replica.log.append(kind, change)
        replica.note_change(key, batch)
        return batch


def _has_learned(cell: bytes, record: bytes) -> bool:
    """Whether the cell has what was accepted, or had it until that expired, or something newer."""
    return cell >= record or (expires_at_ms(record) > 0 and cell == trimmed(record))


def _check_proposed(record: bytes, ballot: Version) -> None:
    """PeerError for what nobody proposes at this ballot."""
    if check_accepted(record)[:version_bytes] > ballot:
        raise PeerError("a record that is newer than the ballot it is accepted at")
