package downlink_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/downlink"
)

// TestDesiredState: every version once, retained; what changes nothing is not sent; an
// empty, null or deleted state clears the retained message; a row that comes again
// goes on counting.
func TestDesiredState(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	r.start(r.options("a"))
	count := func(n int) {
		t.Helper()
		devstack.Await(t, fmt.Sprintf("%d messages and an empty queue", n), func() bool {
			return len(r.bodies(desiredTopic("d1"))) == n && r.text(`SELECT count(*) FROM crossfade_downlink`) == "0"
		})
	}
	r.exec(`INSERT INTO device_state (tenant_id, device_id, site_id) VALUES ('t1', 'd1', 's1')`) // as ingest does
	r.desire("d1", `{"a": 1}`)
	count(1)
	first := r.all()[0]
	var s shadow
	must(t, json.Unmarshal(first.Payload, &s))
	if string(s.Desired) != `{"a":1}` || s.Version != 1 || time.Since(s.Timestamp) > time.Hour || !first.Retain || first.QoS != 1 || first.Properties.ContentType != "application/json" {
		t.Errorf("received %s, %v", first.Payload, first)
	}
	r.exec(`UPDATE device_state SET last_seen_at = now(), reported_state = '{"a": 1}'`)
	r.desire("d1", `{"a": 1}`) // the same
	r.desire("d1", `{"a": 2}`)
	count(2)
	r.exec(`UPDATE device_state SET desired_state = '{"a": 3}', desired_version = 10`)
	count(3)
	r.exec(`UPDATE device_state SET desired_state = '{"a": 4}', desired_version = 4`) // it never falls
	count(4)
	r.exec(`UPDATE device_state SET desired_version = 20`) // the same as a new version
	count(5)
	r.desire("d1", `{}`)
	count(6)
	r.desire("d1", `null`) // cleared already
	count(6)
	r.desire("d1", `{"b": 1}`)
	count(7)
	r.exec(`DELETE FROM device_state`)
	count(8)
	r.exec(`INSERT INTO device_state (tenant_id, device_id, site_id) VALUES ('t1', 'd1', 's1')`)
	r.desire("d1", `{"c": 1}`)
	count(9)
	r.exec(`TRUNCATE device_state`)
	count(10)
	r.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state, desired_version) VALUES ('t1', 'd1', '{"d": 1}', 3)`)
	count(11)
	var got []string
	for _, body := range r.bodies(desiredTopic("d1")) {
		var s shadow
		if body != "" {
			must(t, json.Unmarshal([]byte(body), &s))
		}
		got = append(got, fmt.Sprintf("%d%s", s.Version, s.Desired))
	}
	want := []string{`1{"a":1}`, `2{"a":2}`, `10{"a":3}`, `11{"a":4}`, `20{"a":4}`, "0", `23{"b":1}`, "0", `24{"c":1}`, "0", `25{"d":1}`}
	if !slices.Equal(got, want) {
		t.Errorf("received\n%q, want\n%q", got, want)
	}
}

// TestRestartSendsNothingAgain: what is out is out, whoever comes.
func TestRestartSendsNothingAgain(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	_, stop := r.start(r.options("a"))
	r.desire("d1", `{"a": 1}`)
	r.command("d1", "c1")
	devstack.Await(t, "both", func() bool { return len(r.all()) == 2 })
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	stop()
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink_lanes`) // left in order: nobody is cut off
	// Marks that stand for nothing new, as after a crash.
	r.exec(`INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind) VALUES (crossfade_lane('t1', 'd1'), 't1', 'd1', 'desired')`)
	r.exec(`INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind, command_id) VALUES (crossfade_lane('t1', 'd1'), 't1', 'd1', 'command', 'c1')`)
	r.start(r.options("b"))
	r.desire("d2", `{"a": 1}`)
	devstack.Await(t, "the third", func() bool { return len(r.all()) >= 3 })
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	if all := r.all(); len(all) != 3 || all[2].Topic != desiredTopic("d2") {
		t.Errorf("received %v", all)
	}
}

// TestCommands: published once with all its properties; past its expiry it is not sent
// and becomes expired; without an ack it becomes missed.
func TestCommands(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, expires_at) VALUES
		('t1', 'late', 'd1', 'x', now() - interval '1 second'), ('t1', 'never', 'd2', 'x', 'infinity')`)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, status) VALUES ('t1', 'done', 'd1', 'x', 'delivered')`)
	o := r.options("a")
	o.Missed = time.Second
	r.start(o)
	r.becomes("expired", `SELECT status FROM device_commands WHERE command_id = 'late'`)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, command_params, expires_at) VALUES
		('t1', 'c1', 'd1', 'set<&>', '{"a": [1, "<"]}', now() + interval '90 seconds')`)
	r.becomes("true", `SELECT published_at IS NOT NULL FROM device_commands WHERE command_id = 'c1'`)
	devstack.Await(t, "the command", func() bool { return len(r.bodies(commandTopic("d1"))) == 1 })
	for _, p := range r.all() {
		if p.Topic != commandTopic("d1") {
			continue
		}
		at := r.text(`SELECT to_json(expires_at) #>> '{}' FROM device_commands WHERE command_id = 'c1'`)
		at = strings.TrimSuffix(at, "+00:00") + "Z"
		want := `{"command_id":"c1","type":"set<&>","params":{"a":[1,"<"]},"expires_at":"` + at + `"}`
		e := p.Properties.MessageExpiry
		if string(p.Payload) != want || p.Retain || p.QoS != 1 || p.Properties.ContentType != "application/json" || string(p.Properties.CorrelationData) != "c1" || e == nil || *e < 60 || *e > 90 {
			t.Errorf("received %s, %v\nwant %s", p.Payload, p, want)
		}
	}
	// Without an expiry, published and not acknowledged.
	devstack.Await(t, "the command that never expires", func() bool { return len(r.bodies(commandTopic("d2"))) == 1 })
	if body := r.bodies(commandTopic("d2"))[0]; body != `{"command_id":"never","type":"x","params":{},"expires_at":null}` {
		t.Errorf("received %s", body)
	}
	r.command("d3", "c3")
	r.becomes("true", `SELECT published_at IS NOT NULL FROM device_commands WHERE command_id = 'c3'`)
	r.exec(`UPDATE device_commands SET created_at = now() - interval '2 seconds', published_at = now() - interval '2 seconds' WHERE command_id = 'c3'`)
	r.becomes("missed", `SELECT status FROM device_commands WHERE command_id = 'c3'`)
	r.exec(`UPDATE device_commands SET expires_at = now() WHERE command_id = 'c1'`) // published, and not acknowledged
	r.becomes("expired", `SELECT status FROM device_commands WHERE command_id = 'c1'`)
	r.becomes("queued delivered", `SELECT string_agg(status, ' ' ORDER BY command_id DESC) FROM device_commands WHERE command_id IN ('never', 'done')`)
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
}

// TestResponses: as they were written, and not once nobody waits for them.
func TestResponses(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	r.exec(`INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind, command_id, body, created_at) VALUES
		(crossfade_lane('t1', 'd1'), 't1', 'd1', 'response', 'old', '{"command_id": "old", "status": "accepted"}', now() - interval '2 hours'),
		(crossfade_lane('t1', 'd1'), 't1', 'd1', 'response', 'c1', '{"command_id": "c1", "status": "rejected", "reason": "expired"}', now())`)
	r.start(r.options("a"))
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	devstack.Await(t, "the response", func() bool { return len(r.all()) == 1 })
	p := r.all()[0]
	if e := p.Properties.MessageExpiry; p.Topic != responseTopic("d1") || string(p.Payload) != `{"reason":"expired","status":"rejected","command_id":"c1"}` && string(p.Payload) != `{"status":"rejected","reason":"expired","command_id":"c1"}` ||
		string(p.Properties.CorrelationData) != "c1" || e == nil || *e > 3600 || *e < 3000 || p.Retain {
		t.Errorf("received %s, %v", p.Payload, p)
	}
}

// TestPerDeviceOrder: what is written for a device arrives in the order in which it was
// committed.
func TestPerDeviceOrder(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	const each = 40
	for i := range each {
		for d := range 5 {
			r.command(numbered(d), fmt.Sprintf("c%02d-%d", i, d))
		}
	}
	for i := range 3 {
		r.start(r.options("sender-" + numbered(i)))
	}
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	devstack.Await(t, "every command", func() bool { return len(r.all()) == 5*each })
	for d := range 5 {
		if list := r.bodies(commandTopic(numbered(d))); !slices.IsSorted(list) || len(list) != each {
			t.Errorf("device %d received %q", d, list)
		}
	}
}

// statements counts what a pool is asked.
type statements struct{ atomic.Int64 }

func (c *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.Add(1)
	return ctx
}

func (c *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestBacklogGoesOutInBatches: the statements do not grow in number with the rows.
func TestBacklogGoesOutInBatches(t *testing.T) {
	r := newRig(t)
	const n = 10_000
	r.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state)
		SELECT 't' || i % 7, 'd' || i, jsonb_build_object('i', i) FROM generate_series(1, $1) AS i`, n)
	r.listen("tenant/+/device/+/shadow/desired")
	o := r.options("a")
	var asked statements
	config := r.pool.Config()
	config.ConnConfig.Tracer = &asked
	var err error
	o.Pool, err = pgxpool.NewWithConfig(t.Context(), config)
	must(t, err)
	t.Cleanup(o.Pool.Close)
	o.Beat, o.Sweep = time.Second, time.Hour
	_, stop := r.start(o)
	t.Cleanup(stop) // before the pool is closed
	devstack.Await(t, "every state", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.heard) >= n })
	r.becomes(fmt.Sprint(n), `SELECT count(*) FROM crossfade_desired_published`)
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	if got := asked.Load(); got > 300 {
		t.Errorf("%d rows took %d statements", n, got)
	}
}

// TestFloodHoldsUpNobody: a tenant with thousands of rows leaves others their turn, and
// devices that wait for another try hide none that is due.
func TestFloodHoldsUpNobody(t *testing.T) {
	r := newRig(t)
	r.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state) SELECT 'flood', 'd' || i, '{"a": 1}' FROM generate_series(1, 3000) AS i`)
	r.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state) SELECT 'z', 'd' || i, '{"a": 1}' FROM generate_series(1, 20) AS i`)
	r.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state) SELECT 'rest', 'd' || i, '{"a": 1}' FROM generate_series(1, 3000) AS i`)
	r.exec(`UPDATE crossfade_downlink SET next_try = now() + interval '1 hour' WHERE tenant_id = 'rest'`)
	r.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state) SELECT 'rest', 'x' || i, '{"a": 1}' FROM generate_series(1, 20) AS i`)
	r.listen("tenant/+/device/+/shadow/desired")
	o := r.options("a")
	o.PerLane = 3
	r.start(o)
	r.becomes("3000 rest", `SELECT string_agg(n || ' ' || tenant_id, ' ') FROM (SELECT tenant_id, count(*) AS n FROM crossfade_downlink GROUP BY 1) AS t`)
	devstack.Await(t, "every state that is due", func() bool { return len(r.all()) == 3040 })
	last := 0
	for i, p := range r.all() {
		if strings.HasPrefix(p.Topic, "tenant/z/") {
			last = i
		}
	}
	if last > 1000 { // a lane has 50 of the flood's, and one or two of these
		t.Errorf("the last of the other tenant's came as number %d of 3040", last)
	}
}

// TestOptions: what is out of range is named.
func TestOptions(t *testing.T) {
	for field, spoil := range map[string]func(*downlink.Options){
		"Pool":     func(o *downlink.Options) { o.Pool = nil },
		"Window":   func(o *downlink.Options) { o.Window = 0 },
		"PerLane":  func(o *downlink.Options) { o.PerLane = 0 },
		"Bytes":    func(o *downlink.Options) { o.Bytes = 1 },
		"Patience": func(o *downlink.Options) { o.Patience = time.Minute },
		"Beat":     func(o *downlink.Options) { o.Beat = 0 },
		"Retry":    func(o *downlink.Options) { o.LastRetry = 0 },
		"Sweep":    func(o *downlink.Options) { o.Sweep = 0 },
		"Missed":   func(o *downlink.Options) { o.Missed = time.Millisecond },
		"URL":      func(o *downlink.Options) { o.MQTT.URL = "" },
	} {
		o := downlink.DefaultOptions()
		spoil(&o)
		if _, err := downlink.New(o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
