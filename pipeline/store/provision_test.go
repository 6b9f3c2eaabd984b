package store_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

func newDevice(tenant, device string) store.NewDevice {
	return store.NewDevice{DeviceKey: pipeline.DeviceKey{Tenant: tenant, Device: device}, Site: "s-" + device}
}

// provision returns, sorted, those for which there was no room.
func (t storeTest) provision(devices ...store.NewDevice) []string {
	t.Helper()
	noRoom, refused, err := t.Provision(t.Context(), devices)
	if err != nil || refused != nil {
		t.Fatalf("refused %v, error %v", refused, err)
	}
	var names []string
	for _, k := range noRoom {
		names = append(names, k.Tenant+"/"+k.Device)
	}
	slices.Sort(names)
	return names
}

func (t storeTest) wantNoRoom(got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("no room for %q, want %q", got, want)
	}
}

func TestProvision(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO subscriptions (subscription_id, tenant_id, subscription_type, status, device_limit, active_device_count, created_at) VALUES
		('a-young', 't1', 'MAIN', 'ACTIVE', NULL, 0, '2026-02-01Z'), ('old-b', 't1', 'MAIN', 'ACTIVE', 3, 0, '2026-01-01Z'), ('old-c', 't1', 'MAIN', 'ACTIVE', 99, 0, '2026-01-01Z'),
		('older', 't1', 'MAIN', 'EXPIRED', 99, 0, '2025-01-01Z'), ('addon', 't1', 'ADDON', 'ACTIVE', 99, 0, '2024-01-01Z'),
		('u', 't2', 'MAIN', 'ACTIVE', NULL, 5, '2026-01-01Z'), ('susp', 't3', 'MAIN', 'SUSPENDED', 9, 0, '2026-01-01Z'),
		('zero', 't5', 'MAIN', 'ACTIVE', 0, 0, '2026-01-01Z'), ('behind', 't6', 'MAIN', 'ACTIVE', 3, 0, '2026-01-01Z'), ('ahead', 't7', 'MAIN', 'ACTIVE', 3, 2, '2026-01-01Z');
		INSERT INTO device_registry (tenant_id, device_id, site_id, status, subscription_id) VALUES
		('t1', 'd0', 'there', 'REVOKED', 'old-b'), ('t6', 'a', NULL, 'ACTIVE', 'behind'), ('t6', 'b', NULL, 'ACTIVE', 'behind'), ('t6', 'c', NULL, 'REVOKED', 'behind')`)

	t.wantNoRoom(t.provision(newDevice("t1", "d2"), newDevice("t1", "d1"), newDevice("t1", "d0"), newDevice("t2", "d1")))
	got, err := t.Devices(t.Context(), []pipeline.DeviceKey{{Tenant: "t1", Device: "d1"}, {Tenant: "t1", Device: "d0"}, {Tenant: "t2", Device: "d1"}})
	t.must(err)
	want := map[pipeline.DeviceKey]pipeline.Device{
		{Tenant: "t1", Device: "d1"}: {Site: "s-d1", Status: "ACTIVE", Subscription: "ACTIVE", SensorLimit: 20},
		{Tenant: "t1", Device: "d0"}: {Site: "there", Status: "REVOKED", Subscription: "ACTIVE", SensorLimit: 20}, // as it was
		{Tenant: "t2", Device: "d1"}: {Site: "s-d1", Status: "ACTIVE", Subscription: "ACTIVE", SensorLimit: 20},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	t.wantCount(2, `SELECT active_device_count FROM subscriptions WHERE subscription_id = 'old-b'`)
	t.wantCount(6, `SELECT active_device_count FROM subscriptions WHERE subscription_id = 'u'`)

	t.wantNoRoom(t.provision(newDevice("t1", "d1"), newDevice("t1", "d2"))) // somebody was faster
	t.wantCount(2, `SELECT active_device_count FROM subscriptions WHERE subscription_id = 'old-b'`)
	t.wantNoRoom(t.provision(newDevice("t1", "d5"), newDevice("t1", "d4"), newDevice("t1", "d3"), newDevice("t2", "d2")), "t1/d4", "t1/d5")
	t.wantNoRoom(t.provision(newDevice("t1", "d1"), newDevice("t1", "d4")), "t1/d4")
	t.wantCount(4, `SELECT count(*) FROM device_registry WHERE subscription_id = 'old-b'`)
	t.wantCount(3, `SELECT active_device_count FROM subscriptions WHERE subscription_id = 'old-b'`)
	t.wantNoRoom(t.provision(newDevice("t3", "d1"), newDevice("t4", "d1"), newDevice("t5", "d1")), "t3/d1", "t4/d1", "t5/d1")

	// The counter is behind, or ahead of the registry: the greater counts.
	t.wantNoRoom(t.provision(newDevice("t6", "d1"), newDevice("t6", "d2"), newDevice("t7", "d1"), newDevice("t7", "d2")), "t6/d2", "t7/d2")
	t.wantNoRoom(t.provision(newDevice("t6", "d3"), newDevice("t7", "d3")), "t6/d3", "t7/d3")
	t.wantCount(0, `SELECT sum(active_device_count) FROM subscriptions WHERE subscription_id IN ('a-young', 'old-c', 'older', 'addon', 'susp', 'zero')`)
}

// TestProvisionRace: several instances want more devices than there is room for, some
// of them the same. The limit is met exactly, the counter agrees, and every device is
// either registered or has no room.
func TestProvisionRace(tt *testing.T) {
	t := newStoreTest(tt)
	const instances, tenants, limit = 4, 3, 50
	t.exec(`INSERT INTO subscriptions (subscription_id, tenant_id, device_limit) SELECT 's' || n, 't' || n, $1 FROM generate_series(1, $2) AS n`, limit, tenants)
	var stores [instances]storeTest
	for i := range stores {
		stores[i] = openStoreTest(tt, t.url)
		_, _, err := stores[i].Provision(tt.Context(), []store.NewDevice{newDevice("t0", "connects")})
		t.must(err)
	}
	var wg sync.WaitGroup
	for i, other := range stores {
		wg.Go(func() {
			for batch := range 10 {
				var devices []store.NewDevice
				for n := range tenants {
					tenant := fmt.Sprintf("t%d", (n+i)%tenants+1)
					for d := range 4 {
						devices = append(devices, newDevice(tenant, fmt.Sprintf("own-%d-%d-%d", i, batch, d)), newDevice(tenant, fmt.Sprintf("common-%d-%d", batch, (d+i)%4)))
					}
				}
				noRoom, refused, err := other.Provision(tt.Context(), devices)
				if err != nil || refused != nil {
					tt.Errorf("refused %v, error %v", refused, err)
					return
				}
				keys := make([]pipeline.DeviceKey, len(devices))
				for n, d := range devices {
					keys[n] = d.DeviceKey
				}
				found, err := other.Devices(tt.Context(), keys)
				if err != nil || len(found)+len(noRoom) < len(devices) {
					tt.Errorf("of %d devices %d are registered and %d have no room; %v", len(devices), len(found), len(noRoom), err)
				}
			}
		})
	}
	wg.Wait()
	t.wantCount(tenants, `SELECT count(*) FROM subscriptions AS s WHERE active_device_count = $1 AND $1 = (SELECT count(*) FROM device_registry AS r WHERE r.tenant_id = s.tenant_id AND r.subscription_id = s.subscription_id)`, limit)
}

// TestProvisionWhatIsRefused: what a table of the operator's does not take harms
// nothing else.
func TestProvisionWhatIsRefused(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO subscriptions (subscription_id, tenant_id, device_limit) VALUES ('s', 't1', 3);
		ALTER TABLE device_registry ADD CHECK (length(device_id) < 9)`)
	noRoom, refused, err := t.Provision(t.Context(), []store.NewDevice{
		newDevice("t1", "a"), newDevice("t1", "too-long-1"), newDevice("t1", "b"), newDevice("t1", "too-long-2"),
		newDevice("t1", "nul\x00"), newDevice("\xff", "x"), {DeviceKey: pipeline.DeviceKey{Tenant: "t1", Device: "c"}, Site: "s\x00"},
	})
	if err != nil || refused == nil || !strings.Contains(refused.Error(), "device_registry") || len(noRoom) != 0 {
		t.Errorf("no room for %v, refused %v, error %v", noRoom, refused, err)
	}
	t.wantCount(2, `SELECT count(*) FROM device_registry`)
	t.wantCount(2, `SELECT active_device_count FROM subscriptions`)

	t.exec(`ALTER TABLE device_registry ADD COLUMN plant text NOT NULL DEFAULT 'x'; ALTER TABLE device_registry ALTER COLUMN plant DROP DEFAULT`)
	if _, refused, err = t.Provision(t.Context(), []store.NewDevice{newDevice("t1", "d"), newDevice("t1", "e")}); err != nil || refused == nil || !strings.Contains(refused.Error(), "plant") || !strings.Contains(refused.Error(), "2 of tenant") {
		t.Errorf("refused %v, error %v; want it to name the column, and both without trying each", refused, err)
	}
}

// TestProvisionFloodOfRefusals: a tenant's devices invent names that no table takes.
// They cost a bounded number of transactions, and other tenants' devices are registered.
func TestProvisionFloodOfRefusals(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO subscriptions (subscription_id, tenant_id) SELECT 's' || n, 't' || n FROM generate_series(0, 4) AS n;
		ALTER TABLE device_registry ADD CHECK (device_id NOT LIKE 'invented%');
		CREATE SEQUENCE attempts;
		CREATE FUNCTION attempt() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM nextval(''attempts''); RETURN NULL; END';
		CREATE TRIGGER attempt BEFORE INSERT ON device_registry FOR EACH STATEMENT EXECUTE FUNCTION attempt()`)
	var devices []store.NewDevice
	for i := range 1000 {
		devices = append(devices, newDevice("t2", fmt.Sprintf("invented-%04d", i)))
	}
	for _, tenant := range []string{"t0", "t1", "t3", "t4"} {
		devices = append(devices, newDevice(tenant, "a"), newDevice(tenant, "b"))
	}
	devices = append(devices, newDevice("t4", "invented"), newDevice("t4", "c"))
	noRoom, refused, err := t.Provision(t.Context(), devices)
	if err != nil || refused == nil || len(noRoom) != 0 {
		t.Errorf("no room for %v, refused %v, error %v", noRoom, refused, err)
	}
	t.wantCount(9, `SELECT count(*) FROM device_registry`)
	if n := t.count(`SELECT last_value FROM attempts`); n > 250 {
		t.Errorf("%d attempts", n)
	}
}

// TestProvisionUnderIDsOfAnotherType, as adopted databases have them.
func TestProvisionUnderIDsOfAnotherType(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`ALTER TABLE subscriptions ALTER COLUMN subscription_id TYPE uuid USING subscription_id::uuid;
		INSERT INTO subscriptions (subscription_id, tenant_id, device_limit) VALUES (gen_random_uuid(), 't1', 2)`)
	t.wantNoRoom(t.provision(newDevice("t1", "a"), newDevice("t1", "b"), newDevice("t1", "c")), "t1/c")
	t.exec(`ALTER TABLE device_registry ALTER COLUMN subscription_id TYPE uuid USING subscription_id::uuid; UPDATE subscriptions SET device_limit = 3`)
	t.wantNoRoom(t.provision(newDevice("t1", "d"), newDevice("t1", "e")), "t1/e")
	t.wantCount(3, `SELECT active_device_count FROM subscriptions`)
}

func TestAppSettings(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO app_settings VALUES ('A', '1'), ('B', NULL), ('C', ''), ('D', '4')`)
	got, err := t.AppSettings(t.Context(), []string{"A", "B", "C", "E"})
	if want := map[string]string{"A": "1", "C": ""}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}
