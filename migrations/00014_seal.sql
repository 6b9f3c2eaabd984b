-- Seal: the secret by which instances tell the nonces of their leader from those that
-- others make up. Ours alone.
--
-- Locks: only a new table is made, so nothing that exists is locked, and a live
-- database may be migrated. Once an instance of this release runs, steps that need
-- proof wait until none of an older one leads, since their sentinels bear no seal.

-- +goose Up

-- crossfade_seal: one row at most. The first instance that finds none writes it.
CREATE TABLE crossfade_seal (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  key bytea   NOT NULL CHECK (length(key) >= 16)
);

-- Whoever reads the key can forge sentinels. Row security without a policy keeps it to
-- the owner, whatever default privileges give away.
ALTER TABLE crossfade_seal ENABLE ROW LEVEL SECURITY;

-- +goose Down

-- The key is lost; sentinels that are on their way count no more and are sent again.
-- Lock: ACCESS EXCLUSIVE on the table.
DROP TABLE crossfade_seal;
