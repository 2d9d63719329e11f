"""Rot: bytes in memory that are not those that were put there, and how a slot is rid of them.

What tells that a slot has rotted is kept with each change and never worked out from memory: a sum
of checksums over its keys and records, and its digests (table.py). A snapshot is written of sound
slots alone, so that the files hold nothing that has rotted: what a record was stands there, in a
snapshot or in the log behind it. That is put back, and sum and digests prove that it is right.

Where no sound copy is left the record is taken out of the table, so that nobody is shown it. Its
leaf then differs from those of the other replicas, by which anti-entropy brings it back from them.
A promise that holds the very record answers no more: nobody can say what was accepted. A replicator
is told of it as of one that was not learned, and what is then accepted takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from services.core import record as records
from services.core.errors import PeerError, YdhtError
from services.core.hlc import version_bytes
from services.core.messages import u16
from services.core.record import check, tombstone_body
from services.core.ring import slot_of
from services.dhtnode.cells import trimmed
from services.dhtnode.chunk import decode_chunk
from services.dhtnode.frame import ACCEPTED, PROMISES, RECORD, SLOT, split_record
from services.dhtnode.promises import Promises, decode_accepted
from services.dhtnode.table import Table

_slot_bytes: Final = u16.size

Records = dict[bytes, list[bytes]]
"""By key, the records that were found of it, each once."""


class RottenSlot(YdhtError):
    """A slot cannot be written to a file: what lies there is not what was put."""

    def __init__(self, slot: int) -> None:
        super().__init__(f"slot {slot} has rotted in memory")
        self.slot = slot


@dataclass(slots=True)
class Copies:
    """What the files hold of some slots."""

    slots: Collection[int]
    # Of cells; of what was accepted, and may have been learned or not; and from frames that are
    # damaged themselves, so that a record there may be sound or not.
    cells: Records = field(default_factory=dict)
    accepted: Records = field(default_factory=dict)
    doubtful: Records = field(default_factory=dict)

    def add(self, kind: int, body: bytes, *, damaged: bool = False) -> None:
        """Take what a frame has of these slots. A damaged one may make no sense."""
        with suppress(PeerError):
            if kind == SLOT:
                self._add_chunk(body, self.doubtful if damaged else self.cells)
            elif kind == RECORD:
                self._add(*split_record(body), self.doubtful if damaged else self.cells)
            elif kind == ACCEPTED:
                key, promise = decode_accepted(body)
                self._add(key, promise.record, self.doubtful if damaged else self.accepted)
            elif kind == PROMISES and not damaged:
                self._add_promises(body)

    def of(self, slot: int) -> set[bytes]:
        """The keys of a slot that the files know."""
        return {key for key in self.cells if slot_of(key) == slot}

    def _add(self, key: bytes, record: bytes, where: Records) -> None:
        if record and slot_of(key) in self.slots:
            found = where.setdefault(key, [])
            if record not in found:
                found.append(record)

    def _add_chunk(self, body: bytes, where: Records) -> None:
        if int.from_bytes(body[:_slot_bytes], "big") in self.slots:
            _, keys, found = decode_chunk(body)
            for key, record in zip(keys, found, strict=True):
                self._add(key, record, where)

    def _add_promises(self, body: bytes) -> None:
        slot = int.from_bytes(body[:_slot_bytes], "big")
        if slot in self.slots:
            found = Promises(lambda *_: None)
            found.import_chunk(body)
            for key, promise in found.items(slot):
                self._add(key, promise.record, self.accepted)


@dataclass(slots=True)
class Mended:
    """What was done to a slot. `keys` are those that were put right; `lost` those that were taken
    out, to be brought back by others; `kept` how many should have been and nobody has them."""

    slot: int
    keys: list[bytes] = field(default_factory=list)
    lost: list[bytes] = field(default_factory=list)
    kept: int = 0
    # The leaves that were wrong while all records were right.
    leaves: int = 0

    @property
    def found(self) -> int:
        """How much there was. Nothing, if it has been replaced since and left its sum wrong."""
        return len(self.keys) + len(self.lost) + self.kept + self.leaves


class Mender:
    """Puts slots right, each in one turn of the loop.

    `changing` tells whether a key has a change that is not in the files yet. `others` tells whether
    there are replicas that could bring back what is taken out.
    """

    def __init__(
        self,
        table: Table,
        promises: Promises,
        copies: Copies,
        changing: Callable[[bytes], bool],
        others: Callable[[], bool],
    ) -> None:
        self._table = table
        self._promises = promises
        self._copies = copies
        self._changing = changing
        self._others = others

    def is_right(self, slot: int) -> bool:
        return self._table.sound(slot) and not self._table.wrong_leaves(slot)

    def mend(self, slot: int) -> Mended:
        """Everything durable of the slot has been read into the copies."""
        done = Mended(slot)
        if self.is_right(slot):
            # It was wiped since.
            return done
        left = [
            (key, record)
            for key, record in self._unproven(slot)
            if not self._put_back(done, key, record)
        ]
        left = [
            (key, record)
            for key, record in left
            if not self._put_back_under_its_key(done, key, record)
        ]
        if self.is_right(slot):
            return done
        for key, record in left:
            if self._others():
                self._take_out(done, key, record)
            else:
                done.kept += 1
        leaves = self._table.accept(slot)
        if not (left or done.keys):
            done.leaves = len(leaves)
        return done

    def _unproven(self, slot: int) -> list[tuple[bytes, bytes]]:
        """What lies in the slot, and not so in any file."""
        copies = self._copies
        return [
            (key, record)
            for key, record in self._table.items(slot)
            if not self._changing(key)
            and not any(_same(copy, record) for copy in copies.cells.get(key, ()))
            and not any(_same(copy, record) for copy in copies.accepted.get(key, ()))
        ]

    def _put_back(self, done: Mended, key: bytes, record: bytes) -> bool:
        """Whether there is a sound record of this key, which then is that of the table."""
        copies = self._copies
        cells, accepted = copies.cells.get(key, []), copies.accepted.get(key, [])
        of_version = [
            form
            for copy in sorted([*cells, *accepted], reverse=True)
            if copy[:version_bytes] == record[:version_bytes]
            for form in _forms(copy)
            if len(form) == len(record)
        ]
        # A version that is in no file has rotted itself. The greatest is what the table had; it may
        # have been learned from what was accepted.
        likely = of_version or sorted(cells, reverse=True)
        options = [*likely, *_doubtful(copies.doubtful.get(key, ()), record)]
        if not of_version:
            options += sorted(accepted, reverse=True)
        if not options:
            return False
        for option in options:
            self._table.mend(done.slot, key, option)
            if self.is_right(done.slot):
                self._replaced(done, key, record, option)
                return True
        # There may be more that has rotted in this slot, and no single record puts it right.
        if not likely:
            self._table.mend(done.slot, key, record)
            return False
        self._table.mend(done.slot, key, likely[0])
        self._replaced(done, key, record, likely[0])
        return True

    def _replaced(self, done: Mended, key: bytes, rotten: bytes, record: bytes) -> None:
        done.keys.append(key)
        held = self._promises.get(done.slot, key)
        if held.record is rotten:
            self._promises.put(done.slot, key, held._replace(record=record))

    def _put_back_under_its_key(self, done: Mended, rotten: bytes, record: bytes) -> bool:
        """Whether this is the record of a key that the table lacks: it is the key that rotted."""
        for key in self._copies.of(done.slot):
            if self._table.peek(done.slot, key) is None and any(
                _same(copy, record) for copy in self._copies.cells[key]
            ):
                self._table.mend_key(done.slot, rotten, key)
                done.keys.append(key)
                return True
        return False

    def _take_out(self, done: Mended, key: bytes, record: bytes) -> None:
        if any(_same(copy, record) for copy in self._copies.doubtful.get(key, ())):
            # The bad frame says the same, and no two places rot alike: this one is sound.
            return
        self._table.give_up(done.slot, key)
        done.lost.append(key)
        if self._promises.get(done.slot, key).record is record:
            self._promises.doubt(key)


def _forms(record: bytes) -> list[bytes]:
    """What may stand for a record that was put: itself, and what is left of it when its value is
    freed, or when a cache gives it up."""
    forms = [record, record[:version_bytes] + tombstone_body]
    if records.expires_at_ms(record):
        forms.insert(1, trimmed(record))
    return forms


def _same(copy: bytes, record: bytes) -> bool:
    """Whether the table may well have this record where a file has that copy."""
    return copy == record or (
        copy[:version_bytes] == record[:version_bytes] and record in _forms(copy)
    )


def _doubtful(found: Collection[bytes], record: bytes) -> list[bytes]:
    """Records of a bad frame that could be the sound one, should that be proven."""
    options = []
    for copy in found:
        with suppress(PeerError):
            if copy != record:
                options.append(check(copy))
    return options
