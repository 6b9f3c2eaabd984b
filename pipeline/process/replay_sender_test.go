package process_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
)

// http delivers what HTTP ingest puts on JetStream at the time of the receipts.
func (r *rig) http(payload string) {
	body := fmt.Sprintf(`{"topic":"tenant/t1/device/d1/telemetry","payload":%s,"ts":1795435200000}`, payload)
	r.deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t1", Origin: pipeline.OriginHTTP, Sole: true, Body: []byte(body)}, nil)
}

// as delivers an MQTT message of which the broker names the sender.
func (r *rig) as(username, payload string) {
	r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Username: username, Body: []byte(payload)}, nil)
}

// TestReplayOfHTTP: a ts that came by HTTP at the moment that it names is the device's.
// A replay passes it on, as the pipeline does, and remembers it; from a mirror the same
// envelope has one that the mirror added.
func TestReplayOfHTTP(t *testing.T) {
	const payload = `{"ts":1795435200.001,"message_id":"m%d","site_id":"s1","metrics":{"a":%[1]d}}`
	routed := func(o *process.Options) { o.Routes = true }
	r := newRig(t, database(t), routed)
	r.exec(`INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type) VALUES ('t1', 'r', '#', 'webhook')`)
	r.http(fmt.Sprintf(payload, 1))
	r.jetstream("telemetry", fmt.Sprintf(payload, 2))
	r.drain()
	r.expel()
	live := newRig(t, r.db.Config().ConnString(), routed) // has no device in its cache
	live.expel()
	live.http(fmt.Sprintf(payload, 3))
	live.jetstream("telemetry", fmt.Sprintf(payload, 4))
	live.drain()
	r.enrol()
	digests := r.lines(`SELECT digest::text FROM crossfade_ledger ORDER BY 1`)
	r.exec(`DELETE FROM crossfade_ledger WHERE outcome = 2`) // its retention is over
	r.want("replay", r.replay(func(o *process.ReplayOptions) { o.Routes = true }), "written\nwritten")
	r.want("digests", fmt.Sprint(r.lines(`SELECT digest::text FROM crossfade_ledger ORDER BY 1`)), fmt.Sprint(digests))
	var body []byte
	r.each(`SELECT body FROM crossfade_outbox`, []any{&body}, func() {
		var message struct {
			Payload struct {
				TS json.Number
				ID string `json:"message_id"`
			}
		}
		if err := json.Unmarshal(body, &message); err != nil {
			t.Fatal(err)
		}
		want := map[string]json.Number{"m1": "1795435200.001", "m2": "", "m3": "1795435200.001", "m4": ""}
		if p := message.Payload; p.TS != want[p.ID] {
			t.Errorf("%s is routed with ts %q, want %q", p.ID, p.TS, want[p.ID])
		}
		delete(want, message.Payload.ID)
	})
	r.wantCount(4, `SELECT count(*) FROM crossfade_outbox`)
}

// TestReplayOfCertificateLogins: who sent a message is kept, so that it needs no token
// the second time either, and nobody gains one by the replay. By HTTP no broker has seen
// a certificate.
func TestReplayOfCertificateLogins(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.expel()
	r.as("t1/d1", good(1))
	r.as("t1/d2", good(2))
	r.mqtt(good(3))
	r.http(good(4))
	r.drain()
	r.enrol()
	r.exec(`UPDATE device_registry SET provision_token_hash = repeat('0', 64)`)
	r.exec(`INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, common_name, status) VALUES ('t1', 'd1', 'f', 't1/d1', 'ACTIVE')`)
	certified := func(trust bool) func(*process.ReplayOptions) {
		return func(o *process.ReplayOptions) {
			o.Settings.RequireToken, o.Settings.CertAuth, o.Settings.CertTrustTopic, o.DryRun = true, true, trust, trust
		}
	}
	const refused = "\nquarantined TOKEN_MISSING"
	r.want("with trust in topics", r.replay(certified(true)), "written"+refused+"\nwritten"+refused)
	r.exec(`UPDATE quarantine_events SET username = CASE id % 2 WHEN 0 THEN U&'t1/d1\FFFD' END WHERE path = 1`)
	r.want("of unknown senders", r.replay(certified(true)), strings.TrimSpace(strings.Repeat(refused, 4)))
	r.exec(`UPDATE quarantine_events SET username = CASE raw WHEN $1 THEN 't1/d1' WHEN $2 THEN 't1/d2' ELSE '' END WHERE path = 1`, []byte(good(1)), []byte(good(2)))
	r.want("replay", r.replay(certified(false)), "written"+refused+refused+refused)
}
