package process_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
)

// TestAckAfterCommit (promise P1): when a receipt is acknowledged, whoever looks
// at the database sees what its message left behind.
func TestAckAfterCommit(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.BatchSize = 10 })
	var mu sync.Mutex
	unseen := 0
	see := func(sql string) func([]byte) {
		return func(body []byte) {
			var n int
			if err := r.db.QueryRow(context.Background(), sql, body).Scan(&n); err != nil || n == 0 {
				mu.Lock()
				unseen++
				mu.Unlock()
			}
		}
	}
	row := see(`SELECT count(*) FROM telemetry WHERE seq = (convert_from($1, 'UTF8')::jsonb ->> 'seq')::int`)
	quarantined := see(`SELECT count(*) FROM quarantine_events JOIN crossfade_ledger USING (message_id) WHERE raw = $1`)
	for n := range 60 {
		body, look := good(n), row
		if n%3 == 0 {
			body, look = fmt.Sprintf(`{"seq":%d}`, n), quarantined
		}
		r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Body: []byte(body)}, look)
	}
	r.drain()
	if unseen > 0 {
		t.Errorf("%d of 60 were acknowledged before their effects could be seen", unseen)
	}
	r.wantCount(40, `SELECT count(*) FROM telemetry`)
	r.wantCount(20, `SELECT count(*) FROM quarantine_events WHERE reason = 'MISSING_SITE_ID'`)
}

// TestBothPathsOnce (promise P2): copies by both paths, in the same batch and in
// others, on two workers, take effect once.
func TestBothPathsOnce(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.BatchSize = 50; o.RecentIDs = 10 })
	for n := range 500 {
		r.mqtt(good(n))
		r.jetstream("telemetry", good((n+250)%500))
	}
	r.drain()
	if r.acked.Load() != 1000 {
		t.Errorf("%d of 1000 copies were acknowledged", r.acked.Load())
	}
	r.wantCount(500, `SELECT count(*) FROM telemetry`)
	if w, d := r.metric("crossfade_messages_total", "written"), r.metric("crossfade_messages_total", "duplicate"); w != 500 || d != 500 {
		t.Errorf("written %v, duplicate %v", w, d)
	}
}

// TestDownlinkIsIgnored on either path, broken or not, and never quarantined.
func TestDownlinkIsIgnored(t *testing.T) {
	r := newRig(t, database(t), nil)
	for _, msgType := range []string{"commands", "commands/response", "shadow/desired"} {
		r.jetstream(msgType, `{"command_id":"c1"}`)
		r.jetstream(msgType, `"broken"`)
		for _, body := range []string{`{}`, ``, `broken`} {
			r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/" + msgType, Body: []byte(body)}, nil)
		}
	}
	r.drain()
	for _, table := range []string{"telemetry", "quarantine_events", "crossfade_ledger"} {
		r.wantCount(0, `SELECT count(*) FROM `+table)
	}
	if n := r.metric("crossfade_messages_total", "ignored"); n != 15 {
		t.Errorf("%v ignored, want 15", n)
	}
	// What only claims to be downlink of another tenant is no such thing.
	r.deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t2", Body: []byte(`{"topic":"tenant/t1/device/d1/commands","payload":{}}`)}, nil)
	r.drain()
	r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason = 'TENANT_MISMATCH_TOPIC_VS_ENVELOPE' AND tenant_id = 't2'`)
}

// TestEffectsOfAllKinds: what the packages below do is wired up.
func TestEffectsOfAllKinds(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.Settings.RequireToken = true })
	r.exec(`UPDATE device_registry SET provision_token_hash = upper(encode(sha256('tok'), 'hex'))`)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'reboot')`)
	r.mqtt(`{"seq":1,"site_id":"s1","provision_token":"tok"}`)
	r.mqtt(`{"seq":2,"site_id":"s1","provision_token":"no"}`)
	r.jetstream("shadow/reported", `{"reported":{"on":true},"version":4}`)
	r.jetstream("commands/ack", `{"command_id":"c1"}`)
	r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/unknown/shadow/reported", Body: []byte(`{"reported":{}}`)}, nil)
	r.drain()
	r.wantCount(1, `SELECT count(*) FROM telemetry WHERE seq = 1`)
	r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason = 'TOKEN_INVALID'`)
	r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason = 'UNREGISTERED_DEVICE'`)
	r.wantCount(1, `SELECT count(*) FROM device_state WHERE reported_state = '{"on": true}' AND reported_version = 4 AND site_id = 's1'`)
	r.wantCount(1, `SELECT count(*) FROM device_commands WHERE status = 'delivered'`)
}

// TestCommittedIsTold of what is durable, before any of it is acknowledged.
func TestCommittedIsTold(t *testing.T) {
	var mu sync.Mutex
	told := map[pipeline.ID]bool{}
	var r *rig
	url := database(t)
	ready := make(chan struct{})
	r = newRig(t, url, func(o *process.Options) {
		o.Workers = 1
		o.Committed = func(ids []pipeline.Identity) {
			<-ready
			mu.Lock()
			defer mu.Unlock()
			for _, c := range ids {
				told[c.ID] = true
				if !r.Recent(&c).Durable {
					t.Errorf("%s is told durable, but not recent", c.ID)
				}
			}
		}
	})
	close(ready)
	missing := 0
	for n := range 20 {
		d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Body: []byte(good(n)), Receipt: &receipt{rig: r}}
		var m pipeline.Message
		pipeline.NewDecoder("").Decode(&m, &d)
		id := m.ID
		r.deliver(d, func([]byte) {
			mu.Lock()
			defer mu.Unlock()
			if !told[id] {
				missing++
			}
		})
	}
	r.drain()
	if missing > 0 || len(told) != 20 {
		t.Errorf("told %d, %d acknowledged before", len(told), missing)
	}
}

// TestRegistryChanges are seen once an entry is older than its TTL; a device that
// was unknown is asked for again within a second.
func TestRegistryChanges(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.RegistryTTL = 20 * time.Millisecond })
	next := 0
	outcome := func(table string) func() bool {
		return func() bool {
			before := r.count(`SELECT count(*) FROM ` + table)
			next++
			r.mqtt(good(next))
			r.drain()
			return r.count(`SELECT count(*) FROM `+table) > before
		}
	}
	r.until("d1 is accepted", outcome("telemetry"))
	r.exec(`UPDATE device_registry SET status = 'REVOKED'`)
	r.until("d1 is refused", outcome("quarantine_events"))
	r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason = 'DEVICE_REVOKED'`)
	r.exec(`DELETE FROM device_registry`)
	r.until("d1 is unknown", func() bool {
		outcome("quarantine_events")()
		return r.count(`SELECT count(*) FROM quarantine_events WHERE reason = 'UNREGISTERED_DEVICE'`) > 0
	})
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd1', 's1')`)
	r.until("d1 is accepted again", outcome("telemetry"))
}

// TestRegistryIsCached: within the TTL the database is not asked again.
func TestRegistryIsCached(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.RegistryTTL = time.Hour })
	r.mqtt(good(1))
	r.drain()
	r.exec(`ALTER TABLE device_registry RENAME TO gone`)
	r.mqtt(good(2))
	r.drain()
	r.wantCount(2, `SELECT count(*) FROM telemetry`)
}

// TestRecentNeedNoDatabase: copies of what is known to be durable are acknowledged
// while PostgreSQL is away, and no others are.
func TestRecentNeedNoDatabase(t *testing.T) {
	pg := devstack.TestPostgres(t)
	url, err := pg.CreateDatabase(t.Context(), "recent")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, url, nil)
	heartbeat := `{"site_id":"s1"}`
	r.mqtt(good(1))
	r.mqtt(heartbeat)
	r.drain()
	if err := pg.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.jetstream("telemetry", good(1))
	r.jetstream("telemetry", heartbeat)
	r.drain()
	if r.acked.Load() != 4 {
		t.Errorf("%d acknowledged, want 4", r.acked.Load())
	}
	r.mqtt(good(2))
	r.until("the database is missed", func() bool { return r.Health() != nil })
	if r.acked.Load() != 4 || r.InHand() != 1 {
		t.Errorf("%d acknowledged, %d in hand", r.acked.Load(), r.InHand())
	}
}

func TestDrainEndsWithItsContext(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.exec(`ALTER TABLE crossfade_ledger RENAME TO gone`)
	r.mqtt(good(1))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Drain(ctx); err == nil || !strings.Contains(err.Error(), "1 messages are still in hand") {
		t.Errorf("got %v", err)
	}
}

// TestEndReleasesWhatIsInHand: once, and nothing is acknowledged after it; so is
// what comes later.
func TestEndReleasesWhatIsInHand(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.BatchSize = 10 })
	r.exec(`ALTER TABLE crossfade_ledger RENAME TO gone`)
	for n := range 100 {
		r.mqtt(good(n))
	}
	r.until("it is missed", func() bool { return r.Health() != nil })
	r.stop()
	r.mqtt(good(101))
	if r.acked.Load() != 0 || r.released.Load() != 101 {
		t.Errorf("acknowledged %d, released %d, want 0 and 101", r.acked.Load(), r.released.Load())
	}
}

// TestEndUnderLoad: wherever the end meets a batch, each copy is settled once
// (checked at clean-up), and what is acknowledged is there.
func TestEndUnderLoad(t *testing.T) {
	url := database(t)
	for round := range 5 {
		r := newRig(t, url, func(o *process.Options) { o.BatchSize = 20 })
		before := r.count(`SELECT count(*) FROM telemetry`)
		for n := range 400 {
			r.mqtt(good(round*1000 + n))
			if n == 300 {
				r.until("the first are acknowledged", func() bool { return r.acked.Load() > int64(round*20) })
			}
		}
		r.stop()
		if written := r.count(`SELECT count(*) FROM telemetry`) - before; written < int(r.acked.Load()) {
			t.Errorf("%d acknowledged, %d written", r.acked.Load(), written)
		}
		if r.acked.Load()+r.released.Load() != 400 {
			t.Errorf("%d acknowledged and %d released of 400", r.acked.Load(), r.released.Load())
		}
	}
}

func TestOptionsAreValidated(t *testing.T) {
	for name, change := range map[string]func(*process.Options){
		"BatchSize":       func(o *process.Options) { o.BatchSize = 0 },
		"Workers":         func(o *process.Options) { o.Workers = 65 },
		"RecentIDs":       func(o *process.Options) { o.RecentIDs = 0 },
		"MaxPayloadBytes": func(o *process.Options) { o.Settings.MaxPayloadBytes = 0 },
		"Linger":          func(o *process.Options) { o.Linger = time.Minute },
		"RegistryTTL":     func(o *process.Options) { o.RegistryTTL = -1 },
		"Logger":          func(*process.Options) {},
	} {
		o := process.DefaultOptions()
		change(&o)
		if _, err := process.New(nil, o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
