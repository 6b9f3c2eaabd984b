package process_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline"
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

// TestRateLimitsPlace: the limit is check 7. What fails before it costs nothing, and
// what would fail after it does.
func TestRateLimitsPlace(t *testing.T) {
	for payload, want := range map[string]string{
		`{`:                             "INVALID_JSON",
		`{"metrics":[],"site_id":"s1"`:  "INVALID_JSON",
		`{"site_id":"s1","metrics":[]}`: "METRICS_INVALID",
		`{"site_id":"s1","seq":"x"}`:    "SEQ_INVALID",
		`{}`:                            "RATE_LIMITED", // and no site
		`{"tenant_id":"t2"}`:            "RATE_LIMITED", // and another's
		`{"site_id":"s2"}`:              "RATE_LIMITED", // and not the registry's
	} {
		r := newRig(t, database(t), limited(0.0001, 1))
		r.mqtt(stamped(1))
		r.drain()
		r.mqtt(payload)
		r.mqtt(stamped(2))
		r.drain()
		r.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason = $1 AND raw = $2`, want, []byte(payload))
		r.wantCount(1, `SELECT count(*) FROM telemetry`)
	}
	r := newRig(t, database(t), limited(0.0001, 3))
	for n := range 20 {
		r.mqtt(fmt.Sprintf(`{"seq":%d,"metrics":[]}`, n)) // costs nothing
	}
	for n := range 2 {
		r.mqtt(fmt.Sprintf(`{"seq":%d}`, 100+n)) // MISSING_SITE_ID, and costs a token
	}
	r.mqtt(stamped(200))
	r.mqtt(stamped(201))
	r.drain()
	r.wantCount(1, `SELECT count(*) FROM telemetry`)
	r.wantCount(2, `SELECT count(*) FROM quarantine_events WHERE reason = 'MISSING_SITE_ID'`)
	r.wantCount(1, tooMany)
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
	far := func(n int) string { return strings.ReplaceAll(stamped(n), "2026", "2001") }
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
