"""Make the tables of accounts: users, sessions, API keys, and what gateways are told of keys."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_tables = (
    """
    CREATE TABLE users (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        email text NOT NULL CHECK (length(email) BETWEEN 3 AND 254),
        email_folded text NOT NULL UNIQUE,
        username text NOT NULL CHECK (length(username) BETWEEN 1 AND 64),
        username_folded text NOT NULL UNIQUE,
        password_hash text NOT NULL,
        plan text NOT NULL DEFAULT 'free',
        is_active boolean NOT NULL DEFAULT true,
        is_operator boolean NOT NULL DEFAULT false,
        created_at timestamptz NOT NULL DEFAULT now(),
        password_changed_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "COMMENT ON TABLE users IS 'Accounts, each of which is a tenant by its id. Ids are never used"
    " again; an account that is closed leaves this table for closed_accounts.'",
    """
    CREATE TABLE sessions (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        user_id bigint NOT NULL REFERENCES users ON DELETE CASCADE,
        created_at timestamptz NOT NULL DEFAULT now(),
        last_used_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz NOT NULL,
        address text NOT NULL,
        user_agent text NOT NULL
    )
    """,
    "COMMENT ON TABLE sessions IS 'Who is logged in where: one row for each login, the family of"
    " the refresh tokens that follow from it. To end a session is to delete its row.'",
    "CREATE INDEX sessions_of_user ON sessions (user_id, id)",
    "CREATE INDEX sessions_by_expiry ON sessions (expires_at)",
    """
    CREATE TABLE refresh_tokens (
        token_hash bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
        session_id bigint NOT NULL REFERENCES sessions ON DELETE CASCADE,
        issued_at timestamptz NOT NULL DEFAULT now(),
        used_at timestamptz
    )
    """,
    "COMMENT ON TABLE refresh_tokens IS 'Each is used once. One that is used again was stolen, or"
    " its owner was stolen from, and ends its session.'",
    "CREATE INDEX refresh_tokens_of_session ON refresh_tokens (session_id)",
    """
    CREATE TABLE api_keys (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        user_id bigint NOT NULL REFERENCES users ON DELETE CASCADE,
        key_hash bytea NOT NULL UNIQUE CHECK (octet_length(key_hash) = 32),
        key_prefix text NOT NULL,
        name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
        scopes text[] NOT NULL,
        prefix bytea CHECK (octet_length(prefix) BETWEEN 1 AND 1024),
        rate_limit_per_minute integer CHECK (rate_limit_per_minute > 0),
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz,
        revoked_at timestamptz,
        replaced_by bigint,
        last_used_at timestamptz
    )
    """,
    "COMMENT ON TABLE api_keys IS 'By HMAC under KEY_PEPPER; the keys themselves are nowhere. One"
    " is good until it expires or is revoked, whichever comes first. One that was rotated names"
    " the key that it was rotated into. prefix is bytes because text holds no NUL, and keys do.'",
    "CREATE INDEX api_keys_of_user ON api_keys (user_id, id)",
    """
    CREATE TABLE key_events (
        id bigint PRIMARY KEY,
        user_id bigint NOT NULL,
        key_id bigint,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "COMMENT ON TABLE key_events IS 'What gateways have to look up again: one API key, or all of"
    " an account where key_id is null. In the order in which they were committed.'",
    """
    CREATE TABLE key_event_ids (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        last bigint NOT NULL
    )
    """,
    "COMMENT ON TABLE key_event_ids IS 'The greatest id of key_events. Whoever takes the next"
    " holds this row until it commits, so that ids become visible in their order.'",
    "INSERT INTO key_event_ids (last) VALUES (0)",
    """
    CREATE UNLOGGED TABLE throttles (
        subject bytea PRIMARY KEY CHECK (octet_length(subject) = 32),
        free_at timestamptz NOT NULL
    )
    """,
    "COMMENT ON TABLE throttles IS 'Until when the attempts of an account or an address have used"
    " up their share. By hash; rows whose time is over mean nothing, and are removed.'",
    "CREATE INDEX throttles_by_time ON throttles (free_at)",
    """
    CREATE TABLE closed_accounts (
        user_id bigint PRIMARY KEY,
        closed_at timestamptz NOT NULL DEFAULT now(),
        due_at timestamptz NOT NULL DEFAULT now(),
        begun_at timestamptz,
        done_at timestamptz,
        attempts integer NOT NULL DEFAULT 0,
        keys_deleted bigint NOT NULL DEFAULT 0,
        trouble text
    )
    """,
    "COMMENT ON TABLE closed_accounts IS 'Accounts that were closed, and how far the deletion of"
    " what they stored has come. begun_at is when somebody last took it on, due_at when the next"
    " one may, and attempts how often in a row it came to nothing, because of trouble.'",
    "CREATE INDEX closed_accounts_to_do ON closed_accounts (due_at) WHERE done_at IS NULL",
    """
    CREATE TABLE audit_log (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        at timestamptz NOT NULL DEFAULT now(),
        user_id bigint,
        actor text NOT NULL,
        action text NOT NULL,
        address text,
        request_id text,
        details jsonb NOT NULL DEFAULT '{}'
    )
    """,
    "COMMENT ON TABLE audit_log IS 'Who did what to which account. Rows are added, never changed,"
    " and removed only by age; no secret and no password is ever in one.'",
    "CREATE INDEX audit_log_of_user ON audit_log (user_id, id)",
    "CREATE INDEX audit_log_by_time ON audit_log (at)",
    "CREATE INDEX audit_log_comings ON audit_log (at)"
    " WHERE action IN ('logged_in', 'login_refused', 'logged_out')",
)


def upgrade() -> None:
    for statement in _tables:
        op.execute(statement)


def downgrade() -> None:
    for table in (
        "audit_log",
        "closed_accounts",
        "throttles",
        "key_event_ids",
        "key_events",
        "api_keys",
        "refresh_tokens",
        "sessions",
        "users",
    ):
        op.execute(f"DROP TABLE {table}")
