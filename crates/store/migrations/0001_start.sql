-- The first schema. Only what SQLite and PostgreSQL share: TEXT, BIGINT, BOOLEAN, BYTEA; JSON in
-- TEXT; times in milliseconds since 1970 UTC.

CREATE TABLE meta (
    name TEXT NOT NULL PRIMARY KEY,
    value BYTEA NOT NULL
);

-- Numbers that are handed out without gaps, in the order of the commits.
CREATE TABLE counters (
    name TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);

CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    epoch BIGINT NOT NULL,
    taken_at BIGINT NOT NULL
);

CREATE TABLE settings (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE projects (
    name TEXT NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL
);

CREATE TABLE engines (
    name TEXT NOT NULL PRIMARY KEY,
    version TEXT NOT NULL,
    flavour TEXT NOT NULL,
    path TEXT NOT NULL,
    sha256 TEXT,
    capabilities TEXT NOT NULL,
    added_at BIGINT NOT NULL,
    builtin BOOLEAN NOT NULL
);

-- `spec` is the authority; the columns beside it are copies to search and sort by.
CREATE TABLE instances (
    id TEXT NOT NULL PRIMARY KEY,
    project TEXT NOT NULL REFERENCES projects (name),
    name TEXT NOT NULL,
    architecture TEXT NOT NULL,
    engine TEXT NOT NULL REFERENCES engines (name),
    memory_bytes BIGINT NOT NULL,
    search_text TEXT NOT NULL,
    spec TEXT NOT NULL,
    generation BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    deletion TEXT,
    initialized BOOLEAN NOT NULL,
    state TEXT NOT NULL,
    observation TEXT,
    observed_generation BIGINT NOT NULL,
    UNIQUE (project, name)
);

CREATE INDEX instances_engine ON instances (engine);

CREATE TABLE nodes (
    id TEXT NOT NULL PRIMARY KEY,
    instance TEXT NOT NULL REFERENCES instances (id),
    shard BIGINT NOT NULL,
    worker TEXT NOT NULL,
    zone TEXT,
    host TEXT,
    port BIGINT,
    bootstrap BOOLEAN NOT NULL,
    phase TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE INDEX nodes_instance ON nodes (instance);

-- Envelope encryption: a data key per instance, wrapped by the key in the key file.
CREATE TABLE instance_keys (
    instance TEXT NOT NULL PRIMARY KEY REFERENCES instances (id),
    wrapped BYTEA NOT NULL
);

CREATE TABLE instance_secrets (
    instance TEXT NOT NULL REFERENCES instance_keys (instance),
    field TEXT NOT NULL,
    sealed BYTEA NOT NULL,
    PRIMARY KEY (instance, field)
);

-- Operations, events and records outlive their instance: no reference to it.
CREATE TABLE operations (
    id TEXT NOT NULL PRIMARY KEY,
    number BIGINT NOT NULL UNIQUE,
    instance TEXT NOT NULL,
    instance_name TEXT NOT NULL,
    project TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    steps TEXT NOT NULL,
    requested_by TEXT NOT NULL,
    requested_from TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    error TEXT
);

-- At most one unfinished operation holds an instance.
CREATE UNIQUE INDEX operations_unfinished ON operations (instance) WHERE finished_at IS NULL;
CREATE INDEX operations_instance ON operations (instance, number);
CREATE INDEX operations_instance_name ON operations (instance_name, number);

CREATE TABLE events (
    seq BIGINT NOT NULL PRIMARY KEY,
    at BIGINT NOT NULL,
    kind TEXT NOT NULL,
    severity TEXT NOT NULL,
    project TEXT,
    instance TEXT,
    instance_name TEXT,
    node TEXT,
    node_seq BIGINT,
    reason TEXT NOT NULL,
    message TEXT NOT NULL
);

CREATE INDEX events_instance ON events (instance, seq);
CREATE UNIQUE INDEX events_node_seq ON events (node, node_seq) WHERE node_seq IS NOT NULL;

CREATE TABLE records (
    number BIGINT NOT NULL PRIMARY KEY,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    origin TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    instance_name TEXT,
    detail TEXT NOT NULL,
    outcome TEXT NOT NULL
);

CREATE INDEX records_instance ON records (instance_name, number);
CREATE INDEX records_actor ON records (actor, number);

CREATE TABLE users (
    name TEXT NOT NULL PRIMARY KEY,
    role TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    password_generated BOOLEAN NOT NULL,
    password_set_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

-- `digest` is the SHA-256 of the token in hex: the token itself is kept nowhere.
CREATE TABLE tokens (
    id TEXT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL REFERENCES users (name),
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    last_used_at BIGINT
);

CREATE INDEX tokens_owner ON tokens (owner);
