"""What a node can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from services.core.errors import FatalError
from services.runtime import setting_values as values
from services.runtime.log.log import segment_bytes_default
from services.runtime.settings import ServiceSettings, setting

node_id_default = "node-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings(ServiceSettings):
    service: ClassVar[str] = "dhtnode"

    port: int = setting("DHTNODE_PORT", values.port, default="8082", help="HTTP port of a node")
    node_id: str = setting(
        "NODE_ID",
        values.identifier,
        default=node_id_default,
        help="Name of the node in the cluster",
    )
    nodes_dir: Path | None = setting(
        "NODES_DIR",
        values.path,
        help="Shared by nodes that are started alike: each takes the first free directory in it, "
        "of 1, 2, 3 …, and is node-1, node-2, node-3 …; unset: DATA_DIR/nodes/NODE_ID",
    )
    zone: str = setting(
        "ZONE",
        values.zone,
        default="",
        help="Where the node stands, such as a rack: replicas are put in distinct zones first",
    )
    replicator_urls: tuple[str, ...] = setting(
        "REPLICATOR_URLS",
        values.url_list,
        default="http://127.0.0.1:8085",
        help="Replicators, by the URLs of their HTTP ports",
    )
    segment_bytes: int = setting(
        "LOG_SEGMENT",
        values.size_bytes(minimum=16 << 20, maximum=1 << 30),
        default=f"{segment_bytes_default >> 20}MiB",
        help="Size of a segment of a node's log",
    )

    scrub_interval_ms: int = setting(
        "SCRUB_INTERVAL",
        values.duration_ms(60_000, 90 * 86_400_000),
        default="7d",
        help="How often a node compares memory and files with their checksums",
    )

    def check(self) -> None:
        # A node that nobody could reach would be a member all the same.
        _ = self.advertised_host
        if self.nodes_dir is not None and self.node_id != node_id_default:
            raise FatalError(
                f"NODE_ID is {self.node_id} and NODES_DIR is set, where the number of a directory "
                "makes the id: keep one of the two"
            )
