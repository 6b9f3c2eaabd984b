package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// locationPinned is the SQL for "somebody set the location by hand" of a
// device_registry r. Whatever is not known to come from the device is taken for
// an operator's. updatePlaces writes 'auto'.
const locationPinned = `coalesce(lower(r.location_source), '') NOT IN ('', 'auto', 'device', 'gps', 'payload', 'telemetry')`

// updatePlaces moves locations forward: crossfade_located_at, which upsertState has
// moved just before, tells when the newest one was true. A location that is the same is
// not written.
var updatePlaces = fmt.Sprintf(`
UPDATE device_registry AS r
   SET latitude = u.lat, longitude = u.lng, location_source = 'auto'
  FROM unnest($1::text[], $2::text[], $3::float8[], $4::float8[], $5::timestamptz[]) AS u(t, d, lat, lng, at)
  JOIN device_state AS s ON s.tenant_id = u.t AND s.device_id = u.d
 WHERE r.tenant_id = u.t AND r.device_id = u.d
   AND NOT (%s)
   AND %s >= s.crossfade_located_at
   AND (r.latitude::float8 IS DISTINCT FROM u.lat OR r.longitude::float8 IS DISTINCT FROM u.lng)`,
	locationPinned, believed("u.at"))

// The rows of device_registry are the backend's, which updates several of them in
// whatever order it likes, and ingest locks them in the order of a query plan. Of
// the two it is ingest that gives way: it gives up a wait long before PostgreSQL's
// deadlock_timeout (1s by default) has it look for somebody to fail.
const giveWay, resumePatience = `
SELECT set_config('crossfade.lock_timeout', current_setting('lock_timeout'), true),
       set_config('lock_timeout', '100ms', true)`, `
SELECT set_config('lock_timeout', current_setting('crossfade.lock_timeout'), true)`

// placeNews is where a device was last in a batch.
type placeNews struct {
	lat, lng float64
	at       time.Time
}

// addPlace keeps the latest location, of equally late ones the last.
func (n *deviceNews) addPlace(e *Entry) {
	if e.Device.LocationPinned || n.place != nil && e.Msg.Time.Before(n.place.at) {
		return
	}
	if lat, lng, ok := placeOf(e.Msg); ok {
		n.place = &placeNews{lat, lng, e.Msg.Time}
	}
}

// placeOf reads a payload's location: lat, else latitude, and lng, else longitude,
// in degrees. Half a location, or one that is not on Earth, is none.
func placeOf(m *pipeline.Message) (lat, lng float64, ok bool) {
	var v struct{ lat, latitude, lng, longitude canonical.Value }
	m.Payload.Each(func(name string, member canonical.Value) {
		switch name {
		case "lat":
			v.lat = member
		case "latitude":
			v.latitude = member
		case "lng":
			v.lng = member
		case "longitude":
			v.longitude = member
		}
	})
	lat, okLat := degrees(v.lat, v.latitude, 90)
	lng, okLng := degrees(v.lng, v.longitude, 180)
	return lat, lng, okLat && okLng
}

// degrees returns the number in v, or in its synonym where v is absent or null.
func degrees(v, synonym canonical.Value, most float64) (float64, bool) {
	if v.IsNull() {
		v = synonym
	}
	f, ok := v.Float()
	return f, ok && f >= -most && f <= most
}

// writePlaces writes the devices' locations, unless an operator has set them.
func writePlaces(ctx context.Context, tx pgx.Tx, devices []*deviceNews) error {
	var tenants, ids []string
	var lats, lngs []float64
	var at []time.Time
	for _, n := range devices {
		if n.place == nil {
			continue
		}
		tenants, ids = append(tenants, n.Tenant), append(ids, n.Device)
		lats, lngs, at = append(lats, n.place.lat), append(lngs, n.place.lng), append(at, n.place.at)
	}
	if len(tenants) == 0 {
		return nil
	}
	var b pgx.Batch
	b.Queue(giveWay)
	b.Queue(updatePlaces, tenants, ids, lats, lngs, at)
	b.Queue(resumePatience)
	return tx.SendBatch(ctx, &b).Close()
}
