package pipeline_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline"
)

const (
	sentinelTopic = "tenant/t1/device/crossfade-sentinel/telemetry"
	sentinelBody  = `{"crossfade_sentinel":"n-1_A"}`
)

func sentinelOver(path pipeline.Path, subject, topic, body string) pipeline.Delivery {
	return pipeline.Delivery{Path: path, Topic: topic, Subject: subject, Body: []byte(body), Receipt: fuzzReceipt{}}
}

func inEnvelope(subject, topic, payload string) pipeline.Delivery {
	quoted, _ := json.Marshal(topic)
	return sentinelOver(pipeline.PathJetStream, subject, "", `{"topic":`+string(quoted)+`,"tenant_id":"t1","device_id":"crossfade-sentinel","payload":`+payload+`,"ts":1795435200000}`)
}

// TestSentinelOf: what is a sentinel, by either path and however a mirror wrote it,
// and what only looks like one.
func TestSentinelOf(t *testing.T) {
	const ours, forged, no = "ours", "forged", "none"
	asString, _ := json.Marshal(sentinelBody)
	for _, c := range []struct {
		name string
		d    pipeline.Delivery
		want string
	}{
		{"mqtt", sentinelOver(pipeline.PathMQTT, "", sentinelTopic, sentinelBody), ours},
		{"mqtt, as we write it", sentinelOver(pipeline.PathMQTT, "", pipeline.SentinelTopic("t1", "telemetry"), string(pipeline.SentinelPayload("n-1_A"))), ours},
		{"mqtt, more in it", sentinelOver(pipeline.PathMQTT, "", sentinelTopic, ` {"ts":7, "crossfade_sentinel" : "n-1\u005fA"}`), ours},
		{"envelope", inEnvelope("telemetry.t1", sentinelTopic, sentinelBody), ours},
		{"envelope with a string", inEnvelope("telemetry.t1", sentinelTopic, string(asString)), ours},
		{"envelope with ts injected", inEnvelope("telemetry.t1", sentinelTopic, `{"crossfade_sentinel":"n-1_A","ts":1795435200.0}`), ours},
		{"envelope with slashes escaped", sentinelOver(pipeline.PathJetStream, "telemetry.t1", "", `{"topic":"tenant\/t1\/device\/crossfade-sentinel\/telemetry","payload":`+sentinelBody+`}`), ours},
		{"envelope, topic last", sentinelOver(pipeline.PathJetStream, "telemetry.t1", "", `{"payload":`+sentinelBody+`,"ts":1,"topic":"`+sentinelTopic+`"}`), ours},

		{"no JSON", sentinelOver(pipeline.PathMQTT, "", sentinelTopic, `{"crossfade_sentinel":"n-1_A"`), forged},
		{"empty", sentinelOver(pipeline.PathMQTT, "", sentinelTopic, ``), forged},
		{"no nonce", sentinelOver(pipeline.PathMQTT, "", sentinelTopic, `{"crossfade_sentinel":""}`), forged},
		{"nonce of another kind", sentinelOver(pipeline.PathMQTT, "", sentinelTopic, `{"crossfade_sentinel":{"a":1}}`), forged},
		{"nonce too long", sentinelOver(pipeline.PathMQTT, "", sentinelTopic, `{"crossfade_sentinel":"`+strings.Repeat("x", 65)+`"}`), forged},
		{"nonce with a quote", sentinelOver(pipeline.PathMQTT, "", sentinelTopic, `{"crossfade_sentinel":"a'b"}`), forged},
		{"nonce deeper", sentinelOver(pipeline.PathMQTT, "", sentinelTopic, `{"metrics":{"crossfade_sentinel":"n"}}`), forged},
		{"too long", sentinelOver(pipeline.PathMQTT, "", sentinelTopic, `{"crossfade_sentinel":"n","x":"`+strings.Repeat("x", 5000)+`"}`), forged},
		{"another type", sentinelOver(pipeline.PathMQTT, "", "tenant/t1/device/crossfade-sentinel/heartbeat", sentinelBody), forged},
		{"downlink type", sentinelOver(pipeline.PathMQTT, "", "tenant/t1/device/crossfade-sentinel/commands", sentinelBody), forged},
		{"telemetry in an envelope", inEnvelope("telemetry.t1", sentinelTopic, `{"site_id":"s"}`), forged},

		{"another device", sentinelOver(pipeline.PathMQTT, "", "tenant/t1/device/d1/telemetry", sentinelBody), no},
		{"device that begins alike", sentinelOver(pipeline.PathMQTT, "", "tenant/t1/device/crossfade-sentinel-2/telemetry", sentinelBody), no},
		{"tenant of that name", sentinelOver(pipeline.PathMQTT, "", "tenant/crossfade-sentinel/device/d1/telemetry", sentinelBody), no},
		{"type of that name", sentinelOver(pipeline.PathMQTT, "", "tenant/t1/device/d1/crossfade-sentinel", sentinelBody), no},
		{"no topic of ours", sentinelOver(pipeline.PathMQTT, "", "x/device/crossfade-sentinel/telemetry", sentinelBody), no},
		{"no type", sentinelOver(pipeline.PathMQTT, "", "tenant/t1/device/crossfade-sentinel/", sentinelBody), no},
		{"another device, in an envelope", inEnvelope("telemetry.t1", "tenant/t1/device/d1/telemetry", `{"a":"crossfade-sentinel","topic":"`+sentinelTopic+`"}`), no},
		{"another tenant's subject", inEnvelope("telemetry.t2", sentinelTopic, sentinelBody), no},
		{"another device claimed", sentinelOver(pipeline.PathJetStream, "telemetry.t1", "", `{"topic":"`+sentinelTopic+`","device_id":"d1","payload":`+sentinelBody+`}`), no},
		{"two topics", sentinelOver(pipeline.PathJetStream, "telemetry.t1", "", `{"topic":"`+sentinelTopic+`","payload":`+sentinelBody+`,"topic":"tenant/t1/device/d1/telemetry"}`), no},
		{"broken envelope", sentinelOver(pipeline.PathJetStream, "telemetry.t1", "", `{"topic":"`+sentinelTopic+`","payload":`+sentinelBody), no},
		{"not an envelope", sentinelOver(pipeline.PathJetStream, "telemetry.t1", "", `"crossfade-sentinel"`), no},
	} {
		s, ok := pipeline.SentinelOf(&c.d)
		got := no
		switch {
		case ok && s.Nonce != "":
			got = ours
			if s != (pipeline.Sentinel{Tenant: "t1", Type: "telemetry", Nonce: "n-1_A"}) {
				t.Errorf("%s: %+v", c.name, s)
			}
		case ok:
			if got = forged; s.Tenant != "t1" {
				t.Errorf("%s: tenant %q", c.name, s.Tenant)
			}
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestSentinelTypes: the topics of a sentinel are told apart and none is for a device.
func TestSentinelTypes(t *testing.T) {
	for _, typ := range pipeline.SentinelTypes() {
		d := sentinelOver(pipeline.PathMQTT, "", pipeline.SentinelTopic("t1", typ), sentinelBody)
		if s, ok := pipeline.SentinelOf(&d); !ok || s.Type != typ || s.Nonce == "" {
			t.Errorf("%s: %+v, %v", d.Topic, s, ok)
		}
		if topic, ok := pipeline.ParseTopic(d.Topic); !ok || topic.Kind != pipeline.KindSentinel || !topic.Kind.Ignored() {
			t.Errorf("%s: %+v, %v", d.Topic, topic, ok)
		}
	}
}

// FuzzSentinelOf: whatever is taken for a sentinel is one to the workers too, so that
// nothing they would write is lost, and nothing they would take for one is overlooked
// but what [pipeline.SentinelOf] says.
func FuzzSentinelOf(f *testing.F) {
	f.Add(sentinelTopic, "telemetry.t1", []byte(sentinelBody))
	f.Add("tenant/t1/device/d1/telemetry", "telemetry.t1", []byte(`{"topic":"`+sentinelTopic+`","payload":`+sentinelBody+`}`))
	f.Add("", "telemetry.t1", []byte(`{"topic":"tenant/t1/device/crossfade-sentinel/x","topic":"tenant/t1/device/d/x","payload":"{}"}`))
	f.Add("", "shadow.t1", []byte(`{"a":"crossfade-sentinel","topic":"tenant/t1/device/crossfade\u002dsentinel/shadow/reported","payload":"\"{}\""}`))
	f.Fuzz(func(t *testing.T, topic, subject string, body []byte) {
		for _, path := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
			d := pipeline.Delivery{Path: path, Topic: topic, Subject: subject, Body: body, Receipt: fuzzReceipt{}}
			s, ok := pipeline.SentinelOf(&d)
			var m pipeline.Message
			pipeline.NewDecoder(pipeline.DefaultMessageIDMember).Decode(&m, &d)
			named := strings.Count(string(body), "topic") <= 1 && !strings.Contains(string(body), `\`)
			switch is := m.Kind == pipeline.KindSentinel; {
			case ok && !is:
				t.Fatalf("by %s, %q with %q: taken for a sentinel, but it is of kind %d", path, topic, body, m.Kind)
			case ok && (s.Tenant != m.Tenant || s.Tenant != d.Tenant()):
				t.Fatalf("by %s, %q with %q: of tenant %q, but it came for %q", path, topic, body, s.Tenant, d.Tenant())
			case !ok && is && (path == pipeline.PathMQTT || named):
				t.Fatalf("by %s, %q with %q: overlooked", path, topic, body)
			}
		}
	})
}

// BenchmarkSentinelOf: what it costs everybody else.
func BenchmarkSentinelOf(b *testing.B) {
	d := inEnvelope("telemetry.t1", "tenant/t1/device/device-0001/telemetry", `{"site_id":"s1","seq":123,"ts":"2026-02-09T09:15:23.045Z","metrics":{"temp_c":22.5,"humidity":40,"door_open":true,"mode":"eco"},"provision_token":"tok-0123456789"}`)
	d.Body = []byte(strings.Replace(string(d.Body), pipeline.SentinelDevice, "device-0001", 1))
	for b.Loop() {
		if _, ok := pipeline.SentinelOf(&d); ok {
			b.Fatal("taken for a sentinel")
		}
	}
}
