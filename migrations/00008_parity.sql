-- Parity: how well a tenant's two paths agree, minute by minute, and samples of what
-- they do not agree on. Instances add up what they have seen; whoever maintains
-- partitions deletes what is older than seven days. Ours alone.
--
-- Locks: only new tables are made, so nothing that exists is locked, and a live
-- database may be migrated.

-- +goose Up

-- crossfade_parity: what became of the copies that stood by. No row: none did in
-- that minute, which says nothing. Every instance updates the current minute's rows
-- every few seconds: with free room in each page, and nothing of what changes in an
-- index, the updates stay on their page.
CREATE TABLE crossfade_parity (
  tenant_id       text        NOT NULL,
  minute          timestamptz NOT NULL,            -- its beginning, by the instances' clocks
  matched         bigint      NOT NULL DEFAULT 0,  -- the ledger had the message, with the same content as far as that can be told
  rescued         bigint      NOT NULL DEFAULT 0,  -- it did not have it in time, and the copy was processed
  rescued_full    bigint      NOT NULL DEFAULT 0,  -- those of them that could not be waited for: too many stood by
  mismatched      bigint      NOT NULL DEFAULT 0,  -- the ledger had other content under the device's own message ID
  skew_ms_buckets int8[]      NOT NULL,            -- of matched and mismatched copies; the bounds are in package bridge/parity
  PRIMARY KEY (tenant_id, minute)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);

-- For deleting. A minute is never changed.
CREATE INDEX crossfade_parity_minute ON crossfade_parity (minute);

-- crossfade_parity_samples: some of the copies that counted as mismatched, at most 20
-- per tenant and hour. sample holds the topic and the beginning of the payload, as
-- text and without the device's secret.
CREATE TABLE crossfade_parity_samples (
  id           bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant_id    text        NOT NULL,
  at           timestamptz NOT NULL,
  message_id   uuid        NOT NULL,   -- as in crossfade_ledger
  what         text        NOT NULL CHECK (what IN ('mismatched')),
  path         smallint    NOT NULL,   -- of the copy that stood by: 1 MQTT, 2 JetStream
  digest       bigint      NOT NULL,   -- of its payload
  other_digest bigint      NOT NULL,   -- of the one that counted
  sample       jsonb       NOT NULL
);
CREATE INDEX crossfade_parity_samples_tenant_at ON crossfade_parity_samples (tenant_id, at);
CREATE INDEX crossfade_parity_samples_at ON crossfade_parity_samples (at);

-- Samples are of all tenants, with what their devices sent, and the counts tell what
-- each tenant does. Row security without a policy keeps both to the owner, whatever
-- default privileges give away.
ALTER TABLE crossfade_parity ENABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_parity_samples ENABLE ROW LEVEL SECURITY;

-- +goose Down

-- Ours and nobody else's: only the record of how well the paths agreed is lost.
-- Locks: ACCESS EXCLUSIVE on both tables.
DROP TABLE crossfade_parity_samples;
DROP TABLE crossfade_parity;
