"""What must hold of the cells of one key, once everything was mended.

Each function gives back what is wrong, or None. A value that has ended is trimmed by every replica
for itself, so that one may have all of it, and another what tells its version and its end. Clients
of a simulation put no empty values: an empty one with an end is what was left of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.core.hlc import version_ms
from services.core.record import expires_at_ms, is_tombstone, value, value_body, version
from tests.simulation.cluster_clients import Write
from tests.simulation.history import Found


def is_trimmed(cell: bytes) -> bool:
    return len(cell) > 0 and cell == _trimmed(cell) and expires_at_ms(cell) > 0


def _trimmed(cell: bytes) -> bytes:
    return version(cell) + value_body(b"", expires_at_ms(cell))


def different(cells: Mapping[str, bytes], trimmed_ms: int) -> str | None:
    """Replicas hold the same, but for what ended by `trimmed_ms` and may have been trimmed."""
    whole = max(cells.values())
    for cell in cells.values():
        if cell != whole and not (is_trimmed(cell) and cell == _trimmed(whole)):
            return f"replicas differ: {cells}"
        if is_trimmed(cell) and expires_at_ms(cell) > trimmed_ms:
            return f"{cell!r} was trimmed before {trimmed_ms}"
    return None


def hidden(shown: Found | None, cell: bytes) -> str | None:
    """The cells have come to what a strong read showed; or to its end, written as a tombstone."""
    there = bool(cell) and not is_tombstone(cell)
    if shown is None:
        return f"it was read as absent, and the cells have {cell!r}" if there else None
    if there:
        same = version(cell) == shown.version and expires_at_ms(cell) == shown.expires_at_ms
        if same and (value(cell) == shown.value or is_trimmed(cell)):
            return None
    elif cell and 0 < shown.expires_at_ms <= version_ms(cell) and version(cell) > shown.version:
        # Nobody asks for anything any more, so that only its end can have changed it.
        return None
    return f"{shown} was read, and the cells have {cell!r}"


def lost(acked: Iterable[bytes], cell: bytes) -> str | None:
    """Nothing that was acknowledged is newer than the cell."""
    newest = max(acked, default=b"")
    if version(cell) < newest:
        return f"{newest.hex()} was acknowledged, {cell!r} is left"
    return None


def made_by_nobody(writes: Iterable[Write], cell: bytes) -> str | None:
    """The cell is one of these writes, under the stamp that its client was told."""
    stamps = {write.acked for write in writes if not write.refused and _may_be(write, cell)}
    # Deletes look alike, and so does what was trimmed; the outcome of some may not be known.
    if stamps & {version(cell), None}:
        return None
    return f"{cell!r} is left; it was acknowledged as {stamps}, or never written"


def _may_be(write: Write, cell: bytes) -> bool:
    if is_tombstone(cell):
        return write.value is None
    if is_trimmed(cell):
        return write.value is not None and write.ttl_ms > 0
    return write.value == value(cell) and (write.ttl_ms > 0) == (expires_at_ms(cell) > 0)
