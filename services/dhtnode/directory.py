"""A node's directory: whose it is, and which files it holds.

    LOCK                        held by the process that runs the node
    store                       JSON: format, node id, store id
    log-0000000007              a segment of the log; numbers are contiguous
    snapshot-00000000000000042  everything up to log sequence 42, which is the first to replay
    snapshot-….damaged          a snapshot that recovery has found unreadable, kept for a look
    *.tmp                       a file in the making, worth nothing after a restart

The store id is random and made once, with the directory. It is this replica's identity: peers
know the node by both ids, so that a node that lost its directory, and with it the promises it
gave, is not taken for the one that gave them.
"""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Annotated, Self

import msgspec

from services.core.errors import FatalError
from services.runtime.disk import Disk, Lock, lock_name
from services.runtime.log.frame import store_id_bytes
from services.runtime.log.segments import SegmentDirectory, draft_suffix, numbered

store_name = "store"
damaged_suffix = ".damaged"
_store_format = 1
# Two ids and their names. Anything longer is not ours.
_store_file_bytes_max = 4096
_snapshot_name = re.compile(r"snapshot-(\d{20})")


class NodeDirectory(SegmentDirectory):
    """An open directory. Nobody else has it until `close`, or until this process ends."""

    def __init__(self, disk: Disk, path: Path, lock: Lock, node_id: str, store_id: bytes) -> None:
        super().__init__(disk, path, store_id)
        self.node_id = node_id
        self._lock = lock

    @classmethod
    def open(cls, disk: Disk, path: Path, node_id: str, new_store_id: bytes) -> Self:
        """Take the directory of this node, making it with `new_store_id` if it is not there.

        `FatalError` if another process has it (`DirectoryInUse`), if it belongs to another node,
        or if it holds files but does not say whose they are. What an earlier process left
        unfinished is removed, and the names found are durable.
        """
        if len(new_store_id) != store_id_bytes:
            raise ValueError(f"a store id is {store_id_bytes} bytes, not {len(new_store_id)}")
        disk.make_directory(path)
        lock = disk.lock(path)
        try:
            store_id = _claim(disk, path, node_id, new_store_id)
        except BaseException:
            lock.release()
            raise
        return cls(disk, path, lock, node_id, store_id)

    def close(self) -> None:
        self._lock.release()

    def snapshot_path(self, first: int) -> Path:
        return self.path / f"snapshot-{first:020}"

    def snapshots(self) -> list[tuple[int, Path]]:
        """First sequence to replay and path of every snapshot, newest first."""
        return snapshots_in(self.disk, self.path)

    def damaged(self) -> list[Path]:
        """The snapshots that were put aside."""
        names = self.disk.names(self.path)
        return [self.path / name for name in names if name.endswith(damaged_suffix)]

    def put_aside(self, snapshot: Path) -> None:
        """Take a damaged snapshot out of the list. The name is durable after a directory sync."""
        self.disk.rename(snapshot, snapshot.with_name(snapshot.name + damaged_suffix))


def snapshots_in(disk: Disk, directory: Path) -> list[tuple[int, Path]]:
    return sorted(numbered(disk, directory, _snapshot_name), reverse=True)


def _claim(disk: Disk, path: Path, node_id: str, new_store_id: bytes) -> bytes:
    names = set(disk.names(path))
    for name in sorted(names):
        if name.endswith(draft_suffix):
            disk.remove(path / name)
            names.discard(name)
    if store_name in names:
        owner, store_id = read_store(disk, path)
        if owner != node_id:
            raise FatalError(
                f"{path} belongs to node {owner!r}, and this is {node_id!r}: set NODE_ID to "
                f"{owner!r}, or give this node a directory of its own"
            )
        # Whoever named what is here may have been killed before the names were durable.
        disk.sync_directory(path)
        return store_id
    if foreign := sorted(names - {lock_name}):
        raise FatalError(
            f"{path} holds {foreign[0]!r} but no file {store_name!r} that says whose data this is: "
            "put that file back, or give the node an empty directory"
        )
    store = {"format": _store_format, "node_id": node_id, "store_id": new_store_id.hex()}
    disk.replace(path / store_name, json.dumps(store, indent=2).encode() + b"\n")
    return new_store_id


class _Format(msgspec.Struct):
    format: int


class _Store(_Format):
    node_id: str
    store_id: Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{2 * store_id_bytes}}}$")]


def read_store(disk: Disk, directory: Path) -> tuple[str, bytes]:
    """The node id and the store id of a directory; FatalError if they are not to be had."""
    path = directory / store_name
    try:
        content = disk.read(path, _store_file_bytes_max)
        if msgspec.json.decode(content, type=_Format).format != _store_format:
            raise FatalError(f"{path} has a format that this version does not know")
        store = msgspec.json.decode(content, type=_Store)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise _garbled(path, str(error.strerror)) from error
    except ValueError as error:
        # Of msgspec, and of what is not UTF-8.
        raise _garbled(path, str(error)) from error
    return store.node_id, bytes.fromhex(store.store_id)


def _garbled(path: Path, what: str) -> FatalError:
    return FatalError(
        f"{path} does not say whose data this is ({what}): put back an intact copy of that file; "
        "without one this node stays out, and the others go on"
    )
