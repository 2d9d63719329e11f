"""Make the table of values that the platform makes once and then keeps."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE platform (
            key text PRIMARY KEY CHECK (key <> ''),
            value bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    op.execute(
        "COMMENT ON TABLE platform IS"
        " 'Values made once for this installation, such as key material; never overwritten.'"
    )


def downgrade() -> None:
    op.execute("DROP TABLE platform")
