package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline/store"
)

const sensorColumns = "metric_key, display_name, unit, status, source, last_value, last_value_text, "

// TestSensorsAreFound: a new key makes a sensor, of any type of message.
func TestSensorsAreFound(tt *testing.T) {
	t := newStoreTest(tt)
	t.commit(news("d1", "telemetry", 1, `,"metrics":{"temp_c":22.50,"door_open":true,"mode":"eco","n":null,"list":[1,{"b":1,"a":2}],"off":false}`),
		news("d1", "alarm", 2, `,"metrics":{"Überdruck":1e300}`), news("d1", "heartbeat", 3, ``),
		news("d1", "telemetry", 4, `,"metrics":{"long":"`+strings.Repeat("é", 300)+`"}`))
	want := strings.Join([]string{
		"door_open | Door open | - | ACTIVE | auto | 1 | true | 1",
		`list | List | - | ACTIVE | auto | - | [1,{"a":2,"b":1}] | 1`,
		"long | Long | - | ACTIVE | auto | - | " + strings.Repeat("é", 127) + " | 4",
		"mode | Mode | - | ACTIVE | auto | - | eco | 1",
		"off | Off | - | ACTIVE | auto | 0 | false | 1",
		"temp_c | Temperature | °C | ACTIVE | auto | 22.5 | - | 1",
		"Überdruck | Überdruck | - | ACTIVE | auto | 1e+300 | - | 2",
	}, "\n")
	if got := t.row(sensorColumns+seconds("last_seen_at"), `device_sensors ORDER BY metric_key COLLATE "C"`); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestSensorsMoveForward: the latest value by the device's own time counts, and
// what people have written of a sensor stays.
func TestSensorsMoveForward(tt *testing.T) {
	t := newStoreTest(tt)
	at := func(n int, value string) store.Entry {
		return news("d1", "telemetry", n, `,"metrics":{"a":`+value+`}`)
	}
	for _, c := range []struct {
		name    string
		batches [][]store.Entry
		want    string // value | text | seen
	}{
		{"in order", [][]store.Entry{{at(1, "1")}, {at(2, "2")}}, "2 | - | 2"},
		{"out of order", [][]store.Entry{{at(2, "2")}, {at(1, "1")}}, "2 | - | 2"},
		{"in a batch", [][]store.Entry{{at(1, "1"), at(3, "3"), at(2, "2")}}, "3 | - | 3"},
		{"equally late in a batch: the last", [][]store.Entry{{at(1, "1"), at(1, "3"), at(1, "2")}}, "2 | - | 1"},
		{"equally late in two batches: the last", [][]store.Entry{{at(1, "1")}, {at(1, "2")}}, "2 | - | 1"},
		{"duplicate members: the last", [][]store.Entry{{at(1, `1,"a":2`)}}, "2 | - | 1"},
		{"duplicate members: the last, which is null", [][]store.Entry{{at(1, "1")}, {at(2, `5,"a":null`)}}, "1 | - | 1"},
		{"another type", [][]store.Entry{{at(1, "1")}, {at(2, `"x"`)}}, "- | x | 2"},
		{"null is no value", [][]store.Entry{{at(1, "1")}, {at(2, "null")}}, "1 | - | 1"},
		{"not fresh", [][]store.Entry{{at(1, "1")}, {at(2, "2")}, {at(1, "1")}}, "2 | - | 2"},
	} {
		t.exec(`TRUNCATE device_sensors, device_state, crossfade_ledger`)
		for _, batch := range c.batches {
			t.commit(batch...)
		}
		if got := t.row("last_value, last_value_text, "+seconds("last_seen_at"), "device_sensors"); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	t.exec(`UPDATE device_sensors SET display_name = 'mine', unit = 'ell', status = 'MUTED', source = 'operator', last_seen_at = NULL`)
	t.commit(at(5, "5"))
	if got, want := t.row(sensorColumns+seconds("last_seen_at"), "device_sensors"), "a | mine | ell | MUTED | operator | 5 | - | 5"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestSensorLimit: over the limit the message is written and the sensors that are
// there move; nothing is created.
func TestSensorLimit(tt *testing.T) {
	t := newStoreTest(tt)
	limited := func(limit, n int, keys ...string) store.Entry {
		for i, k := range keys {
			keys[i] = fmt.Sprintf("%q:%d", k, n)
		}
		e := news("d1", "telemetry", n, `,"metrics":{`+strings.Join(keys, ",")+`}`)
		e.Device.SensorLimit = limit
		return e
	}
	for i, c := range []struct {
		e    store.Entry
		want string
	}{
		{limited(0, 1, "a"), ""},
		{limited(2, 2, "c", "b", "a"), "a=2 b=2"},
		{limited(2, 3, "d", "a"), "a=3 b=2"},
		{limited(3, 4, "e", "d", "b"), "a=3 b=4 d=4"},
		{limited(1, 5, "x", "d"), "a=3 b=4 d=5"},
	} {
		t.wantFresh("message", 1, c.e)
		if got := strings.Join(t.strings(`SELECT metric_key || '=' || last_value FROM device_sensors ORDER BY 1`), " "); got != c.want {
			t.Errorf("%d: %s, want %s", i, got, c.want)
		}
		t.wantCount(i+1, `SELECT count(*) FROM telemetry`)
	}
}

// TestSensorsOfABusyDevice: a device without a rate limit fills a batch with metrics of
// ever new names. That takes no longer than as many by many devices; the time grew with
// the square of the names until the transaction was broken off, again and again.
func TestSensorsOfABusyDevice(tt *testing.T) {
	t := newStoreTest(tt)
	var batch []store.Entry
	for n := range 2000 {
		var metrics strings.Builder
		for k := range 50 {
			fmt.Fprintf(&metrics, `,"of-one-length-%04d-%02d":%d`, n, k, n)
		}
		batch = append(batch, news("d1", "telemetry", n, `,"metrics":{"a":`+fmt.Sprint(n)+metrics.String()+`}`))
	}
	t.commit(batch...)
	t.wantCount(1999, `SELECT last_value::int FROM device_sensors WHERE metric_key = 'a'`)
	t.wantCount(20, `SELECT count(*) FROM device_sensors`)
	t.wantCount(2000, `SELECT count(*) FROM telemetry`)
}

func TestSensorsAreDescribed(tt *testing.T) {
	t := newStoreTest(tt)
	for key, want := range map[string]string{
		"temp_c": "Temperature | °C", "temperature": "Temperature | -", "outdoorTempF": "Outdoor temperature | °F", "battery": "Battery | %",
		"batt_v": "Battery | V", "rssi": "RSSI | dBm", "c": "C | -", "door.open": "Door open | -", "phase-1-kwh": "Phase 1 | kWh", "power_on": "Power on | -",
		"%%": "%% | -", "": " | -", "é😀": "É | -", "电压": "电压 | -",
	} {
		t.exec(`TRUNCATE device_sensors, device_state, crossfade_ledger`)
		t.commit(news("d1", "telemetry", 1, fmt.Sprintf(`,"metrics":{%q:1}`, key)))
		if got := t.row("display_name, unit", "device_sensors"); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

// TestMetricsAreRenamed: in telemetry, by the device's modules; the row and the
// sensors have the new names.
func TestMetricsAreRenamed(tt *testing.T) {
	t := newStoreTest(tt)
	for _, c := range []struct {
		name, msgType, metrics string
		keyMap                 map[string]string
		want                   string // metrics | sensors
	}{
		{"no map", "telemetry", `{"b":1,"a":2}`, nil, `{"a": 2, "b": 1} | a=2 b=1`},
		{"renamed", "telemetry", `{"b":1.50,"a":{"b":2}}`, map[string]string{"b": "x", "c": "y"}, `{"a": {"b": 2}, "x": 1.5} | a= x=1.5`},
		{"swapped", "telemetry", `{"b":1,"a":2}`, map[string]string{"b": "a", "a": "b"}, `{"a": 1, "b": 2} | a=1 b=2`},
		{"to itself", "telemetry", `{"a":2}`, map[string]string{"a": "a"}, `{"a": 2} | a=2`},
		{"to itself before others", "telemetry", `{"A":1,"a":2}`, map[string]string{"A": "a", "a": "a"}, `{"a": 2} | a=2`},
		{"an existing name wins", "telemetry", `{"b":1,"x":2}`, map[string]string{"b": "x"}, `{"x": 2} | x=2`},
		{"of several the first", "telemetry", `{"c":1,"b":2}`, map[string]string{"b": "x", "c": "x"}, `{"x": 2} | x=2`},
		{"of duplicates the last", "telemetry", `{"b":1,"b":2}`, map[string]string{"b": "x"}, `{"x": 2} | x=2`},
		{"of duplicates the last, which is none", "telemetry", `{"b":1,"b":null}`, nil, `{"b": null} | `},
		{"and renamed", "telemetry", `{"b":1,"b":null}`, map[string]string{"b": "x"}, `{"x": null} | `},
		{"hard to write", "telemetry", `{"b":1}`, map[string]string{"b": "\"\\\t\u001f😀"}, `{"\"\\\t\u001f😀": 1} | ` + "\"\\\t\u001f😀=1"},
		{"heartbeat", "heartbeat", `{"b":1}`, map[string]string{"b": "x"}, `{"b": 1} | b=1`},
		{"null", "telemetry", `null`, map[string]string{"b": "x"}, `{} | `},
	} {
		t.exec(`TRUNCATE telemetry, device_sensors, device_state, crossfade_ledger`)
		e := news("d1", c.msgType, 1, `,"metrics":`+c.metrics)
		e.Device.KeyMap = c.keyMap
		t.wantFresh(c.name, 1, e)
		got := t.row("metrics", "telemetry") + " | " + strings.Join(t.strings(`SELECT metric_key || '=' || coalesce(last_value::text, '') FROM device_sensors ORDER BY metric_key COLLATE "C"`), " ")
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}
