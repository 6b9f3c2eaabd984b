package bridge

import (
	"testing"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// TestGate: in every stage one path is processed, the other stands by, and what
// names no tenant is processed on either.
func TestGate(t *testing.T) {
	stages := map[string]stage.Stage{"m": stage.MQTT, "s": stage.Shadow, "l": stage.Live, "j": stage.JetStream}
	var processed, held []string
	g := &gate{
		stageOf: func(tenant string) stage.Stage { return stages[tenant] },
		process: func(d pipeline.Delivery) { processed = append(processed, d.Path.String()+d.Topic+d.Subject) },
		hold: func(d pipeline.Delivery, seq uint64) {
			held = append(held, d.Path.String()+d.Topic+d.Subject)
			if seq == 0 {
				t.Error("an arrival has no number")
			}
		},
	}
	for _, topic := range []string{"tenant/m/device/d/telemetry", "tenant/s/device/d/telemetry", "tenant/l/device/d/telemetry", "tenant/j/device/d/telemetry", "nobody"} {
		g.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic})
	}
	for _, subject := range []string{"telemetry.m", "telemetry.s", "telemetry.l", "telemetry.j", "telemetry"} {
		g.deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: subject})
	}
	expect(t, "processed", processed,
		"mqtttenant/m/device/d/telemetry", "mqtttenant/s/device/d/telemetry", "mqttnobody",
		"jetstreamtelemetry.l", "jetstreamtelemetry.j", "jetstreamtelemetry")
	expect(t, "held", held,
		"mqtttenant/l/device/d/telemetry", "mqtttenant/j/device/d/telemetry",
		"jetstreamtelemetry.m", "jetstreamtelemetry.s")
	for _, p := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		if n := g.arrivals(p); n != 5 {
			t.Errorf("%d arrivals by %s, want 5", n, p)
		}
	}
}
