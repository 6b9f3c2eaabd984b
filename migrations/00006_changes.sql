-- Changes: tells every instance what others have changed of devices, their
-- surroundings, routes and settings, so that caches do not have to grow old. All of
-- it is an aid: what is not heard of is noticed when the caches' time is up.
--
-- Channel crossfade_changes, with one of these payloads:
--
--   {"d":["tenant","device"]}   a device, its certificates or its modules
--   {"s":"tenant"}              devices of a tenant, or its subscriptions
--   {"r":"tenant"}              a tenant's routes
--   {"c":1}                     app_settings
--   {"a":1}                     anything: device_tiers, TRUNCATE, or too many to name
--
-- A statement is told of if it changes what ingest reads: neither ingest's own
-- updates of locations, nor updated_at and active_device_count. The triggers fire
-- once per statement and compare its rows before and after, so that a statement over
-- 100,000 devices sends one notification per tenant instead of so many. They name no
-- column in their definition: the tables' owner may change and drop columns as
-- before. And no trigger makes a statement fail: what goes wrong in one is told as
-- {"a":1}. (What PostgreSQL itself has against NOTIFY stays: a transaction with one
-- cannot be prepared for two-phase commit.)
--
-- Locks: SHARE ROW EXCLUSIVE on the tables (writers wait, readers do not), for an
-- instant each but held until the end of this file; subscriptions before
-- device_registry, as ingest does. In use: the server's notification lock for the
-- moment of the commit, of transactions that change something of the above.

-- +goose Up

-- The functions have the path of today: who writes to the tables may have another.
-- They run as whoever writes, and never as their owner: a name in them may mean a
-- type or function of the writer's own (pg_temp comes first on every path), which
-- would then run with the owner's rights.

-- More than 500 of a kind are told by the next wider: names are worth less than the
-- time that it takes to tell them. So is a payload that is long: pg_notify refuses
-- one of 8000 bytes.
-- +goose StatementBegin
CREATE FUNCTION crossfade_announce_tenants(kind text, tenants text[]) RETURNS void
    LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$
DECLARE
  names text[] := ARRAY(SELECT DISTINCT n FROM unnest(tenants) AS n WHERE n IS NOT NULL);
BEGIN
  IF cardinality(names) > 500 OR EXISTS (SELECT FROM unnest(names) AS n WHERE octet_length(n) > 500) THEN
    PERFORM pg_notify('crossfade_changes', '{"a":1}');
  ELSE
    PERFORM pg_notify('crossfade_changes', json_build_object(kind, n)::text) FROM unnest(names) AS n;
  END IF;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION crossfade_announce_devices(tenants text[], devices text[]) RETURNS void
    LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$
BEGIN
  IF cardinality(tenants) > 500 OR EXISTS (
      SELECT FROM unnest(tenants, devices) AS k (t, d) WHERE d IS NULL OR octet_length(t) + octet_length(d) > 500) THEN
    PERFORM crossfade_announce_tenants('s', tenants);
  ELSE
    PERFORM pg_notify('crossfade_changes', json_build_object('d', json_build_array(t, d))::text)
       FROM unnest(tenants, devices) AS k (t, d) WHERE t IS NOT NULL;
  END IF;
END
$$;
-- +goose StatementEnd

-- For where functions are nobody's to execute by default. Whoever lacks the right
-- announces {"a":1}.
GRANT EXECUTE ON FUNCTION crossfade_announce_tenants(text, text[]), crossfade_announce_devices(text[], text[]) TO PUBLIC;

-- Rows that came or went, of a table with tenant_id and device_id.
-- +goose StatementBegin
CREATE FUNCTION crossfade_devices_changed() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$
BEGIN
  PERFORM crossfade_announce_devices(array_agg(k.t), array_agg(k.d))
     FROM (SELECT DISTINCT tenant_id::text AS t, device_id::text AS d FROM changed) AS k
   HAVING count(*) > 0;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM pg_notify('crossfade_changes', '{"a":1}');
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- Rows that came or went, of a table with tenant_id; the argument is their kind.
-- +goose StatementBegin
CREATE FUNCTION crossfade_tenants_changed() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$
BEGIN
  PERFORM crossfade_announce_tenants(TG_ARGV[0], array_agg(k.t))
     FROM (SELECT DISTINCT tenant_id::text AS t FROM changed) AS k
   HAVING count(*) > 0;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM pg_notify('crossfade_changes', '{"a":1}');
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- Tells its argument, whatever the statement did.
-- +goose StatementBegin
CREATE FUNCTION crossfade_table_changed() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$
BEGIN
  PERFORM pg_notify('crossfade_changes', TG_ARGV[0]);
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- The updates: a row counts if what ingest reads of it has changed. That is compared
-- as text, for it may be of any type, and without a key: device_modules has none.

-- The last of the facts is whether payloads move the location (package store,
-- location.go): ingest's own writing of it changes nothing.
-- +goose StatementBegin
CREATE FUNCTION crossfade_device_registry_updated() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$
BEGIN
  PERFORM crossfade_announce_devices(array_agg(k.t), array_agg(k.d))
     FROM (SELECT DISTINCT t, d
             FROM (SELECT tenant_id::text AS t, device_id::text AS d, -1 AS n,
                          ROW(site_id, status, provision_token_hash, subscription_id, sensor_limit, tier_id,
                              coalesce(lower(location_source::text), '') NOT IN ('', 'auto', 'device', 'gps', 'payload', 'telemetry'))::text AS facts
                     FROM rows_before
                   UNION ALL
                   SELECT tenant_id::text AS t, device_id::text AS d, 1 AS n,
                          ROW(site_id, status, provision_token_hash, subscription_id, sensor_limit, tier_id,
                              coalesce(lower(location_source::text), '') NOT IN ('', 'auto', 'device', 'gps', 'payload', 'telemetry'))::text AS facts
                     FROM rows_after) AS r
            GROUP BY t, d, facts HAVING sum(n) <> 0) AS k
   HAVING count(*) > 0;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM pg_notify('crossfade_changes', '{"a":1}');
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION crossfade_device_certificates_updated() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$
BEGIN
  PERFORM crossfade_announce_devices(array_agg(k.t), array_agg(k.d))
     FROM (SELECT DISTINCT t, d
             FROM (SELECT tenant_id::text AS t, device_id::text AS d, -1 AS n,
                          ROW(fingerprint_sha256, common_name, status, not_after)::text AS facts
                     FROM rows_before
                   UNION ALL
                   SELECT tenant_id::text AS t, device_id::text AS d, 1 AS n,
                          ROW(fingerprint_sha256, common_name, status, not_after)::text AS facts
                     FROM rows_after) AS r
            GROUP BY t, d, facts HAVING sum(n) <> 0) AS k
   HAVING count(*) > 0;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM pg_notify('crossfade_changes', '{"a":1}');
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION crossfade_device_modules_updated() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$
BEGIN
  PERFORM crossfade_announce_devices(array_agg(k.t), array_agg(k.d))
     FROM (SELECT DISTINCT t, d
             FROM (SELECT tenant_id::text AS t, device_id::text AS d, -1 AS n,
                          ROW(status, metric_key_map)::text AS facts
                     FROM rows_before
                   UNION ALL
                   SELECT tenant_id::text AS t, device_id::text AS d, 1 AS n,
                          ROW(status, metric_key_map)::text AS facts
                     FROM rows_after) AS r
            GROUP BY t, d, facts HAVING sum(n) <> 0) AS k
   HAVING count(*) > 0;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM pg_notify('crossfade_changes', '{"a":1}');
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION crossfade_subscriptions_updated() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$
BEGIN
  PERFORM crossfade_announce_tenants('s', array_agg(k.t))
     FROM (SELECT DISTINCT t
             FROM (SELECT tenant_id::text AS t, -1 AS n,
                          ROW(subscription_id, status)::text AS facts
                     FROM rows_before
                   UNION ALL
                   SELECT tenant_id::text AS t, 1 AS n,
                          ROW(subscription_id, status)::text AS facts
                     FROM rows_after) AS r
            GROUP BY t, facts HAVING sum(n) <> 0) AS k
   HAVING count(*) > 0;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM pg_notify('crossfade_changes', '{"a":1}');
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION crossfade_message_routes_updated() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$
BEGIN
  PERFORM crossfade_announce_tenants('r', array_agg(k.t))
     FROM (SELECT DISTINCT t
             FROM (SELECT tenant_id::text AS t, -1 AS n,
                          ROW(id, topic_filter, destination_type, destination_config, payload_filter, is_enabled)::text AS facts
                     FROM rows_before
                   UNION ALL
                   SELECT tenant_id::text AS t, 1 AS n,
                          ROW(id, topic_filter, destination_type, destination_config, payload_filter, is_enabled)::text AS facts
                     FROM rows_after) AS r
            GROUP BY t, facts HAVING sum(n) <> 0) AS k
   HAVING count(*) > 0;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  PERFORM pg_notify('crossfade_changes', '{"a":1}');
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- Who does not own an adopted table may lack the right to make triggers on it, and
-- an adopted "table" may be of a sort that has none of these: caches then grow as
-- old as --pipeline-registry-ttl says.
-- +goose StatementBegin
DO $do$
DECLARE
  t         record;
  statement text;
BEGIN
  FOR t IN
    SELECT * FROM (VALUES
      ('subscriptions',       'crossfade_tenants_changed(''s'')', 'crossfade_subscriptions_updated()',       '{"a":1}'),
      ('device_registry',     'crossfade_devices_changed()',      'crossfade_device_registry_updated()',     '{"a":1}'),
      ('device_certificates', 'crossfade_devices_changed()',      'crossfade_device_certificates_updated()', '{"a":1}'),
      ('device_modules',      'crossfade_devices_changed()',      'crossfade_device_modules_updated()',      '{"a":1}'),
      ('message_routes',      'crossfade_tenants_changed(''r'')', 'crossfade_message_routes_updated()',      '{"a":1}'),
      ('device_tiers',        NULL,                               NULL,                                      '{"a":1}'),
      ('app_settings',        NULL,                               NULL,                                      '{"c":1}')
    ) AS v (tbl, changed, updated, truncated)
  LOOP
    FOREACH statement IN ARRAY CASE WHEN t.changed IS NULL THEN ARRAY[
        'CREATE OR REPLACE TRIGGER crossfade_changes AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %1$s FOR EACH STATEMENT EXECUTE FUNCTION crossfade_table_changed(%4$L)'
      ] ELSE ARRAY[
        'CREATE OR REPLACE TRIGGER crossfade_changes_insert AFTER INSERT ON %1$s REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION %2$s',
        'CREATE OR REPLACE TRIGGER crossfade_changes_delete AFTER DELETE ON %1$s REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION %2$s',
        'CREATE OR REPLACE TRIGGER crossfade_changes_update AFTER UPDATE ON %1$s REFERENCING OLD TABLE AS rows_before NEW TABLE AS rows_after FOR EACH STATEMENT EXECUTE FUNCTION %3$s',
        'CREATE OR REPLACE TRIGGER crossfade_changes_truncate AFTER TRUNCATE ON %1$s FOR EACH STATEMENT EXECUTE FUNCTION crossfade_table_changed(%4$L)'
      ] END
    LOOP
      BEGIN
        EXECUTE format(statement, to_regclass(t.tbl), t.changed, t.updated, t.truncated);
      EXCEPTION WHEN insufficient_privilege OR wrong_object_type OR feature_not_supported THEN
        RAISE WARNING 'changes of % are not announced (%): they take effect after --pipeline-registry-ttl. To have them at once, let its owner GRANT TRIGGER ON % TO % and run in its stead: %',
          t.tbl, SQLERRM, t.tbl, quote_ident(current_user), format(statement, to_regclass(t.tbl), t.changed, t.updated, t.truncated);
      END;
    END LOOP;
  END LOOP;
END
$do$;
-- +goose StatementEnd

-- +goose Down

-- The triggers go with their functions. Instances believe what they have cached
-- until its time is up.
-- Locks: ACCESS EXCLUSIVE on the tables, for an instant each.
DROP FUNCTION crossfade_tenants_changed() CASCADE;
DROP FUNCTION crossfade_subscriptions_updated() CASCADE;
DROP FUNCTION crossfade_devices_changed() CASCADE;
DROP FUNCTION crossfade_device_registry_updated() CASCADE;
DROP FUNCTION crossfade_device_certificates_updated() CASCADE;
DROP FUNCTION crossfade_device_modules_updated() CASCADE;
DROP FUNCTION crossfade_message_routes_updated() CASCADE;
DROP FUNCTION crossfade_table_changed() CASCADE;
DROP FUNCTION crossfade_announce_devices(text[], text[]);
DROP FUNCTION crossfade_announce_tenants(text, text[]);
