package legacy_mqtt_test

import (
	"maps"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/pipeline"
)

// TestInHandIsWhatIsNotSettled: of either quality of service, in whichever order it is
// settled, and of no connection that is gone.
func TestInHandIsWhatIsNotSettled(t *testing.T) {
	e := newEnv(t)
	r := run(t, e.config(t, 100))
	r.awaitHealthy(t)
	inHand := func() map[string]int {
		n := map[string]int{}
		r.InHand(func(topic string, arrived time.Time) {
			n[topic]++
			if age := time.Since(arrived); age < 0 || age > time.Hour {
				t.Errorf("%s arrived %v ago", topic, age)
			}
		})
		return n
	}
	const other, loose = "tenant/t2/device/d/telemetry", "tenant/t3/device/d/telemetry"
	publish(t, e.broker, 1, deviceTopic, nil, "a", "b")
	publish(t, e.broker, 1, other, nil, "c")
	publish(t, e.broker, 0, loose, nil, "d")
	var held []pipeline.Delivery
	for range 4 {
		held = append(held, r.next(t))
	}
	if got := inHand(); !maps.Equal(got, map[string]int{deviceTopic: 2, other: 1, loose: 1}) {
		t.Errorf("in hand: %v", got)
	}
	for _, d := range held[1:] { // the first keeps their PUBACKs back, but they are settled
		must(t, d.Receipt.Ack())
	}
	if got := inHand(); !maps.Equal(got, map[string]int{deviceTopic: 1}) {
		t.Errorf("behind an open one: %v", got)
	}
	e.Cut(t)
	devstack.Await(t, "nothing is in hand of a connection that is gone", func() bool { return len(inHand()) == 0 })
	e.Restore(t)
	for len(inHand()) < 2 { // the broker sends again what it has no PUBACK for
		r.next(t)
	}
	if got := inHand(); got[deviceTopic] == 0 || got[loose] != 0 {
		t.Errorf("come again: %v", got)
	}
}
