"""What simulated clusters are judged by at the end turns back what it is there to turn back."""

from __future__ import annotations

from services.core.record import tombstone_body, value_body
from tests.simulation.cells import different, hidden, is_trimmed, lost, made_by_nobody
from tests.simulation.cluster_clients import Write
from tests.simulation.history import Found

end_ms = 5_000


def version(time_ms: int) -> bytes:
    return time_ms.to_bytes(6, "big") + bytes(6)


def ending(time_ms: int, content: bytes = b"passing") -> bytes:
    return version(time_ms) + value_body(content, end_ms)


def lasting(time_ms: int, content: bytes = b"stays") -> bytes:
    return version(time_ms) + value_body(content)


def deleted(time_ms: int) -> bytes:
    return version(time_ms) + tombstone_body


def write(value: bytes | None, acked: bytes | None, ttl_ms: int = 0, *, refused: bool) -> Write:
    return Write(b"key", value, "replicator-1", 1, 0, ttl_ms, acked, refused)


passing = Found(b"passing", version(1), end_ms)


def test_only_an_empty_value_with_an_end_was_trimmed() -> None:
    assert is_trimmed(ending(1, b""))
    for cell in (b"", ending(1), lasting(1, b""), deleted(1)):
        assert not is_trimmed(cell)


def test_replicas_differ_by_nothing_but_what_was_trimmed_in_time() -> None:
    whole, rest = ending(1), ending(1, b"")
    assert different({"a": whole, "b": rest, "c": whole}, end_ms) is None
    assert different({"a": rest, "b": rest}, end_ms) is None
    assert different({"a": b"", "b": b""}, 0) is None
    assert different({"a": whole, "b": rest}, end_ms - 1) is not None
    assert different({"a": rest, "b": rest}, end_ms - 1) is not None
    for other in (b"", ending(1, b"another"), ending(2, b""), deleted(1), lasting(1, b"")):
        assert different({"a": whole, "b": other}, end_ms) is not None
    assert different({"a": lasting(1), "b": lasting(1, b"")}, end_ms) is not None


def test_what_was_read_is_in_the_cells_or_has_ended_by_a_tombstone() -> None:
    assert hidden(passing, ending(1)) is None
    assert hidden(passing, ending(1, b"")) is None
    assert hidden(passing, deleted(end_ms)) is None
    assert hidden(None, b"") is None
    assert hidden(None, deleted(9)) is None
    assert hidden(Found(b"stays", version(1)), lasting(1)) is None


def test_a_read_value_is_missed_where_the_cells_have_something_else() -> None:
    older = deleted(0)
    for cell in (b"", older, deleted(1), deleted(end_ms - 1), ending(2), lasting(1, b"passing")):
        assert hidden(passing, cell) is not None
    for cell in (b"", older, deleted(end_ms), lasting(2), lasting(1, b""), lasting(1, b"other")):
        assert hidden(Found(b"stays", version(1)), cell) is not None
    assert hidden(None, lasting(1)) is not None
    assert hidden(None, ending(1, b"")) is not None


def test_an_acknowledged_write_is_lost_where_only_older_ones_are() -> None:
    assert lost([version(1), version(3)], lasting(3)) is None
    assert lost([], b"") is None
    assert lost([version(1), version(3)], deleted(2)) is not None
    assert lost([version(1)], b"") is not None


def test_what_was_trimmed_is_told_from_what_nobody_wrote() -> None:
    told = write(b"passing", version(1), 50, refused=False)
    assert made_by_nobody([told], ending(1)) is None
    assert made_by_nobody([told], ending(1, b"")) is None
    assert made_by_nobody([write(b"x", None, 50, refused=False)], ending(1, b"")) is None
    assert made_by_nobody([write(None, version(1), refused=False)], deleted(1)) is None
    for wrong in (ending(2), ending(2, b""), ending(1, b"other"), deleted(1), lasting(1, b"")):
        assert made_by_nobody([told], wrong) is not None
    for other in (
        write(b"passing", None, 50, refused=True),
        write(b"passing", version(1), refused=False),
        write(None, version(1), refused=False),
    ):
        assert made_by_nobody([other], ending(1, b"")) is not None
