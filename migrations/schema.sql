-- The schema that the revisions in versions/ lead to, as pg_dump tells it. Written by
-- `make schema`, read by people alone: databases are made by `ydht migrate`.

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

-- Name: alembic_version; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);

-- Name: api_keys; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.api_keys (
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    key_hash bytea NOT NULL,
    key_prefix text NOT NULL,
    name text NOT NULL,
    scopes text[] NOT NULL,
    prefix bytea,
    rate_limit_per_minute integer,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone,
    replaced_by bigint,
    last_used_at timestamp with time zone,
    CONSTRAINT api_keys_key_hash_check CHECK ((octet_length(key_hash) = 32)),
    CONSTRAINT api_keys_name_check CHECK (((length(name) >= 1) AND (length(name) <= 100))),
    CONSTRAINT api_keys_prefix_check CHECK (((octet_length(prefix) >= 1) AND (octet_length(prefix) <= 1024))),
    CONSTRAINT api_keys_rate_limit_per_minute_check CHECK ((rate_limit_per_minute > 0))
);

-- Name: TABLE api_keys; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.api_keys IS 'By HMAC under KEY_PEPPER; the keys themselves are nowhere. One is good until it expires or is revoked, whichever comes first. One that was rotated names the key that it was rotated into. prefix is bytes because text holds no NUL, and keys do.';

-- Name: api_keys_id_seq; Type: SEQUENCE; Schema: public; Owner: -

ALTER TABLE public.api_keys ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.api_keys_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

-- Name: audit_log; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.audit_log (
    id bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    user_id bigint,
    actor text NOT NULL,
    action text NOT NULL,
    address text,
    request_id text,
    details jsonb DEFAULT '{}'::jsonb NOT NULL
);

-- Name: TABLE audit_log; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.audit_log IS 'Who did what to which account. Rows are added, never changed, and removed only by age; no secret and no password is ever in one.';

-- Name: audit_log_id_seq; Type: SEQUENCE; Schema: public; Owner: -

ALTER TABLE public.audit_log ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.audit_log_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

-- Name: closed_accounts; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.closed_accounts (
    user_id bigint NOT NULL,
    closed_at timestamp with time zone DEFAULT now() NOT NULL,
    due_at timestamp with time zone DEFAULT now() NOT NULL,
    begun_at timestamp with time zone,
    done_at timestamp with time zone,
    attempts integer DEFAULT 0 NOT NULL,
    keys_deleted bigint DEFAULT 0 NOT NULL,
    trouble text
);

-- Name: TABLE closed_accounts; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.closed_accounts IS 'Accounts that were closed, and how far the deletion of what they stored has come. begun_at is when somebody last took it on, due_at when the next one may, and attempts how often in a row it came to nothing, because of trouble.';

-- Name: cluster_maps; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.cluster_maps (
    epoch bigint NOT NULL,
    map bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT cluster_maps_epoch_check CHECK ((epoch > 0))
);

-- Name: TABLE cluster_maps; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.cluster_maps IS 'Who has which data. The greatest epoch holds; rows are never changed.';

-- Name: key_claims; Type: SEQUENCE; Schema: public; Owner: -

CREATE SEQUENCE public.key_claims
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

-- Name: key_counters; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.key_counters (
    size smallint NOT NULL,
    next numeric(29,0) DEFAULT 0 NOT NULL,
    merged numeric(29,0) DEFAULT 0 NOT NULL,
    CONSTRAINT key_counters_next_check CHECK ((next >= (0)::numeric)),
    CONSTRAINT key_counters_size_check CHECK (((size >= 6) AND (size <= 16)))
);

-- Name: TABLE key_counters; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.key_counters IS 'For each length of keys, the first index that is in no range yet. It only grows: to set one back is to give keys away twice.';

-- Name: COLUMN key_counters.merged; Type: COMMENT; Schema: public; Owner: -

COMMENT ON COLUMN public.key_counters.merged IS 'Ranges before this index have been looked at, and are one row where they can be.';

-- Name: key_event_ids; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.key_event_ids (
    one boolean DEFAULT true NOT NULL,
    last bigint NOT NULL,
    CONSTRAINT key_event_ids_one_check CHECK (one)
);

-- Name: TABLE key_event_ids; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.key_event_ids IS 'The greatest id of key_events. Whoever takes the next holds this row until it commits, so that ids become visible in their order.';

-- Name: key_events; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.key_events (
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    key_id bigint,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

-- Name: TABLE key_events; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.key_events IS 'What gateways have to look up again: one API key, or all of an account where key_id is null. In the order in which they were committed.';

-- Name: key_quotas; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.key_quotas (
    tenant numeric(20,0) NOT NULL,
    key_id bigint NOT NULL,
    day date NOT NULL,
    used bigint NOT NULL,
    CONSTRAINT key_quotas_used_check CHECK ((used >= 0))
);

-- Name: TABLE key_quotas; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.key_quotas IS 'How many keys were given out under an API key on a day of UTC, with those that keygens have set aside to give out. Days that are over mean nothing.';

-- Name: key_ranges; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.key_ranges (
    id bigint NOT NULL,
    size smallint NOT NULL,
    first numeric(29,0) NOT NULL,
    count bigint NOT NULL,
    tenant numeric(20,0) NOT NULL,
    instance_id bigint NOT NULL,
    reserved_at timestamp with time zone DEFAULT now() NOT NULL,
    closed_at timestamp with time zone,
    reserved_until timestamp with time zone,
    CONSTRAINT key_ranges_count_check CHECK ((count > 0)),
    CONSTRAINT key_ranges_first_check CHECK ((first >= (0)::numeric)),
    CONSTRAINT key_ranges_tenant_check CHECK (((tenant >= (0)::numeric) AND (tenant <= '18446744073709551615'::numeric)))
);

-- Name: TABLE key_ranges; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.key_ranges IS 'Indexes [first, first + count) of one size, which are one tenant''s. Handed out by one keygen, which alone knows how far it has come, until the range is closed: used up, or no longer its own. They say whose a key is: rows are merged, and none is lost.';

-- Name: COLUMN key_ranges.reserved_until; Type: COMMENT; Schema: public; Owner: -

COMMENT ON COLUMN public.key_ranges.reserved_until IS 'When the last part was reserved of what are several ranges in one row: neighbours of one tenant that were closed, of one day.';

-- Name: key_ranges_id_seq; Type: SEQUENCE; Schema: public; Owner: -

ALTER TABLE public.key_ranges ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.key_ranges_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

-- Name: key_reissues; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.key_reissues (
    size smallint NOT NULL,
    index numeric(29,0) NOT NULL,
    returned_at timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    ended_at timestamp with time zone DEFAULT now() NOT NULL,
    is_certain boolean NOT NULL
);

-- Name: TABLE key_reissues; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.key_reissues IS 'Keys that were returned and are not any more: given out again between claimed_at and ended_at, or, if that is not certain, lost with the keygen that had them. For ydht ids inspect alone; removed after some months.';

-- Name: key_set_backs; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.key_set_backs (
    counter smallint NOT NULL,
    known numeric(29,0) NOT NULL,
    found numeric(29,0) NOT NULL,
    instance_id bigint NOT NULL,
    noticed_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT key_set_backs_check CHECK ((found < known)),
    CONSTRAINT key_set_backs_counter_check CHECK (((counter = 0) OR ((counter >= 6) AND (counter <= 16))))
);

-- Name: TABLE key_set_backs; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.key_set_backs IS 'Counters, by length of keys or 0 for claims, that stood at found where a keygen knew of as many as known: the database was set back. While there is a row nothing is reserved; ydht ids skip moves the counters on and removes them.';

-- Name: key_watch; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.key_watch (
    only_row boolean DEFAULT true NOT NULL,
    server text DEFAULT ''::text NOT NULL,
    called text DEFAULT ''::text NOT NULL,
    called_at timestamp with time zone DEFAULT now() NOT NULL,
    claims bigint DEFAULT 0 NOT NULL,
    era integer DEFAULT 0 NOT NULL,
    CONSTRAINT key_watch_claims_check CHECK ((claims >= 0)),
    CONSTRAINT key_watch_only_row_check CHECK (only_row)
);

-- Name: TABLE key_watch; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.key_watch IS 'One row: the life of a PostgreSQL server under which keys may be reserved; another one, and since when keygens are called upon to say whether it is behind; how many claims there were, which only grows; and how often the database was set back.';

-- Name: keygen_instances; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.keygen_instances (
    id bigint NOT NULL,
    address text NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    lease_until timestamp with time zone NOT NULL,
    heard text DEFAULT ''::text NOT NULL
);

-- Name: TABLE keygen_instances; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.keygen_instances IS 'Keygens that may hand out keys of their ranges, until lease_until, which each prolongs while it runs. A row is a life of a process: who starts again is another one. Ids are drawn at random, so that none means another one elsewhere.';

-- Name: COLUMN keygen_instances.heard; Type: COMMENT; Schema: public; Owner: -

COMMENT ON COLUMN public.keygen_instances.heard IS 'Under which server it has last said whether that is behind what it knows.';

-- Name: namespace_version; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.namespace_version (
    only_row boolean DEFAULT true NOT NULL,
    version bigint NOT NULL,
    CONSTRAINT namespace_version_only_row_check CHECK (only_row)
);

-- Name: TABLE namespace_version; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.namespace_version IS 'One row, which counts the changes of namespaces. Who changes them by hand adds 1, or no service sees it.';

-- Name: namespaces; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.namespaces (
    tenant numeric(20,0) NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    max_items bigint,
    declared_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT namespaces_max_items_check CHECK ((max_items > 0)),
    CONSTRAINT namespaces_name_check CHECK (((octet_length(name) >= 1) AND (octet_length(name) <= 255))),
    CONSTRAINT namespaces_tenant_check CHECK (((tenant >= (0)::numeric) AND (tenant <= '18446744073709551615'::numeric)))
);

-- Name: TABLE namespaces; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.namespaces IS 'Namespaces that were declared before use: caches with how many keys they may have, and stores, which have none. Others spring up when they are used and do not stand here.';

-- Name: nodes; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.nodes (
    node_id text NOT NULL,
    store_id text NOT NULL,
    host text NOT NULL,
    http_port integer NOT NULL,
    link_port integer NOT NULL,
    zone text NOT NULL,
    registered_at timestamp with time zone DEFAULT now() NOT NULL
);

-- Name: TABLE nodes; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.nodes IS 'What each node said of itself when it last had news; the cluster forms of these.';

-- Name: platform; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.platform (
    key text NOT NULL,
    value bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT platform_key_check CHECK ((key <> ''::text))
);

-- Name: TABLE platform; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.platform IS 'Values made once for this installation, such as key material; never overwritten.';

-- Name: refresh_tokens; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.refresh_tokens (
    token_hash bytea NOT NULL,
    session_id bigint NOT NULL,
    issued_at timestamp with time zone DEFAULT now() NOT NULL,
    used_at timestamp with time zone,
    CONSTRAINT refresh_tokens_token_hash_check CHECK ((octet_length(token_hash) = 32))
);

-- Name: TABLE refresh_tokens; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.refresh_tokens IS 'Each is used once. One that is used again was stolen, or its owner was stolen from, and ends its session.';

-- Name: stampers; Type: SEQUENCE; Schema: public; Owner: -

CREATE SEQUENCE public.stampers
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    MAXVALUE 4294967295
    CACHE 1;

-- Name: replicators; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.replicators (
    stamper bigint DEFAULT nextval('public.stampers'::regclass) NOT NULL,
    replicator_id text NOT NULL,
    allotted_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT replicators_stamper_check CHECK (((stamper >= 1) AND (stamper <= '4294967295'::bigint)))
);

-- Name: TABLE replicators; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.replicators IS 'Which replicator was given which stamper. Rows stay: a stamper is never given again.';

-- Name: returned_keys; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.returned_keys (
    size smallint NOT NULL,
    index numeric(29,0) NOT NULL,
    tenant numeric(20,0) NOT NULL,
    range_id bigint NOT NULL,
    returned_at timestamp with time zone DEFAULT now() NOT NULL,
    is_free boolean NOT NULL,
    claim_id bigint,
    instance_id bigint,
    era integer DEFAULT 0 NOT NULL,
    claimed_at timestamp with time zone,
    CONSTRAINT returned_keys_check CHECK (((claim_id IS NULL) = (instance_id IS NULL)))
);

-- Name: TABLE returned_keys; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.returned_keys IS 'Keys that their tenant has given back. is_free: their range is closed, so that they can be given out again. With a claim they are in the pool of that keygen, or were given out by it; once all keys of a claim are out, its rows are removed.';

-- Name: COLUMN returned_keys.era; Type: COMMENT; Schema: public; Owner: -

COMMENT ON COLUMN public.returned_keys.era IS 'Of key_watch, when it was returned. In a later one nobody knows whether it is out again, so it is given to nobody.';

-- Name: sessions; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.sessions (
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_used_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    address text NOT NULL,
    user_agent text NOT NULL
);

-- Name: TABLE sessions; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.sessions IS 'Who is logged in where: one row for each login, the family of the refresh tokens that follow from it. To end a session is to delete its row.';

-- Name: sessions_id_seq; Type: SEQUENCE; Schema: public; Owner: -

ALTER TABLE public.sessions ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.sessions_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

-- Name: stored_history; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.stored_history (
    user_id bigint NOT NULL,
    hour timestamp with time zone NOT NULL,
    keys bigint NOT NULL,
    bytes bigint NOT NULL,
    CONSTRAINT stored_history_bytes_check CHECK ((bytes >= 0)),
    CONSTRAINT stored_history_keys_check CHECK ((keys >= 0))
);

-- Name: TABLE stored_history; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.stored_history IS 'Keys and bytes that an account had stored, as they were last looked at in an hour. Without a row nobody has looked, for nothing was changed.';

-- Name: throttles; Type: TABLE; Schema: public; Owner: -

CREATE UNLOGGED TABLE public.throttles (
    subject bytea NOT NULL,
    free_at timestamp with time zone NOT NULL,
    CONSTRAINT throttles_subject_check CHECK ((octet_length(subject) = 32))
);

-- Name: TABLE throttles; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.throttles IS 'Until when the attempts of an account or an address have used up their share. By hash; rows whose time is over mean nothing, and are removed.';

-- Name: usage_rollups; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.usage_rollups (
    minute timestamp with time zone NOT NULL,
    user_id bigint NOT NULL,
    key_id bigint NOT NULL,
    operation text NOT NULL,
    status smallint NOT NULL,
    requests bigint NOT NULL,
    bytes_in bigint NOT NULL,
    bytes_out bigint NOT NULL,
    latency_us bigint NOT NULL,
    latency_0 bigint DEFAULT 0 NOT NULL,
    latency_1 bigint DEFAULT 0 NOT NULL,
    latency_2 bigint DEFAULT 0 NOT NULL,
    latency_3 bigint DEFAULT 0 NOT NULL,
    latency_4 bigint DEFAULT 0 NOT NULL,
    latency_5 bigint DEFAULT 0 NOT NULL,
    latency_6 bigint DEFAULT 0 NOT NULL,
    latency_7 bigint DEFAULT 0 NOT NULL,
    latency_8 bigint DEFAULT 0 NOT NULL,
    latency_9 bigint DEFAULT 0 NOT NULL,
    latency_10 bigint DEFAULT 0 NOT NULL,
    latency_11 bigint DEFAULT 0 NOT NULL,
    latency_12 bigint DEFAULT 0 NOT NULL,
    latency_13 bigint DEFAULT 0 NOT NULL,
    latency_14 bigint DEFAULT 0 NOT NULL,
    latency_15 bigint DEFAULT 0 NOT NULL,
    latency_16 bigint DEFAULT 0 NOT NULL,
    latency_17 bigint DEFAULT 0 NOT NULL
)
PARTITION BY RANGE (minute);

-- Name: TABLE usage_rollups; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.usage_rollups IS 'What was asked of the data plane, added up by the minute. latency_us is a sum. Partitions are usage_YYYYMMDD, one for each day in UTC, made ahead and dropped by age by the user manager.';

-- Name: COLUMN usage_rollups.latency_0; Type: COMMENT; Schema: public; Owner: -

COMMENT ON COLUMN public.usage_rollups.latency_0 IS 'How many requests took less than 64 us; latency_1 those of 64 us to less than 128 us, and so on; the last one all that took longer.';

-- Name: usage_senders; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.usage_senders (
    sender text NOT NULL,
    counted int8multirange NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL
);

-- Name: TABLE usage_senders; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.usage_senders IS 'Which reports of each gateway have been counted, by their numbers: one that is sent again is not counted twice.';

-- Name: users; Type: TABLE; Schema: public; Owner: -

CREATE TABLE public.users (
    id bigint NOT NULL,
    email text NOT NULL,
    email_folded text NOT NULL,
    username text NOT NULL,
    username_folded text NOT NULL,
    password_hash text NOT NULL,
    plan text DEFAULT 'free'::text NOT NULL,
    is_active boolean DEFAULT true NOT NULL,
    is_operator boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    password_changed_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT users_email_check CHECK (((length(email) >= 3) AND (length(email) <= 254))),
    CONSTRAINT users_username_check CHECK (((length(username) >= 1) AND (length(username) <= 64)))
);

-- Name: TABLE users; Type: COMMENT; Schema: public; Owner: -

COMMENT ON TABLE public.users IS 'Accounts, each of which is a tenant by its id. Ids are never used again; an account that is closed leaves this table for closed_accounts.';

-- Name: users_id_seq; Type: SEQUENCE; Schema: public; Owner: -

ALTER TABLE public.users ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.users_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

-- Name: alembic_version alembic_version_pkc; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

-- Name: api_keys api_keys_key_hash_key; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash);

-- Name: api_keys api_keys_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);

-- Name: audit_log audit_log_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.audit_log
    ADD CONSTRAINT audit_log_pkey PRIMARY KEY (id);

-- Name: closed_accounts closed_accounts_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.closed_accounts
    ADD CONSTRAINT closed_accounts_pkey PRIMARY KEY (user_id);

-- Name: cluster_maps cluster_maps_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.cluster_maps
    ADD CONSTRAINT cluster_maps_pkey PRIMARY KEY (epoch);

-- Name: key_counters key_counters_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.key_counters
    ADD CONSTRAINT key_counters_pkey PRIMARY KEY (size);

-- Name: key_event_ids key_event_ids_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.key_event_ids
    ADD CONSTRAINT key_event_ids_pkey PRIMARY KEY (one);

-- Name: key_events key_events_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.key_events
    ADD CONSTRAINT key_events_pkey PRIMARY KEY (id);

-- Name: key_quotas key_quotas_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.key_quotas
    ADD CONSTRAINT key_quotas_pkey PRIMARY KEY (tenant, key_id, day);

-- Name: key_ranges key_ranges_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.key_ranges
    ADD CONSTRAINT key_ranges_pkey PRIMARY KEY (id);

-- Name: key_ranges key_ranges_size_first_key; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.key_ranges
    ADD CONSTRAINT key_ranges_size_first_key UNIQUE (size, first);

-- Name: key_set_backs key_set_backs_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.key_set_backs
    ADD CONSTRAINT key_set_backs_pkey PRIMARY KEY (counter);

-- Name: key_watch key_watch_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.key_watch
    ADD CONSTRAINT key_watch_pkey PRIMARY KEY (only_row);

-- Name: keygen_instances keygen_instances_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.keygen_instances
    ADD CONSTRAINT keygen_instances_pkey PRIMARY KEY (id);

-- Name: namespace_version namespace_version_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.namespace_version
    ADD CONSTRAINT namespace_version_pkey PRIMARY KEY (only_row);

-- Name: namespaces namespaces_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.namespaces
    ADD CONSTRAINT namespaces_pkey PRIMARY KEY (tenant, name);

-- Name: nodes nodes_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.nodes
    ADD CONSTRAINT nodes_pkey PRIMARY KEY (node_id);

-- Name: nodes nodes_store_id_key; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.nodes
    ADD CONSTRAINT nodes_store_id_key UNIQUE (store_id);

-- Name: platform platform_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.platform
    ADD CONSTRAINT platform_pkey PRIMARY KEY (key);

-- Name: refresh_tokens refresh_tokens_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.refresh_tokens
    ADD CONSTRAINT refresh_tokens_pkey PRIMARY KEY (token_hash);

-- Name: replicators replicators_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.replicators
    ADD CONSTRAINT replicators_pkey PRIMARY KEY (stamper);

-- Name: returned_keys returned_keys_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.returned_keys
    ADD CONSTRAINT returned_keys_pkey PRIMARY KEY (size, index);

-- Name: sessions sessions_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (id);

-- Name: stored_history stored_history_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.stored_history
    ADD CONSTRAINT stored_history_pkey PRIMARY KEY (user_id, hour);

-- Name: throttles throttles_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.throttles
    ADD CONSTRAINT throttles_pkey PRIMARY KEY (subject);

-- Name: usage_rollups usage_rollups_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.usage_rollups
    ADD CONSTRAINT usage_rollups_pkey PRIMARY KEY (user_id, minute, key_id, operation, status);

-- Name: usage_senders usage_senders_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.usage_senders
    ADD CONSTRAINT usage_senders_pkey PRIMARY KEY (sender);

-- Name: users users_email_folded_key; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_email_folded_key UNIQUE (email_folded);

-- Name: users users_pkey; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

-- Name: users users_username_folded_key; Type: CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_username_folded_key UNIQUE (username_folded);

-- Name: api_keys_of_user; Type: INDEX; Schema: public; Owner: -

CREATE INDEX api_keys_of_user ON public.api_keys USING btree (user_id, id);

-- Name: audit_log_by_time; Type: INDEX; Schema: public; Owner: -

CREATE INDEX audit_log_by_time ON public.audit_log USING btree (at);

-- Name: audit_log_comings; Type: INDEX; Schema: public; Owner: -

CREATE INDEX audit_log_comings ON public.audit_log USING btree (at) WHERE (action = ANY (ARRAY['logged_in'::text, 'login_refused'::text, 'logged_out'::text]));

-- Name: audit_log_of_user; Type: INDEX; Schema: public; Owner: -

CREATE INDEX audit_log_of_user ON public.audit_log USING btree (user_id, id);

-- Name: closed_accounts_to_do; Type: INDEX; Schema: public; Owner: -

CREATE INDEX closed_accounts_to_do ON public.closed_accounts USING btree (due_at) WHERE (done_at IS NULL);

-- Name: key_ranges_open; Type: INDEX; Schema: public; Owner: -

CREATE INDEX key_ranges_open ON public.key_ranges USING btree (instance_id) WHERE (closed_at IS NULL);

-- Name: key_reissues_ended; Type: INDEX; Schema: public; Owner: -

CREATE INDEX key_reissues_ended ON public.key_reissues USING btree (ended_at);

-- Name: key_reissues_key; Type: INDEX; Schema: public; Owner: -

CREATE INDEX key_reissues_key ON public.key_reissues USING btree (size, index);

-- Name: refresh_tokens_of_session; Type: INDEX; Schema: public; Owner: -

CREATE INDEX refresh_tokens_of_session ON public.refresh_tokens USING btree (session_id);

-- Name: returned_keys_claimed; Type: INDEX; Schema: public; Owner: -

CREATE INDEX returned_keys_claimed ON public.returned_keys USING btree (claim_id) WHERE (claim_id IS NOT NULL);

-- Name: returned_keys_free; Type: INDEX; Schema: public; Owner: -

CREATE INDEX returned_keys_free ON public.returned_keys USING btree (tenant, size, era, returned_at) WHERE (is_free AND (claim_id IS NULL));

-- Name: returned_keys_held; Type: INDEX; Schema: public; Owner: -

CREATE INDEX returned_keys_held ON public.returned_keys USING btree (instance_id) WHERE (instance_id IS NOT NULL);

-- Name: returned_keys_range; Type: INDEX; Schema: public; Owner: -

CREATE INDEX returned_keys_range ON public.returned_keys USING btree (range_id);

-- Name: sessions_by_expiry; Type: INDEX; Schema: public; Owner: -

CREATE INDEX sessions_by_expiry ON public.sessions USING btree (expires_at);

-- Name: sessions_of_user; Type: INDEX; Schema: public; Owner: -

CREATE INDEX sessions_of_user ON public.sessions USING btree (user_id, id);

-- Name: stored_history_hour; Type: INDEX; Schema: public; Owner: -

CREATE INDEX stored_history_hour ON public.stored_history USING btree (hour);

-- Name: throttles_by_time; Type: INDEX; Schema: public; Owner: -

CREATE INDEX throttles_by_time ON public.throttles USING btree (free_at);

-- Name: api_keys api_keys_user_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE CASCADE;

-- Name: key_ranges key_ranges_size_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.key_ranges
    ADD CONSTRAINT key_ranges_size_fkey FOREIGN KEY (size) REFERENCES public.key_counters(size);

-- Name: refresh_tokens refresh_tokens_session_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.refresh_tokens
    ADD CONSTRAINT refresh_tokens_session_id_fkey FOREIGN KEY (session_id) REFERENCES public.sessions(id) ON DELETE CASCADE;

-- Name: returned_keys returned_keys_range_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.returned_keys
    ADD CONSTRAINT returned_keys_range_id_fkey FOREIGN KEY (range_id) REFERENCES public.key_ranges(id);

-- Name: returned_keys returned_keys_size_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.returned_keys
    ADD CONSTRAINT returned_keys_size_fkey FOREIGN KEY (size) REFERENCES public.key_counters(size);

-- Name: sessions sessions_user_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE CASCADE;
