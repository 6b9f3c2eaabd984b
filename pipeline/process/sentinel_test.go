package process_test

import (
	"testing"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
)

// TestSentinelsAreIgnored wherever they come from and whatever they say: a gate takes
// them first, but it overlooks some, and nothing of the reserved device is a message.
func TestSentinelsAreIgnored(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.AutoProvision, o.Routes = true, true })
	r.exec(`INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type) VALUES ('t1', 'r', '#', 'webhook')`)
	for _, msgType := range []string{"telemetry", "shadow/reported", "commands/ack", "heartbeat", "commands", "x/y"} {
		for _, payload := range []string{`{"crossfade_sentinel":"n1"}`, `{"site_id":"s1","metrics":{"a":1}}`, `"no object"`} {
			topic := pipeline.SentinelTopic("t1", msgType)
			r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(payload)}, nil)
			r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(payload + "{")}, nil)
			r.deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t1",
				Body: []byte(`{"topic":"` + topic + `","device_id":"crossfade-sentinel","payload":` + payload + `,"ts":1795435200000}`)}, nil)
			r.deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t1",
				Body: []byte(`{"topic":"tenant/t1/device/crossfade\u002dsentinel/` + msgType + `","payload":` + payload + `}`)}, nil)
		}
	}
	r.mqtt(good(1)) // a message of a device beside them
	r.drain()
	r.wantCount(1, `SELECT count(*) FROM crossfade_ledger`)
	r.wantCount(1, `SELECT count(*) FROM telemetry`)
	r.wantCount(1, `SELECT count(*) FROM crossfade_outbox`)
	r.wantCount(0, `SELECT count(*) FROM quarantine_events`)
	r.wantCount(1, `SELECT count(*) FROM device_registry`)
	// Somebody's quarantine may hold one from before there were sentinels.
	r.exec(`INSERT INTO quarantine_events (topic, reason, payload, ingested_at, event_ts) VALUES ($1, 'OLD', $2, '2026-11-01Z', '2026-10-31Z')`,
		pipeline.SentinelTopic("t1", "telemetry"), good(2))
	r.want("replay", r.replay(nil), "quarantined OLD: its device is reserved for sentinels: there is nothing to write")
	r.wantCount(1, `SELECT count(*) FROM telemetry`)
}
