"""Make the tables of keygen: counters, ranges, who holds them, returned keys, and quotas."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_tables = (
    """
    CREATE TABLE key_counters (
        size smallint PRIMARY KEY CHECK (size BETWEEN 6 AND 16),
        next numeric(29) NOT NULL DEFAULT 0 CHECK (next >= 0)
    )
    """,
    "COMMENT ON TABLE key_counters IS 'For each length of keys, the first index that is in no range"
    " yet. It only grows: to set one back is to give keys away twice.'",
    "INSERT INTO key_counters (size) SELECT generate_series(6, 16)",
    """
    CREATE TABLE keygen_instances (
        id bigint PRIMARY KEY,
        address text NOT NULL,
        started_at timestamptz NOT NULL DEFAULT now(),
        lease_until timestamptz NOT NULL
    )
    """,
    "COMMENT ON TABLE keygen_instances IS 'Keygens that may hand out keys of their ranges, until"
    " lease_until, which each prolongs while it runs. A row is a life of a process: who starts"
    " again is another one. Ids are drawn at random, so that none means another one elsewhere.'",
    """
    CREATE TABLE key_ranges (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        size smallint NOT NULL REFERENCES key_counters,
        first numeric(29) NOT NULL CHECK (first >= 0),
        count bigint NOT NULL CHECK (count > 0),
        tenant numeric(20) NOT NULL CHECK (tenant BETWEEN 0 AND 18446744073709551615),
        instance_id bigint NOT NULL,
        reserved_at timestamptz NOT NULL DEFAULT now(),
        closed_at timestamptz,
        UNIQUE (size, first)
    )
    """,
    "COMMENT ON TABLE key_ranges IS 'Indexes [first, first + count) of one size, which are one"
    " tenant''s. Handed out by one keygen, which alone knows how far it has come, until the range"
    " is closed: used up, or no longer its own. Rows are never removed: they say whose a key is.'",
    "CREATE INDEX key_ranges_open ON key_ranges (instance_id) WHERE closed_at IS NULL",
    "CREATE SEQUENCE key_claims",
    """
    CREATE TABLE returned_keys (
        size smallint NOT NULL REFERENCES key_counters,
        index numeric(29) NOT NULL,
        tenant numeric(20) NOT NULL,
        range_id bigint NOT NULL REFERENCES key_ranges,
        returned_at timestamptz NOT NULL DEFAULT now(),
        is_free boolean NOT NULL,
        claim_id bigint,
        instance_id bigint,
        PRIMARY KEY (size, index),
        CHECK ((claim_id IS NULL) = (instance_id IS NULL))
    )
    """,
    "COMMENT ON TABLE returned_keys IS 'Keys that their tenant has given back. is_free: their range"
    " is closed, so that they can be given out again. With a claim they are in the pool of that"
    " keygen, or were given out by it; once all keys of a claim are out, its rows are removed.'",
    "CREATE INDEX returned_keys_free ON returned_keys (tenant, size)"
    " WHERE is_free AND claim_id IS NULL",
    "CREATE INDEX returned_keys_waiting ON returned_keys (range_id) WHERE NOT is_free",
    "CREATE INDEX returned_keys_claimed ON returned_keys (claim_id) WHERE claim_id IS NOT NULL",
    "CREATE INDEX returned_keys_held ON returned_keys (instance_id) WHERE instance_id IS NOT NULL",
    """
    CREATE TABLE key_quotas (
        tenant numeric(20) NOT NULL,
        key_id bigint NOT NULL,
        day date NOT NULL,
        used bigint NOT NULL CHECK (used >= 0),
        PRIMARY KEY (tenant, key_id, day)
    )
    """,
    "COMMENT ON TABLE key_quotas IS 'How many keys were given out under an API key on a day of UTC,"
    " with those that keygens have set aside to give out. Days that are over mean nothing.'",
)


def upgrade() -> None:
    for statement in _tables:
        op.execute(statement)


def downgrade() -> None:
    # What the keys are made with goes too: another installation of these tables begins at 0 again,
    # and must not begin with the same keys.
    op.execute("DELETE FROM platform WHERE key = 'keygen permutation'")
    op.execute("DROP TABLE key_quotas")
    op.execute("DROP TABLE returned_keys")
    op.execute("DROP SEQUENCE key_claims")
    op.execute("DROP TABLE key_ranges")
    op.execute("DROP TABLE keygen_instances")
    op.execute("DROP TABLE key_counters")
