"""What is declared of namespaces as a replicator has it, kept for a start without PostgreSQL.

file `namespaces`:   version u64  ·  msgpack list of (prefix, max_items)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec

from services.core.errors import FixRequest, PeerError
from services.core.key import check_namespace, check_namespace_prefix, namespace_bytes_max
from services.core.messages import u64
from services.core.namespaces import max_items_max
from services.core.packed_bodies import decode_body
from services.replicator.declarations import Declarations, declarations_max, nothing_declared
from services.runtime import telemetry
from services.runtime.disk import Disk
from services.runtime.kept_file import KeptFile

file_name: Final = "namespaces"
# A prefix at its longest, a number, and what msgpack puts before them.
_bytes_max: Final = u64.size + declarations_max * (9 + namespace_bytes_max + 16) + 8

_Kept = tuple[bytes, Annotated[int, msgspec.Meta(ge=0, le=max_items_max)]]


def encode_declarations(declarations: Declarations) -> bytes:
    return u64.pack(declarations.version) + msgspec.msgpack.encode(
        list(declarations.max_items.items())
    )


def decode_declarations(data: bytes) -> Declarations:
    kept = decode_body(data[u64.size :], list[_Kept])
    try:
        for prefix, _ in kept:
            check_namespace(check_namespace_prefix(prefix)[9:])
    except FixRequest as error:
        raise PeerError(error.detail) from error
    return Declarations.of(int.from_bytes(data[: u64.size], "big"), kept)


class Declared:
    """The newest declarations that are known here. `on_change` is told of each newer list."""

    def __init__(self) -> None:
        self.now = nothing_declared
        self.on_change: Callable[[], None] = lambda: None
        self._file: KeptFile | None = None
        # What is on its way to the disk, and whether there is something newer since.
        self._keeping: Declarations | None = None
        self._said = telemetry.logger("services.replicator")

    def remember(self, disk: Disk, directory: Path) -> None:
        """Begin with what an earlier run has kept in this directory, and keep what comes."""
        self._file = KeptFile(disk, directory, file_name, _bytes_max, decode_declarations)
        try:
            data = self._file.read_or_put_aside()
        except (PeerError, OSError) as error:
            self._said.warning("the kept namespaces cannot be read", reason=str(error))
            return
        if data is not None:
            self.now = decode_declarations(data)

    def adopt(self, newer: Declarations) -> None:
        """Take this list, unless one was taken that is as new."""
        if newer.version <= self.now.version:
            return
        self.now = newer
        self._said.debug(
            "namespaces are declared", version=newer.version, count=len(newer.max_items)
        )
        self._keep()
        self.on_change()

    def _keep(self) -> None:
        """One at a time: of what comes while the disk has one, the newest is kept next."""
        if self._file is None or self._keeping is not None:
            return
        self._keeping = self.now
        self._file.keep_soon(encode_declarations(self.now), self._kept)

    def _kept(self, error: OSError | None) -> None:
        # PostgreSQL has it. A disk that is broken shows at the next ceiling.
        if error is not None:
            self._said.warning("the namespaces could not be kept", reason=error.strerror)
        kept, self._keeping = self._keeping, None
        if kept is not self.now and error is None:
            self._keep()
