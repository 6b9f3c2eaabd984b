package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
)

// The message types that device_state tells apart.
const (
	typeTelemetry = "telemetry"
	typeHeartbeat = "heartbeat"
)

// A clock more than clockSlack ahead of the database's is not believed: its
// messages count as of now, or one of them would hold the device's state, sensors
// and location still until that time comes. Such a time that is stored already is
// overruled by the next message.
const clockSlack = `interval '5 minutes'`

// believed is the SQL for a message's time where it may move something forward.
func believed(at string) string {
	return fmt.Sprintf(`CASE WHEN %[1]s > now() + %[2]s THEN now() ELSE %[1]s END`, at, clockSlack)
}

// newer is the SQL for the later of a column of the row s and a time that may be NULL.
func newer(column, at string) string {
	return fmt.Sprintf(`CASE WHEN s.%[1]s > now() + %[3]s AND %[2]s IS NOT NULL THEN %[2]s ELSE greatest(s.%[1]s, %[2]s) END`, column, at, clockSlack)
}

// upsertState locks the row of every device of the batch, in order, also where it
// changes nothing: whatever else is written of a device is written under that lock.
// A row in which no time moves is not rewritten.
var upsertState = fmt.Sprintf(`
INSERT INTO device_state AS s (tenant_id, device_id, site_id, last_seen_at, last_telemetry_at, last_heartbeat_at, crossfade_located_at)
SELECT t, d, site, %s, %s, %s, %s
  FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[]) AS u(t, d, site, seen, telemetry, heartbeat, located)
 ORDER BY t COLLATE "C", d COLLATE "C"
    ON CONFLICT (tenant_id, device_id) DO UPDATE
   SET site_id = EXCLUDED.site_id,
       last_seen_at = %s,
       last_telemetry_at = %s,
       last_heartbeat_at = %s,
       crossfade_located_at = %s
 WHERE (EXCLUDED.last_seen_at > s.last_seen_at) IS NOT FALSE AND EXCLUDED.last_seen_at IS NOT NULL
    OR (EXCLUDED.last_telemetry_at > s.last_telemetry_at) IS NOT FALSE AND EXCLUDED.last_telemetry_at IS NOT NULL
    OR (EXCLUDED.last_heartbeat_at > s.last_heartbeat_at) IS NOT FALSE AND EXCLUDED.last_heartbeat_at IS NOT NULL
    OR (EXCLUDED.crossfade_located_at > s.crossfade_located_at) IS NOT FALSE AND EXCLUDED.crossfade_located_at IS NOT NULL
    OR greatest(s.last_seen_at, s.last_telemetry_at, s.last_heartbeat_at, s.crossfade_located_at) > now() + %s AND EXCLUDED.last_seen_at IS NOT NULL`,
	believed("seen"), believed("telemetry"), believed("heartbeat"), believed("located"),
	newer("last_seen_at", "EXCLUDED.last_seen_at"), newer("last_telemetry_at", "EXCLUDED.last_telemetry_at"),
	newer("last_heartbeat_at", "EXCLUDED.last_heartbeat_at"), newer("crossfade_located_at", "EXCLUDED.crossfade_located_at"),
	clockSlack)

// deviceNews is what a batch says of one device.
type deviceNews struct {
	pipeline.DeviceKey
	device *pipeline.Device

	seen, telemetry, heartbeat time.Time // zero where there was no such message
	sensors                    []sensorNews
	byKey                      map[string]int // of the sensors, once they are many
	place                      *placeNews
}

// writeDevices moves forward what is kept of the devices themselves: their state,
// sensors and location. Shadow reports among the entries change none of it, but
// their devices are locked with the others: the shadow step would lock them in an
// order of its own.
func writeDevices(ctx context.Context, tx pgx.Tx, entries []*Entry) error {
	devices := gatherNews(entries)
	for _, step := range []struct {
		name  string
		write func(context.Context, pgx.Tx, []*deviceNews) error
	}{
		{"update device_state", writeState},
		{"write device_sensors", writeSensors},
		{"update the location in device_registry", writePlaces},
	} {
		if err := step.write(ctx, tx, devices); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// gatherNews sums the batch up by device, in the order in which devices are locked.
func gatherNews(entries []*Entry) []*deviceNews {
	byKey := make(map[pipeline.DeviceKey]*deviceNews, len(entries))
	var devices []*deviceNews
	for _, e := range entries {
		key := pipeline.DeviceKey{Tenant: e.Msg.Tenant, Device: e.Msg.Device}
		n, ok := byKey[key]
		if !ok {
			n = &deviceNews{DeviceKey: key}
			byKey[key] = n
			devices = append(devices, n)
		}
		n.device = e.Device // the last: it may have been looked up again meanwhile
		if e.Msg.Kind == pipeline.KindTelemetry {
			n.add(e)
		}
	}
	slices.SortFunc(devices, func(a, b *deviceNews) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Device, b.Device))
	})
	return devices
}

func (n *deviceNews) add(e *Entry) {
	at := e.Msg.Time
	n.seen = later(n.seen, at)
	switch e.Msg.MsgType {
	case typeTelemetry:
		n.telemetry = later(n.telemetry, at)
	case typeHeartbeat:
		n.heartbeat = later(n.heartbeat, at)
	}
	n.addSensors(e)
	n.addPlace(e)
}

// later is the later of two times, the zero Time being none. Year 1 is a time that
// a device may send.
func later(a, b time.Time) time.Time {
	if b.After(a) || a.IsZero() {
		return b
	}
	return a
}

func writeState(ctx context.Context, tx pgx.Tx, devices []*deviceNews) error {
	tenants, ids, sites := make([]string, len(devices)), make([]string, len(devices)), make([]string, len(devices))
	seen, telemetry, heartbeat := make([]*time.Time, len(devices)), make([]*time.Time, len(devices)), make([]*time.Time, len(devices))
	located := make([]*time.Time, len(devices))
	for i, n := range devices {
		tenants[i], ids[i], sites[i] = n.Tenant, n.Device, n.device.Site
		seen[i], telemetry[i], heartbeat[i] = orNull(&n.seen), orNull(&n.telemetry), orNull(&n.heartbeat)
		if n.place != nil {
			located[i] = &n.place.at
		}
	}
	_, err := tx.Exec(ctx, upsertState, tenants, ids, sites, seen, telemetry, heartbeat, located)
	return err
}

func orNull(t *time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return t
}
