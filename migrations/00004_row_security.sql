-- Row-level security: a role that serves tenants sees the rows of one tenant at a
-- time, the one that its session names:
--
--   SET app.tenant_id = 't1'                          for a session, or
--   SELECT set_config('app.tenant_id', 't1', true)    for a transaction
--
-- Without the setting it sees no row. The policies hold for every role but the
-- tables' owner (and those with its privileges), superusers and BYPASSRLS: ingest,
-- which writes for all tenants, runs as the owner. docs/database.md has the whole
-- picture.
--
-- Switching row security on cuts off whoever reads without the setting. Here it is
-- hence done only where that can be nobody: on tables that 00001 has made, and on
-- which no role but those exempt has a privilege. For the rest a WARNING names
-- what keeps it off, and an operator runs
--
--   SELECT * FROM crossfade_enable_row_security()
--
-- Locks: ACCESS EXCLUSIVE, for an instant each but held until the end of this
-- file, on the tables that are switched on and on their partitions. None on
-- adopted tables.

-- +goose Up

-- crossfade_tenant: the group of the roles that serve tenants. Roles belong to the
-- server, not to the database: it may be there already, and another database's
-- migration may be making it at this moment. Who may not create roles is told to
-- have it created; everything else here works without it.
-- Locks: none.
-- +goose StatementBegin
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'crossfade_tenant') THEN
    CREATE ROLE crossfade_tenant NOLOGIN;
  END IF;
EXCEPTION
  WHEN insufficient_privilege THEN
    RAISE WARNING 'role crossfade_tenant is missing and % may not create it: have CREATE ROLE crossfade_tenant NOLOGIN run, then SELECT * FROM crossfade_enable_row_security()', current_user;
  WHEN duplicate_object OR unique_violation THEN
    NULL; -- somebody else was faster
END
$$;
-- +goose StatementEnd

-- What stands between tenants, table by table. subject_roles are those that have a
-- privilege on the table and to whom row security applies: they see nothing without
-- the setting once it is on.
CREATE VIEW crossfade_row_security AS
SELECT c.oid::regclass AS table_name,
       c.relrowsecurity AS enabled,
       -- goose makes its table before 00001 makes any; a table with a lower OID was
       -- there before us. A restored dump numbers tables anew, in which case this
       -- may be wrong; nothing but the wait for a lock depends on it alone.
       c.oid > 'crossfade_migrations'::regclass::oid AS made_here,
       ARRAY(SELECT p.polname::text FROM pg_policy p WHERE p.polrelid = c.oid ORDER BY 1) AS policies,
       ARRAY(SELECT r.rolname::text FROM pg_roles r
             WHERE NOT r.rolsuper AND NOT r.rolbypassrls
               AND r.rolname <> 'crossfade_tenant'
               AND r.oid >= 16384 -- PostgreSQL's own; their members are found by has_table_privilege
               AND NOT pg_has_role(r.oid, c.relowner, 'USAGE')
               AND (has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE')
                    OR has_any_column_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE'))
             ORDER BY 1) AS subject_roles,
       format_type(a.atttypid, -1) AS tenant_type,
       -- 00001 makes telemetry one wherever the extension is there.
       t.name = 'telemetry' AND c.relkind = 'r' AND EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') AS hypertable
FROM unnest(ARRAY['telemetry', 'quarantine_events', 'quarantine_counters_minute', 'subscriptions',
                  'device_registry', 'device_state', 'device_commands', 'device_certificates',
                  'device_modules', 'device_sensors', 'message_routes']) AS t (name)
JOIN pg_class c ON c.oid = to_regclass(t.name)
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped;

-- crossfade_enable_row_security adds the policy, switches row security on, and
-- lets crossfade_tenant read. cautious: only where nobody is cut off and no adopted
-- table is locked. It may be run any number of times, by the tables' owner; what
-- is in place is completed (new partitions, a role that came later).
--
-- A table that has other policies, or row security without any, is left alone: its
-- owner has decided, and policies add up to what any one of them permits.
--
-- Partitions get row security and no policy: nobody but the owner reads or writes
-- them directly, whatever default privileges give away. Queries of the parent are
-- subject to the parent's policies and privileges alone.
-- +goose StatementBegin
CREATE FUNCTION crossfade_enable_row_security(cautious boolean DEFAULT false)
RETURNS TABLE (table_name text, outcome text) LANGUAGE plpgsql AS $$
DECLARE
  t      record;
  child  regclass;
  schema text;
  reader boolean := EXISTS (SELECT FROM pg_roles
    WHERE rolname = 'crossfade_tenant' AND NOT rolsuper AND NOT rolbypassrls);
BEGIN
  FOR t IN SELECT * FROM crossfade_row_security LOOP
    table_name := t.table_name::text;
    IF t.policies <> ARRAY['crossfade_tenant_isolation'] AND (t.enabled OR t.policies <> '{}') THEN
      outcome := 'left alone: it has row security of its own';
      RETURN NEXT;
      CONTINUE;
    END IF;
    IF cautious AND NOT t.enabled AND NOT t.made_here THEN
      outcome := 'not enabled: the table was there before Crossfade';
      RETURN NEXT;
      CONTINUE;
    END IF;
    IF cautious AND NOT t.enabled AND t.hypertable THEN
      outcome := 'not enabled: with TimescaleDB, see first who may read its chunks';
      RETURN NEXT;
      CONTINUE;
    END IF;
    IF cautious AND NOT t.enabled AND t.subject_roles <> '{}' THEN
      outcome := 'not enabled: it would cut off ' || array_to_string(t.subject_roles, ', ');
      RETURN NEXT;
      CONTINUE;
    END IF;

    IF t.policies = '{}' THEN
      -- An empty setting is none: it is what RESET leaves behind, and counters of
      -- messages without a tenant stand under ''.
      EXECUTE format($p$CREATE POLICY crossfade_tenant_isolation ON %s
        USING (tenant_id = nullif(current_setting('app.tenant_id', true), '')::%s)$p$, t.table_name, t.tenant_type);
    END IF;
    IF NOT t.enabled THEN
      EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', t.table_name);
    END IF;
    FOR child IN
      WITH RECURSIVE below AS (
        SELECT inhrelid FROM pg_inherits WHERE inhparent = t.table_name
        UNION ALL
        SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.inhrelid
      )
      SELECT c.oid::regclass FROM below JOIN pg_class c ON c.oid = inhrelid WHERE NOT c.relrowsecurity
    LOOP
      EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', child);
    END LOOP;
    IF reader THEN
      EXECUTE format('GRANT SELECT ON %s TO crossfade_tenant', t.table_name);
      outcome := 'enabled';
    ELSE
      outcome := 'enabled; no role crossfade_tenant to let read (missing, a superuser, or BYPASSRLS)';
    END IF;
    RETURN NEXT;
  END LOOP;

  -- The plans' limits are the same for every tenant.
  IF reader THEN
    EXECUTE 'GRANT SELECT ON device_tiers TO crossfade_tenant';
    SELECT n.nspname INTO schema FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass('device_registry');
    IF NOT has_schema_privilege('crossfade_tenant', schema, 'USAGE') THEN
      BEGIN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO crossfade_tenant', schema);
      EXCEPTION WHEN insufficient_privilege THEN
        RAISE WARNING 'crossfade_tenant may not use schema %: have its owner GRANT USAGE ON SCHEMA % TO crossfade_tenant', schema, quote_ident(schema);
      END;
    END IF;
  END IF;
END
$$;
-- +goose StatementEnd

-- It runs with the caller's own rights; others have no use for it all the same.
REVOKE ALL ON FUNCTION crossfade_enable_row_security(boolean) FROM PUBLIC;

-- +goose StatementBegin
DO $$
DECLARE
  left_off text;
BEGIN
  SELECT string_agg(format('%s (%s)', table_name, outcome), '; ') INTO left_off
  FROM crossfade_enable_row_security(cautious => true) WHERE outcome LIKE 'not enabled%';
  IF left_off IS NOT NULL THEN
    RAISE WARNING 'tenants are not kept apart on these tables: %. Once every service that reads them sets app.tenant_id, run SELECT * FROM crossfade_enable_row_security()', left_off;
  END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down

-- The role's privileges go first: without the policies it would see every tenant.
-- It stays itself, for it may serve other databases. Row security of partitions
-- stays as well: nobody reads them directly.
-- Locks: as above.
-- +goose StatementBegin
DO $$
DECLARE
  t record;
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'crossfade_tenant') THEN
    REVOKE ALL ON device_tiers FROM crossfade_tenant;
  END IF;
  FOR t IN SELECT * FROM crossfade_row_security WHERE policies = ARRAY['crossfade_tenant_isolation'] LOOP
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'crossfade_tenant') THEN
      EXECUTE format('REVOKE ALL ON %s FROM crossfade_tenant', t.table_name);
    END IF;
    EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', t.table_name);
    EXECUTE format('DROP POLICY crossfade_tenant_isolation ON %s', t.table_name);
  END LOOP;
END
$$;
-- +goose StatementEnd
DROP FUNCTION crossfade_enable_row_security(boolean);
DROP VIEW crossfade_row_security;
