-- Full queue: once the server's queue of notifications is full, because a session listens
-- and has a transaction open for long, no commit with one succeeds. So none of what ingest
-- writes sends one where the queue is nearly full: one message with a route, one ack, or
-- one device that registers itself would otherwise keep all that is written with it from
-- being written. Who listens looks at the tables every second or so anyway, and believes
-- for a second at most that a device is not registered.
--
-- All other changes are announced as before: their commit fails, and whoever makes them
-- sees it, rather than that a revoked device goes on for as long as caches believe.
--
-- Locks: none on tables. In use: as before.

-- +goose Up

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION crossfade_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF pg_notification_queue_usage() < 0.9 THEN
    PERFORM pg_notify('crossfade_outbox', '');
  END IF;
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION crossfade_downlink_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF pg_notification_queue_usage() < 0.9 THEN
    PERFORM pg_catalog.pg_notify('crossfade_downlink', '');
  END IF;
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION crossfade_devices_changed() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$
BEGIN
  IF TG_OP = 'INSERT' AND TG_TABLE_NAME = 'device_registry' AND pg_notification_queue_usage() >= 0.9 THEN
    RETURN NULL;
  END IF;
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

-- +goose Down

-- Locks: none on tables.

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION crossfade_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('crossfade_outbox', '');
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION crossfade_downlink_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_catalog.pg_notify('crossfade_downlink', '');
  RETURN NULL;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION crossfade_devices_changed() RETURNS trigger
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
