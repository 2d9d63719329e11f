"""Make the tables of usage: roll-ups by the minute, a partition a day."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_tables = (
    """
    CREATE TABLE usage_rollups (
        minute timestamptz NOT NULL,
        user_id bigint NOT NULL,
        key_id bigint NOT NULL,
        operation text NOT NULL,
        status smallint NOT NULL,
        requests bigint NOT NULL,
        bytes_in bigint NOT NULL,
        bytes_out bigint NOT NULL,
        latency_us bigint NOT NULL,
        PRIMARY KEY (user_id, minute, key_id, operation, status)
    ) PARTITION BY RANGE (minute)
    """,
    "COMMENT ON TABLE usage_rollups IS 'What was asked of the data plane, added up by the minute."
    " latency_us is a sum. Partitions are usage_YYYYMMDD, one for each day in UTC, made ahead and"
    " dropped by age by the user manager.'",
    """
    CREATE TABLE usage_senders (
        sender text PRIMARY KEY,
        counted int8multirange NOT NULL,
        seen_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "COMMENT ON TABLE usage_senders IS 'Which reports of each gateway have been counted, by their"
    " numbers: one that is sent again is not counted twice.'",
)


def upgrade() -> None:
    for statement in _tables:
        op.execute(statement)


def downgrade() -> None:
    # Its partitions go with it.
    op.execute("DROP TABLE usage_senders")
    op.execute("DROP TABLE usage_rollups")
