-- The catalogue has what this machine can run. An instance on a bound container cluster runs on an image, whose engine
-- need not be there: the column loses its reference. A table is remade for that; the copy is made first, and what
-- refers to an instance is checked at the end.

PRAGMA defer_foreign_keys = ON;

CREATE TABLE instances_copy AS SELECT * FROM instances;
DROP TABLE instances;

CREATE TABLE instances (
    id TEXT NOT NULL PRIMARY KEY,
    project TEXT NOT NULL REFERENCES projects (name),
    name TEXT NOT NULL,
    architecture TEXT NOT NULL,
    engine TEXT NOT NULL,
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

INSERT INTO instances
    (id, project, name, architecture, engine, memory_bytes, search_text, spec, generation, created_at, deletion,
     initialized, state, observation, observed_generation)
SELECT id, project, name, architecture, engine, memory_bytes, search_text, spec, generation, created_at, deletion,
    initialized, state, observation, observed_generation
FROM instances_copy;

DROP TABLE instances_copy;

CREATE INDEX instances_engine ON instances (engine);
