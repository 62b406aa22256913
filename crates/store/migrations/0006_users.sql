-- The tenant's users and passwords: a revision that every server is to have, and until when the
-- password before the present one is valid.

ALTER TABLE instances ADD COLUMN users_revision BIGINT NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN former_password_until BIGINT;
