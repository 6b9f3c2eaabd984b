package store

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// readSettings takes the value as text, for it may be jsonb, and one of several
// rows of a key where nothing keeps the key unique: the same on every instance.
const readSettings = `
SELECT key::text, max(value::text)
  FROM app_settings
 WHERE key::text = ANY ($1) AND value IS NOT NULL
 GROUP BY key::text`

// AppSettings returns the values in app_settings of those of the keys that have one.
func (s *Store) AppSettings(ctx context.Context, keys []string) (map[string]string, error) {
	rows, err := s.pool.Query(ctx, readSettings, keys)
	if err != nil {
		return nil, translate("read app_settings", err)
	}
	values := make(map[string]string, len(keys))
	var key, value string
	_, err = pgx.ForEachRow(rows, []any{&key, &value}, func() error {
		values[key] = value
		return nil
	})
	return values, translate("read app_settings", err)
}
