package bridge_test

import (
	"testing"

	"github.com/crossfade-io/crossfade/internal/fleet"
)

func TestFleetIsStoredOnce(t *testing.T) {
	s := newStack(t)
	i := s.start(s.config("a"))
	c := fleet.DefaultConfig()
	c.Rate, c.PerDevice = 3000, 100
	report := s.reconcile(s.play(c))
	t.Log(report)
	// All tenants are in shadow: the mirror's copies have stood by, every one.
	await(t, "every JetStream copy has stood by and none is held", func() bool {
		text := i.metrics()
		return metric(t, text, "crossfade_standby_total") >= 6000 && metric(t, text, "crossfade_standby_held") == 0
	})
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
}
