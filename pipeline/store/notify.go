package store

import (
	"context"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
)

// maxNotification is the most bytes that pg_notify takes for a payload.
const maxNotification = 7999

// notifyInserted tells nobody where the server's queue of notifications is nearly full:
// once it is, no transaction with a notification can commit, and who then listens does
// not come to read. PostgreSQL warns in its log from half on.
const notifyInserted = `
SELECT pg_notify('telemetry_inserted', p) FROM unnest($1::text[]) AS p
 WHERE (SELECT pg_notification_queue_usage()) < 0.9`

// notifyTenants tells listeners, once the transaction is committed, which tenants
// have new telemetry.
func notifyTenants(ctx context.Context, tx pgx.Tx, entries []*Entry) error {
	tenants := make(map[string]struct{})
	for _, e := range entries {
		tenants[e.Msg.Tenant] = struct{}{}
	}
	_, err := tx.Exec(ctx, notifyInserted, notifications(slices.Sorted(maps.Keys(tenants))))
	return err
}

// notifications are JSON arrays of the tenants, as few as can carry them. A tenant
// whose name alone is too long for one is left out.
func notifications(tenants []string) []string {
	var payloads []string
	list := []byte{'['}
	for _, t := range tenants {
		name := appendJSONString(nil, t)
		if len(name)+2 > maxNotification {
			continue
		}
		if len(list) > 1 && len(list)+len(name)+2 > maxNotification {
			payloads, list = append(payloads, string(append(list, ']'))), append(list[:0], '[')
		}
		if len(list) > 1 {
			list = append(list, ',')
		}
		list = append(list, name...)
	}
	if len(list) > 1 {
		payloads = append(payloads, string(append(list, ']')))
	}
	return payloads
}
