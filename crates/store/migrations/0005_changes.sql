-- What each node was made as: until now every node was as its instance's spec says.

ALTER TABLE nodes ADD COLUMN engine TEXT NOT NULL DEFAULT '';
ALTER TABLE nodes ADD COLUMN memory_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN leaving_since BIGINT;

UPDATE nodes SET
    engine = (SELECT engine FROM instances WHERE instances.id = nodes.instance),
    memory_bytes = (SELECT memory_bytes FROM instances WHERE instances.id = nodes.instance);
