"""What scrubs have done; plain integers that `/metrics` reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ScrubCounters:
    """What scrubs have done since the start."""

    passes: int = 0
    records: int = 0
    file_bytes: int = 0
    found_in_memory: int = 0
    found_on_disk: int = 0
    mended: int = 0
    # Records that nobody has a sound copy of.
    unmendable: int = 0
