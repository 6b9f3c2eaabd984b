-- Eras: what the leader and the instances go by when PostgreSQL comes back without its
-- last commits (a replica that lagged has taken over, a backup was brought back), and
-- two guards for those who change rows by hand.
--
-- Locks: ACCESS EXCLUSIVE on crossfade_epoch, crossfade_stages, crossfade_sentinels and
-- crossfade_instances, for an instant each but held until the end of this file; columns
-- are added without rewriting a table.
-- Instances of an older release that run meanwhile wait for that instant. Once an
-- instance of this release leads, steps that need confirmation wait until those of an
-- older one are gone, since they confirm no era.

-- +goose Up

-- The history that this server has: it is another one after a failover, in another
-- database and in tables that a backup has made anew, and the same after a restart. Where
-- a managed service does not tell its timeline every restart counts as another history,
-- which costs proofs anew. Locks: none.
-- +goose StatementBegin
CREATE FUNCTION crossfade_timeline() RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  tables text := (SELECT oid FROM pg_database WHERE datname = current_database())
      || '.' || to_regclass('crossfade_epoch')::oid || '.' || to_regclass('crossfade_stages')::oid || '.' || to_regclass('crossfade_sentinels')::oid;
BEGIN
  IF pg_is_in_recovery() THEN
    RETURN 'in recovery';
  END IF;
  RETURN (SELECT system_identifier FROM pg_control_system()) || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) || '/' || tables;
EXCEPTION
  WHEN insufficient_privilege OR feature_not_supported OR undefined_function THEN
    RETURN 'server started at ' || extract(epoch FROM pg_postmaster_start_time()) || '/' || tables;
END
$$;
-- +goose StatementEnd

-- era: names the term of a leader; never given twice. What instances know and confirm
-- counts in the era in which they have read it.
-- continues: the last epoch of the era before. An instance that knows a later one of
-- that era has seen commits that are lost. NULL: the era has begun everything anew.
-- timeline: on which the era began. On any other one, commits may have been lost that
-- somebody still goes by: nothing is dropped until the next era. An instance that
-- finds out otherwise that commits are lost writes so here.
-- settles_at: when leases that were given before are over, whoever has them.
-- written: the transaction that wrote the row, which PostgreSQL itself has in xmin. In a
-- row that a backup has brought back the two differ, and nothing is dropped until the
-- next era. So they do after a change within a savepoint, or where a migration rewrites
-- this table: none may without writing this column.
-- anew: the era that began everything anew last. Stages and evidence count that say so.
ALTER TABLE crossfade_epoch
  ADD COLUMN era        text        NOT NULL DEFAULT '',
  ADD COLUMN continues  bigint,
  ADD COLUMN timeline   text        NOT NULL DEFAULT '',
  ADD COLUMN settles_at timestamptz NOT NULL DEFAULT '-infinity',
  ADD COLUMN written    xid8        NOT NULL DEFAULT '0',
  ADD COLUMN anew       text        NOT NULL DEFAULT '';
UPDATE crossfade_epoch
   SET era = gen_random_uuid()::text, continues = epoch, timeline = crossfade_timeline(), written = pg_current_xact_id();

-- Only updates: what inserts the row is a backup that is brought back. A row that was
-- brought back stays one, whoever writes to it, until an era begins.
-- +goose StatementBegin
CREATE FUNCTION crossfade_epoch_written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.era <> OLD.era OR OLD.written::xid = OLD.xmin THEN
    NEW.written := pg_current_xact_id();
  ELSE
    NEW.written := OLD.written;
  END IF;
  RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER crossfade_epoch_written BEFORE UPDATE ON crossfade_epoch
  FOR EACH ROW EXECUTE FUNCTION crossfade_epoch_written();

-- Who empties the table of stages, and be it to fill it from a backup, changes history.
-- +goose StatementBegin
CREATE FUNCTION crossfade_stages_emptied() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE crossfade_epoch SET timeline = 'crossfade_stages was emptied';
  RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER crossfade_stages_emptied BEFORE TRUNCATE ON crossfade_stages
  FOR EACH STATEMENT EXECUTE FUNCTION crossfade_stages_emptied();

-- The value of anew when it was written. A tenant with another one counts as being in the
-- inner stage beside its stage, unconfirmed, until the leader has written so: it need not
-- wait for who keeps the row locked. A sentinel with another one is no evidence.
ALTER TABLE crossfade_stages ADD COLUMN counts_in text NOT NULL DEFAULT '';
ALTER TABLE crossfade_sentinels ADD COLUMN counts_in text NOT NULL DEFAULT '';

-- The era of confirmed_revision.
ALTER TABLE crossfade_instances ADD COLUMN confirmed_era text NOT NULL DEFAULT '';

-- Nobody begins in an outer stage, under whatever epoch: there is no proof for it. The
-- leader begins with the inner stage beside the wish.
-- +goose StatementBegin
CREATE FUNCTION crossfade_stages_begin_inside() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'stage % of tenant % is entered on proof only', NEW.stage, NEW.tenant_id
    USING HINT = 'Wish for it: crossfade flip TENANT STAGE.';
END
$$;
-- +goose StatementEnd
CREATE TRIGGER crossfade_stages_begin_inside BEFORE INSERT ON crossfade_stages
  FOR EACH ROW WHEN (NEW.stage IN ('mqtt', 'jetstream')) EXECUTE FUNCTION crossfade_stages_begin_inside();

-- The row of an instance with a lease is what makes the leader wait for it.
-- +goose StatementBegin
CREATE FUNCTION crossfade_instances_keep_live() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  live text;
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    SELECT instance_id INTO live FROM crossfade_instances WHERE lease_until > now() OR other_until > now() LIMIT 1;
  ELSIF OLD.lease_until > now() OR OLD.other_until > now() THEN
    live := OLD.instance_id;
  END IF;
  IF live IS NULL THEN
    RETURN OLD; -- which TRUNCATE ignores
  END IF;
  RAISE EXCEPTION 'instance % is running, its row stays', live
    USING HINT = 'Stop it first; then its row goes by itself, or by crossfade forget.';
END
$$;
-- +goose StatementEnd
CREATE TRIGGER crossfade_instances_keep_live BEFORE DELETE ON crossfade_instances
  FOR EACH ROW EXECUTE FUNCTION crossfade_instances_keep_live();
CREATE TRIGGER crossfade_instances_keep_all BEFORE TRUNCATE ON crossfade_instances
  FOR EACH STATEMENT EXECUTE FUNCTION crossfade_instances_keep_live();

-- +goose Down

-- Instances of this release stop dropping and moving. Stop them first.
DROP TRIGGER crossfade_instances_keep_all ON crossfade_instances;
DROP TRIGGER crossfade_instances_keep_live ON crossfade_instances;
DROP FUNCTION crossfade_instances_keep_live();
DROP TRIGGER crossfade_stages_begin_inside ON crossfade_stages;
DROP FUNCTION crossfade_stages_begin_inside();
ALTER TABLE crossfade_instances DROP COLUMN confirmed_era;
ALTER TABLE crossfade_sentinels DROP COLUMN counts_in;
ALTER TABLE crossfade_stages DROP COLUMN counts_in;
DROP TRIGGER crossfade_stages_emptied ON crossfade_stages;
DROP FUNCTION crossfade_stages_emptied();
DROP TRIGGER crossfade_epoch_written ON crossfade_epoch;
DROP FUNCTION crossfade_epoch_written();
ALTER TABLE crossfade_epoch
  DROP COLUMN era, DROP COLUMN continues, DROP COLUMN timeline, DROP COLUMN settles_at, DROP COLUMN written, DROP COLUMN anew;
DROP FUNCTION crossfade_timeline();
