-- Rollouts: plans that move tenants wave by wave, how far they are, and what was seen
-- on the way. Ours alone. A rollout moves nobody by itself: it writes wishes into
-- crossfade_flag_targets, as an operator does.
--
-- Locks: only new tables are made, so nothing that exists is locked, and a live
-- database may be migrated.

-- +goose Up

-- crossfade_rollouts: one row per plan that was started. Every change names the
-- revision that it expects and is made in the transaction that writes the wishes, so
-- a driver that was killed, paused or replaced leaves nothing half done.
CREATE TABLE crossfade_rollouts (
  name        text        PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 63),
  plan        jsonb       NOT NULL,
  state       text        NOT NULL CHECK (state IN ('pending', 'running', 'paused', 'failed', 'aborted', 'done')),
  phase       text        NOT NULL CHECK (phase IN ('choosing', 'flipping', 'baking', 'judging', 'finishing')),
  wave        integer     NOT NULL DEFAULT 0 CHECK (wave >= 0),  -- counted from 0
  revision    bigint      NOT NULL DEFAULT 1 CHECK (revision > 0),
  since       timestamptz NOT NULL DEFAULT now(),  -- of the phase, or of the last resume
  window_from timestamptz,                         -- from when on measurements count for the wave
  cause       text        CHECK (cause IN ('operator', 'gate', 'inconclusive', 'overdue', 'empty')),  -- why it is paused
  why         text        NOT NULL DEFAULT '',     -- the same for people, or what it waits for
  started_by  text        NOT NULL DEFAULT '',
  started_at  timestamptz NOT NULL DEFAULT now(),
  ended_at    timestamptz,
  CHECK ((state = 'paused') = (cause IS NOT NULL)),
  CHECK ((state IN ('failed', 'aborted', 'done')) = (ended_at IS NOT NULL))
) WITH (fillfactor = 50);

-- One at a time: two that wish differently for a tenant would be as bad as two
-- operators who do not speak to each other, and the limit of tenants in transition
-- would be none.
CREATE UNIQUE INDEX crossfade_rollouts_one ON crossfade_rollouts ((true)) WHERE state IN ('pending', 'running', 'paused');

-- crossfade_rollout_tenants: whom a wave has chosen, and what has become of them.
-- wish is what the rollout has written for them, before what it goes back to.
CREATE TABLE crossfade_rollout_tenants (
  rollout   text        NOT NULL REFERENCES crossfade_rollouts ON DELETE CASCADE,
  tenant_id text        NOT NULL,
  wave      integer     NOT NULL,
  state     text        NOT NULL CHECK (state IN ('waiting', 'moving', 'baking', 'finishing', 'done', 'skipped', 'taken', 'returned')),
  wish      text        CHECK (wish IN ('mqtt', 'shadow', 'live', 'jetstream')),
  before    text        CHECK (before IN ('mqtt', 'shadow', 'live', 'jetstream')),
  since     timestamptz NOT NULL DEFAULT now(),
  verdict   text        NOT NULL DEFAULT '' CHECK (verdict IN ('', 'pass', 'fail', 'inconclusive')),
  note      text        NOT NULL DEFAULT '',
  PRIMARY KEY (rollout, tenant_id),
  CHECK ((wish IS NULL) = (before IS NULL))
) WITH (fillfactor = 70);

-- crossfade_rollout_events: what has happened, with the numbers that decided it.
CREATE TABLE crossfade_rollout_events (
  id        bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  rollout   text        NOT NULL REFERENCES crossfade_rollouts ON DELETE CASCADE,
  at        timestamptz NOT NULL DEFAULT now(),
  wave      integer     NOT NULL,
  kind      text        NOT NULL,   -- state, wave, tenant or gate
  tenant_id text,                   -- NULL: about all
  verdict   text        CHECK (verdict IN ('pass', 'fail', 'inconclusive')),
  message   text        NOT NULL,
  evidence  jsonb
);
CREATE INDEX crossfade_rollout_events_rollout ON crossfade_rollout_events (rollout, id);

-- +goose Down

-- Wishes that rollouts have written stay. Locks: ACCESS EXCLUSIVE on these tables.
DROP TABLE crossfade_rollout_events;
DROP TABLE crossfade_rollout_tenants;
DROP TABLE crossfade_rollouts;
