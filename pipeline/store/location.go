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

// updatePlaces moves locations forward. There is no column for when a location
// was true, so it counts if no other batch has brought a later message of the
// same type. A location that is the same is not written.
var updatePlaces = fmt.Sprintf(`
UPDATE device_registry AS r
   SET latitude = u.lat, longitude = u.lng, location_source = 'auto'
  FROM (SELECT u.t, u.d, lat, lng, s.at AS latest, %s AS at, %s AS upto
          FROM unnest($1::text[], $2::text[], $3::float8[], $4::float8[], $5::text[], $6::timestamptz[], $7::timestamptz[]) AS u(t, d, lat, lng, type, at, upto)
         CROSS JOIN LATERAL (SELECT CASE u.type WHEN 'telemetry' THEN last_telemetry_at WHEN 'heartbeat' THEN last_heartbeat_at ELSE last_seen_at END AS at
                               FROM device_state WHERE tenant_id = u.t AND device_id = u.d) AS s) AS u
 WHERE r.tenant_id = u.t AND r.device_id = u.d
   AND NOT (%s)
   AND (u.at >= u.latest OR u.upto >= u.latest OR r.latitude IS NULL OR r.longitude IS NULL)
   AND (r.latitude::float8 IS DISTINCT FROM u.lat OR r.longitude::float8 IS DISTINCT FROM u.lng)`,
	believed("u.at"), believed("u.upto"), locationPinned)

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
	msgType  string
	at       time.Time
}

// addPlace keeps the latest location, of equally late ones the last.
func (n *deviceNews) addPlace(e *Entry) {
	if e.Device.LocationPinned || n.place != nil && e.Msg.Time.Before(n.place.at) {
		return
	}
	if lat, lng, ok := placeOf(e.Msg); ok {
		n.place = &placeNews{lat, lng, e.Msg.MsgType, e.Msg.Time}
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

// upto is the time of the batch's last message of the type that the location came with.
func (n *deviceNews) upto() time.Time {
	switch n.place.msgType {
	case typeTelemetry:
		return n.telemetry
	case typeHeartbeat:
		return n.heartbeat
	}
	return n.seen
}

// writePlaces writes the devices' locations, unless an operator has set them.
func writePlaces(ctx context.Context, tx pgx.Tx, devices []*deviceNews) error {
	var tenants, ids, types []string
	var lats, lngs []float64
	var at, upto []time.Time
	for _, n := range devices {
		if n.place == nil {
			continue
		}
		tenants, ids, types = append(tenants, n.Tenant), append(ids, n.Device), append(types, n.place.msgType)
		lats, lngs = append(lats, n.place.lat), append(lngs, n.place.lng)
		at, upto = append(at, n.place.at), append(upto, n.upto())
	}
	if len(tenants) == 0 {
		return nil
	}
	var b pgx.Batch
	b.Queue(giveWay)
	b.Queue(updatePlaces, tenants, ids, lats, lngs, types, at, upto)
	b.Queue(resumePatience)
	return tx.SendBatch(ctx, &b).Close()
}
