"""Notice that a database was set back: which server keygens know, and what it has forgotten."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_statements = (
    """
    CREATE TABLE key_watch (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        server text NOT NULL DEFAULT '',
        called text NOT NULL DEFAULT '',
        called_at timestamptz NOT NULL DEFAULT now(),
        claims bigint NOT NULL DEFAULT 0 CHECK (claims >= 0),
        era integer NOT NULL DEFAULT 0
    )
    """,
    "COMMENT ON TABLE key_watch IS 'One row: the life of a PostgreSQL server under which keys may"
    " be reserved; another one, and since when keygens are called upon to say whether it is behind;"
    " how many claims there were, which only grows; and how often the database was set back.'",
    "INSERT INTO key_watch DEFAULT VALUES",
    """
    CREATE TABLE key_set_backs (
        counter smallint PRIMARY KEY CHECK (counter = 0 OR counter BETWEEN 6 AND 16),
        known numeric(29) NOT NULL,
        found numeric(29) NOT NULL CHECK (found < known),
        instance_id bigint NOT NULL,
        noticed_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "COMMENT ON TABLE key_set_backs IS 'Counters, by length of keys or 0 for claims, that stood at"
    " found where a keygen knew of as many as known: the database was set back. While there is a"
    " row nothing is reserved; ydht ids skip moves the counters on and removes them.'",
    "ALTER TABLE keygen_instances ADD heard text NOT NULL DEFAULT ''",
    "COMMENT ON COLUMN keygen_instances.heard IS 'Under which server it has last said whether that"
    " is behind what it knows.'",
    "ALTER TABLE returned_keys ADD era integer NOT NULL DEFAULT 0",
    "COMMENT ON COLUMN returned_keys.era IS 'Of key_watch, when it was returned. In a later one"
    " nobody knows whether it is out again, so it is given to nobody.'",
)


def upgrade() -> None:
    for statement in _statements:
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE returned_keys DROP era")
    op.execute("ALTER TABLE keygen_instances DROP heard")
    op.execute("DROP TABLE key_set_backs")
    op.execute("DROP TABLE key_watch")
