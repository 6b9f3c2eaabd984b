package pipeline_test

import (
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline"
)

func TestParseTopic(t *testing.T) {
	for _, c := range []struct {
		topic string
		want  pipeline.Topic
	}{
		{"tenant/t1/device/d1/telemetry", pipeline.Topic{Tenant: "t1", Device: "d1", MsgType: "telemetry"}},
		{"tenant/t1/device/d1/heartbeat", pipeline.Topic{Tenant: "t1", Device: "d1", MsgType: "heartbeat"}},
		{"tenant/t.1/device/d 1/°C", pipeline.Topic{Tenant: "t.1", Device: "d 1", MsgType: "°C"}},
		{"tenant/tenant/device/device/device", pipeline.Topic{Tenant: "tenant", Device: "device", MsgType: "device"}},
		{"tenant/t1/device/d1/a/b/", pipeline.Topic{Tenant: "t1", Device: "d1", MsgType: "a/b/"}},
		{"tenant/t1/device/d1/shadow/reported", pipeline.Topic{Tenant: "t1", Device: "d1", MsgType: "shadow/reported", Kind: pipeline.KindShadow}},
		{"tenant/t1/device/d1/shadow/reported/x", pipeline.Topic{Tenant: "t1", Device: "d1", MsgType: "shadow/reported/x"}},
		{"tenant/t1/device/d1/commands/ack", pipeline.Topic{Tenant: "t1", Device: "d1", MsgType: "commands/ack", Kind: pipeline.KindCommandAck}},
		{"tenant/t1/device/d1/commands", pipeline.Topic{Tenant: "t1", Device: "d1", MsgType: "commands", Kind: pipeline.KindDownlink}},
		{"tenant/t1/device/d1/commands/response", pipeline.Topic{Tenant: "t1", Device: "d1", MsgType: "commands/response", Kind: pipeline.KindDownlink}},
		{"tenant/t1/device/d1/shadow/desired", pipeline.Topic{Tenant: "t1", Device: "d1", MsgType: "shadow/desired", Kind: pipeline.KindDownlink}},
	} {
		if got, ok := pipeline.ParseTopic(c.topic); !ok || got != c.want {
			t.Errorf("%q is %+v, %v; want %+v", c.topic, got, ok, c.want)
		}
	}
}

func TestParseTopicRefuses(t *testing.T) {
	for _, topic := range []string{
		"", "/", "////", "tenant", "tenant/", "tenant/t1", "tenant/t1/device", "tenant/t1/device/", "tenant/t1/device/d1", "tenant/t1/device/d1/",
		"tenant//device/d1/telemetry", "tenant/t1/device//telemetry", "/tenant/t1/device/d1/telemetry", "Tenant/t1/device/d1/telemetry",
		"tenant/t1/Device/d1/telemetry", "tenants/t1/device/d1/telemetry", "tenant/t1/devices/d1/telemetry", "tenant/t1/x/device/d1/telemetry",
		"tenant/+/device/d1/telemetry", "tenant/t1/device/d1/#", "tenant/t1/device/d\x001/telemetry",
		"tenant/t1/device/d\xff/telemetry", "tenant/t1/device/\xed\xa0\x80/telemetry",
		"tenant/t1/device/d1/" + strings.Repeat("x", pipeline.MaxTopic),
	} {
		if got, ok := pipeline.ParseTopic(topic); ok || got != (pipeline.Topic{}) {
			t.Errorf("%.60q is %+v, %v; want none", topic, got, ok)
		}
	}
	longest := "tenant/t1/device/d1/"
	longest += strings.Repeat("x", pipeline.MaxTopic-len(longest))
	if _, ok := pipeline.ParseTopic(longest); !ok {
		t.Error("a topic of MaxTopic bytes must be accepted")
	}
}

// TestTransportNamesTheTenant: what decides about a copy comes from the topic or
// subject alone.
func TestTransportNamesTheTenant(t *testing.T) {
	for _, c := range []struct {
		d    pipeline.Delivery
		want string
	}{
		{pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Subject: "telemetry.t2"}, "t1"},
		{pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/rubbish"}, "t1"},
		{pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1"}, ""},
		{pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "other/t1/device/d1/telemetry"}, ""},
		{pipeline.Delivery{Path: pipeline.PathJetStream, Topic: "tenant/t1/device/d1/telemetry", Subject: "telemetry.t2"}, "t2"},
		{pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "shadow.a.b"}, "a.b"},
		{pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry"}, ""},
	} {
		if got := c.d.Tenant(); got != c.want {
			t.Errorf("tenant of %+v is %q, want %q", c.d, got, c.want)
		}
	}
}
