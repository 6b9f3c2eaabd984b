-- When the location that device_registry has of a device was true, by the device's own
-- clock: without it a late message could take a location back to an earlier one, or one
-- that is overtaken by a message without a location was lost. It stands in device_state,
-- which ingest writes anyway, and under a name of ours, for the table may be adopted.
-- It is empty for locations from before: the next one counts, whatever its time.
--
-- Locks: ACCESS EXCLUSIVE on device_state for an instant (no row is rewritten), so a live
-- database may be migrated. Instances of an older release may go on meanwhile; they move
-- locations as before.

-- +goose Up

-- Asked first: only the owner may alter the table, even where nothing is to be done.
-- +goose StatementBegin
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute
                  WHERE attrelid = to_regclass('device_state') AND attname = 'crossfade_located_at' AND NOT attisdropped) THEN
    ALTER TABLE device_state ADD COLUMN crossfade_located_at timestamptz;
  END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down

-- What it says is lost, and of no use to older releases.
-- Lock: ACCESS EXCLUSIVE on device_state, for an instant.
ALTER TABLE device_state DROP COLUMN crossfade_located_at;
