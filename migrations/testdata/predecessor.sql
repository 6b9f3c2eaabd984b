-- A database as the service before Crossfade left it: plain tables, varchar
-- columns, keys under other names, columns of its own, rows.

CREATE TABLE telemetry (
  id         bigserial,
  time       timestamptz NOT NULL,
  tenant_id  varchar(64) NOT NULL,
  device_id  varchar(64) NOT NULL,
  site_id    varchar(64),
  msg_type   varchar(32) NOT NULL,
  seq        bigint DEFAULT 0,
  metrics    jsonb NOT NULL,
  created_at timestamptz DEFAULT now()
);
CREATE INDEX idx_telemetry ON telemetry (tenant_id, device_id, time DESC);
INSERT INTO telemetry (time, tenant_id, device_id, site_id, msg_type, seq, metrics)
SELECT '2026-02-09 09:00Z'::timestamptz + g * interval '1 minute', 't1', 'd' || g % 7, 's1', 'telemetry', g, '{"temp_c": 22.5}'
FROM generate_series(1, 500) g;

CREATE TABLE quarantine_events (
  id          bigserial PRIMARY KEY,
  ingested_at timestamptz DEFAULT now(),
  event_ts    timestamptz,
  topic       text,
  tenant_id   varchar(64),
  site_id     varchar(64),
  device_id   varchar(64),
  msg_type    varchar(32),
  reason      varchar(64) NOT NULL,
  payload     jsonb
);
INSERT INTO quarantine_events (topic, reason) VALUES ('x', 'BAD_TOPIC_FORMAT');

CREATE TABLE quarantine_counters_minute (
  bucket_minute timestamptz NOT NULL,
  tenant_id     varchar(64) NOT NULL,
  reason        varchar(64) NOT NULL,
  cnt           integer NOT NULL DEFAULT 0,
  CONSTRAINT their_key UNIQUE (tenant_id, bucket_minute, reason)
);

CREATE TABLE device_registry (
  tenant_id            varchar(64) NOT NULL,
  device_id            varchar(64) NOT NULL,
  site_id              varchar(64) NOT NULL,
  status               varchar(16) NOT NULL DEFAULT 'ACTIVE',
  provision_token_hash text,
  firmware             text,
  PRIMARY KEY (tenant_id, device_id)
);
INSERT INTO device_registry VALUES ('t1', 'd1', 's1', 'ACTIVE', 'abc', 'v7');

CREATE TABLE device_state (
  tenant_id         varchar(64) NOT NULL,
  device_id         varchar(64) NOT NULL,
  site_id           varchar(64),
  status            varchar(16) NOT NULL DEFAULT 'ONLINE',
  last_seen_at      timestamptz,
  last_telemetry_at timestamptz,
  last_heartbeat_at timestamptz,
  battery           real
);
INSERT INTO device_state (tenant_id, device_id, battery) VALUES ('t1', 'd1', 0.5);

CREATE TABLE app_settings (key varchar(100) PRIMARY KEY, value text NOT NULL, updated_at timestamptz DEFAULT now());
INSERT INTO app_settings VALUES ('RATE_LIMIT_RPS', '7');
