-- API tokens: who may use the HTTP API for back ends, for which tenant, and what
-- for. Only the SHA-256 of a token is kept: it is shown once, when it is made
-- (`crossfade token create`). Devices have no row here; they use the token of
-- device_registry.
--
-- Locks: only a new table is made. In use: a row lock for the moment in which the
-- hour of a token's last use is noted, at most once an hour for each token.

-- +goose Up

CREATE TABLE crossfade_api_tokens (
  id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name         text        NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
  sha256       bytea       NOT NULL UNIQUE CHECK (octet_length(sha256) = 32),
  tenant_id    text        NOT NULL CHECK (length(tenant_id) <= 512), -- '': every tenant
  scopes       text[]      NOT NULL
               CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['shadow', 'commands', 'ingest', 'read']),
  created_by   text        NOT NULL DEFAULT '' CHECK (length(created_by) <= 128),
  created_at   timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz, -- NULL: never
  revoked_at   timestamptz,
  last_used_at timestamptz  -- at most an hour behind; it tells which tokens nobody uses
) WITH (fillfactor = 70);

-- A hash is no token, but names and tenants are nobody else's business either. Row
-- security without a policy keeps the table to the owner, whatever default
-- privileges give away.
ALTER TABLE crossfade_api_tokens ENABLE ROW LEVEL SECURITY;

-- +goose Down

-- Every back end that uses the API is shut out.
DROP TABLE crossfade_api_tokens;
