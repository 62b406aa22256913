-- Users of instances' servers besides the tenant's `default`. Their passwords' hashes are sealed with the
-- instance's other secrets.

CREATE TABLE accounts (
    instance TEXT NOT NULL REFERENCES instances (id),
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    rules TEXT NOT NULL DEFAULT '',
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (instance, name)
);
