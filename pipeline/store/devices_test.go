package store_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

func TestDevices(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id, status, provision_token_hash) VALUES
		('t1', 'd1', 's1', 'ACTIVE', 'ABCDEF'), ('t1', 'd2', NULL, 'REVOKED', NULL), ('t2', 'd1', 's2', 'ACTIVE', 'ab'), ('t1', 'é😀', 's', 'ACTIVE', '')`)
	key := func(tenant, device string) pipeline.DeviceKey {
		return pipeline.DeviceKey{Tenant: tenant, Device: device}
	}
	got, err := t.Devices(t.Context(), []pipeline.DeviceKey{
		key("t1", "d1"), key("t1", "d2"), key("t1", "é😀"), key("t1", "D1"), key("t2", "d2"), key("", ""),
		key("t1", "nul\x00"), key("t1", "\xff"), key("t1", "\xed\xa0\x80"), key("t1", strings.Repeat("x", 60_000)), key("t1", `d1' OR '1'='1`),
	})
	t.must(err)
	want := map[pipeline.DeviceKey]pipeline.Device{
		key("t1", "d1"): {Site: "s1", Status: "ACTIVE", TokenHash: "abcdef", SensorLimit: 20},
		key("t1", "d2"): {Status: "REVOKED", SensorLimit: 20},
		key("t1", "é😀"): {Site: "s", Status: "ACTIVE", SensorLimit: 20},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if none, err := t.Devices(t.Context(), []pipeline.DeviceKey{key("\xff", "")}); err != nil || len(none) != 0 {
		t.Errorf("nothing that can be asked for: %v, %v", none, err)
	}
}

// TestDevicesAndTheirSurroundings: what other tables say of a device.
func TestDevicesAndTheirSurroundings(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_tiers VALUES (1, 50), (2, NULL);
		INSERT INTO subscriptions (subscription_id, tenant_id, status) VALUES ('a', 't1', 'SUSPENDED'), ('b', 't2', 'ACTIVE');
		INSERT INTO device_registry (tenant_id, device_id, subscription_id, sensor_limit, tier_id, location_source) VALUES
			('t1', 'd1', 'a', 7, 1, 'manual'), ('t1', 'd2', 'b', NULL, 1, 'auto'), ('t1', 'd3', 'gone', NULL, 2, NULL), ('t2', 'd1', 'b', -3, 9, 'somebody');
		INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, common_name, status, not_after) VALUES
			('t1', 'd1', '1', 't1/d1', 'ACTIVE', '2027-01-01Z'), ('t1', 'd1', '2', 'x', 'REVOKED', NULL), ('t1', 'd1', '3', 'y', 'ACTIVE', NULL),
			('t1', 'd1', '4', 'z', 'ACTIVE', 'infinity'), ('t1', 'd1', '5', 'o', 'ACTIVE', '-infinity'), ('t2', 'd1', '6', 't2/d1', 'ACTIVE', NULL);
		INSERT INTO device_modules (tenant_id, device_id, status, metric_key_map) VALUES
			('t1', 'd1', 'ACTIVE', '{"a": "x", "b": "y"}'), ('t1', 'd1', 'ACTIVE', '{"b": "w", "c": 7, "d": "", "e": "l\ni", "f": null}'), ('t1', 'd1', 'REMOVED', '{"g": "v"}'),
			('t1', 'd2', 'ACTIVE', '[1]'), ('t1', 'd3', 'ACTIVE', '{}'), ('t2', 'd1', 'ACTIVE', jsonb_build_object('a', repeat('k', 129), 'b', repeat('é', 128)))`)
	key := func(tenant, device string) pipeline.DeviceKey {
		return pipeline.DeviceKey{Tenant: tenant, Device: device}
	}
	got, err := t.Devices(t.Context(), []pipeline.DeviceKey{key("t1", "d1"), key("t1", "d2"), key("t1", "d3"), key("t2", "d1")})
	t.must(err)
	want := map[pipeline.DeviceKey]pipeline.Device{
		key("t1", "d1"): {Status: "ACTIVE", Subscription: "SUSPENDED", SensorLimit: 7, LocationPinned: true, KeyMap: map[string]string{"a": "x", "b": "w"},
			Certificates: []pipeline.Certificate{{CommonName: "t1/d1", NotAfter: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}, {CommonName: "y"}, {CommonName: "z"}, {CommonName: "o", NotAfter: time.Unix(0, 0).UTC()}}},
		key("t1", "d2"): {Status: "ACTIVE", SensorLimit: 50}, // another tenant's subscription is none
		key("t1", "d3"): {Status: "ACTIVE", SensorLimit: 20},
		key("t2", "d1"): {Status: "ACTIVE", Subscription: "ACTIVE", LocationPinned: true, KeyMap: map[string]string{"b": strings.Repeat("é", 128)},
			Certificates: []pipeline.Certificate{{CommonName: "t2/d1"}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

// TestKeyMapsOfOtherTypes: in an adopted table they may be text, where anything is
// written, and one that cannot be read keeps no device from being found.
func TestKeyMapsOfOtherTypes(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1');
		ALTER TABLE device_modules ALTER metric_key_map DROP DEFAULT, ALTER metric_key_map TYPE text, ALTER metric_key_map DROP NOT NULL;
		INSERT INTO device_modules (tenant_id, device_id, metric_key_map) VALUES ('t1', 'd1', '{"a":"\u0000", "b": "c"}'), ('t1', 'd1', '{"d": "e", "f": {"g": "h"}}'),
			('t1', 'd1', ''), ('t1', 'd1', 'rubbish'), ('t1', 'd1', '{"h": "i"'), ('t1', 'd1', '"j"'), ('t1', 'd1', 'null'), ('t1', 'd1', NULL),
			('t1', 'd1', '{"k": "' || repeat('l', 64 * 1024) || '", "m": "n"}'), ('t1', 'd1', '{"o": "p", "q": 1e400, "r": null}')`)
	key := pipeline.DeviceKey{Tenant: "t1", Device: "d1"}
	got, err := t.Devices(t.Context(), []pipeline.DeviceKey{key})
	t.must(err)
	if want := map[string]string{"b": "c", "d": "e", "o": "p"}; !reflect.DeepEqual(got[key].KeyMap, want) {
		t.Errorf("got %v, want %v", got[key].KeyMap, want)
	}
}

// TestExpiriesOfOtherTypes: in an adopted table they may be text or without a zone. One
// that is no time makes that device unreadable, and no other. A limit may be any number.
func TestExpiriesOfOtherTypes(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) SELECT 't1', 'd' || n FROM generate_series(1, 12) AS n;
		ALTER TABLE device_registry ALTER sensor_limit TYPE numeric;
		UPDATE device_registry SET sensor_limit = 1e30 WHERE device_id = 'd1';
		UPDATE device_registry SET sensor_limit = 'NaN' WHERE device_id = 'd2'`)
	at := func(year int) *time.Time { v := time.Date(year, 2, 28, 0, 0, 0, 0, time.UTC); return &v }
	never, epoch := &time.Time{}, new(time.Time)
	*epoch = time.Unix(0, 0).UTC()
	for of, values := range map[string]map[string]*time.Time{ // nil: unreadable
		"timestamptz": {"NULL": never, "'2027-02-28 01:00+01'": at(2027), "'infinity'": never, "'-infinity'": epoch, "'0044-03-15 BC'": epoch, "'1969-12-31'": epoch, "'20000-02-28'": at(9996)},
		"timestamp":   {"NULL": never, "'2027-02-28'": at(2027), "'infinity'": never, "'0044-03-15 BC'": epoch},
		"date":        {"NULL": never, "'2027-02-28'": at(2027), "'-infinity'": epoch, "'20000-02-28'": at(9996)},
		"text": {"NULL": never, "'2027-02-28'": at(2027), "' 2027-02-28 01:00:00+01'": at(2027), "'20270228T000000Z'": at(2027), "'2027-02-28 00:00:00 UTC'": at(2027), "'infinity'": never,
			"''": nil, "'by noon'": nil, "'never'": nil, "'20000-02-30'": nil, "'x2000-02-28'": nil},
	} {
		t.exec(`TRUNCATE device_certificates; ALTER TABLE device_certificates ALTER not_after TYPE ` + of + ` USING NULL`)
		var keys []pipeline.DeviceKey
		want := make(map[pipeline.DeviceKey]*time.Time)
		for value, end := range values {
			key := pipeline.DeviceKey{Tenant: "t1", Device: fmt.Sprintf("d%d", len(keys)+1)}
			keys, want[key] = append(keys, key), end
			t.exec(`INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, common_name, not_after) VALUES ('t1', $1, $1, 'x', `+value+`)`, key.Device)
		}
		got, err := t.Devices(t.Context(), keys)
		t.must(err)
		for key, end := range want {
			d, ok := got[key]
			switch {
			case !ok:
				t.Errorf("%s: %v is not found", of, key)
			case end == nil:
				if !strings.Contains(d.Unreadable, "device_certificates.not_after") || d.Certificates != nil {
					t.Errorf("%s: %v is %+v, want it to be unreadable", of, key, d)
				}
			case d.Unreadable != "" || len(d.Certificates) != 1 || !d.Certificates[0].NotAfter.Equal(*end):
				t.Errorf("%s: %v is %+v, want %v", of, key, d, end)
			}
		}
		if one, two := got[keys[0]].SensorLimit, got[keys[1]].SensorLimit; one != 1_000_000 || two != 1_000_000 {
			t.Errorf("limits %d and %d", one, two)
		}
	}
}

func shadow(device, payload string) store.Entry {
	return entryOf(copyOf("tenant/t1/device/"+device+"/shadow/reported", payload, noon))
}

// TestDevicesInAdoptedTables: what another's schema may hold is read, or left out; it
// must not fail the look-up, and with it everybody's messages.
func TestDevicesInAdoptedTables(tt *testing.T) {
	t := newStoreTest(tt)
	const site = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
	t.exec(`CREATE TYPE state AS ENUM ('ACTIVE', 'REVOKED', 'SUSPENDED');
		ALTER TABLE device_registry ALTER site_id TYPE uuid USING site_id::uuid, ALTER status DROP DEFAULT, ALTER status DROP NOT NULL,
			ALTER status TYPE state USING status::state, ALTER provision_token_hash TYPE char(64);
		ALTER TABLE subscriptions DROP CONSTRAINT subscriptions_status_check, ALTER status DROP DEFAULT, ALTER status TYPE state USING status::state;
		ALTER TABLE device_certificates ALTER common_name DROP NOT NULL;
		INSERT INTO subscriptions (subscription_id, tenant_id, status) VALUES ('a', 't1', 'SUSPENDED');
		INSERT INTO device_registry (tenant_id, device_id, site_id, status, subscription_id, provision_token_hash) VALUES
			('t1', 'd1', '` + site + `', 'ACTIVE', 'a', 'AB'), ('t1', 'd2', NULL, NULL, NULL, NULL);
		INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, common_name) VALUES ('t1', 'd1', '1', NULL), ('t1', 'd1', '2', 't1/d1'), ('t1', 'd2', '3', NULL)`)
	one, two := pipeline.DeviceKey{Tenant: "t1", Device: "d1"}, pipeline.DeviceKey{Tenant: "t1", Device: "d2"}
	got, err := t.Devices(t.Context(), []pipeline.DeviceKey{one, two})
	t.must(err)
	want := map[pipeline.DeviceKey]pipeline.Device{
		one: {Site: site, Status: "ACTIVE", TokenHash: "ab", Subscription: "SUSPENDED", SensorLimit: 20, Certificates: []pipeline.Certificate{{CommonName: "t1/d1"}}},
		two: {SensorLimit: 20},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

// TestShadowReports: a report replaces the state when its version is at least the
// stored one.
func TestShadowReports(tt *testing.T) {
	t := newStoreTest(tt)
	report := func(version any, n int) store.Entry {
		v := ""
		if version != nil {
			v = fmt.Sprintf(`,"version":%v`, version)
		}
		return shadow("d1", fmt.Sprintf(`{"reported":{"n":%d}%s}`, n, v))
	}
	for _, c := range []struct {
		name    string
		stored  string // version before; "" for no row
		batches [][]store.Entry
		want    string // n | version
	}{
		{"first", "", [][]store.Entry{{report(3, 1)}}, "1 | 3"},
		{"first without a version", "", [][]store.Entry{{report(nil, 1)}}, "1 | 0"},
		{"newer", "3", [][]store.Entry{{report(4, 1)}}, "1 | 4"},
		{"equal", "3", [][]store.Entry{{report(3, 1)}}, "1 | 3"},
		{"older", "3", [][]store.Entry{{report(2, 1)}}, "- | 3"},
		{"without a version, after one", "3", [][]store.Entry{{report(nil, 1)}}, "- | 3"},
		{"without a version, after none", "0", [][]store.Entry{{report(nil, 1)}}, "1 | 0"},
		{"out of order in a batch", "", [][]store.Entry{{report(3, 1), report(5, 2), report(4, 3)}}, "2 | 5"},
		{"out of order across batches", "", [][]store.Entry{{report(5, 1)}, {report(4, 2)}, {report(6, 3)}, {report(5, 4)}}, "3 | 6"},
		{"equal versions: the last", "", [][]store.Entry{{report(5, 1), report(5, 2)}, {report(5, 3)}}, "3 | 5"},
		{"equal versions in a batch: the last to arrive", "", [][]store.Entry{{report(5, 9), report(5, 1), report(5, 5)}}, "5 | 5"},
		{"a copy that is not fresh changes nothing", "", [][]store.Entry{{report(5, 1)}, {report(5, 2)}, {report(5, 1)}}, "2 | 5"},
		{"negative", "", [][]store.Entry{{report(-1921, 1)}}, "- | 0"},
		{"negative, beside telemetry", "", [][]store.Entry{{news("d1", "telemetry", 1, ""), report(-1921, 1)}}, "- | 0"},
		{"negative, after none", "0", [][]store.Entry{{report(-1921, 1)}}, "- | 0"},
		{"refused", "3", [][]store.Entry{{refuse(report(9, 1), pipeline.ShadowInvalid)}}, "- | 3"},
	} {
		t.exec(`TRUNCATE device_state, crossfade_ledger`)
		if c.stored != "" {
			t.exec(`INSERT INTO device_state (tenant_id, device_id, reported_version, desired_state, last_seen_at) VALUES ('t1', 'd1', $1, '{"keep": 1}', $2)`, c.stored, noon)
		}
		for _, batch := range c.batches {
			t.commit(batch...)
		}
		if got := t.row("reported_state ->> 'n', reported_version", "device_state"); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if c.stored != "" {
			t.wantCount(1, `SELECT count(*) FROM device_state WHERE desired_state = '{"keep": 1}' AND last_seen_at = $1`, noon)
		}
	}
	// In an adopted table the version may be missing.
	t.exec(`TRUNCATE device_state, crossfade_ledger; ALTER TABLE device_state ALTER COLUMN reported_version DROP NOT NULL;
		INSERT INTO device_state (tenant_id, device_id, reported_version) VALUES ('t1', 'd1', NULL)`)
	t.commit(report(nil, 1))
	if got := t.row("reported_state ->> 'n', reported_version", "device_state"); got != "1 | 0" {
		t.Errorf("after no version at all: %s", got)
	}
	t.exec(`TRUNCATE device_state, telemetry, crossfade_ledger`)
	t.commit(shadow("d1", `{"reported":{},"version":9223372036854774784}`), shadow("d2", `{"reported":{"x":[1.50,"é\n"]},"version":1}`),
		entryOf(copyOf("tenant/t2/device/d1/shadow/reported", `{"reported":{"t":2}}`, noon)))
	want := "t1 | d1 | s1 | {} | 9223372036854774784 | true\nt1 | d2 | s1 | {\"x\": [1.5, \"é\\n\"]} | 1 | true\nt2 | d1 | s1 | {\"t\": 2} | 0 | true"
	if got := t.row("tenant_id, device_id, site_id, reported_state, reported_version, shadow_updated_at > now() - interval '1 minute'", "device_state ORDER BY 1"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	t.wantCount(0, `SELECT count(*) FROM telemetry`)
}

// TestShadowRace: the highest version wins, whoever commits last.
func TestShadowRace(tt *testing.T) {
	t := newStoreTest(tt)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 10 {
				var batch []store.Entry
				for d := range 5 {
					v := (i*8+w)*7%80 + 1
					batch = append(batch, shadow(fmt.Sprintf("d%d", (d+w)%5), fmt.Sprintf(`{"reported":{"n":%d},"version":%d}`, v, v)))
				}
				if err := t.Commit(t.Context(), batch); err != nil {
					t.Errorf("a batch failed: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.wantCount(5, `SELECT count(*) FROM device_state WHERE reported_version = 80 AND reported_state = '{"n": 80}'`)
	t.wantCount(5, `SELECT count(*) FROM device_state`)
}

// TestDevicesOfALockedTable: a store that waits briefly does so for look-ups too.
func TestDevicesOfALockedTable(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd1', 's1')`)
	tx, err := t.pool.Begin(t.Context())
	t.must(err)
	_, err = tx.Exec(t.Context(), `LOCK TABLE device_registry IN ACCESS EXCLUSIVE MODE`)
	t.must(err)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // the others wait for 10 s
	defer cancel()
	keys := []pipeline.DeviceKey{{Tenant: "t1", Device: "d1"}}
	brief := t.Waiting(10 * time.Millisecond)
	if _, err := brief.Devices(ctx, keys); !errors.Is(err, store.ErrLocked) {
		t.Errorf("while it is locked: %v", err)
	}
	t.must(tx.Rollback(t.Context()))
	if found, err := brief.Devices(t.Context(), keys); err != nil || found[keys[0]].Site != "s1" {
		t.Errorf("afterwards: %v, %v", found, err)
	}
}
