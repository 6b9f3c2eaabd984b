package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// maxSensorText bounds last_value_text, in bytes. The whole value is in telemetry.
const maxSensorText = 255

// fits is the SQL for the characters that a column of device_sensors holds: an
// adopted varchar may be shorter than what devices send, and that must not keep
// the message out.
func fits(column string) string {
	return fmt.Sprintf(`(SELECT CASE WHEN atttypmod > 4 THEN atttypmod - 4 ELSE 1000 END FROM pg_attribute
         WHERE attrelid = to_regclass('device_sensors') AND attname = '%s')`, column)
}

// updateSensors relies on the lock of the device for the order of its rows. Equally late
// values count: a device whose clock shows seconds, or days, sends many in each.
var updateSensors = fmt.Sprintf(`
UPDATE device_sensors AS s
   SET last_value = u.value, last_value_text = left(u.value_text, %s), last_seen_at = u.at
  FROM (SELECT t, d, k, value, value_text, %s AS at
          FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[], $6::timestamptz[]) AS u(t, d, k, value, value_text, at)) AS u
 WHERE s.tenant_id = u.t AND s.device_id = u.d AND s.metric_key = u.k
   AND (s.last_seen_at <= u.at OR s.last_seen_at IS NULL OR s.last_seen_at > now() + %s)`,
	fits("last_value_text"), believed("u.at"), clockSlack)

// insertSensors inserts what is missing as far as the limits go. It counts and
// inserts under the lock of the device, with a snapshot taken after it: instances
// that race see each other's sensors.
var insertSensors = fmt.Sprintf(`
INSERT INTO device_sensors (tenant_id, device_id, metric_key, display_name, unit, status, source, last_value, last_value_text, last_seen_at)
SELECT n.t, n.d, n.k, left(n.name, %s), nullif(n.unit, ''), 'ACTIVE', 'auto', n.value, left(n.value_text, %s), %s
  FROM (SELECT u.*, row_number() OVER (PARTITION BY t, d ORDER BY k COLLATE "C") AS nth
          FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[], $6::timestamptz[], $7::text[], $8::text[], $9::int8[])
               AS u(t, d, k, value, value_text, at, name, unit, most)
         WHERE length(k) <= %s
           AND NOT EXISTS (SELECT FROM device_sensors AS s WHERE s.tenant_id = u.t AND s.device_id = u.d AND s.metric_key = u.k)) AS n
 CROSS JOIN LATERAL (SELECT count(*) AS already FROM device_sensors AS s WHERE s.tenant_id = n.t AND s.device_id = n.d) AS c
 WHERE c.already + n.nth <= n.most
 ORDER BY n.t COLLATE "C", n.d COLLATE "C", n.k COLLATE "C"
    ON CONFLICT (tenant_id, device_id, metric_key) DO NOTHING`,
	fits("display_name"), fits("last_value_text"), believed("n.at"), fits("metric_key"))

// sensorNews is the latest value of one metric in a batch. A boolean has both a
// number, 0 or 1, and a text; a text and everything else has only a text.
type sensorNews struct {
	key   string
	value canonical.Value
	at    time.Time
}

// addSensors keeps the latest value of each metric, of equally late ones the last.
// A null is no value.
func (n *deviceNews) addSensors(e *Entry) {
	visitMetrics(e, func(key string, v canonical.Value) {
		if v.IsNull() {
			return
		}
		s := n.sensor(key)
		if s == nil {
			n.sensors = append(n.sensors, sensorNews{key, v, e.Msg.Time})
		} else if !e.Msg.Time.Before(s.at) {
			s.value, s.at = v, e.Msg.Time
		}
	})
}

// fewSensors is up to how many a look through them is quicker than a map.
const fewSensors = 64

// sensor finds what is known of a metric, nil for nothing. Names are hostile input: a
// batch may hold a hundred thousand of one device.
func (n *deviceNews) sensor(key string) *sensorNews {
	if len(n.sensors) <= fewSensors {
		for i := range n.sensors {
			if n.sensors[i].key == key {
				return &n.sensors[i]
			}
		}
		return nil
	}
	if n.byKey == nil {
		n.byKey = make(map[string]int)
	}
	for i := len(n.byKey); i < len(n.sensors); i++ {
		n.byKey[n.sensors[i].key] = i
	}
	if i, ok := n.byKey[key]; ok {
		return &n.sensors[i]
	}
	return nil
}

// sensorRows are the columns of a batch's sensors.
type sensorRows struct {
	tenants, devices, keys []string
	values                 []*float64
	texts                  []*string
	at                     []time.Time
}

// writeSensors moves the devices' sensors forward and creates those that are new.
// Beyond its limit a device gets no more of them; of those that come in one batch
// the first in order of their keys are made.
func writeSensors(ctx context.Context, tx pgx.Tx, devices []*deviceNews) error {
	rows := newSensorRows(devices)
	if len(rows.keys) == 0 {
		return nil
	}
	tag, err := tx.Exec(ctx, updateSensors, rows.tenants, rows.devices, rows.keys, rows.values, rows.texts, rows.at)
	if err != nil || tag.RowsAffected() == int64(len(rows.keys)) {
		return err // nearly always all are there and move
	}
	names, units := make([]string, len(rows.keys)), make([]string, len(rows.keys))
	limits := make([]int64, 0, len(rows.keys))
	for i, key := range rows.keys {
		names[i], units[i] = describeMetric(key)
	}
	for _, n := range devices {
		for range n.sensors {
			limits = append(limits, int64(n.device.SensorLimit))
		}
	}
	_, err = tx.Exec(ctx, insertSensors, rows.tenants, rows.devices, rows.keys, rows.values, rows.texts, rows.at, names, units, limits)
	return err
}

func newSensorRows(devices []*deviceNews) *sensorRows {
	all := 0
	for _, n := range devices {
		all += len(n.sensors)
	}
	r := &sensorRows{make([]string, 0, all), make([]string, 0, all), make([]string, 0, all),
		make([]*float64, 0, all), make([]*string, 0, all), make([]time.Time, 0, all)}
	for _, n := range devices {
		slices.SortFunc(n.sensors, func(a, b sensorNews) int { return strings.Compare(a.key, b.key) })
		for _, s := range n.sensors {
			number, text := sensorValue(s.value)
			r.tenants, r.devices, r.keys = append(r.tenants, n.Tenant), append(r.devices, n.Device), append(r.keys, s.key)
			r.values, r.texts, r.at = append(r.values, number), append(r.texts, text), append(r.at, s.at)
		}
	}
	return r
}

func sensorValue(v canonical.Value) (number *float64, text *string) {
	switch v.Kind() {
	case canonical.KindNumber:
		f, _ := v.Float()
		return &f, nil
	case canonical.KindTrue:
		f, s := 1.0, "true"
		return &f, &s
	case canonical.KindFalse:
		f, s := 0.0, "false"
		return &f, &s
	case canonical.KindString:
		s, _ := v.Text()
		s = cutText(s, maxSensorText)
		return nil, &s
	}
	s := cutText(string(v.AppendCanonical(nil)), maxSensorText)
	return nil, &s
}

// cutText cuts s to at most n bytes, between characters.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
