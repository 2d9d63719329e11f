"""Make the table of namespaces that were declared, and the counter of its changes."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_tables = (
    """
    CREATE TABLE namespaces (
        tenant numeric(20) NOT NULL CHECK (tenant BETWEEN 0 AND 18446744073709551615),
        name text COLLATE "C" NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 255),
        max_items bigint CHECK (max_items > 0),
        declared_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (tenant, name)
    )
    """,
    "COMMENT ON TABLE namespaces IS 'Namespaces that were declared before use: caches with how many"
    " keys they may have, and stores, which have none. Others spring up when they are used and do"
    " not stand here.'",
    """
    CREATE TABLE namespace_version (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        version bigint NOT NULL
    )
    """,
    "COMMENT ON TABLE namespace_version IS 'One row, which counts the changes of namespaces. Who"
    " changes them by hand adds 1, or no service sees it.'",
    "INSERT INTO namespace_version (version) VALUES (0)",
)


def upgrade() -> None:
    for statement in _tables:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE namespace_version")
    op.execute("DROP TABLE namespaces")
