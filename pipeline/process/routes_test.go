package process_test

import (
	"encoding/json"
	"testing"

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
