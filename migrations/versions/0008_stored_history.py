"""Keep how much each account had stored, hour by hour of the last days."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_tables = (
    """
    CREATE TABLE stored_history (
        user_id bigint NOT NULL,
        hour timestamptz NOT NULL,
        keys bigint NOT NULL CHECK (keys >= 0),
        bytes bigint NOT NULL CHECK (bytes >= 0),
        PRIMARY KEY (user_id, hour)
    )
    """,
    "CREATE INDEX stored_history_hour ON stored_history (hour)",
    "COMMENT ON TABLE stored_history IS 'Keys and bytes that an account had stored, as they were"
    " last looked at in an hour. Without a row nobody has looked, for nothing was changed.'",
)


def upgrade() -> None:
    for statement in _tables:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE stored_history")
