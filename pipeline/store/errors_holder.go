package store

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
)

// findHolder asks the rows themselves: xmax is the transaction that has locked or
// changed one last, and an unfinished transaction holds a lock on its own number.
// Several that share a lock stand under a number that leads nowhere.
const findHolder = `
SELECT l.pid
  FROM (SELECT xmax FROM device_state WHERE tenant_id = $1 AND device_id = $2
        UNION ALL SELECT xmax FROM device_registry WHERE tenant_id = $1 AND device_id = $2
        UNION ALL SELECT xmax FROM device_sensors WHERE tenant_id = $1 AND device_id = $2
        UNION ALL SELECT xmax FROM device_commands WHERE tenant_id = $1 AND device_id = $2
        UNION ALL SELECT xmax FROM subscriptions WHERE tenant_id::text = $1) AS r
  JOIN pg_locks AS l ON l.locktype = 'transactionid' AND l.granted AND l.transactionid = r.xmax
 WHERE l.pid <> pg_backend_pid()
 LIMIT 1`

// LockHolder returns the process ID of a session that has locked a row which the
// device's messages need, and 0 where none can be told.
func (s *Store) LockHolder(ctx context.Context, k pipeline.DeviceKey) (pid int32, err error) {
	if !storableText(k.Tenant) || !storableText(k.Device) {
		return 0, nil
	}
	err = s.pool.QueryRow(ctx, findHolder, k.Tenant, k.Device).Scan(&pid)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	return pid, translate("look for who holds a lock", err)
}
