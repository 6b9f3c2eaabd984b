-- Ours alone: the tables of the first releases that were left open to whoever has a
-- privilege on them get what every later one has, row security without a policy. A
-- database whose default privileges let its services at every new table would
-- otherwise show one tenant's service the names, stages, holds and rollouts of all, and let
-- it write wishes, or rows of the ledger, by which others' messages count as written.
--
-- A WARNING names roles that had been let at these tables, and see nothing there now.
--
-- Locks: ACCESS EXCLUSIVE on the tables, for an instant each but held until the end of
-- this file; in the order in which leaders and instances take them, and the ledger last,
-- since ingest waits for it.

-- +goose Up

-- +goose StatementBegin
DO $$
DECLARE
  t       regclass;
  cut_off text;
BEGIN
  SELECT string_agg(DISTINCT r.rolname::text, ', ') INTO cut_off
    FROM unnest(ARRAY['crossfade_epoch', 'crossfade_stages', 'crossfade_stage_history', 'crossfade_flag_rules', 'crossfade_flag_targets', 'crossfade_holds',
                      'crossfade_instances', 'crossfade_sentinels', 'crossfade_sightings', 'crossfade_path_latency',
                      'crossfade_rollouts', 'crossfade_rollout_tenants', 'crossfade_rollout_events', 'crossfade_ledger']) AS v (name)
    JOIN pg_class c ON c.oid = to_regclass(v.name)
    JOIN pg_roles r ON NOT r.rolsuper AND NOT r.rolbypassrls AND r.oid >= 16384 -- below are PostgreSQL's own
     AND NOT pg_has_role(r.oid, c.relowner, 'USAGE')
     AND (has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE') OR has_any_column_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE'));
  FOR t IN
    SELECT to_regclass(v.name)
      FROM unnest(ARRAY['crossfade_epoch', 'crossfade_stages', 'crossfade_stage_history', 'crossfade_flag_rules', 'crossfade_flag_targets', 'crossfade_holds',
                        'crossfade_instances', 'crossfade_sentinels', 'crossfade_sightings', 'crossfade_path_latency',
                        'crossfade_rollouts', 'crossfade_rollout_tenants', 'crossfade_rollout_events', 'crossfade_ledger']) AS v (name)
    UNION ALL
    -- Those that are made later are made with it, since their parent has it (package store).
    SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'crossfade_ledger'::regclass
  LOOP
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', t);
  END LOOP;
  IF cut_off IS NOT NULL THEN
    RAISE WARNING 'the tables crossfade_… are their owner''s alone now: % had a privilege there and will see no row. To let one of them read one again: CREATE POLICY … ON … FOR SELECT TO … USING (true)', cut_off;
  END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down

-- Locks: as above.
ALTER TABLE crossfade_epoch DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_stages DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_stage_history DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_flag_rules DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_flag_targets DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_holds DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_instances DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_sentinels DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_sightings DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_path_latency DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_rollouts DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_rollout_tenants DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_rollout_events DISABLE ROW LEVEL SECURITY;
ALTER TABLE crossfade_ledger DISABLE ROW LEVEL SECURITY;
