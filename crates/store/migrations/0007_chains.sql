-- Since when each node stands where it does in the order in which the nodes of a chained instance copy
-- from each other: until it is moved, since it was made.

ALTER TABLE nodes ADD COLUMN in_line_since BIGINT NOT NULL DEFAULT 0;

UPDATE nodes SET in_line_since = created_at;
