package process_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
)

// TestPoisonRow: PostgreSQL refuses rows of a batch of 500. They go to quarantine
// with their raw bytes, the others are written, all are acknowledged, and none is
// delivered again.
func TestPoisonRow(t *testing.T) {
	for name, poison := range map[string][]int{"one": {137}, "the first": {0}, "the last": {499}, "several": {3, 4, 250, 251, 252, 498}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, database(t), func(o *process.Options) { o.BatchSize, o.Workers = 500, 1 })
			r.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'poison' USING ERRCODE = '22023'; END $$`)
			r.exec(fmt.Sprintf(`CREATE TRIGGER refuse BEFORE INSERT ON telemetry FOR EACH ROW WHEN (NEW.seq IN (%s)) EXECUTE FUNCTION refuse()`, strings.Trim(strings.Join(strings.Fields(fmt.Sprint(poison)), ","), "[]")))
			for n := range 500 {
				r.mqtt(good(n))
			}
			r.drain()
			if r.acked.Load() != 500 {
				t.Errorf("%d acknowledged, want 500", r.acked.Load())
			}
			r.wantCount(500-len(poison), `SELECT count(*) FROM telemetry`)
			r.wantCount(500, `SELECT count(*) FROM crossfade_ledger`)
			for _, n := range poison {
				r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE raw = $1 AND reason = 'METRIC_VALUE_INVALID' AND detail LIKE '%poison%22023%'`, []byte(good(n)))
			}
			r.wantCount(len(poison), `SELECT count(*) FROM quarantine_events`)
			r.wantCount(len(poison), `SELECT sum(cnt) FROM quarantine_counters_minute`)
			if err := r.Health(); err != nil {
				t.Errorf("poison is no trouble of PostgreSQL's: %v", err)
			}
		})
	}
}

// TestPoisonOfOtherKinds has a reason that fits.
func TestPoisonOfOtherKinds(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.exec(`ALTER TABLE device_state ADD CHECK (reported_version <> 7)`)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'x')`)
	r.exec(`ALTER TABLE device_commands ADD CHECK (ack_details ->> 'a' <> 'poison')`)
	r.jetstream("shadow/reported", `{"reported":{},"version":7}`)
	r.jetstream("commands/ack", `{"command_id":"c1","details":{"a":"poison"}}`)
	r.mqtt(good(1))
	r.drain()
	r.wantCount(1, `SELECT count(*) FROM telemetry`)
	r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason = 'SHADOW_INVALID'`)
	r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason = 'COMMAND_ACK_INVALID'`)
}

// TestDeviceDeletedMeanwhile: an adopted table has a foreign key to the registry, and a
// device is deleted that instances still remember. Its messages are those of an unknown
// device, or register it again; the others are written.
func TestDeviceDeletedMeanwhile(t *testing.T) {
	for provision, want := range map[bool]string{false: "UNREGISTERED_DEVICE", true: ""} {
		r := newRig(t, database(t), func(o *process.Options) { o.Workers, o.AutoProvision = 1, provision })
		r.exec(`ALTER TABLE device_state ADD FOREIGN KEY (tenant_id, device_id) REFERENCES device_registry ON DELETE CASCADE;
			INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd2', 's1');
			INSERT INTO subscriptions (subscription_id, tenant_id) VALUES ('s', 't1')`)
		both := func(n int) {
			for _, device := range []string{"d1", "d2"} {
				r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/" + device + "/telemetry", Body: []byte(good(n))}, nil)
			}
		}
		both(1)
		r.drain()
		// Nobody hears of it.
		r.exec(`ALTER TABLE device_registry DISABLE TRIGGER USER; DELETE FROM device_registry WHERE device_id = 'd2'; ALTER TABLE device_registry ENABLE TRIGGER USER`)
		both(2)
		r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d2/shadow/reported", Body: []byte(`{"reported":{},"version":1}`)}, nil)
		r.drain()
		if want == "" {
			r.wantCount(4, `SELECT count(*) FROM telemetry`)
			r.wantCount(1, `SELECT count(*) FROM device_state WHERE device_id = 'd2' AND reported_version = 1`)
			r.wantCount(0, `SELECT count(*) FROM quarantine_events`)
			continue
		}
		r.wantCount(3, `SELECT count(*) FROM telemetry`)
		r.wantCount(2, `SELECT count(*) FROM quarantine_events WHERE device_id = 'd2' AND reason = $1`, want)
		r.wantCount(2, `SELECT count(*) FROM quarantine_events`)
	}
}

// TestDeviceDeletedWhileTheRegistryIsLocked: the registry cannot be asked again at once.
// What it says later counts, not what was remembered of the devices.
func TestDeviceDeletedWhileTheRegistryIsLocked(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.Workers = 1 })
	r.exec(`ALTER TABLE device_state ADD FOREIGN KEY (tenant_id, device_id) REFERENCES device_registry ON DELETE CASCADE;
		INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd2', 's1')`)
	both := func(n int) {
		for _, device := range []string{"d1", "d2"} {
			r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/" + device + "/telemetry", Body: []byte(good(n))}, nil)
		}
	}
	both(1)
	r.drain()
	r.exec(`DELETE FROM device_registry`) // and nobody listens
	unlock := r.lock(`LOCK TABLE device_certificates IN ACCESS EXCLUSIVE MODE`)
	both(2)
	r.until("the messages wait", func() bool { return r.SetAside() != nil })
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id, status) VALUES ('t1', 'd1', 's1', 'REVOKED')`)
	unlock()
	r.drain()
	r.wantCount(2, `SELECT count(*) FROM telemetry`)
	r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE device_id = 'd1' AND reason = 'DEVICE_REVOKED'`)
	r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE device_id = 'd2' AND reason = 'UNREGISTERED_DEVICE'`)
}

// TestNarrowColumns: on the predecessor's tables a long name is refused by
// telemetry and by quarantine_events alike. It must not hold up the others.
func TestNarrowColumns(t *testing.T) {
	predecessor, err := os.ReadFile("../../migrations/testdata/predecessor.sql")
	if err != nil {
		t.Fatal(err)
	}
	url := database(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), string(predecessor)+`; TRUNCATE telemetry`); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, url, func(o *process.Options) { o.Workers = 1 })
	long := strings.Repeat("x", 300)
	for _, topic := range []string{"tenant/t1/device/d1/" + long, "tenant/t1/device/" + long + "/telemetry", "tenant/" + long + "/device/d1/telemetry"} {
		r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(good(1))}, nil)
		r.mqtt(good(len(topic)))
	}
	r.drain()
	r.wantCount(2, `SELECT count(*) FROM telemetry`)
	r.wantCount(3, `SELECT count(*) FROM quarantine_events WHERE raw = $1`, []byte(good(1)))
	r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason = 'METRIC_VALUE_INVALID'`)
}

// TestRefusedQuarantineRow: what can't even be quarantined is held, health says
// so, and it goes once the table takes it. Others go on meanwhile.
func TestRefusedQuarantineRow(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.BatchSize = 1 })
	r.exec(`CREATE SEQUENCE attempts`)
	r.exec(`ALTER TABLE quarantine_events ADD CONSTRAINT none CHECK (nextval('attempts') > 0 AND reason <> 'INVALID_JSON')`)
	r.mqtt(`{`)
	r.until("health tells", func() bool { return r.Health() != nil && strings.Contains(r.Health().Error(), "quarantine_events") })
	r.mqtt(good(1))
	r.until("the other is written", func() bool { return r.acked.Load() == 1 })
	tried := r.count(`SELECT last_value FROM attempts`)
	r.until("it is tried three more times", func() bool {
		for range 10_000 {
			if r.Health() == nil {
				t.Fatal("health is well while a message can be neither written nor quarantined")
			}
		}
		return r.count(`SELECT last_value FROM attempts`) >= tried+3
	})
	if r.InHand() != 1 {
		t.Errorf("%d in hand", r.InHand())
	}
	r.exec(`ALTER TABLE quarantine_events DROP CONSTRAINT none`)
	r.drain()
	r.until("health is well", func() bool { return r.Health() == nil })
	r.wantCount(1, `SELECT count(*) FROM quarantine_events`)
}

// TestPostgreSQLAway: stopped in order or killed, in mid-flow. Nothing is
// acknowledged that is not written, health names PostgreSQL, and afterwards
// everything is there once.
func TestPostgreSQLAway(t *testing.T) {
	for name, away := range map[string]func(*testing.T, *devstack.Postgres) error{
		"stopped": func(t *testing.T, pg *devstack.Postgres) error { return pg.Stop(t.Context()) },
		"killed":  func(_ *testing.T, pg *devstack.Postgres) error { return pg.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			pg := devstack.TestPostgres(t)
			url, err := pg.CreateDatabase(t.Context(), "away")
			if err != nil {
				t.Fatal(err)
			}
			r := newRig(t, url, func(o *process.Options) { o.BatchSize = 50 })
			for n := range 3000 {
				r.mqtt(good(n))
			}
			r.until("some are written", func() bool { return r.acked.Load() >= 100 })
			if err := away(t, pg); err != nil {
				t.Fatal(err)
			}
			for n := range 500 {
				r.mqtt(good(2700 + n))
			}
			r.until("health names PostgreSQL", func() bool {
				return r.Health() != nil && strings.Contains(r.Health().Error(), "PostgreSQL is unavailable")
			})
			acked := r.acked.Load()
			r.until("more attempts fail", func() bool { return r.retries() > 4 })
			if now := r.acked.Load(); now != acked {
				t.Errorf("%d were acknowledged without PostgreSQL", now-acked)
			}
			if err := pg.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.db.Reset() // its connections are dead
			if written := r.count(`SELECT count(*) FROM telemetry`); written < int(acked) {
				t.Errorf("%d acknowledged before the failure, but %d written", acked, written)
			}
			r.drain()
			if err := r.Health(); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if r.acked.Load() != 3500 || r.released.Load() != 0 {
				t.Errorf("%d acknowledged, %d released; no delivery attempt may be burnt", r.acked.Load(), r.released.Load())
			}
			r.wantCount(3200, `SELECT count(*) FROM telemetry`)
			r.wantCount(3200, `SELECT count(DISTINCT seq) FROM telemetry`)
		})
	}
}

func (r *rig) retries() (n float64) {
	families, err := r.registry.Gather()
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "crossfade_commit_retries_total" {
			n = f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	return n
}

// TestSchemaBroken: held until an operator has mended it, like an outage.
func TestSchemaBroken(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.exec(`ALTER TABLE telemetry RENAME COLUMN metrics TO gone`)
	r.mqtt(good(1))
	r.until("health tells", func() bool { return r.Health() != nil && strings.Contains(r.Health().Error(), "metrics") })
	r.exec(`ALTER TABLE telemetry RENAME COLUMN gone TO metrics`)
	r.drain()
	r.wantCount(1, `SELECT count(*) FROM telemetry`)
	r.wantCount(0, `SELECT count(*) FROM quarantine_events`)
}
