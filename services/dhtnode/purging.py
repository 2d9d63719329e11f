"""What a purge takes from a slot: decided once, logged, and done again when the log is replayed.

    PURGED    slot u16 · session 12 · count u16 · (key_len u16 · key · gone u8)…

`gone` is 1 for a cell, 2 for a promise, 3 for both. Keys of which nothing went are not there.

Everything else that a log says only ever adds: the greater record, the greater ballot. A purge
takes away, and a snapshot may have been written before it, while it went on, or after what came
behind it. So the frame tells what went, not what was asked for, and replay takes that away whatever
a snapshot has brought: the log behind the purge has all that came later once more. Of one thing it
may not, a record that was learned under a ballot that a later one has replaced by now. It stays if
it is above the session; one that is not was logged with its bytes (`Acceptor.learn`).
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final, NamedTuple

from services.core.errors import PeerError
from services.core.hlc import Version, version_bytes, version_ms, version_zero
from services.core.key import check_storage_key
from services.core.messages import Reader, u16
from services.core.record import visible
from services.core.ring import slot_of
from services.dhtnode.promises import Promises
from services.dhtnode.table import Table

_cell_gone: Final = 1
_promise_gone: Final = 2

_head = Struct(">H12sH")


class Purged(NamedTuple):
    """Keys of a slot, and of each whether its cell and whether its promise went."""

    slot: int
    session: Version
    gone: list[tuple[bytes, bool, bool]]

    @property
    def cells(self) -> int:
        return sum(cell for _, cell, _ in self.gone)

    @property
    def promises(self) -> int:
        return sum(promise for _, _, promise in self.gone)

    def encode(self) -> bytes:
        parts = [_head.pack(self.slot, self.session, len(self.gone))]
        for key, cell, promise in self.gone:
            gone = (_cell_gone if cell else 0) | (_promise_gone if promise else 0)
            parts += (u16.pack(len(key)), key, bytes((gone,)))
        return b"".join(parts)


def decode_purged(body: bytes) -> Purged:
    """PeerError for what `Purged.encode` has not made."""
    reader = Reader(body)
    slot, session, count = reader.slot(), reader.take(version_bytes), reader.count()
    gone: list[tuple[bytes, bool, bool]] = []
    for _ in range(count):
        key = check_storage_key(reader.take(reader.u16()))
        if slot_of(key) != slot:
            raise PeerError(f"a key of slot {slot_of(key)} that was purged from slot {slot}")
        what = reader.u8()
        if not 0 < what <= _cell_gone | _promise_gone:
            raise PeerError(f"a purge that took {what} of a key")
        gone.append((key, bool(what & _cell_gone), bool(what & _promise_gone)))
    reader.end()
    return Purged(slot, session, gone)


def what_goes(
    table: Table,
    promises: Promises,
    slot: int,
    session: Version,
    floor: Version,
    keys: Iterable[tuple[bytes, Version]],
) -> Purged:
    """Of these keys, each with the ballot at which all have accepted that it is to go, or
    `version_zero`: cells that had ended by the session, and promises that hold what was accepted
    at that ballot or never accepted anything, and stand in the way of nothing above the floor."""
    session_ms = version_ms(session)
    gone = []
    for key, ballot in keys:
        record = table.peek(slot, key)
        cell = (
            record is not None
            and record[:version_bytes] <= session
            and not visible(record, session_ms)
        )
        held = promises.get(slot, key)
        promise = (
            promises.holds(slot, key)
            and held.promised <= floor
            and held.ballot in (ballot, version_zero)
        )
        if cell or promise:
            gone.append((key, cell, promise))
    return Purged(slot, session, gone)


def take_away(table: Table, promises: Promises, purged: Purged) -> None:
    """Do what was decided, now or when the log is replayed."""
    slot, session, gone = purged
    for key, cell, promise in gone:
        record = table.peek(slot, key) if cell else None
        if record is not None and record[:version_bytes] <= session:
            table.remove(slot, key)
        if not promises.holds(slot, key):
            continue
        if promise:
            promises.drop(slot, key)
        else:
            # Its record may have been that of the cell, and is held here alone now.
            promises.weigh(slot, key)
    table.compact(slot)
