-- Where clients outside of the container cluster reach a node, as JSON; empty where they do not.

ALTER TABLE nodes ADD COLUMN outer_address TEXT;
