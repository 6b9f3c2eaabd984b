package pipeline_test

import (
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

func TestTopicHint(t *testing.T) {
	for body, want := range map[string]string{
		`{"topic":"tenant/t1/device/d1/telemetry","payload":{}}`:                                  "tenant/t1/device/d1/telemetry",
		" {\n\"topic\" : \"tenant/t1/device/d1/x\" }":                                             "tenant/t1/device/d1/x",
		`{"topic":"tenant\/t1\/device\/d\u0031\/x"}`:                                              "tenant/t1/device/d1/x",
		`{"payload":{"topic":"no","a":["}",{"topic":"\"no"}]},"ts":1.5e3,"a":null,"topic":"yes"}`: "yes",
		`{"payload":"{\"topic\":\"no\"}","topic":"yes"}`:                                          "yes",
		`{"topic":"first","topic":"second"}`:                                                      "first",
		`{"topic":7}`:                                                                             "", `{"topic":"a\x"}`: "", `{"topic":"a`: "", `{"a":[1,2`: "", `{"a"`: "", `{"a":1}`: "", `{`: "", ``: "", `[]`: "", `"topic"`: "", `{"\`: "",
		`{"a":` + strings.Repeat("[", 100_000): "",
	} {
		if got := pipeline.TopicHint(&pipeline.Delivery{Path: pipeline.PathJetStream, Body: []byte(body)}); got != want {
			t.Errorf("%.60s: %q, want %q", body, got, want)
		}
	}
	if got := pipeline.TopicHint(&pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "a/b", Body: []byte(`{"topic":"c"}`)}); got != "a/b" {
		t.Errorf("by MQTT: %q", got)
	}
}

// FuzzTopicHint: it never panics, and where an envelope names its topic once the
// hint is the topic.
func FuzzTopicHint(f *testing.F) {
	f.Add([]byte(`{"payload":{"a":[1,"}"]},"topic":"tenant/t1/device/d1/telemetry"}`))
	f.Add([]byte(`{"topic":"tenant\/t1\/device\/d1\/x","payload":"{}"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		d := pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t1", Body: body, Receipt: fuzzReceipt{}}
		hint := pipeline.TopicHint(&d)
		var m pipeline.Message
		pipeline.NewDecoder(pipeline.DefaultMessageIDMember).Decode(&m, &d)
		named := strings.Count(string(body), "topic") + strings.Count(string(body), `\`)
		if m.RawTopic != "" && named == 1 && hint != m.RawTopic {
			t.Errorf("%q: hint %q, topic %q", body, hint, m.RawTopic)
		}
	})
}

type fuzzReceipt struct{}

func (fuzzReceipt) Ack() error          { return nil }
func (fuzzReceipt) Release() error      { return nil }
func (fuzzReceipt) Occurred() time.Time { return time.Unix(1795435200, 0) }
