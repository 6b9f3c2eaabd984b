package pipeline_test

import (
	"bytes"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/pipelinetest"
)

// seen is all that others read from a message, copied out of its memory.
type seen struct {
	topic                      pipeline.Topic
	raw, user, detail          string
	identity                   pipeline.Identity
	explicit                   bool
	digest, seq                int64
	null, ok, storable         bool
	time                       int64
	size                       int
	failed, content            pipeline.Reason
	metrics, payload           string
	ts, site, token, reported  string
	command, status, messageID string
}

func look(m *pipeline.Message) seen {
	s := seen{
		topic: m.Topic, raw: m.RawTopic, user: m.Username, detail: m.Detail, identity: m.Identity, explicit: m.Explicit, digest: m.Digest,
		time: m.Time.UnixMicro(), size: m.Size, failed: m.Failed,
	}
	settings := check.DefaultSettings()
	s.content = check.Content(check.Input{Message: m, Settings: &settings}).Reason
	s.seq, s.null, s.ok = m.Seq()
	metrics, storable := m.Metrics()
	s.metrics, s.storable = string(metrics), storable
	s.payload = string(m.Payload.AppendCanonical(nil))
	f := &m.Fields
	s.ts, s.site, s.token, s.reported = string(f.TS.AppendCanonical(nil)), string(f.SiteID.AppendCanonical(nil)), string(f.Token.AppendCanonical(nil)), string(f.Reported.AppendCanonical(nil))
	s.command, s.status, s.messageID = string(f.CommandID.AppendCanonical(nil)), string(f.Status.AppendCanonical(nil)), string(f.MessageID.AppendCanonical(nil))
	return s
}

// FuzzDecode: nothing panics, reading does not change the body, and a Message that
// is used again says the same as a new one, whatever it held before.
func FuzzDecode(f *testing.F) {
	full := `{"ts":"2026-02-09T09:15:23.045Z","site_id":"s1","seq":123,"tenant_id":"t1","provision_token":"tok","version":"1","message_id":"m1","reported":{"a":1},"command_id":"c1","status":"ok","details":{},"metrics":{"temp_c":22.5,"\u00b0":"\ud83d\ude00"}}`
	for _, s := range []string{full, `{}`, `{"seq":1,"ts":1795435200.004}`, `{`, ``, "\xff", `"\"{}\""`, `[[[]]]`, `{"metrics":{"a":"\u0000"}}`, `{"ts":null}`} {
		f.Add(topic, "telemetry.t1", []byte(s), false)
		f.Add(topic, "telemetry.t1", []byte(envelope(topic, `"x"`, noonMS)), true)
		f.Add(topic, "telemetry.t1", []byte(`{"topic":"`+topic+`","payload":`+s+`,"ts":1795435200000,"username":"t1/d1"}`), true)
	}
	f.Add("tenant/t1/device/d1/commands", "telemetry.t2", []byte(full), false)
	for _, c := range pipelinetest.HostileCases() {
		if len(c.Payload) < 10_000 {
			f.Add(c.TopicOf("d1"), "telemetry.t1", []byte(c.Payload), false)
			f.Add("", "telemetry.t1", pipelinetest.Mirror(c.TopicOf("d1"), []byte(c.Payload), noon), true)
		}
	}
	f.Fuzz(func(t *testing.T, topic, subject string, body []byte, stream bool) {
		d := overMQTT(topic, string(body))
		if stream {
			d = overJetStream(subject, string(body))
		}
		want := look(decode(t, d))
		if want.topic.Tenant != d.Tenant() && want.failed == pipeline.Accepted {
			t.Fatalf("accepted for tenant %q, but the transport says %q", want.topic.Tenant, d.Tenant())
		}
		if want.failed == pipeline.Accepted && want.topic.MsgType == "" {
			t.Fatal("accepted without a message type")
		}

		dec := pipeline.NewDecoder(pipeline.DefaultMessageIDMember)
		var m pipeline.Message
		for _, before := range []pipeline.Delivery{
			{Path: pipeline.PathMQTT, Topic: "tenant/other/device/other/commands/ack", Username: "other", Body: []byte(full), Receipt: receipt(noon)},
			overJetStream("telemetry.t1", envelope("tenant/t1/device/d1/telemetry", full, 1)),
			overJetStream("telemetry.t1", envelope("tenant/t1/device/d1/telemetry", `"\"{\\\"a\\\":1}\""`, 1)),
			overJetStream("telemetry.other", `{"broken`),
			d,
		} {
			dec.Decode(&m, &before)
			_ = look(&m)
			if dec.Decode(&m, &d); look(&m) != want {
				t.Fatalf("after %s:\n got %+v\nwant %+v", before.Body, look(&m), want)
			}
		}
		if !bytes.Equal(d.Body, body) {
			t.Fatal("decoding changed the body")
		}
	})
}
