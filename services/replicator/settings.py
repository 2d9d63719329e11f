"""What a replicator can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from services.core.cluster import members_max
from services.runtime import setting_values as values
from services.runtime.settings import DatabaseSettings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicatorSettings(DatabaseSettings):
    service: ClassVar[str] = "replicator"

    port: int = setting(
        "REPLICATOR_PORT", values.port, default="8085", help="HTTP port of a replicator"
    )
    replicator_id: str = setting(
        "REPLICATOR_ID",
        values.identifier,
        default="replicator-1",
        help="Name of the replicator; each has its own",
    )
    cluster_size: int = setting(
        "CLUSTER_SIZE",
        values.integer(1, members_max),
        default="3",
        help="Nodes of a new cluster",
    )
    replication_factor: int = setting(
        "REPLICATION_FACTOR",
        values.integer(1, members_max),
        default="3",
        help="Replicas of everything in a new cluster; at most CLUSTER_SIZE are made",
    )
    hint_bytes_max: int = setting(
        "HINT_BYTES_MAX",
        values.size_bytes(minimum=1 << 20),
        default="1GiB",
        help="Writes that a replicator keeps for one node that is away, in bytes",
    )
    hint_window_ms: int = setting(
        "HINT_WINDOW",
        values.duration_ms(1_000, 90 * 86_400_000),
        default="3h",
        help="How long they are kept; a node that is away for longer is compared instead",
    )
    repair_pass_s: int = setting(
        "REPAIR_PASS_S",
        values.integer(1, 7 * 24 * 3600),
        default="600",
        help="Within so many seconds all replicas are compared with each other once",
    )
    repair_records_per_s: int = setting(
        "REPAIR_RECORDS_PER_S",
        values.integer(1, 10_000_000),
        default="5000",
        help="Records, and questions about them, that comparing replicas may cost in a second",
    )
    repair_bytes_per_s: int = setting(
        "REPAIR_BYTES_PER_S",
        values.size_bytes(minimum=1 << 16),
        default="16MiB",
        help="Bytes that comparing replicas may send and hear in a second, and collecting send",
    )
    collect_slots_per_s: int = setting(
        "COLLECT_SLOTS_PER_S",
        values.integer(1, 100_000),
        default="400",
        help="Slots of which a replicator collects deleted keys in a second",
    )
