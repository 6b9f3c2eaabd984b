package demo

import "testing"

const metricsPage = `# TYPE crossfade_messages_total counter
crossfade_messages_total{outcome="written",path="mqtt"} 70
crossfade_messages_total{outcome="written",path="jetstream"} 30
crossfade_messages_total{outcome="duplicate",path="mqtt"} 4
crossfade_messages_total{outcome="duplicate",path="jetstream"} 1
crossfade_messages_total{outcome="ignored",path="mqtt"} 9
# TYPE crossfade_standby_total counter
crossfade_standby_total{end="matched",path="mqtt"} 20
crossfade_standby_total{end="rescued_wait",path="mqtt"} 2
crossfade_standby_total{end="rescued_full",path="jetstream"} 3
crossfade_standby_total{end="promoted",path="jetstream"} 8
# TYPE crossfade_source_received_total counter
crossfade_source_received_total{part="session",source="mqtt"} 100
# TYPE crossfade_source_in_hand gauge
crossfade_source_in_hand{part="session",source="mqtt"} 5
# TYPE crossfade_mirror_waiting gauge
crossfade_mirror_waiting 6
`

func TestMeterCountsOverRestarts(t *testing.T) {
	m := newMeter(nil)
	one, err := m.parse([]byte(metricsPage))
	if err != nil {
		t.Fatal(err)
	}
	want := Counts{at: one.at, WrittenMQTT: 70, WrittenJetStream: 30, Matched: 20, Rescued: 5, Known: 5, received: 100, busy: 11}
	if one != want {
		t.Errorf("read %+v, want %+v", one, want)
	}
	more := one
	more.WrittenMQTT, more.busy = 90, 0
	m.add(1, one)
	m.add(1, more) // 20 more
	m.add(2, more) // another process, which has done more than the one before
	m.add(2, one)  // a third, not known as such yet: its counters are lower
	if m.sum.WrittenMQTT != 90+90+70 || m.sum.busy != 11 {
		t.Errorf("sums: %+v", m.sum)
	}
}
