"""Make the tables of the cluster: nodes that registered, its maps, and the stampers given out."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE nodes (
            node_id text PRIMARY KEY,
            store_id text NOT NULL UNIQUE,
            host text NOT NULL,
            http_port integer NOT NULL,
            link_port integer NOT NULL,
            zone text NOT NULL,
            registered_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    op.execute(
        "COMMENT ON TABLE nodes IS"
        " 'What each node said of itself when it last had news; the cluster forms of these.'"
    )
    op.execute(
        """
        CREATE TABLE cluster_maps (
            epoch bigint PRIMARY KEY CHECK (epoch > 0),
            map bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    op.execute(
        "COMMENT ON TABLE cluster_maps IS"
        " 'Who has which data. The greatest epoch holds; rows are never changed.'"
    )
    op.execute("CREATE SEQUENCE stampers AS bigint MINVALUE 1 MAXVALUE 4294967295 NO CYCLE")
    op.execute(
        """
        CREATE TABLE replicators (
            stamper bigint PRIMARY KEY DEFAULT nextval('stampers')
                CHECK (stamper BETWEEN 1 AND 4294967295),
            replicator_id text NOT NULL,
            allotted_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    op.execute(
        "COMMENT ON TABLE replicators IS"
        " 'Which replicator was given which stamper. Rows stay: a stamper is never given again.'"
    )


def downgrade() -> None:
    op.execute("DROP TABLE replicators")
    op.execute("DROP SEQUENCE stampers")
    op.execute("DROP TABLE cluster_maps")
    op.execute("DROP TABLE nodes")
