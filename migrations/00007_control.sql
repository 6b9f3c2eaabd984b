-- Control: what one instance, the leader, needs to move tenants from stage to stage
-- and to prove that it may. All of it is ours alone.
--
-- Locks: ACCESS EXCLUSIVE on crossfade_stages, crossfade_stage_history and
-- crossfade_instances, for an instant each but held until the end of this file;
-- columns are added without rewriting a table. Instances of an older release that
-- run meanwhile wait for that instant; they go on working afterwards, drop nothing,
-- and what they move is given an epoch by the trigger below.

-- +goose Up

-- crossfade_epoch: the number of the last change of stages. One row. Whoever changes
-- stages takes the next number here, in the same transaction, and holds the row
-- until it commits: who sees an epoch sees all that went before. It is not derived
-- from the stages' own rows, since one of those may be removed.
CREATE TABLE crossfade_epoch (
  one   boolean PRIMARY KEY DEFAULT true CHECK (one),
  epoch bigint  NOT NULL
) WITH (fillfactor = 10);
INSERT INTO crossfade_epoch (epoch) VALUES (1);

ALTER TABLE crossfade_stages
  ADD COLUMN epoch        bigint NOT NULL DEFAULT 0,  -- of the change that made this revision
  ADD COLUMN confirmed_at timestamptz,                -- when every live instance was first seen to have confirmed it
  ADD COLUMN wanted       text CHECK (wanted IN ('mqtt', 'shadow', 'live', 'jetstream')),  -- NULL: no clean answer
  ADD COLUMN wanted_why   text,
  ADD COLUMN waits_for    text,                       -- NULL: for nothing
  ADD COLUMN waits_since  timestamptz;

ALTER TABLE crossfade_stage_history ADD COLUMN evidence jsonb;

-- Instances read stages by their epoch, so none may change without one; and an outer
-- stage is entered by the leader only, who has the proof. The leader names the epoch
-- itself and does not come by here.
-- +goose StatementBegin
CREATE FUNCTION crossfade_stages_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' AND NEW.stage IN ('mqtt', 'jetstream') AND NEW.stage <> OLD.stage THEN
    RAISE EXCEPTION 'stage % of tenant % is entered on proof only', NEW.stage, NEW.tenant_id
      USING HINT = 'Wish for it: crossfade flip TENANT STAGE.';
  END IF;
  UPDATE crossfade_epoch SET epoch = epoch + 1 RETURNING epoch INTO STRICT NEW.epoch;
  NEW.confirmed_at := NULL;
  RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER crossfade_stages_epoch_added BEFORE INSERT ON crossfade_stages
  FOR EACH ROW WHEN (NEW.epoch = 0) EXECUTE FUNCTION crossfade_stages_epoch();
CREATE TRIGGER crossfade_stages_epoch_changed BEFORE UPDATE ON crossfade_stages
  FOR EACH ROW WHEN (NEW.epoch = OLD.epoch AND (NEW.stage <> OLD.stage OR NEW.revision <> OLD.revision))
  EXECUTE FUNCTION crossfade_stages_epoch();

-- What the leader notes of a tenant's progress is nothing that instances wait for.
DROP TRIGGER crossfade_stages_notify ON crossfade_stages;
CREATE TRIGGER crossfade_stages_notify
  AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF stage, revision, epoch ON crossfade_stages
  FOR EACH STATEMENT EXECUTE FUNCTION crossfade_stages_notify();

-- crossfade_instances: an instance is waited for while lease_until is ahead, and its
-- sessions at the broker, the source's and the mirror's, while session_until and
-- mirror_until are. other_until: another process has
-- been working under the same name, and is waited for as well. A row without a run
-- is an older release's.
ALTER TABLE crossfade_instances
  ADD COLUMN run           text    NOT NULL DEFAULT '',
  ADD COLUMN state         text    NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'stopped')),
  ADD COLUMN lease_until   timestamptz,
  ADD COLUMN other         text,
  ADD COLUMN other_until   timestamptz,
  ADD COLUMN mqtt_session  boolean NOT NULL DEFAULT false,  -- this run has one
  ADD COLUMN session       text,                            -- the client ID that names it
  ADD COLUMN session_until timestamptz,                     -- seen_at and the session's expiry; 'infinity': never
  ADD COLUMN mirror_session text,                           -- the same of its mirror
  ADD COLUMN mirror_until  timestamptz,
  ADD COLUMN prober        boolean NOT NULL DEFAULT false;  -- it can send sentinels

-- crossfade_holds: who stays where he is, whatever is wished. '' is everybody.
CREATE TABLE crossfade_holds (
  tenant_id text        PRIMARY KEY,
  held_by   text        NOT NULL DEFAULT '',
  reason    text        NOT NULL DEFAULT '',
  at        timestamptz NOT NULL DEFAULT now()
);

-- The leader listens on channel crossfade_control for what it need not wait a tick for.
-- +goose StatementBegin
CREATE FUNCTION crossfade_control_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('crossfade_control', '');
  RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER crossfade_holds_notify
  AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crossfade_holds
  FOR EACH STATEMENT EXECUTE FUNCTION crossfade_control_notify();

-- crossfade_sentinels: marked messages that are, or were lately, on their way.
-- sessions are the MQTT sessions (instance and run) that existed when it was written, just before it was sent; a proof holds only while they are the same.
CREATE TABLE crossfade_sentinels (
  nonce        text        PRIMARY KEY,
  tenant_id    text        NOT NULL,
  revision     bigint      NOT NULL,  -- the tenant's, for which it is evidence
  purpose      text        NOT NULL CHECK (purpose IN ('proof', 'beat')),
  attempt      integer     NOT NULL DEFAULT 1,
  created_at   timestamptz NOT NULL DEFAULT now(),
  published_at timestamptz,           -- the broker has taken it
  sessions     jsonb       NOT NULL DEFAULT '{}'
);

-- crossfade_sightings: sentinels that came out of a path, with all before them settled.
CREATE TABLE crossfade_sightings (
  nonce       text        NOT NULL,
  path        smallint    NOT NULL CHECK (path IN (1, 2)),  -- 1 MQTT, 2 JetStream
  instance_id text        NOT NULL,
  kind        text        NOT NULL,  -- telemetry, shadow, commands; mirror: see package control
  seen_at     timestamptz NOT NULL,
  PRIMARY KEY (nonce, path, instance_id, kind)
);

-- crossfade_path_latency: how long the last beat took on each path.
CREATE TABLE crossfade_path_latency (
  tenant_id     text             NOT NULL,
  path          smallint         NOT NULL CHECK (path IN (1, 2)),
  seconds       double precision,  -- NULL: none has come yet
  seen_at       timestamptz,
  missing_since timestamptz,       -- since when one has been out that should have come
  PRIMARY KEY (tenant_id, path)
) WITH (fillfactor = 50);

-- +goose Down

-- Instances of this release stop dropping and moving. Stop them first: those of the
-- one before do not know the outer stages, and treat them as the inner ones beside.
DROP TABLE crossfade_path_latency;
DROP TABLE crossfade_sightings;
DROP TABLE crossfade_sentinels;
DROP TABLE crossfade_holds;
DROP FUNCTION crossfade_control_notify();
ALTER TABLE crossfade_instances
  DROP COLUMN run, DROP COLUMN state, DROP COLUMN lease_until, DROP COLUMN other, DROP COLUMN other_until,
  DROP COLUMN mqtt_session, DROP COLUMN session, DROP COLUMN session_until, DROP COLUMN mirror_session, DROP COLUMN mirror_until,
  DROP COLUMN prober;
DROP TRIGGER crossfade_stages_epoch_added ON crossfade_stages;
DROP TRIGGER crossfade_stages_epoch_changed ON crossfade_stages;
DROP FUNCTION crossfade_stages_epoch();
DROP TRIGGER crossfade_stages_notify ON crossfade_stages;
CREATE TRIGGER crossfade_stages_notify
  AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crossfade_stages
  FOR EACH STATEMENT EXECUTE FUNCTION crossfade_stages_notify();
ALTER TABLE crossfade_stage_history DROP COLUMN evidence;
ALTER TABLE crossfade_stages
  DROP COLUMN epoch, DROP COLUMN confirmed_at, DROP COLUMN wanted, DROP COLUMN wanted_why,
  DROP COLUMN waits_for, DROP COLUMN waits_since;
DROP TABLE crossfade_epoch;
