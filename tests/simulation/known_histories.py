"""Small histories of one key that are known to be right, or known to be wrong, and why."""

from __future__ import annotations

from services.runtime.clock import FakeClock
from tests.simulation.history import (
    ABSENT,
    FAILED,
    IF_ABSENT,
    IF_PRESENT,
    NOT_AN_INTEGER,
    UNKNOWN,
    Action,
    Delete,
    Found,
    Get,
    Increment,
    Mismatch,
    Operation,
    Outcome,
    Patch,
    Put,
    Wrote,
)

# The doubt about clocks that these histories are made for.
skew_ms = 400


def v(number: int) -> bytes:
    return number.to_bytes(12, "big")


def op(invoked_s: float, returned_s: float | None, action: Action, outcome: Outcome) -> Operation:
    return Operation("client", b"key", action, outcome, invoked_s, returned_s)


def at_ms(milliseconds: int) -> int:
    return FakeClock.epoch_ms + milliseconds


def put(invoked_s: float, returned_s: float, value: bytes, version: int) -> Operation:
    return op(invoked_s, returned_s, Put(value), Wrote(v(version)))


def lost(invoked_s: float, action: Action) -> Operation:
    return op(invoked_s, None, action, UNKNOWN)


def got(invoked_s: float, returned_s: float, value: bytes, version: int) -> Operation:
    return op(invoked_s, returned_s, Get(), Found(value, v(version)))


def absent(invoked_s: float, returned_s: float) -> Operation:
    return op(invoked_s, returned_s, Get(), ABSENT)


def timed(value: bytes, version: int, ttl_ms: int) -> Operation:
    """Put at 0 s; the answer told the expiry."""
    return op(0, 0, Put(value, ttl_ms), Wrote(v(version), None, at_ms(ttl_ms)))


bad: dict[str, list[Operation]] = {
    "a read misses a write that had returned": [put(0, 1, b"a", 1), absent(2, 3)],
    "a read shows what had been overwritten": [
        put(0, 1, b"a", 1), put(2, 3, b"b", 2), got(4, 5, b"a", 1),
    ],
    "reads go back while the write is still under way": [
        put(0, 1, b"a", 1), put(2, 9, b"b", 2), got(3, 4, b"b", 2), got(5, 6, b"a", 1),
    ],
    "a lost write is seen and then not": [
        put(0, 1, b"a", 1), lost(2, Put(b"b")), got(3, 4, b"b", 2), got(5, 6, b"a", 1),
    ],
    "a lost write to nothing is seen and then not": [
        lost(0, Put(b"a")), got(1, 2, b"a", 1), absent(3, 4),
    ],
    "two compare-and-sets succeed from one version": [
        put(0, 1, b"a", 1),
        op(2, 9, Put(b"b", None, v(1)), Wrote(v(2))),
        op(2, 9, Put(b"c", None, v(1)), Wrote(v(3))),
    ],
    "two clients both put a value where there was none": [
        op(0, 9, Put(b"a", None, IF_ABSENT), Wrote(v(1))),
        op(0, 9, Put(b"b", None, IF_ABSENT), Wrote(v(2))),
    ],
    "a compare fails against the version that it names": [
        put(0, 1, b"a", 1), op(2, 3, Put(b"b", None, v(1)), Mismatch(v(1))),
    ],
    "a compare fails against a version long gone": [
        put(0, 1, b"a", 1), put(2, 3, b"b", 2), op(4, 5, Delete(v(9)), Mismatch(v(1))),
    ],
    "a compare finds nothing where something is": [
        put(0, 1, b"a", 1), op(2, 3, Put(b"b", None, v(9)), Mismatch(None)),
    ],
    "a compare with any value succeeds on none": [
        op(0, 1, Put(b"a", None, IF_PRESENT), Wrote(v(1))),
    ],
    "an increment is lost": [
        op(0, 9, Increment(), Wrote(v(1), 1)), op(0, 9, Increment(), Wrote(v(2), 1)),
    ],
    "an increment is applied twice": [
        put(0, 1, b"5", 1), op(2, 3, Increment(), Wrote(v(3), 7)),
    ],
    "a lost increment is applied twice": [
        put(0, 1, b"5", 1), lost(2, Increment()), got(3, 4, b"7", 3),
    ],
    "a failed increment is applied": [
        put(0, 1, b"5", 1), op(2, 3, Increment(), FAILED), got(4, 5, b"6", 2),
    ],
    "a word is incremented": [put(0, 1, b"a", 1), op(2, 3, Increment(), Wrote(v(2), 1))],
    "a number is said to be none": [put(0, 1, b"1", 1), op(2, 3, Increment(), NOT_AN_INTEGER)],
    "a value is back after its deletion": [
        put(0, 1, b"a", 1), op(2, 3, Delete(), Wrote(v(2))), got(4, 5, b"a", 1),
    ],
    "a lost write takes effect twice": [
        lost(0, Put(b"a")), got(1, 2, b"a", 1),
        op(3, 4, Delete(), Wrote(v(2))), got(5, 6, b"a", 3),
    ],
    "a write was lost before it was asked for": [got(0, 1, b"a", 1), lost(2, Put(b"a"))],
    "nobody wrote what is read": [put(0, 1, b"a", 1), got(2, 3, b"b", 2)],
    "a read tells another version than the write": [put(0, 1, b"a", 1), got(2, 3, b"a", 2)],
    "two reads tell two versions of one lost write": [
        lost(0, Put(b"a")), got(1, 2, b"a", 1), got(3, 4, b"a", 2),
    ],
    "a failed write is read": [op(0, 1, Put(b"a"), FAILED), got(2, 3, b"a", 1)],
    "versions go back": [put(0, 1, b"a", 2), put(2, 3, b"b", 1)],
    "two writes have one version": [put(0, 9, b"a", 1), put(0, 9, b"b", 1)],
    "a patch changes nothing that is there": [op(0, 1, Patch(), Wrote(v(1)))],
    "a patch misses what is there": [put(0, 1, b"a", 1), op(2, 3, Patch(), ABSENT)],
    "a patch brings an older value back": [
        put(0, 1, b"a", 1), put(2, 3, b"b", 2),
        op(4, 5, Patch(), Wrote(v(3))), got(6, 7, b"a", 3),
    ],
    "a value without expiry expires": [put(0, 1, b"a", 1), absent(90, 91)],
    "a value expires before its time": [timed(b"a", 1, 5000), absent(4, 4.5)],
    "a value is read after its time": [
        timed(b"a", 1, 5000), op(5.5, 6, Get(), Found(b"a", v(1), at_ms(5000))),
    ],
    "an expired value is back": [
        timed(b"a", 1, 5000), absent(5, 5.1),
        op(5.2, 5.3, Get(), Found(b"a", v(1), at_ms(5000))),
    ],
    "a compare succeeds from what had expired": [
        timed(b"a", 1, 5000), absent(5, 5.1), op(5.2, 5.3, Put(b"b", None, v(1)), Wrote(v(2))),
    ],
    "an increment forgets the expiry": [
        timed(b"1", 1, 5000), op(1, 2, Increment(), Wrote(v(2), 2)),
        op(3, 4, Get(), Found(b"2", v(2), 0)),
    ],
    "an increment counts on from what had expired": [
        timed(b"1", 1, 5000), absent(5, 5.1), op(5.2, 5.3, Increment(), Wrote(v(3), 2)),
    ],
    "an expiry is none that its TTL can have become": [
        op(0, 0.1, Put(b"a", 5000), Wrote(v(1))),
        op(1, 2, Get(), Found(b"a", v(1), at_ms(5501))),
    ],
    "two reads tell two expiries of one write": [
        op(0, 0.1, Put(b"a", 5000), Wrote(v(1))),
        op(1, 2, Get(), Found(b"a", v(1), at_ms(5000))),
        op(3, 4, Get(), Found(b"a", v(1), at_ms(5001))),
    ],
    "a patched expiry does not hold": [
        timed(b"a", 1, 9000), op(1, 1, Patch(1000), Wrote(v(2), None, at_ms(2000))),
        op(3, 4, Get(), Found(b"a", v(2), at_ms(9000))),
    ],
}  # fmt: skip

good: dict[str, list[Operation]] = {
    "nothing happened": [],
    "reads beside a write show either value": [
        put(0, 1, b"a", 1), put(2, 9, b"b", 2), got(3, 4, b"a", 1), got(5, 6, b"b", 2),
    ],
    "the later of two writes began first": [
        put(0, 9, b"a", 2), put(1, 8, b"b", 1), got(10, 11, b"a", 2),
    ],
    "operations that touch are concurrent": [put(0, 1, b"a", 1), absent(1, 2)],
    "a lost write took effect late": [
        lost(0, Put(b"a")), absent(1, 2), put(3, 4, b"b", 1), got(5, 6, b"b", 1),
        got(60, 61, b"a", 2),
    ],
    "a lost write never took effect": [lost(0, Put(b"a")), absent(1, 2), absent(60, 61)],
    "a lost write fell between two others that nobody read": [
        lost(0, Put(b"a")), put(1, 2, b"b", 1), put(3, 4, b"c", 3),
        op(5, 6, Put(b"d", None, v(2)), Mismatch(v(3))),
    ],
    "a lost delete explains that nothing is there": [
        put(0, 1, b"a", 1), lost(2, Delete()), got(3, 4, b"a", 1), absent(5, 6),
    ],
    "a lost delete made way for a lost write": [
        put(0, 1, b"a", 1), lost(2, Delete(v(1))), lost(2, Put(b"b", None, IF_ABSENT)),
        got(3, 4, b"b", 3),
    ],
    "a lost increment came between two others": [
        lost(0, Increment()), op(0, 1, Increment(), Wrote(v(1), 1)),
        op(2, 3, Increment(), Wrote(v(3), 3)),
    ],
    "one of two lost compare-and-sets took effect": [
        put(0, 1, b"a", 1), lost(2, Put(b"b", None, v(1))), lost(2, Put(b"c", None, v(1))),
        got(3, 4, b"c", 2),
    ],
    "a compare-and-set goes on from a lost write": [
        lost(0, Put(b"a")), op(1, 2, Put(b"b", None, v(7)), Mismatch(v(1))),
        op(3, 4, Put(b"b", None, v(1)), Wrote(v(2))), got(5, 6, b"b", 2),
    ],
    "a lost patch gave the value a new version": [
        put(0, 1, b"a", 1), lost(2, Patch()), got(3, 4, b"a", 1), got(5, 6, b"a", 2),
    ],
    "a failed write did nothing": [op(0, 1, Put(b"a"), FAILED), absent(2, 3)],
    "what is not there is deleted": [op(0, 1, Delete(), Wrote(v(1))), absent(2, 3)],
    "an increment starts at nothing": [
        op(0, 1, Increment(-4), Wrote(v(1), -4)), got(2, 3, b"-4", 1),
    ],
    "words and sums too large are refused": [
        put(0, 1, b"a", 1), op(2, 3, Increment(), NOT_AN_INTEGER),
        put(4, 5, b"%d" % (2**63 - 1), 2), op(6, 7, Increment(), NOT_AN_INTEGER),
    ],
    "a value expires within the doubt about clocks": [
        timed(b"a", 1, 5000), op(4.5, 4.6, Get(), Found(b"a", v(1), at_ms(5000))),
        absent(4.65, 4.7), absent(4.8, 4.9),
    ],
    "a slow clock shows a value a little longer": [
        timed(b"a", 1, 5000), op(5.3, 6, Get(), Found(b"a", v(1), at_ms(5000))),
    ],
    "an expired key begins anew": [
        timed(b"7", 1, 5000), op(6, 7, Increment(), Wrote(v(3), 1, 0)), got(8, 9, b"1", 3),
    ],
    "a patch saves a value from its expiry": [
        timed(b"a", 1, 5000), op(1, 2, Patch(), Wrote(v(2), None, 0)), got(60, 61, b"a", 2),
    ],
    "a lost patch let a value expire": [
        put(0, 1, b"a", 1), lost(2, Patch(1000)), absent(4, 5),
    ],
}  # fmt: skip
