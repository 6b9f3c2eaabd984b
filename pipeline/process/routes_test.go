package process_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline/process"
)

// TestBothPathsLeaveOneBody: whichever copy comes first, the outbox row is the same (P3).
func TestBothPathsLeaveOneBody(t *testing.T) {
	bodies := make(map[string]string)
	for path, deliver := range map[string]func(*rig){
		"mqtt": func(r *rig) { r.mqtt(`{"seq":7,"site_id":"s1","metrics":{"temp":81.50,"mode":"\u0065co"}}`) },
		"jetstream": func(r *rig) {
			r.jetstream("telemetry", `{"ts":1795435200.0,"metrics":{"mode":"eco","temp":8.15e1},"site_id":"s1","seq":7.0}`)
		},
	} {
		r := newRig(t, database(t), func(o *process.Options) { o.Routes = true })
		r.exec(`INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type, payload_filter)
			VALUES ('t1', 'hot', 'tenant/t1/#', 'webhook', '{"temp":{"$gt":80},"mode":"eco"}'), ('t1', 'cold', '#', 'webhook', '{"temp":{"$lt":0}}'),
			       ('t1', 'broken', 'a/#/b', 'webhook', NULL), ('t2', 'other', '#', 'webhook', NULL)`)
		deliver(r)
		r.drain()
		r.wantCount(1, `SELECT count(*) FROM telemetry`)
		r.wantCount(1, `SELECT count(*) FROM crossfade_outbox`)
		var body []byte
		if err := r.db.QueryRow(t.Context(), `SELECT body FROM crossfade_outbox`).Scan(&body); err != nil {
			t.Fatal(err)
		}
		if !json.Valid(body) {
			t.Errorf("by %s the body is no JSON: %s", path, body)
		}
		bodies[path] = string(body)
		r.mqtt(good(1)) // matches nothing
		r.jetstream("shadow/reported", `{"seq":7,"reported":{"temp":90},"version":1}`)
		r.drain()
		r.wantCount(1, `SELECT count(*) FROM crossfade_outbox`)
	}
	if bodies["mqtt"] != bodies["jetstream"] {
		t.Errorf("by MQTT:      %s\nby JetStream: %s", bodies["mqtt"], bodies["jetstream"])
	}
	const want = `{"route":{"id":1,"topic_filter":"tenant/t1/#","destination_type":"webhook","destination_config":{},"payload_filter":{"mode":"eco","temp":{"$gt":80}}},` +
		`"topic":"tenant/t1/device/d1/telemetry","payload":{"metrics":{"mode":"eco","temp":81.5},"seq":7,"site_id":"s1"},"tenant_id":"t1"}`
	if bodies["mqtt"] != want {
		t.Errorf("got  %s\nwant %s", bodies["mqtt"], want)
	}
}

// TestBatchOfManyRoutes: what a batch would put into the outbox is more than one
// transaction takes. It is several, every route gets its row, and a device's messages
// stay in their order; so it is where they are replayed.
func TestBatchOfManyRoutes(t *testing.T) {
	const messages, routes = 50, 100
	r := newRig(t, database(t), func(o *process.Options) {
		o.Workers, o.Linger, o.Routes, o.Settings.RateLimit = 1, 500*time.Millisecond, true, 0
	})
	r.exec(`INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type) SELECT 't1', 'n', '#', 'webhook' FROM generate_series(1, $1::int)`, routes)
	send := func(from int) {
		for n := range messages {
			r.mqtt(fmt.Sprintf(`{"seq":%d,"site_id":"s1","note":%q}`, from+n, strings.Repeat("x", 4000)))
		}
		r.drain()
	}
	want := func(how string) {
		t.Helper()
		r.wantCount(messages*routes, `SELECT count(*) FROM crossfade_outbox`)
		r.wantCount(0, `SELECT count(*) FROM (SELECT seq, lag(seq) OVER (ORDER BY id) AS before FROM crossfade_outbox JOIN LATERAL (
			SELECT (convert_from(body, 'UTF8')::json #>> '{payload,seq}')::int AS seq OFFSET 0) AS s ON true) AS o WHERE seq < before`)
		if n := r.count(`SELECT count(DISTINCT xmin::text) FROM crossfade_outbox`); n < 2 || n > 4 {
			t.Errorf("%s: 20 MB of rows came in %d transactions, want 2 or 3", how, n)
		}
	}
	send(0)
	want("live")
	r.exec(`TRUNCATE crossfade_outbox`)
	r.expel()
	r.EverythingChanged()
	send(messages)
	r.enrol()
	r.replay(func(o *process.ReplayOptions) { o.Routes = true })
	want("replayed")
}

// TestRoutesAreForgotten: what an instance hears of a change takes effect at once.
func TestRoutesAreForgotten(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.Routes, o.RegistryTTL = true, 1<<40 })
	r.mqtt(good(1))
	r.drain()
	r.exec(`INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type) VALUES ('t1', 'all', '#', 'webhook')`)
	r.mqtt(good(2))
	r.drain()
	r.wantCount(0, `SELECT count(*) FROM crossfade_outbox`)
	r.ForgetRoutes("t1")
	r.mqtt(good(3))
	r.drain()
	r.wantCount(1, `SELECT count(*) FROM crossfade_outbox`)
	r.exec(`UPDATE message_routes SET is_enabled = false`)
	r.ForgetAllRoutes()
	r.mqtt(good(4))
	r.drain()
	r.wantCount(1, `SELECT count(*) FROM crossfade_outbox`)
}

// TestWithoutAPublisherThereIsNoOutbox: it would only grow.
func TestWithoutAPublisherThereIsNoOutbox(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.exec(`INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type) VALUES ('t1', 'all', '#', 'webhook')`)
	r.mqtt(good(1))
	r.drain()
	r.wantCount(0, `SELECT count(*) FROM crossfade_outbox`)
}
