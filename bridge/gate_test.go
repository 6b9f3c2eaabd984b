package bridge

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// gateBench is a gate whose ways out are recorded.
type gateBench struct {
	*gate
	registry                        *prometheus.Registry
	mayDrop                         bool
	processed, held, taken, settled []string
}

func newGateBench(t *testing.T) *gateBench {
	stages := map[string]stage.Stage{"m": stage.MQTT, "s": stage.Shadow, "l": stage.Live, "j": stage.JetStream}
	reg := prometheus.NewRegistry()
	b := &gateBench{gate: newGate(reg), registry: reg}
	b.look = func(tenant string) (stage.Stage, bool) { return stages[tenant], b.mayDrop }
	b.process = func(d pipeline.Delivery) { b.processed = append(b.processed, d.Path.String()+d.Topic+d.Subject) }
	b.hold = func(d pipeline.Delivery, seq uint64) {
		b.held = append(b.held, d.Path.String()+d.Topic+d.Subject)
		if seq == 0 {
			t.Error("an arrival has no number")
		}
	}
	b.sentinel = func(d *pipeline.Delivery, s pipeline.Sentinel) {
		b.taken = append(b.taken, d.Path.String()+d.Topic+d.Subject+" "+s.Nonce)
	}
	return b
}

func (b *gateBench) mqtt(topics ...string) {
	for _, topic := range topics {
		b.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Receipt: settling{b, topic}})
	}
}

func (b *gateBench) jetstream(subjects ...string) {
	for _, subject := range subjects {
		b.deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: subject, Receipt: settling{b, subject}})
	}
}

// settling is a receipt whose acknowledgement is recorded, and fails.
type settling struct {
	b    *gateBench
	name string
}

func (s settling) Ack() error {
	s.b.settled = append(s.b.settled, s.name)
	return errors.New("the connection is gone")
}
func (settling) Release() error      { panic("a gate gives nothing back") }
func (settling) Occurred() time.Time { return time.Unix(0, 0) }

// counted is what a counter with that value of its first label shows.
func counted(t *testing.T, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	total := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == label {
				total += m.GetCounter().GetValue()
			}
		}
	}
	return total
}

// TestGate: in every stage one path is processed, the other stands by, and what
// names no tenant is processed on either.
func TestGate(t *testing.T) {
	b := newGateBench(t)
	b.mqtt("tenant/m/device/d/telemetry", "tenant/s/device/d/telemetry", "tenant/l/device/d/telemetry", "tenant/j/device/d/telemetry", "nobody")
	b.jetstream("telemetry.m", "telemetry.s", "telemetry.l", "telemetry.j", "telemetry")
	expect(t, "processed", b.processed,
		"mqtttenant/m/device/d/telemetry", "mqtttenant/s/device/d/telemetry", "mqttnobody",
		"jetstreamtelemetry.l", "jetstreamtelemetry.j", "jetstreamtelemetry")
	expect(t, "held", b.held,
		"mqtttenant/l/device/d/telemetry", "mqtttenant/j/device/d/telemetry",
		"jetstreamtelemetry.m", "jetstreamtelemetry.s")
	expect(t, "settled", b.settled)
	for _, p := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		if n := b.arrivals(p); n != 5 {
			t.Errorf("%d arrivals by %s, want 5", n, p)
		}
	}
}

// TestGateDrops: with the right to, and in an outer stage only, copies of the path
// that has nothing to say are acknowledged unseen, and counted.
func TestGateDrops(t *testing.T) {
	b := newGateBench(t)
	b.mayDrop = true
	b.mqtt("tenant/m/device/d/telemetry", "tenant/s/device/d/telemetry", "tenant/l/device/d/telemetry", "tenant/j/device/d/telemetry", "nobody")
	b.jetstream("telemetry.m", "telemetry.s", "telemetry.l", "telemetry.j", "telemetry")
	expect(t, "settled", b.settled, "tenant/j/device/d/telemetry", "telemetry.m")
	expect(t, "held", b.held, "mqtttenant/l/device/d/telemetry", "jetstreamtelemetry.s")
	if len(b.processed) != 6 {
		t.Errorf("processed: %q", b.processed)
	}
	for _, p := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		if n := counted(t, b.registry, "crossfade_dropped_total", p.String()); n != 1 {
			t.Errorf("%v copies dropped by %s, want 1", n, p)
		}
	}
}

// TestGateDropsNothingBulky: what may be too large for the other path stands by in an
// outer stage, too.
func TestGateDropsNothingBulky(t *testing.T) {
	b := newGateBench(t)
	b.mayDrop = true
	deliver := func(d pipeline.Delivery) {
		d.Receipt = settling{b, d.Topic + d.Subject}
		b.deliver(d)
	}
	topic := "tenant/j/device/" + strings.Repeat("d", mostName)
	deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/j/device/d/telemetry", Body: make([]byte, mostBody)})
	deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.m", Body: make([]byte, mostBody)})
	expect(t, "settled", b.settled, "tenant/j/device/d/telemetry", "telemetry.m")
	deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/j/device/d/x", Body: make([]byte, mostBody+1)})
	deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/j/device/d/y", Username: topic})
	deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic})
	deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.m", Body: make([]byte, mostBody+1)})
	expect(t, "held", b.held, "mqtttenant/j/device/d/x", "mqtttenant/j/device/d/y", "mqtt"+topic, "jetstreamtelemetry.m")
	b.held, b.largest = nil, func() int { return 8 << 10 }
	deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/j/device/d/z", Body: make([]byte, 960)})
	deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/j/device/d/x", Body: make([]byte, 961)})
	deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/j/device/d/y", Username: strings.Repeat("u", 61)})
	expect(t, "held where the streams take 8 KiB", b.held, "mqtttenant/j/device/d/x", "mqtttenant/j/device/d/y")
	b.held, b.largest = nil, func() int { return 0 }
	deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/j/device/d/z", Body: make([]byte, 1)})
	expect(t, "held while it is not known what the streams take", b.held, "mqtttenant/j/device/d/z")
}

// TestGateAfterAStandstill: what a stream has stored after the end of the lease is not
// dropped, whatever this instance's clocks say.
func TestGateAfterAStandstill(t *testing.T) {
	b := newGateBench(t)
	b.mayDrop = true
	b.spans = func(stored time.Time) bool { return stored.After(time.Unix(0, 0)) }
	b.jetstream("telemetry.m", "telemetry.s")
	b.mqtt("tenant/j/device/d/telemetry")
	expect(t, "held", b.held, "jetstreamtelemetry.m", "jetstreamtelemetry.s")
	expect(t, "settled", b.settled, "tenant/j/device/d/telemetry")
}

// TestGateTakesSentinels before it decides anything: in every stage, on both paths,
// whether or not they are ours.
func TestGateTakesSentinels(t *testing.T) {
	for _, tenant := range []string{"m", "s", "l", "j"} {
		b := newGateBench(t)
		b.mayDrop = true
		topic := pipeline.SentinelTopic(tenant, pipeline.SentinelTelemetry)
		for _, payload := range []string{string(pipeline.SentinelPayload("n1")), `rubbish`} {
			b.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(payload), Receipt: settling{b, topic}})
		}
		for _, payload := range []string{string(pipeline.SentinelPayload("n1")), `"rubbish"`} {
			b.deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry." + tenant,
				Body: []byte(`{"topic":"` + topic + `","payload":` + payload + `}`), Receipt: settling{b, topic}})
		}
		expect(t, "taken", b.taken, "mqtt"+topic+" n1", "mqtt"+topic+" ", "jetstreamtelemetry."+tenant+" n1", "jetstreamtelemetry."+tenant+" ")
		if len(b.processed)+len(b.held)+len(b.settled) != 0 {
			t.Errorf("stage of %s: a sentinel went another way: %q %q %q", tenant, b.processed, b.held, b.settled)
		}
	}
}

// TestGateProcessesWhatHasNoSibling: in every stage, with the right to drop or without.
func TestGateProcessesWhatHasNoSibling(t *testing.T) {
	for _, mayDrop := range []bool{false, true} {
		b := newGateBench(t)
		b.mayDrop = mayDrop
		for _, tenant := range []string{"m", "s", "l", "j"} {
			b.deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry." + tenant, Sole: true, Receipt: settling{b, tenant}})
		}
		expect(t, "processed", b.processed, "jetstreamtelemetry.m", "jetstreamtelemetry.s", "jetstreamtelemetry.l", "jetstreamtelemetry.j")
		expect(t, "held", b.held)
		expect(t, "settled", b.settled)
	}
}
