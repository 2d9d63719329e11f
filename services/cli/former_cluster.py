"""The cluster that the data belongs to, looked at before anything of another one is started."""

from __future__ import annotations

from pathlib import Path

from services.core.cluster import ClusterMap
from services.core.errors import PeerError
from services.replicator.formation import check_settings
from services.runtime.disk import SystemDisk
from services.runtime.kept_map import KeptMap


def refuse_another_cluster(directory: Path, cluster_size: int) -> None:
    """FatalError if a replicator has a map in this directory of a cluster of another size.

    The replicator would say the same, but by then nodes that nobody takes have made directories
    for themselves. Without a map, or with one that cannot be read, it is left to the replicator.
    """
    disk = SystemDisk()
    try:
        data = KeptMap(disk, directory).read()
        kept = None if data is None else ClusterMap.decode(data)
    except (PeerError, OSError):
        return
    finally:
        disk.close()
    if kept is not None:
        check_settings(kept, cluster_size, kept.replication_factor)
