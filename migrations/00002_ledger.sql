-- The ledger (which message has taken effect), the stages of the tenants and the
-- instances that have confirmed them. All of it is ours alone; other services
-- neither read nor write it. Locks: none but on what this file creates.

-- +goose Up

-- crossfade_ledger holds one row per message ID, written in the transaction that
-- holds the message's effects. Its primary key is what makes a message take
-- effect once, whichever path, instance or retry brings it.
--
-- An ID is 16 bytes: the message's own time in milliseconds since 1970 in the
-- first 6 (zero: it has none), then 10 bytes of a digest. Ranges of IDs are hence
-- ranges of message time, and both copies of a message meet in one partition even
-- if one of them is redelivered a day later. Retention drops partitions.
-- Timed partitions are made and dropped while ingest runs (package store).
CREATE TABLE crossfade_ledger (
  message_id   uuid        NOT NULL,
  path         smallint    NOT NULL,  -- which path's copy took effect: 1 MQTT, 2 JetStream
  outcome      smallint    NOT NULL,  -- what became of it; the codes are in package pipeline
  digest       bigint,                -- of the payload; tells a repeat from a different message of the same explicit ID
  occurred_at  timestamptz,           -- when the copy came into being
  committed_at timestamptz NOT NULL DEFAULT now(),  -- start of the committing transaction, by the database's clock
  PRIMARY KEY (message_id)
) PARTITION BY RANGE (message_id);

-- Messages without a time of their own. Pruned by commit time, row by row, hence
-- the index and a vacuum that comes early.
CREATE TABLE crossfade_ledger_untimed PARTITION OF crossfade_ledger
  FOR VALUES FROM (MINVALUE) TO ('00000000-0001-0000-0000-000000000000')
  WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
CREATE INDEX crossfade_ledger_untimed_committed_at ON crossfade_ledger_untimed (committed_at);

-- Messages whose time is far off, and late ones whose partition is gone.
CREATE TABLE crossfade_ledger_other PARTITION OF crossfade_ledger DEFAULT
  WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
CREATE INDEX crossfade_ledger_other_committed_at ON crossfade_ledger_other (committed_at);

-- crossfade_stages: where each tenant is between its two paths. One row per
-- tenant; every change raises the revision and names the one it expects.
CREATE TABLE crossfade_stages (
  tenant_id  text        PRIMARY KEY,
  stage      text        NOT NULL CHECK (stage IN ('mqtt', 'shadow', 'live', 'jetstream')),
  revision   bigint      NOT NULL CHECK (revision > 0),
  since      timestamptz NOT NULL DEFAULT now(),
  changed_by text,
  reason     text
) WITH (fillfactor = 70);

CREATE TABLE crossfade_stage_history (
  tenant_id  text        NOT NULL,
  revision   bigint      NOT NULL,
  from_stage text        CHECK (from_stage IN ('mqtt', 'shadow', 'live', 'jetstream')),  -- NULL: the tenant's first
  to_stage   text        NOT NULL CHECK (to_stage IN ('mqtt', 'shadow', 'live', 'jetstream')),
  changed_by text,
  reason     text,
  at         timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, revision)
);

-- Instances listen on channel crossfade_stages and read the table again when
-- told. One notification per statement, however many tenants it moves; it
-- carries no payload, for the table is the truth.
-- +goose StatementBegin
CREATE FUNCTION crossfade_stages_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('crossfade_stages', '');
  RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER crossfade_stages_notify
  AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crossfade_stages
  FOR EACH STATEMENT EXECUTE FUNCTION crossfade_stages_notify();

-- crossfade_instances: who runs, and the revision each has confirmed. Rows are
-- updated every second or so: with half of each page free the updates stay on
-- their page and leave the index alone.
CREATE TABLE crossfade_instances (
  instance_id        text        PRIMARY KEY,
  started_at         timestamptz NOT NULL DEFAULT now(),
  seen_at            timestamptz NOT NULL DEFAULT now(),
  version            text,
  confirmed_revision bigint      NOT NULL DEFAULT 0,
  details            jsonb       NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);

-- +goose Down

-- These are ours and nobody else's. Without the ledger a redelivered message
-- takes effect again: stop every instance and let both brokers drain first.
DROP TABLE crossfade_instances;
DROP TABLE crossfade_stage_history;
DROP TABLE crossfade_stages;
DROP FUNCTION crossfade_stages_notify();
DROP TABLE crossfade_ledger;
