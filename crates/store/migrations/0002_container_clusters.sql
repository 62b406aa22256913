-- Bound container clusters. `local`, this machine, has no row.

CREATE TABLE container_clusters (
    name TEXT NOT NULL PRIMARY KEY,
    -- Random and lasting: marks what this binding has made there.
    owner TEXT NOT NULL UNIQUE,
    options TEXT NOT NULL,
    -- Sealed by the key of the key file.
    credentials BYTEA NOT NULL,
    bound_at BIGINT NOT NULL
);
