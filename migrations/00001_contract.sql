-- The tables of the data contract: what other services read, and what ingest
-- reads and writes. In a new database they are created; in a database that
-- already holds them (the predecessor's) they are adopted: nothing is renamed,
-- retyped, rewritten or dropped, only missing columns and keys are added.
--
-- Locks. CREATE TABLE IF NOT EXISTS on a table that exists takes none that
-- writers would notice. A missing column costs ACCESS EXCLUSIVE on its table for
-- an instant (no rewrite: nullable, or with a constant default); one that is there
-- costs nothing, because the catalogue is asked first. lock_timeout bounds every
-- wait, and the whole file is one transaction: it is applied or it is not.
--
-- Tables are looked up along the search_path and created in its first schema.

-- +goose Up

-- telemetry. Partitioned by the message's own time, so that retention drops
-- partitions; or a hypertable where the database has TimescaleDB. An existing
-- telemetry of either kind, or a plain table, is left as it is.
-- It has no unique key on purpose: the ledger keeps out duplicates, and a unique
-- index on the rows halves the write rate. COPY writes it, the web backend reads
-- newest-first by tenant and device, hence the one index.
-- The DEFAULT partition takes rows of devices whose clock is far off; its index
-- on time keeps the move of such rows into a new partition short.
-- Locks: none but on what it creates.
-- +goose StatementBegin
DO $$
BEGIN
  IF to_regclass('telemetry') IS NOT NULL THEN
    RETURN;
  END IF;

  IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN
    CREATE TABLE telemetry (
      time      timestamptz NOT NULL,
      tenant_id text        NOT NULL,
      device_id text        NOT NULL,
      site_id   text,
      msg_type  text        NOT NULL,
      seq       bigint,
      metrics   jsonb       NOT NULL DEFAULT '{}'
    );
    -- By EXECUTE: without the extension the function does not exist.
    EXECUTE $q$SELECT create_hypertable('telemetry', 'time', create_default_indexes => false)$q$;
  ELSE
    CREATE TABLE telemetry (
      time      timestamptz NOT NULL,
      tenant_id text        NOT NULL,
      device_id text        NOT NULL,
      site_id   text,
      msg_type  text        NOT NULL,
      seq       bigint,
      metrics   jsonb       NOT NULL DEFAULT '{}'
    ) PARTITION BY RANGE (time);
    CREATE TABLE telemetry_default PARTITION OF telemetry DEFAULT;
    CREATE INDEX telemetry_default_time ON telemetry_default (time);
  END IF;

  CREATE INDEX telemetry_tenant_device_time ON telemetry (tenant_id, device_id, time DESC);
END
$$;
-- +goose StatementEnd

-- quarantine_events: every message that was refused, with its reason and raw
-- bytes. Partitioned by the time of arrival, so that pruning it is cheap.
-- Locks: none but on what it creates.
-- +goose StatementBegin
DO $$
BEGIN
  IF to_regclass('quarantine_events') IS NOT NULL THEN
    RETURN;
  END IF;

  CREATE TABLE quarantine_events (
    id          bigint      GENERATED ALWAYS AS IDENTITY,
    ingested_at timestamptz NOT NULL DEFAULT now(),
    event_ts    timestamptz,           -- the message's own time, where readable
    topic       text,
    tenant_id   text,
    site_id     text,
    device_id   text,
    msg_type    text,
    reason      text        NOT NULL,  -- a reason code, e.g. TOKEN_INVALID
    payload     jsonb,                 -- where the body is JSON that jsonb can hold
    path        smallint,              -- 1 MQTT, 2 JetStream
    message_id  uuid,
    raw         bytea,                 -- the body as it came
    detail      text,                  -- which member, limit or database error
    PRIMARY KEY (id, ingested_at)
  ) PARTITION BY RANGE (ingested_at);
  CREATE TABLE quarantine_events_default PARTITION OF quarantine_events DEFAULT;
  CREATE INDEX quarantine_events_default_ingested_at ON quarantine_events_default (ingested_at);
  CREATE INDEX quarantine_events_tenant_ingested_at ON quarantine_events (tenant_id, ingested_at DESC);
  CREATE INDEX quarantine_events_reason ON quarantine_events (reason);
END
$$;
-- +goose StatementEnd

-- Refusals per minute, tenant and reason, for the console. Rows of the current
-- minute are updated over and over: the free space on each page keeps these
-- updates off the index (HOT). Messages without a readable tenant count under ''.
CREATE TABLE IF NOT EXISTS quarantine_counters_minute (
  bucket_minute timestamptz NOT NULL,
  tenant_id     text        NOT NULL,
  reason        text        NOT NULL,
  cnt           bigint      NOT NULL DEFAULT 0,
  PRIMARY KEY (bucket_minute, tenant_id, reason)
) WITH (fillfactor = 70);

-- Plans with a device limit. Read-only for ingest, except active_device_count.
CREATE TABLE IF NOT EXISTS subscriptions (
  subscription_id     text        PRIMARY KEY,
  tenant_id           text        NOT NULL,
  subscription_type   text        NOT NULL DEFAULT 'MAIN',
  status              text        NOT NULL DEFAULT 'ACTIVE'
                      CHECK (status IN ('ACTIVE', 'SUSPENDED', 'EXPIRED')),
  device_limit        integer,
  active_device_count integer     NOT NULL DEFAULT 0,
  created_at          timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS device_tiers (
  tier_id              integer PRIMARY KEY,
  default_sensor_limit integer
);

-- Who may send. Ingest reads all of it into a cache, and writes locations.
CREATE TABLE IF NOT EXISTS device_registry (
  tenant_id            text NOT NULL,
  device_id            text NOT NULL,
  site_id              text,
  status               text NOT NULL DEFAULT 'ACTIVE',
  provision_token_hash text,  -- SHA-256 of the token, in hex
  subscription_id      text,
  sensor_limit         integer,
  tier_id              integer,
  latitude             double precision,
  longitude            double precision,
  location_source      text,
  created_at           timestamptz NOT NULL DEFAULT now(),
  updated_at           timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, device_id)
);

-- One row per device, updated by every batch that holds one of its messages:
-- half of each page is kept free, so that an update stays on its page (HOT).
CREATE TABLE IF NOT EXISTS device_state (
  tenant_id         text   NOT NULL,
  device_id         text   NOT NULL,
  site_id           text,
  status            text,
  last_seen_at      timestamptz,
  last_telemetry_at timestamptz,
  last_heartbeat_at timestamptz,
  desired_state     jsonb  NOT NULL DEFAULT '{}',
  desired_version   bigint NOT NULL DEFAULT 0,
  reported_state    jsonb  NOT NULL DEFAULT '{}',
  reported_version  bigint NOT NULL DEFAULT 0,
  shadow_updated_at timestamptz,
  PRIMARY KEY (tenant_id, device_id)
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS device_commands (
  tenant_id      text        NOT NULL,
  command_id     text        NOT NULL,
  device_id      text        NOT NULL,
  command_type   text        NOT NULL,
  command_params jsonb       NOT NULL DEFAULT '{}',
  status         text        NOT NULL DEFAULT 'queued'
                 CHECK (status IN ('queued', 'delivered', 'missed', 'expired')),
  published_at   timestamptz,
  acked_at       timestamptz,
  ack_details    jsonb,
  expires_at     timestamptz,
  created_by     text,
  created_at     timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, command_id)
) WITH (fillfactor = 80);

CREATE TABLE IF NOT EXISTS device_certificates (
  tenant_id          text        NOT NULL,
  device_id          text        NOT NULL,
  fingerprint_sha256 text        NOT NULL,
  common_name        text        NOT NULL,
  status             text        NOT NULL DEFAULT 'ACTIVE'
                     CHECK (status IN ('ACTIVE', 'REVOKED', 'EXPIRED')),
  not_before         timestamptz,
  not_after          timestamptz,
  PRIMARY KEY (fingerprint_sha256)
);

CREATE TABLE IF NOT EXISTS device_modules (
  tenant_id      text  NOT NULL,
  device_id      text  NOT NULL,
  status         text  NOT NULL DEFAULT 'ACTIVE',
  metric_key_map jsonb NOT NULL DEFAULT '{}'
);

-- Updated like device_state, hence the free space.
CREATE TABLE IF NOT EXISTS device_sensors (
  tenant_id       text NOT NULL,
  device_id       text NOT NULL,
  metric_key      text NOT NULL,
  display_name    text,
  unit            text,
  status          text,
  source          text,
  last_value      double precision,
  last_value_text text,
  last_seen_at    timestamptz,
  PRIMARY KEY (tenant_id, device_id, metric_key)
) WITH (fillfactor = 60);

CREATE TABLE IF NOT EXISTS message_routes (
  id                 bigint  GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  tenant_id          text    NOT NULL,
  name               text    NOT NULL,
  topic_filter       text    NOT NULL,
  destination_type   text    NOT NULL
                     CHECK (destination_type IN ('webhook', 'mqtt_republish', 'postgresql')),
  destination_config jsonb   NOT NULL DEFAULT '{}',
  payload_filter     jsonb,
  is_enabled         boolean NOT NULL DEFAULT true
);

CREATE TABLE IF NOT EXISTS app_settings (
  key   text PRIMARY KEY,
  value text
);

-- Adoption, part one: contract columns that an existing table lacks. Nullable or
-- with a constant default, so that no row is rewritten and none is refused.
-- A column that is there is left alone whatever its type: `crossfade run` names
-- the types that it cannot write when it starts.
-- Locks: ACCESS EXCLUSIVE, for an instant, on a table that lacks a column. On a
-- hypertable or partitioned table it extends to the children.
-- +goose StatementBegin
DO $$
DECLARE
  want record;
BEGIN
  FOR want IN
    SELECT * FROM (VALUES
      ('telemetry', 'site_id', 'text'),
      ('telemetry', 'msg_type', $d$text NOT NULL DEFAULT 'telemetry'$d$),
      ('telemetry', 'seq', 'bigint'),
      ('telemetry', 'metrics', $d$jsonb NOT NULL DEFAULT '{}'$d$),
      ('quarantine_events', 'ingested_at', 'timestamptz NOT NULL DEFAULT now()'),
      ('quarantine_events', 'event_ts', 'timestamptz'),
      ('quarantine_events', 'topic', 'text'),
      ('quarantine_events', 'tenant_id', 'text'),
      ('quarantine_events', 'site_id', 'text'),
      ('quarantine_events', 'device_id', 'text'),
      ('quarantine_events', 'msg_type', 'text'),
      ('quarantine_events', 'reason', $d$text NOT NULL DEFAULT 'UNKNOWN'$d$),
      ('quarantine_events', 'payload', 'jsonb'),
      ('quarantine_events', 'path', 'smallint'),
      ('quarantine_events', 'message_id', 'uuid'),
      ('quarantine_events', 'raw', 'bytea'),
      ('quarantine_events', 'detail', 'text'),
      ('quarantine_counters_minute', 'cnt', 'bigint NOT NULL DEFAULT 0'),
      ('subscriptions', 'subscription_type', $d$text NOT NULL DEFAULT 'MAIN'$d$),
      ('subscriptions', 'status', $d$text NOT NULL DEFAULT 'ACTIVE'$d$),
      ('subscriptions', 'device_limit', 'integer'),
      ('subscriptions', 'active_device_count', 'integer NOT NULL DEFAULT 0'),
      ('subscriptions', 'created_at', 'timestamptz NOT NULL DEFAULT now()'),
      ('device_tiers', 'default_sensor_limit', 'integer'),
      ('device_registry', 'site_id', 'text'),
      ('device_registry', 'status', $d$text NOT NULL DEFAULT 'ACTIVE'$d$),
      ('device_registry', 'provision_token_hash', 'text'),
      ('device_registry', 'subscription_id', 'text'),
      ('device_registry', 'sensor_limit', 'integer'),
      ('device_registry', 'tier_id', 'integer'),
      ('device_registry', 'latitude', 'double precision'),
      ('device_registry', 'longitude', 'double precision'),
      ('device_registry', 'location_source', 'text'),
      ('device_state', 'site_id', 'text'),
      ('device_state', 'status', 'text'),
      ('device_state', 'last_seen_at', 'timestamptz'),
      ('device_state', 'last_telemetry_at', 'timestamptz'),
      ('device_state', 'last_heartbeat_at', 'timestamptz'),
      ('device_state', 'desired_state', $d$jsonb NOT NULL DEFAULT '{}'$d$),
      ('device_state', 'desired_version', 'bigint NOT NULL DEFAULT 0'),
      ('device_state', 'reported_state', $d$jsonb NOT NULL DEFAULT '{}'$d$),
      ('device_state', 'reported_version', 'bigint NOT NULL DEFAULT 0'),
      ('device_state', 'shadow_updated_at', 'timestamptz'),
      ('device_commands', 'command_type', $d$text NOT NULL DEFAULT ''$d$),
      ('device_commands', 'command_params', $d$jsonb NOT NULL DEFAULT '{}'$d$),
      ('device_commands', 'status', $d$text NOT NULL DEFAULT 'queued'$d$),
      ('device_commands', 'published_at', 'timestamptz'),
      ('device_commands', 'acked_at', 'timestamptz'),
      ('device_commands', 'ack_details', 'jsonb'),
      ('device_commands', 'expires_at', 'timestamptz'),
      ('device_commands', 'created_by', 'text'),
      ('device_commands', 'created_at', 'timestamptz NOT NULL DEFAULT now()'),
      ('device_certificates', 'status', $d$text NOT NULL DEFAULT 'ACTIVE'$d$),
      ('device_certificates', 'not_before', 'timestamptz'),
      ('device_certificates', 'not_after', 'timestamptz'),
      ('device_modules', 'status', $d$text NOT NULL DEFAULT 'ACTIVE'$d$),
      ('device_modules', 'metric_key_map', $d$jsonb NOT NULL DEFAULT '{}'$d$),
      ('device_sensors', 'display_name', 'text'),
      ('device_sensors', 'unit', 'text'),
      ('device_sensors', 'status', 'text'),
      ('device_sensors', 'source', 'text'),
      ('device_sensors', 'last_value', 'double precision'),
      ('device_sensors', 'last_value_text', 'text'),
      ('device_sensors', 'last_seen_at', 'timestamptz'),
      ('message_routes', 'payload_filter', 'jsonb'),
      ('message_routes', 'is_enabled', 'boolean NOT NULL DEFAULT true')
    ) AS v (tbl, col, def)
    WHERE NOT EXISTS (
      SELECT FROM pg_attribute a
      WHERE a.attrelid = to_regclass(v.tbl) AND a.attname = v.col AND NOT a.attisdropped
    )
  LOOP
    EXECUTE format('ALTER TABLE %s ADD COLUMN IF NOT EXISTS %I %s',
                   to_regclass(want.tbl), want.col, want.def);
  END LOOP;
END
$$;
-- +goose StatementEnd

-- Adoption, part two: indexes that statements of ours rely on, where no index
-- with the same leading columns is there under whatever name. The unique ones
-- carry INSERT … ON CONFLICT. All of these tables are small (a row per device,
-- route or certificate); telemetry and quarantine_events are not, and where they
-- are adopted their indexes are their owner's business.
-- Locks: SHARE on the table (writers wait) while an index is built.
-- +goose StatementBegin
DO $$
DECLARE
  want record;
BEGIN
  FOR want IN
    SELECT * FROM (VALUES
      ('device_registry', true, 'device_registry_tenant_device_key', ARRAY['tenant_id', 'device_id']),
      ('device_state', true, 'device_state_tenant_device_key', ARRAY['tenant_id', 'device_id']),
      ('device_sensors', true, 'device_sensors_tenant_device_metric_key', ARRAY['tenant_id', 'device_id', 'metric_key']),
      ('quarantine_counters_minute', true, 'quarantine_counters_minute_key', ARRAY['bucket_minute', 'tenant_id', 'reason']),
      ('device_commands', false, 'device_commands_tenant_command', ARRAY['tenant_id', 'command_id']),
      ('device_commands', false, 'device_commands_tenant_device_created', ARRAY['tenant_id', 'device_id', 'created_at']),
      ('device_certificates', false, 'device_certificates_tenant_device', ARRAY['tenant_id', 'device_id']),
      ('device_modules', false, 'device_modules_tenant_device', ARRAY['tenant_id', 'device_id']),
      ('message_routes', false, 'message_routes_tenant', ARRAY['tenant_id']),
      ('subscriptions', false, 'subscriptions_tenant', ARRAY['tenant_id'])
    ) AS v (tbl, uniq, idx, cols)
    WHERE NOT EXISTS (
      SELECT FROM pg_index i
      CROSS JOIN LATERAL (
        SELECT array_agg(a.attname::text ORDER BY k.ord) AS cols
        FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, ord)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE k.ord <= i.indnkeyatts
      ) have
      WHERE i.indrelid = to_regclass(v.tbl)
        AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
        AND CASE WHEN v.uniq
              -- ON CONFLICT (a, b) accepts a unique index on the same columns in any order.
              THEN i.indisunique AND i.indimmediate
                   AND have.cols @> v.cols AND have.cols <@ v.cols
              ELSE have.cols[1:cardinality(v.cols)] = v.cols
            END
    )
  LOOP
    EXECUTE format('CREATE %s INDEX IF NOT EXISTS %I ON %s (%s)',
                   CASE WHEN want.uniq THEN 'UNIQUE' ELSE '' END,
                   want.idx, to_regclass(want.tbl),
                   (SELECT string_agg(quote_ident(c), ', ') FROM unnest(want.cols) AS c));
  END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down

-- Nothing: every table of this file may have been here before us and may hold
-- data that others live on. Dropping them is for a person to decide.
SELECT 1;
