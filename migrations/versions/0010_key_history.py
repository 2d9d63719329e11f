"""Keep what became of returned keys, merge ranges that are closed, and find what has rested."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_statements = (
    """
    CREATE TABLE key_reissues (
        size smallint NOT NULL,
        index numeric(29) NOT NULL,
        returned_at timestamptz NOT NULL,
        claimed_at timestamptz,
        ended_at timestamptz NOT NULL DEFAULT now(),
        is_certain boolean NOT NULL
    )
    """,
    "COMMENT ON TABLE key_reissues IS 'Keys that were returned and are not any more: given out"
    " again between claimed_at and ended_at, or, if that is not certain, lost with the keygen that"
    " had them. For ydht ids inspect alone; removed after some months.'",
    "CREATE INDEX key_reissues_key ON key_reissues (size, index)",
    "CREATE INDEX key_reissues_ended ON key_reissues (ended_at)",
    "ALTER TABLE returned_keys ADD claimed_at timestamptz",
    "DROP INDEX returned_keys_free",
    "CREATE INDEX returned_keys_free ON returned_keys (tenant, size, era, returned_at)"
    " WHERE is_free AND claim_id IS NULL",
    "DROP INDEX returned_keys_waiting",
    "CREATE INDEX returned_keys_range ON returned_keys (range_id)",
    "ALTER TABLE key_ranges ADD reserved_until timestamptz",
    "COMMENT ON COLUMN key_ranges.reserved_until IS 'When the last part was reserved of what are"
    " several ranges in one row: neighbours of one tenant that were closed, of one day.'",
    "ALTER TABLE key_counters ADD merged numeric(29) NOT NULL DEFAULT 0",
    "COMMENT ON COLUMN key_counters.merged IS 'Ranges before this index have been looked at, and"
    " are one row where they can be.'",
    "COMMENT ON TABLE key_ranges IS 'Indexes [first, first + count) of one size, which are one"
    " tenant''s. Handed out by one keygen, which alone knows how far it has come, until the range"
    " is closed: used up, or no longer its own. They say whose a key is: rows are merged, and none"
    " is lost.'",
)


def upgrade() -> None:
    for statement in _statements:
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE key_counters DROP merged")
    op.execute("ALTER TABLE key_ranges DROP reserved_until")
    op.execute("DROP INDEX returned_keys_range")
    op.execute("CREATE INDEX returned_keys_waiting ON returned_keys (range_id) WHERE NOT is_free")
    op.execute("DROP INDEX returned_keys_free")
    op.execute(
        "CREATE INDEX returned_keys_free ON returned_keys (tenant, size)"
        " WHERE is_free AND claim_id IS NULL"
    )
    op.execute("ALTER TABLE returned_keys DROP claimed_at")
    op.execute("DROP TABLE key_reissues")
    op.execute(
        "COMMENT ON TABLE key_ranges IS 'Indexes [first, first + count) of one size, which are one"
        " tenant''s. Handed out by one keygen, which alone knows how far it has come, until the"
        " range is closed: used up, or no longer its own. Rows are never removed: they say whose a"
        " key is.'"
    )
