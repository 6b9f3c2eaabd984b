package store_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// past is long before any clock that the tests run by.
var past = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// news is a message of t1's device, n seconds after past; rest are more members of
// the payload, each with a comma before it.
func news(device, msgType string, n int, rest string) store.Entry {
	ts := past.Add(time.Duration(n) * time.Second).Format(time.RFC3339)
	e := entryOf(copyOf("tenant/t1/device/"+device+"/"+msgType, fmt.Sprintf(`{"ts":%q,"site_id":"s1"%s}`, ts, rest), noon))
	e.Device.SensorLimit = pipeline.DefaultSensorLimit
	return e
}

// seconds is a column's distance from past.
func seconds(column string) string {
	return fmt.Sprintf("extract(epoch FROM %s - '2024-01-01Z')::int", column)
}

// TestDeviceState: times move forward only, each by messages of its own type.
func TestDeviceState(tt *testing.T) {
	t := newStoreTest(tt)
	for _, c := range []struct {
		name    string
		batches [][]store.Entry
		want    string // seen | telemetry | heartbeat | site
	}{
		{"telemetry", [][]store.Entry{{news("d1", "telemetry", 5, "")}}, "5 | 5 | - | s1"},
		{"heartbeat", [][]store.Entry{{news("d1", "heartbeat", 5, "")}}, "5 | - | 5 | s1"},
		{"another word", [][]store.Entry{{news("d1", "alarm", 5, "")}}, "5 | - | - | s1"},
		{"all, out of order in a batch", [][]store.Entry{{news("d1", "heartbeat", 7, ""), news("d1", "alarm", 9, ""), news("d1", "telemetry", 5, ""), news("d1", "heartbeat", 6, "")}}, "9 | 5 | 7 | s1"},
		{"out of order across batches", [][]store.Entry{{news("d1", "telemetry", 9, "")}, {news("d1", "telemetry", 5, "")}, {news("d1", "heartbeat", 6, "")}}, "9 | 9 | 6 | s1"},
		{"not fresh", [][]store.Entry{{news("d1", "telemetry", 5, "")}, {refuse(news("d1", "telemetry", 5, ""), pipeline.TokenInvalid)}}, "5 | 5 | - | s1"},
		{"with a shadow report", [][]store.Entry{{shadow("d1", `{"reported":{},"ts":"2024-01-01T01:00:00Z"}`), news("d1", "telemetry", 5, "")}}, "5 | 5 | - | s1"},
		{"the year 1", [][]store.Entry{{entryOf(copyOf("tenant/t1/device/d1/telemetry", `{"ts":"0001-01-02"}`, noon))}, {news("d1", "telemetry", 1, "")}}, "1 | 1 | - | s1"},
	} {
		t.exec(`TRUNCATE device_state, crossfade_ledger`)
		for _, batch := range c.batches {
			t.commit(batch...)
		}
		if got := t.row(seconds("last_seen_at")+", "+seconds("last_telemetry_at")+", "+seconds("last_heartbeat_at")+", site_id", "device_state"); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	t.exec(`TRUNCATE device_state, crossfade_ledger`)
	t.commit(refuse(news("d1", "telemetry", 1, ""), pipeline.TokenInvalid))
	t.wantCount(0, `SELECT count(*) FROM device_state`)
}

// TestDeviceClockAhead: a message from the future counts as of now, so that those
// after it count too; a future that was stored is overruled.
func TestDeviceClockAhead(tt *testing.T) {
	t := newStoreTest(tt)
	ahead := func(n int) store.Entry {
		e := entryOf(copyOf(telemetryTopic, fmt.Sprintf(`{"ts":"2199-01-01T00:00:%02dZ","metrics":{"a":%d},"lat":%d,"lng":1}`, n, n, n), noon))
		e.Device.SensorLimit = 5
		return e
	}
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1')`)
	const now = `BETWEEN now() - interval '1 minute' AND now()`
	for n := range 3 {
		if n == 2 {
			t.exec(`UPDATE device_state SET last_seen_at = '2150-01-01', last_telemetry_at = '2150-01-01', last_heartbeat_at = '2020-01-01', crossfade_located_at = '2150-01-01'`)
			t.exec(`UPDATE device_sensors SET last_seen_at = '2150-01-01'`)
		}
		t.commit(ahead(n))
		t.wantCount(1, `SELECT count(*) FROM device_state WHERE last_seen_at `+now+` AND last_telemetry_at `+now)
		t.wantCount(1, `SELECT count(*) FROM device_sensors WHERE last_seen_at `+now+` AND last_value = $1`, n)
		t.wantCount(1, `SELECT count(*) FROM device_registry WHERE latitude = $1`, n)
	}
	t.wantCount(1, `SELECT count(*) FROM device_state WHERE last_heartbeat_at = '2020-01-01'`)
}

// TestEffectsOnce: copies that are not fresh, and news that are old, do not even
// rewrite a row.
func TestEffectsOnce(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1')`)
	at := func(n, v int) store.Entry {
		return news("d1", "telemetry", n, fmt.Sprintf(`,"metrics":{"a":%d},"lat":%d,"lng":1`, v, v))
	}
	t.wantFresh("first", 1, at(5, 1))
	versions := func() string {
		return t.row("(SELECT ctid FROM device_state), (SELECT ctid FROM device_sensors), (SELECT ctid FROM device_registry)", "(SELECT) AS x")
	}
	before := versions()
	t.wantFresh("again", 0, at(5, 1), at(5, 1))
	t.wantFresh("older", 2, at(3, 2), at(4, 3))
	if after := versions(); after != before {
		t.Errorf("rows were rewritten: %s, before %s", after, before)
	}
	if got := t.row("last_value, latitude", "device_sensors, device_registry"); got != "1 | 1" {
		t.Errorf("got %s", got)
	}
	registry := t.row("ctid", "device_registry")
	t.wantFresh("newer, at the same place", 1, at(6, 1))
	if after := t.row("ctid", "device_registry"); after != registry {
		t.Errorf("a place that is the same was written")
	}
}

// TestEffectsAreSetBased: a batch takes as many statements for a hundred devices as for one.
func TestEffectsAreSetBased(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`CREATE SEQUENCE statements START 1000;
		CREATE FUNCTION count_statement() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$ BEGIN PERFORM nextval('statements'); RETURN NULL; END $$`)
	for _, table := range []string{"telemetry", "device_state", "device_sensors", "device_registry", "device_commands", "crossfade_downlink", "quarantine_events", "quarantine_counters_minute"} {
		t.exec(`CREATE TRIGGER count_statement AFTER INSERT OR UPDATE ON ` + table + ` FOR EACH STATEMENT EXECUTE FUNCTION count_statement()`)
	}
	statements := func(devices int) int {
		t.exec(`TRUNCATE telemetry, device_state, device_sensors, device_registry, crossfade_ledger`)
		t.exec(`INSERT INTO device_registry (tenant_id, device_id) SELECT 't1', 'd' || n FROM generate_series(1, $1) AS n`, devices)
		var batch []store.Entry
		for d := range devices {
			d := fmt.Sprintf("d%d", d+1)
			for n := range 3 {
				batch = append(batch, news(d, "telemetry", n, fmt.Sprintf(`,"metrics":{"a":%d,"b":1,"c%d":2},"lat":%d,"lng":1`, n, n, n)),
					shadow(d, fmt.Sprintf(`{"reported":{},"version":%d}`, n)), ack(d, fmt.Sprintf(`{"command_id":"c%d"}`, n)), refuse(news(d, "telemetry", 100+n, ""), pipeline.TokenInvalid))
			}
		}
		before := t.count(`SELECT last_value FROM statements`)
		if fresh := t.commit(batch...); fresh != len(batch) {
			t.Fatalf("%d of %d took effect", fresh, len(batch))
		}
		return t.count(`SELECT last_value FROM statements`) - before
	}
	if one, many := statements(1), statements(100); one != many || one < 8 {
		t.Errorf("%d statements for one device, %d for a hundred", one, many)
	}
}

// TestEffectsRace: eight instances with overlapping batches of the same devices in
// orders of their own. None fails, no device gets more sensors than it may have,
// and what is left is what the latest messages said.
func TestEffectsRace(tt *testing.T) {
	t := newStoreTest(tt)
	const messages, writers, size, devices, limit = 1200, 8, 100, 7, 6
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) SELECT 't1', 'd' || n FROM generate_series(0, $1 - 1) AS n`, devices)
	message := func(n int) store.Entry {
		d := fmt.Sprintf("d%d", n%devices)
		e := news(d, []string{"telemetry", "heartbeat"}[n%2], n, fmt.Sprintf(`,"metrics":{"a":%d,"k%d":1,"l%d":2},"lat":%g,"lng":1`, n, n%90, n%77, float64(n)/100))
		if n%5 == 0 {
			e = shadow(d, fmt.Sprintf(`{"reported":{"n":%d},"version":%d}`, n, n))
		}
		e.Device.SensorLimit = limit
		return e
	}
	// Every device has its sensor "a", so that the limit does not decide over it.
	for d := range devices {
		e := news(fmt.Sprintf("d%d", d), "telemetry", -1, `,"metrics":{"a":-1}`)
		e.Device.SensorLimit = limit
		t.commit(e)
	}
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			order := append(rand.Perm(messages), rand.Perm(messages)...)
			for ; len(order) > 0; order = order[min(size, len(order)):] {
				batch := make([]store.Entry, min(size, len(order)))
				for i := range batch {
					batch[i] = message(order[i])
				}
				if err := t.Commit(t.Context(), batch); err != nil {
					t.Errorf("a batch failed: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.wantCount(messages/5*4+devices, `SELECT count(*) FROM telemetry`)
	t.wantCount(devices*limit, `SELECT count(*) FROM device_sensors`)
	t.wantCount(limit, `SELECT max(n) FROM (SELECT count(*) AS n FROM device_sensors GROUP BY tenant_id, device_id) AS x`)
	const latest = `SELECT device_id, max(time) AS at, max(time) FILTER (WHERE msg_type = 'telemetry') AS telemetry,
		max(time) FILTER (WHERE msg_type = 'heartbeat') AS heartbeat, max((metrics ->> 'a')::int) AS a FROM telemetry GROUP BY device_id`
	t.wantCount(devices, `SELECT count(*) FROM device_state AS s JOIN (`+latest+`) AS l USING (device_id)
		WHERE (last_seen_at, last_telemetry_at, last_heartbeat_at) = (l.at, l.telemetry, l.heartbeat)`)
	t.wantCount(devices, `SELECT count(*) FROM device_sensors AS s JOIN (`+latest+`) AS l USING (device_id)
		WHERE metric_key = 'a' AND last_value = l.a AND last_seen_at = l.at`)
	t.wantCount(0, `SELECT count(*) FROM device_sensors AS s WHERE last_seen_at <> (SELECT max(time) FROM telemetry AS t WHERE t.device_id = s.device_id AND t.metrics ? s.metric_key)`)
	t.wantCount(devices, `SELECT count(*) FROM device_registry JOIN (`+latest+`) AS l USING (device_id) WHERE latitude = l.a::float8 / 100`)
}

// TestEffectsInAdoptedTables: varchar columns that are shorter than what devices
// send don't keep a message out.
func TestEffectsInAdoptedTables(tt *testing.T) {
	url := devstack.TestDatabase(tt)
	conn, err := pgx.Connect(tt.Context(), url)
	if err != nil {
		tt.Fatal(err)
	}
	schemaExec(tt, conn, `
		CREATE TABLE device_sensors (id bigserial PRIMARY KEY, tenant_id varchar(16) NOT NULL, device_id varchar(16) NOT NULL, metric_key varchar(10) NOT NULL,
			display_name varchar(6), unit varchar(16), status varchar(16) NOT NULL DEFAULT 'x', source varchar(8),
			last_value double precision, last_value_text varchar(4), last_seen_at timestamptz, UNIQUE (device_id, metric_key, tenant_id));
		CREATE TABLE device_registry (tenant_id varchar(16), device_id varchar(16), latitude numeric(9, 6), longitude numeric(9, 6), location_source varchar(8), PRIMARY KEY (tenant_id, device_id));
		CREATE TABLE device_state (tenant_id varchar(16), device_id varchar(16), site_id varchar(16), status varchar(8) NOT NULL DEFAULT 'ONLINE', last_seen_at timestamptz);
		INSERT INTO device_registry VALUES ('t1', 'd1')`)
	if err := conn.Close(tt.Context()); err != nil {
		tt.Fatal(err)
	}
	migrate(tt, url)
	t := openStoreTest(tt, url)
	for n := 1; n <= 2; n++ {
		t.wantFresh("message", 1, news("d1", "telemetry", n, fmt.Sprintf(`,"metrics":{"temperature_of_the_room":1,"temp_c":%d,"mode":"ééééé%d"},"lat":52.123456789,"lng":%d`, n, n, n)))
	}
	want := "mode | Mode | éééé | -\ntemp_c | Temper | - | 2"
	if got := t.row("metric_key, display_name, last_value_text, last_value", "device_sensors ORDER BY 1"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, want := t.row("latitude, longitude, location_source, s.status", "device_registry, device_state AS s"), "52.123457 | 2.000000 | auto | ONLINE"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestEffectsDoNotDeadlock: eight instances with messages of their own, all with
// a time, so that neither the ledger nor a stripe keeps them apart, of the same devices: shadow reports by one
// and telemetry by another, in orders of their own.
func TestEffectsDoNotDeadlock(tt *testing.T) {
	t := newStoreTest(tt)
	const writers, batches, devices = 8, 25, 40
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) SELECT 't1', 'd' || n FROM generate_series(0, $1 - 1) AS n`, devices)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for b := range batches {
				n := b*writers + w + 1
				var batch []store.Entry
				for i, d := range rand.Perm(devices) {
					if i%2 == 0 {
						batch = append(batch, shadow(fmt.Sprintf("d%d", d), fmt.Sprintf(`{"reported":{"n":%d},"version":%d,"ts":"2024-01-01T00:00:00Z"}`, n, n)))
					} else {
						batch = append(batch, news(fmt.Sprintf("d%d", d), "telemetry", n, fmt.Sprintf(`,"metrics":{"a":%d,"b%d":1},"lat":%g,"lng":2`, n, n%5, float64(n)/100)))
					}
				}
				if err := t.Commit(t.Context(), batch); err != nil {
					t.Errorf("a batch failed: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.wantCount(writers*batches*devices/2, `SELECT count(*) FROM telemetry`)
	t.wantCount(0, `SELECT count(*) FROM device_sensors AS s WHERE metric_key = 'a' AND last_value <> (SELECT max((metrics ->> 'a')::int) FROM telemetry AS t WHERE t.device_id = s.device_id)`)
}
