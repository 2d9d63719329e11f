"""Numbered directories, of which a node takes the first that no other node has.

    NODES_DIR/1     the directory of node-1, as directory.py has it
    NODES_DIR/2     that of node-2

Nodes that are started alike, as the replicas of a container are, become different ones by this:
the number makes the id, and the lock of the directory keeps two from having it. Whoever starts
after one has died is that node, with all that it promised; which process it was does not matter.

Not meant for a directory that several machines share: locks hold on one of them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from services.core.cluster import members_max
from services.core.errors import RestartLater
from services.dhtnode.directory import NodeDirectory
from services.runtime.disk import DirectoryInUse, Disk


def take_place(disk: Disk, nodes_dir: Path, new_store_id: bytes) -> NodeDirectory:
    """The first directory that is free, made if it is not there; it knows the node's id.

    `FatalError` if what is first is not fit for a node, as `NodeDirectory.open` has it: to pass
    over it would make a node anew that the cluster knows already.
    """
    for number in range(1, members_max + 1):
        path = nodes_dir / str(number)
        with suppress(DirectoryInUse):
            return NodeDirectory.open(disk, path, f"node-{number}", new_store_id)
    raise RestartLater(
        f"all {members_max} directories in {nodes_dir} are in use, and no cluster has more nodes: "
        "start fewer"
    )
