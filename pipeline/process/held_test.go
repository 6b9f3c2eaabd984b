package process_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
)

// sequence records in which order copies were acknowledged.
type sequence struct {
	mu     sync.Mutex
	bodies []string
}

func (s *sequence) note(body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bodies = append(s.bodies, string(body))
}

func (s *sequence) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.bodies)
}

// send submits a copy by MQTT that enters into s once it is acknowledged.
func (r *rig) send(s *sequence, topic, payload string) {
	r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(payload)}, s.note)
}

// lock runs SQL in a transaction of another session, which stays open until unlock.
func (r *rig) lock(sql string) (unlock func()) {
	r.Helper()
	tx, err := r.db.Begin(r.Context())
	if err == nil {
		_, err = tx.Exec(r.Context(), sql)
	}
	if err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
	var once sync.Once
	unlock = func() { once.Do(func() { _ = tx.Rollback(context.WithoutCancel(r.Context())) }) }
	r.Cleanup(unlock)
	return unlock
}

// TestLockedRow: another session keeps a row locked that t1's messages need. All
// others go on, also later ones; t1's stay in order and are written once the lock
// is gone.
func TestLockedRow(t *testing.T) {
	place := `{"seq":%d,"ts":"2026-11-23T12:00:00.0%02[1]dZ","site_id":"s1","metrics":{"a":1},"lat":%[1]d,"lng":2}`
	for name, c := range map[string]struct{ lock, topic, payload string }{
		"state":        {`SELECT FROM device_state WHERE tenant_id = 't1' FOR UPDATE`, "tenant/t1/device/d1/telemetry", place},
		"a new device": {`INSERT INTO device_state (tenant_id, device_id) VALUES ('t1', 'd3')`, "tenant/t1/device/d3/telemetry", place},
		"location":     {`SELECT FROM device_registry WHERE tenant_id = 't1' AND device_id = 'd1' FOR UPDATE`, "tenant/t1/device/d1/telemetry", place},
		"sensors":      {`SELECT FROM device_sensors WHERE tenant_id = 't1' FOR UPDATE`, "tenant/t1/device/d1/telemetry", place},
		"command":      {`SELECT FROM device_commands WHERE tenant_id = 't1' FOR UPDATE`, "tenant/t1/device/d1/commands/ack", `{"command_id":"c1","seq":%d}`},
		"subscription": {`SELECT FROM subscriptions WHERE tenant_id = 't1' FOR UPDATE`, "tenant/t1/device/new/telemetry", place},
		"counter": {`INSERT INTO quarantine_counters_minute (bucket_minute, tenant_id, reason, cnt)
			SELECT date_trunc('minute', now()) + n * interval '1 minute', 't1', 'SEQ_INVALID', 1 FROM generate_series(0, 10) AS n`, "tenant/t1/device/d1/telemetry", `{"seq":"x%d"}`},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, database(t), func(o *process.Options) { o.Workers, o.AutoProvision = 1, true })
			r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd3', 's1'), ('t1', 'd4', 's1'), ('t2', 'd1', 's1'), ('t2', 'd2', 's1');
				INSERT INTO subscriptions (subscription_id, tenant_id) VALUES ('s1', 't1'), ('s2', 't2');
				INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'x')`)
			r.mqtt(fmt.Sprintf(place, 0))
			r.drain()
			unlock := r.lock(c.lock)
			var locked, others sequence
			for n := range 60 {
				if n == 30 {
					r.until("the others are written", func() bool { return others.len() == 30*3 })
				}
				r.send(&locked, c.topic, fmt.Sprintf(c.payload, n+1))
				r.send(&others, "tenant/t2/device/d1/telemetry", fmt.Sprintf(place, n+1))
				r.send(&others, "tenant/t2/device/d2/telemetry", fmt.Sprintf(place, n+1))
				r.send(&others, fmt.Sprintf("tenant/t2/device/n%d/telemetry", n), fmt.Sprintf(place, n+1))
			}
			r.send(&others, "tenant/t1/device/d4/telemetry", fmt.Sprintf(place, 1)) // even t1's
			r.until("later ones of the others are written", func() bool { return others.len() == 60*3+1 })
			device := strings.Split(c.topic, "/")[3]
			r.until("health names the device", func() bool {
				return r.Health() != nil && strings.Contains(r.Health().Error(), fmt.Sprintf(`tenant "t1", device %q`, device))
			})
			if locked.len() != 0 || r.InHand() != 60 {
				t.Errorf("%d are written in spite of the lock, %d in hand", locked.len(), r.InHand())
			}
			unlock()
			r.send(&locked, c.topic, fmt.Sprintf(c.payload, 61)) // nothing is in its way, but the earlier ones are
			r.drain()
			r.until("health is well", func() bool { return r.Health() == nil })
			if locked.len() != 61 {
				t.Fatalf("%d acknowledged", locked.len())
			}
			for n, body := range locked.bodies {
				if want := fmt.Sprintf(c.payload, n+1); body != want {
					t.Fatalf("message %d is %s, want %s", n+1, body, want)
				}
			}
			r.wantCount(1+61+60*3+1, `SELECT count(*) FROM crossfade_ledger`)
			if strings.HasSuffix(c.topic, "telemetry") && name != "counter" {
				r.wantCount(1+61+60*3+1, `SELECT count(*) FROM telemetry`)
			}
		})
	}
}

// TestUnreadableEntry: PostgreSQL can make nothing of the rows of some devices, in an
// adopted view. Their messages end in quarantine, with what is wrong, until it can; all
// others are written, those of the same batch and tenant too.
func TestUnreadableEntry(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.Workers, o.Settings.RateLimit = 1, 1000 })
	r.exec(`ALTER TABLE device_certificates ALTER not_after TYPE text;
		ALTER TABLE device_certificates RENAME TO certificates;
		CREATE VIEW device_certificates AS SELECT tenant_id, device_id, fingerprint_sha256, common_name, status, not_after::timestamptz FROM certificates;
		INSERT INTO device_registry (tenant_id, device_id, site_id) SELECT 't' || n % 3, 'n' || n, 's1' FROM generate_series(0, 99) AS n;
		INSERT INTO certificates (tenant_id, device_id, fingerprint_sha256, common_name, not_after) VALUES ('t1', 'n13', 'a', 'x', 'by noon'), ('t2', 'n50', 'b', 'y', 'by noon')`)
	seq := 0
	send := func(devices ...int) {
		for _, n := range devices {
			seq++
			r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: fmt.Sprintf("tenant/t%d/device/n%d/telemetry", n%3, n), Body: []byte(good(seq))}, nil)
		}
	}
	all := make([]int, 100)
	for n := range all {
		all[n] = n
	}
	send(all...)
	r.drain()
	r.wantCount(98, `SELECT count(*) FROM telemetry`)
	r.wantCount(2, `SELECT count(*) FROM quarantine_events WHERE reason = 'UNREGISTERED_DEVICE' AND detail LIKE 'what the registry says of the device cannot be read%22007%' AND device_id IN ('n13', 'n50')`)
	// Many of them: they do not keep one that is mended, and others, for ever.
	r.exec(`UPDATE certificates SET not_after = NULL;
		INSERT INTO certificates (tenant_id, device_id, fingerprint_sha256, common_name, not_after) SELECT 't' || n % 3, 'n' || n, 'c' || n, 'x', 'by noon' FROM generate_series(52, 99) AS n`)
	written := func() int {
		r.EverythingChanged()
		send(all...)
		r.drain()
		return r.count(`SELECT count(DISTINCT device_id) FROM telemetry WHERE seq > $1`, seq-100)
	}
	if n := written(); n != 52 {
		t.Errorf("messages of %d devices are written, want 52", n)
	}
	r.exec(`UPDATE certificates SET not_after = NULL`)
	if n := written(); n != 100 {
		t.Errorf("messages of %d devices are written, want all", n)
	}
	if r.released.Load() != 0 || r.Health() != nil {
		t.Errorf("%d released, health %v", r.released.Load(), r.Health())
	}
}

// TestUnreadableTenant: all devices of a tenant have something in a column of text that
// is no time. One look-up tells all of them, and nothing piles up.
func TestUnreadableTenant(t *testing.T) {
	const devices = 1000
	var asked overheard
	r := newRigVia(t, database(t)+"&default_query_exec_mode=describe_exec", asked.dial, func(o *process.Options) {
		o.Workers, o.BatchSize, o.Linger, o.RegistryTTL = 1, devices+1, time.Second, time.Hour
	})
	r.Listening(true)
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) SELECT 't2', 'n' || n, 's1' FROM generate_series(1, $1::int) AS n`, devices)
	r.exec(`ALTER TABLE device_certificates ALTER not_after TYPE text;
		INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, common_name, not_after) SELECT tenant_id, device_id, device_id, 'x', '' FROM device_registry WHERE tenant_id = 't2'`)
	for n := range devices {
		r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: fmt.Sprintf("tenant/t2/device/n%d/telemetry", n+1), Body: []byte(good(n))}, nil)
	}
	r.mqtt(good(1))
	r.drain()
	if n := asked.devices.Load(); n > 2 {
		t.Errorf("%d look-ups", n)
	}
	r.wantCount(1, `SELECT count(*) FROM telemetry`)
	r.wantCount(devices, `SELECT count(*) FROM quarantine_events WHERE reason = 'UNREGISTERED_DEVICE' AND detail LIKE '%device_certificates.not_after%'`)
}

// TestLockedRegistry: while somebody alters the table, devices that are in the cache go
// on after one look-up as patient as usual and one brief one, however many others wait.
func TestLockedRegistry(t *testing.T) {
	const others = 64
	var asked overheard
	r := newRigVia(t, database(t)+"&default_query_exec_mode=describe_exec", asked.dial, func(o *process.Options) {
		o.Workers, o.BatchSize, o.Linger, o.RegistryTTL = 1, others+1, time.Second, time.Hour
	})
	r.Listening(true)
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) SELECT 't' || n, 'n', 's1' FROM generate_series(1, $1::int) AS n`, others)
	r.mqtt(good(1))
	r.drain() // and d1 is in the cache
	asked.devices.Store(0)
	asked.patient.Store(0)
	tx, err := r.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE device_registry IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	var before, patient atomic.Int32
	for n := range others {
		r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: fmt.Sprintf("tenant/t%d/device/n/telemetry", n+1), Body: []byte(good(2))}, nil)
	}
	r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Body: []byte(good(2))}, func([]byte) {
		before.Store(asked.devices.Load())
		patient.Store(asked.patient.Load())
	})
	r.until("the device in the cache goes on", func() bool { return r.acked.Load() == 2 })
	if n := before.Load(); n != 2 {
		t.Errorf("it did after %d look-ups, want 2", n)
	}
	if n := patient.Load(); n != 1 {
		t.Errorf("%d of them were patient, want 1", n)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.drain()
	r.wantCount(others+2, `SELECT count(*) FROM telemetry`)
}

// TestLockedSubscriptions: devices of many tenants are to be registered whose subscriptions
// somebody has locked. One that is in the cache goes on after one look-up and one
// registration as patient as usual, and a bounded number of brief ones.
func TestLockedSubscriptions(t *testing.T) {
	const tenants, most = 40, 34
	var asked overheard
	r := newRigVia(t, database(t)+"&default_query_exec_mode=describe_exec", asked.dial, func(o *process.Options) {
		o.Workers, o.BatchSize, o.Linger, o.RegistryTTL, o.AutoProvision = 1, tenants+1, time.Second, time.Hour, true
	})
	r.Listening(true)
	r.exec(`INSERT INTO subscriptions (subscription_id, tenant_id, device_limit) SELECT 's' || n, 'u' || n, 10 FROM generate_series(1, $1::int) AS n`, tenants)
	r.mqtt(good(1))
	r.drain() // and d1 is in the cache
	asked.patient.Store(0)
	asked.plans.Store(0)
	unlock := r.lock(`SELECT FROM subscriptions FOR UPDATE`)
	var attempts, patient atomic.Int32
	for n := range tenants {
		r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: fmt.Sprintf("tenant/u%d/device/new/telemetry", n+1), Body: []byte(good(2))}, nil)
	}
	r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Body: []byte(good(2))}, func([]byte) {
		attempts.Store(asked.plans.Load())
		patient.Store(asked.patient.Load())
	})
	r.until("the device in the cache goes on", func() bool { return r.acked.Load() == 2 })
	if n := attempts.Load(); n < 2 || n > most {
		t.Errorf("it did after %d attempts to register others, want 2 to %d", n, most)
	}
	if n := patient.Load(); n != 2 {
		t.Errorf("%d statements before that were patient, want a look-up and an attempt", n)
	}
	unlock()
	r.drain()
	r.wantCount(tenants+2, `SELECT count(*) FROM telemetry`)
}

// TestLockedForShutdown: what is set aside when the Processor ends is given back.
func TestLockedForShutdown(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.mqtt(good(0))
	r.drain()
	r.lock(`SELECT FROM device_state FOR UPDATE`)
	r.mqtt(good(1))
	r.until("it is set aside", func() bool { return r.Health() != nil && strings.Contains(r.Health().Error(), "locked a row") })
	r.mqtt(good(2))
	r.stop()
	if r.acked.Load() != 1 || r.released.Load() != 2 {
		t.Errorf("%d acknowledged, %d released", r.acked.Load(), r.released.Load())
	}
}

// TestLockedIsChargedOnce: waiting for a lock costs no more tokens than passing.
func TestLockedIsChargedOnce(t *testing.T) {
	r := newRig(t, database(t), limited(0.0001, 5))
	r.mqtt(stamped(0))
	r.drain()
	unlock := r.lock(`SELECT FROM device_state FOR UPDATE`)
	r.mqtt(stamped(1))
	r.mqtt(stamped(2))
	r.until("attempts fail", func() bool { return r.retries() > 3 })
	r.mqtt(stamped(3))
	r.jetstream("telemetry", stamped(1))
	unlock()
	r.mqtt(stamped(4))
	r.drain()
	r.wantCount(5, `SELECT count(*) FROM telemetry`)
	r.mqtt(stamped(5))
	r.drain()
	r.wantCount(1, tooMany)
}

// TestLockedNowAndThen: sessions lock devices for moments while messages come by both
// paths, some of them refused. All take effect once, each device's in order.
func TestLockedNowAndThen(t *testing.T) {
	const devices, messages = 12, 120
	r := newRig(t, database(t), func(o *process.Options) { o.BatchSize = 50 })
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) SELECT 't1', 'n' || n, 's1' FROM generate_series(0, $1 - 1) AS n`, devices)
	r.exec(`ALTER TABLE telemetry ADD CHECK (seq % 40 <> 7)`)
	ctx, stop := context.WithCancel(t.Context())
	var lockers sync.WaitGroup
	for range 3 {
		lockers.Go(func() {
			for ctx.Err() == nil {
				_, err := r.db.Exec(context.WithoutCancel(ctx), `WITH l AS MATERIALIZED (SELECT FROM device_state WHERE device_id = $1 FOR UPDATE) SELECT pg_sleep($2) FROM l`,
					fmt.Sprint("n", rand.N(devices)), 0.3*rand.Float64())
				if err != nil {
					t.Errorf("the other session: %v", err)
					return
				}
			}
		})
	}
	var lines [devices]sequence
	for n := range messages {
		for d := range devices {
			topic := fmt.Sprintf("tenant/t1/device/n%d/telemetry", d)
			r.send(&lines[d], topic, good(n))
			if n%3 == 0 {
				body := fmt.Sprintf(`{"topic":%q,"payload":%s,"ts":1795435200000}`, topic, good(n))
				r.deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t1", Body: []byte(body)}, nil)
			}
		}
		if n%10 == 0 {
			r.until("some are settled", func() bool { return r.InHand() < 400 })
		}
	}
	stop()
	lockers.Wait()
	r.drain()
	for d := range lines {
		for n, body := range lines[d].bodies {
			if body != good(n) {
				t.Fatalf("device %d: message %d is %s", d, n, body)
			}
		}
	}
	r.wantCount(devices*messages, `SELECT count(*) FROM crossfade_ledger`)
	r.wantCount(devices*(messages-3), `SELECT count(*) FROM telemetry`)
	r.wantCount(devices*3, `SELECT count(*) FROM quarantine_events`)
}

// TestRefundOfWhatAnotherInstanceWrote: a message was charged, but its transaction
// failed, and meanwhile another instance has written it. The token is given back.
func TestRefundOfWhatAnotherInstanceWrote(t *testing.T) {
	r := newRig(t, database(t), limited(0.0001, 1))
	r.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END $$`)
	r.exec(`CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON crossfade_ledger_other DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`)
	far := func(n int) string { return strings.ReplaceAll(stamped(n), "2026", "2001") }
	r.mqtt(far(1))
	r.until("an attempt has failed", func() bool { return r.retries() > 0 })
	d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Body: []byte(far(1)), Receipt: &receipt{}}
	var m pipeline.Message
	pipeline.NewDecoder(pipeline.DefaultMessageIDMember).Decode(&m, &d)
	if err := pgx.BeginFunc(t.Context(), r.db, func(tx pgx.Tx) error {
		// Dropping the trigger keeps the instance under test out until the commit.
		if _, err := tx.Exec(t.Context(), `DROP TRIGGER refuse ON crossfade_ledger_other`); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), `INSERT INTO crossfade_ledger (message_id, path, outcome) VALUES ($1, 1, 1)`, [16]byte(m.ID))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	r.drain()
	r.wantCount(0, `SELECT count(*) FROM telemetry`)
	r.mqtt(far(2))
	r.drain()
	r.wantCount(1, `SELECT count(*) FROM telemetry`)
	r.mqtt(far(3))
	r.drain()
	r.wantCount(1, tooMany)
}

// TestBatchBytes: large messages come in several batches, though there is room for
// their number.
func TestBatchBytes(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.Workers, o.Linger = 1, 500_000_000 })
	for n := range 40 {
		r.mqtt(fmt.Sprintf(`{"seq":%d,"x":%q}`, n, strings.Repeat("x", 1<<20)))
	}
	r.drain()
	r.wantCount(40, `SELECT count(*) FROM quarantine_events WHERE reason = 'PAYLOAD_TOO_LARGE'`)
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "crossfade_batch_messages" {
			if n := f.GetMetric()[0].GetHistogram().GetSampleCount(); n < 3 {
				t.Errorf("40 MiB came in %d batches", n)
			}
		}
	}
}
