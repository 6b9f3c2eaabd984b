package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/parity"
)

// operatorTest is a database with the fleet's tenants acme, globex and initech, chosen
// by DATABASE_URL, into which tests write what instances would.
type operatorTest struct {
	*testing.T
	pool *pgxpool.Pool
}

func newOperatorTest(t *testing.T) operatorTest {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return operatorTest{t, pool}
}

func (t operatorTest) exec(sql string, args ...any) {
	t.Helper()
	if _, err := t.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (t operatorTest) count(sql string, args ...any) (n int) {
	t.Helper()
	if err := t.pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// instance writes one that runs and has confirmed everything, with an MQTT session.
func (t operatorTest) instance(id string) {
	t.Helper()
	t.exec(`INSERT INTO crossfade_instances (instance_id, run, version, lease_until, mqtt_session, session, session_until, prober, confirmed_revision, details)
	VALUES ($1, 'r', 'v1', now() + interval '1 hour', true, 'crossfade-' || $1, now() + interval '1 day', true, 1000, '{"checks": {"mqtt": {"ok": true}}}')`, id)
}

// fact writes a stage that was confirmed 18 s ago.
func (t operatorTest) fact(tenant, stage, wanted, waits string) {
	t.Helper()
	t.exec(`INSERT INTO crossfade_stages (tenant_id, stage, revision, since, changed_by, reason, epoch, confirmed_at, wanted, wanted_why, waits_for, waits_since)
	VALUES ($1, 'shadow', 7, now() - interval '3 minutes', 'instance b1', 'follows the flag', 2, now() - interval '18 seconds', nullif($2, ''), 'TARGETING_MATCH', nullif($3, ''),
	        CASE WHEN $3 = '' THEN NULL ELSE now() - interval '130 seconds' END)`, tenant, wanted, waits)
	t.exec(`UPDATE crossfade_stages SET stage = $2, epoch = 1 WHERE tenant_id = $1`, tenant, stage) // as a leader does, with an epoch
}

// want calls a command and checks its exit code and what it says on either output.
func (t operatorTest) want(code int, args string, says ...string) string {
	t.Helper()
	got, out, errs := call(t, strings.Fields(args)...)
	if got != code {
		t.Errorf("%s: exit %d, want %d\n%s%s", args, got, code, out, errs)
	}
	for _, s := range says {
		if !strings.Contains(out+errs, s) {
			t.Errorf("%s does not say %q:\n%s%s", args, s, out, errs)
		}
	}
	return out
}

func (t operatorTest) status(args string) statusAnswer {
	t.Helper()
	var a statusAnswer
	if err := json.Unmarshal([]byte(t.want(exitDone, "status --output json "+args)), &a); err != nil {
		t.Fatal(err)
	}
	return a
}

const hostile = "ev\x1b[2Jil\u202e\n"

func TestStatusTellsHowFarItIs(tt *testing.T) {
	t := newOperatorTest(tt)
	t.instance("b1")
	t.fact("acme", "live", "jetstream", "dwell: 30s after confirmation")
	t.fact("globex", "shadow", "mqtt", "sentinel by MQTT: not yet out of the session of b3 (not running: start it, or have its session forgotten)")
	t.fact("initech", "jetstream", "jetstream", "")
	t.fact(hostile, "shadow", "", "clean answer from the flag service")
	t.exec(`INSERT INTO crossfade_path_latency (tenant_id, path, seconds, seen_at, missing_since)
	VALUES ('acme', 1, 0.25, now(), NULL), ('acme', 2, 1.5, now(), now() - interval '90 seconds')`)
	t.exec(`INSERT INTO crossfade_holds VALUES ('initech', 'ops', 'freeze')`)
	a := t.status("acme")
	if len(a.Tenants) != 1 {
		t.Fatalf("%d tenants", len(a.Tenants))
	}
	acme := a.Tenants[0]
	if acme.LeftSeconds == nil || *acme.LeftSeconds > 12 || *acme.LeftSeconds < 1 || !strings.HasSuffix(acme.Progress, " of 30s left") {
		t.Errorf("dwell: %q, %v", acme.Progress, acme.LeftSeconds)
	}
	if acme.Lag.MQTT.Seconds == nil || *acme.Lag.MQTT.Seconds != 0.25 || acme.Lag.JetStream.MissingSince == nil {
		t.Errorf("lag: %+v", acme.Lag)
	}
	if !acme.Reverse.Available || !strings.Contains(acme.Reverse.How, "one immediate step") || acme.Parity.Verdict != parity.Inconclusive {
		t.Errorf("reverse %+v, parity %+v", acme.Reverse, acme.Parity)
	}
	out := t.want(exitDone, "status", "none for 1m3", "0.25s", "sentinel by MQTT, for 2m1", "b3 (not running", "(held by ops: freeze)", `ev\x1b[2Jil\u202e\x0a`, "no clean answer says")
	if strings.ContainsAny(out, "\x1b\u202e") {
		t.Errorf("a tenant writes on the terminal: %q", out)
	}
	if js := t.want(exitDone, "status --output json"); strings.ContainsAny(js, "\x1b\u202e") || !json.Valid([]byte(js)) {
		t.Errorf("JSON: %q", js)
	}
	t.want(exitDone, "status initech globex", "held by ops: freeze", "needs proof", "MQTT has authority", "revision 7", "confirmed by every instance")
	t.want(exitNo, "status amce", "tenant amce has no device")

	t.exec(`UPDATE crossfade_instances SET details = '{"checks": {"mqtt": {"ok": false, "error": "broker away"}}}'`)
	t.want(exitDone, "status initech", "MQTT is not well on b1: broker away")
	t.exec(`UPDATE crossfade_instances SET lease_until = now() - interval '1 second', seen_at = now() - interval '1 minute'`)
	t.want(exitDone, "status acme", "waits for an instance: none is running", "no instance is running")
	t.want(exitDone, "status", "gone without signing off; its MQTT session is awaited until")
}

func TestStatusParity(tt *testing.T) {
	t := newOperatorTest(tt)
	t.instance("b1")
	t.fact("acme", "shadow", "shadow", "")
	skew := make([]int64, parity.Buckets)
	skew[len(skew)/2+3] = 200
	t.exec(`INSERT INTO crossfade_parity (tenant_id, minute, matched, skew_ms_buckets) VALUES ('acme', date_trunc('minute', now()), 200, $1),
	('acme', now() - interval '15 minutes', 0, $1)`, skew)
	if p := t.status("acme").Tenants[0].Parity; p.Verdict != parity.Pass || p.Matched != 200 || p.P99 == nil || *p.P99 != 8 {
		t.Errorf("parity: %+v", p)
	}
	t.exec(`UPDATE crossfade_parity SET mismatched = 1 WHERE matched > 0`)
	t.exec(`INSERT INTO crossfade_parity_samples (tenant_id, at, message_id, what, path, digest, other_digest, sample)
	VALUES ('acme', now(), gen_random_uuid(), 'mismatched', 2, 1, 2, $1)`, `{"topic": "a/b", "payload": "x\u001b[2J", "size": 3}`)
	out := t.want(exitDone, "status acme", "fail over 10m0s: 1 of 201", `a/b: x\x1b[2J`, "8 ms (p99)")
	if strings.Contains(out, "\x1b") {
		t.Errorf("a device writes on the terminal: %q", out)
	}
	t.want(exitDone, "status", "fail")
}

// TestConfirmationNamesTheSilent: who waits for a confirmation sees who has gone silent.
func TestConfirmationNamesTheSilent(t *testing.T) {
	at := time.Now()
	f := control.Fact{Epoch: 9, WaitsFor: "confirmation of stage shadow by b1, b2", WaitsSince: &at}
	o := &overview{at: at, instances: []bridge.Instance{
		{Instance: control.Instance{ID: "b1", Live: true, Confirmed: 8, SeenAt: at.Add(-4 * time.Second)}},
		{Instance: control.Instance{ID: "b2", Live: true, Confirmed: 8, SeenAt: at.Add(-time.Second)}},
		{Instance: control.Instance{ID: "b3", Live: true, Confirmed: 9, SeenAt: at.Add(-4 * time.Second)}},
	}}
	text, left := o.progressOf(f)
	if want := "confirmation of stage shadow by b1, b2, for 0s; b1 was last heard of 4s ago and is waited for until its lease is over"; text != want || left != nil {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}
