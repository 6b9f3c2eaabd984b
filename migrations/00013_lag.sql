-- Lag: how far each path is behind, as each instance and the JetStream server tell it
-- every few seconds. Ours alone.
--
-- Locks: only a new table is made, so nothing that exists is locked, and a live
-- database may be migrated.

-- +goose Up

-- crossfade_lag: the newest figures of each source. They are worth nothing when they
-- are old, so they are not logged: after a crash the table is empty, which reads as
-- unknown, until they come again. With free room in each page and no index on what
-- changes the updates stay on their page.
CREATE UNLOGGED TABLE crossfade_lag (
  source      text        NOT NULL CHECK (source IN ('instance', 'stream', 'turn')),
  name        text        NOT NULL,                -- the instance's, or the stream's; '' for the turn
  measured_at timestamptz NOT NULL DEFAULT now(),
  measured_by text        NOT NULL,
  figures     jsonb       NOT NULL DEFAULT '{}',   -- see package bridge/control
  PRIMARY KEY (source, name)
) WITH (fillfactor = 30, autovacuum_vacuum_scale_factor = 0.05);

-- The figures name tenants. Row security without a policy keeps them to the owner,
-- whatever default privileges give away.
ALTER TABLE crossfade_lag ENABLE ROW LEVEL SECURITY;

-- +goose Down

-- Only the newest measurements are lost. Lock: ACCESS EXCLUSIVE on the table.
DROP TABLE crossfade_lag;
