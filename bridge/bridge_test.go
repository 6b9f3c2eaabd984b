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
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
}
