"""Count requests by how long they took, for percentiles: a column of each bucket."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# As gateways report them (services/core/usage_report.py) when this revision was written.
_buckets = 18


def upgrade() -> None:
    # Partitions follow, without being written anew: the default is a constant.
    columns = ", ".join(
        f"ADD COLUMN latency_{bucket} bigint NOT NULL DEFAULT 0" for bucket in range(_buckets)
    )
    op.execute(f"ALTER TABLE usage_rollups {columns}")
    op.execute(
        "COMMENT ON COLUMN usage_rollups.latency_0 IS 'How many requests took less than 64 us;"
        " latency_1 those of 64 us to less than 128 us, and so on; the last one all that took"
        " longer.'"
    )


def downgrade() -> None:
    columns = ", ".join(f"DROP COLUMN latency_{bucket}" for bucket in range(_buckets))
    op.execute(f"ALTER TABLE usage_rollups {columns}")
