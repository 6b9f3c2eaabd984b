-- Sender: what a replay has to know of a quarantined message beyond its bytes, topic
-- and path: as whom the broker knew its sender, and whether it came by HTTP. Without
-- the one a certificate login would need a token the second time, or a stranger would
-- be taken for nobody; without the other the ts of a message could be taken for one
-- that a mirror added.
--
-- Locks: ACCESS EXCLUSIVE, for an instant, on quarantine_events and its partitions;
-- no row is rewritten. Instances of the release before this one go on writing, and
-- leave the columns NULL: unknown.

-- +goose Up

-- Asked first: only the owner may alter the table, even where nothing is to be done.
-- +goose StatementBegin
DO $$
BEGIN
  IF 2 > (SELECT count(*) FROM pg_attribute
           WHERE attrelid = to_regclass('quarantine_events') AND attname IN ('username', 'origin') AND NOT attisdropped) THEN
    ALTER TABLE quarantine_events
      ADD COLUMN IF NOT EXISTS username text,     -- '' for none, NULL where it was not kept
      ADD COLUMN IF NOT EXISTS origin   smallint; -- 0 a producer, 1 HTTP, NULL where it was not kept
  END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down

-- Nothing: an adopted table may have had columns of these names before us.
SELECT 1;
