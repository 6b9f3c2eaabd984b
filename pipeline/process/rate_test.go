package process_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/pipelinetest"
	"github.com/crossfade-io/crossfade/pipeline/process"
)

// stamped is a good message whose time does not move on.
func stamped(seq int) string {
	return fmt.Sprintf(`{"ts":"2026-11-23T12:00:00Z","seq":%d,"site_id":"s1","metrics":{"a":1}}`, seq)
}

func limited(rate float64, burst int) func(*process.Options) {
	return func(o *process.Options) { o.Settings.RateLimit, o.Settings.RateBurst = rate, burst }
}

const tooMany = `SELECT count(*) FROM quarantine_events WHERE reason = 'RATE_LIMITED'`

// TestRateLimit: a burst passes and the rest is quarantined. Copies, by either path
// and again, cost nothing: who had 10 tokens for 10 messages sends each four times.
func TestRateLimit(t *testing.T) {
	r := newRig(t, database(t), limited(0.0001, 10))
	for range 2 {
		for n := range 10 {
			r.mqtt(stamped(n))
			r.jetstream("telemetry", stamped(9-n))
		}
		r.drain()
		r.wantCount(10, `SELECT count(*) FROM telemetry`)
		r.wantCount(0, `SELECT count(*) FROM quarantine_events`)
	}
	for n := range 5 {
		r.mqtt(stamped(100 + n))
		r.jetstream("telemetry", stamped(100+n))
	}
	r.drain()
	r.wantCount(10, `SELECT count(*) FROM telemetry`)
	r.wantCount(5, tooMany)
	r.wantCount(5, `SELECT count(*) FROM crossfade_ledger WHERE outcome = 2`)
	r.wantCount(10, `SELECT count(*) FROM crossfade_ledger WHERE outcome = 1`)
	r.wantCount(5, `SELECT sum(cnt) FROM quarantine_counters_minute WHERE reason = 'RATE_LIMITED'`)
	if got := r.metric("crossfade_quarantined_total", "RATE_LIMITED"); got != 5 {
		t.Errorf("%v counted", got)
	}
}

// TestRateLimitsPlace: the limit is check 7, on both paths. What fails before it costs
// nothing, and what would fail after it does.
func TestRateLimitsPlace(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) {
		limited(0.0001, 1)(o)
		o.Settings.RequireToken = true
	})
	r.exec(`INSERT INTO subscriptions (subscription_id, tenant_id, status) VALUES ('s', 't1', 'SUSPENDED')`)
	send := func(device, msgType, payload string) {
		topic := "tenant/t1/device/" + device + "/" + msgType
		d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(payload)}
		if strings.HasPrefix(device, "jetstream") {
			d = pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t1", Body: pipelinetest.Mirror(topic, []byte(payload), longAgo)}
		}
		r.deliver(d, nil)
	}
	cases := []struct{ msgType, payload, registry, want string }{
		{"telemetry", `{`, `status = 'ACTIVE'`, "INVALID_JSON"},
		{"", `{}`, `status = 'ACTIVE'`, "BAD_TOPIC_FORMAT"},
		{"telemetry", `{"version":"2"}`, `status = 'ACTIVE'`, "UNSUPPORTED_ENVELOPE_VERSION"},
		{"telemetry", `{"pad":"` + strings.Repeat("x", 8192) + `"}`, `status = 'ACTIVE'`, "PAYLOAD_TOO_LARGE"},
		{"telemetry", `{"metrics":[]}`, `status = 'ACTIVE'`, "METRICS_INVALID"},
		{"telemetry", `{"seq":"x"}`, `status = 'ACTIVE'`, "SEQ_INVALID"},
		{"shadow/reported", `{}`, `status = 'ACTIVE'`, "SHADOW_INVALID"},
		{"commands/ack", `{}`, `status = 'ACTIVE'`, "COMMAND_ACK_INVALID"},

		{"telemetry", `{"tenant_id":"t2"}`, `status = 'ACTIVE'`, "RATE_LIMITED"},
		{"telemetry", `{}`, `status = 'ACTIVE'`, "RATE_LIMITED"}, // and no site
		{"telemetry", `{"site_id":"s1"}`, ``, "RATE_LIMITED"},    // and not registered
		{"telemetry", `{"site_id":"s1"}`, `subscription_id = 's'`, "RATE_LIMITED"},
		{"telemetry", `{"site_id":"s1"}`, `status = 'REVOKED'`, "RATE_LIMITED"},
		{"telemetry", `{"site_id":"s2"}`, `status = 'ACTIVE'`, "RATE_LIMITED"}, // and not the registry's
		{"telemetry", `{"site_id":"s1"}`, `status = 'ACTIVE'`, "RATE_LIMITED"}, // and no token
		{"shadow/reported", `{"reported":{}}`, ``, "RATE_LIMITED"},
		{"commands/ack", `{"command_id":"c"}`, ``, "RATE_LIMITED"},
	}
	both := func(what func(device string, n int)) {
		for n := range cases {
			for _, path := range []string{"mqtt", "jetstream"} {
				what(fmt.Sprint(path, n), n)
			}
		}
		r.drain()
	}
	both(func(device string, n int) {
		if cases[n].registry != "" {
			r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', $1, 's1')`, device)
			r.exec(`UPDATE device_registry SET `+cases[n].registry+` WHERE device_id = $1`, device)
		}
		if cases[n].want != "RATE_LIMITED" {
			send(device, cases[n].msgType, cases[n].payload) // costs nothing
		}
		send(device, "telemetry", stamped(1))
	})
	both(func(device string, n int) {
		if cases[n].want == "RATE_LIMITED" {
			send(device, cases[n].msgType, cases[n].payload)
		}
	})
	both(func(device string, n int) {
		r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason = $1 AND topic = $2`, cases[n].want, "tenant/t1/device/"+device+"/"+cases[n].msgType)
		if cases[n].want != "RATE_LIMITED" { // the stamped one had its token
			r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason <> 'RATE_LIMITED' AND topic = $1 AND payload ->> 'seq' = '1'`, "tenant/t1/device/"+device+"/telemetry")
		}
	})
}

// TestRateLimitOfOthers: the neighbours of a flood have buckets of their own.
func TestRateLimitOfOthers(t *testing.T) {
	r := newRig(t, database(t), limited(0.0001, 5))
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd2', 's1'), ('t2', 'd1', 's1')`)
	for n := range 200 {
		r.mqtt(stamped(n))
	}
	for _, topic := range []string{"tenant/t1/device/d2/telemetry", "tenant/t2/device/d1/telemetry"} {
		for n := range 5 {
			r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(stamped(n))}, nil)
		}
	}
	r.drain()
	r.wantCount(15, `SELECT count(*) FROM telemetry`)
	r.wantCount(195, tooMany)
}

// far is stamped, with a time that has a partition of its own.
func far(n int) string { return strings.ReplaceAll(stamped(n), "2026", "2001") }

// TestRateLimitBetweenInstances: only the copy that takes effect costs a token. The one
// whose transaction failed, and whose sibling took effect elsewhere meanwhile, does not.
func TestRateLimitBetweenInstances(t *testing.T) {
	url := database(t)
	a, b := newRig(t, url, limited(0.0001, 5)), newRig(t, url, limited(0.0001, 5))
	a.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END $$`)
	a.exec(`CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON crossfade_ledger_other DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.path = 2) EXECUTE FUNCTION refuse()`)
	for n := range 5 {
		a.jetstream("telemetry", far(n))
	}
	a.until("an attempt has failed", func() bool { return a.retries() > 0 })
	for n := range 5 {
		b.mqtt(far(n))
	}
	b.drain()
	a.exec(`DROP TRIGGER refuse ON crossfade_ledger_other`)
	a.drain()
	a.wantCount(5, `SELECT count(*) FROM telemetry`)
	for n := range 6 {
		a.jetstream("telemetry", far(10+n))
	}
	a.drain()
	a.wantCount(10, `SELECT count(*) FROM telemetry`)
	a.wantCount(1, tooMany)
}

// TestRateLimitAcrossTrouble: a batch that is tried again and again, and one that is
// split around a row which PostgreSQL refuses, is charged once.
func TestRateLimitAcrossTrouble(t *testing.T) {
	pg := devstack.TestPostgres(t)
	url, err := pg.CreateDatabase(t.Context(), "limits")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, url, limited(0.0001, 8))
	// Deferred to the commit: by then the batch has been charged.
	r.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END $$`)
	r.exec(`CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON crossfade_ledger_other DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`)
	for n := range 5 {
		r.mqtt(far(n))
	}
	r.until("several attempts have failed", func() bool { return r.retries() > 3 })
	r.exec(`DROP TRIGGER refuse ON crossfade_ledger_other`)
	r.drain()
	r.wantCount(5, `SELECT count(*) FROM telemetry`)

	r.exec(`ALTER TABLE telemetry ADD CHECK (seq <> 100)`)
	for n := range 3 {
		r.mqtt(far(100 + n))
	}
	r.drain()
	r.wantCount(7, `SELECT count(*) FROM telemetry`)
	r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason = 'METRIC_VALUE_INVALID'`)
	r.mqtt(far(200))
	r.drain()
	r.wantCount(1, tooMany)
}
