package bridge_test

import (
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

// TestFleetIsStoredOnce: in shadow every copy of the other path stands by, in the
// outer stages none does: they are dropped.
func TestFleetIsStoredOnce(t *testing.T) {
	s := newStack(t)
	wish := func(v flags.Variant) {
		if err := flags.OpenStore(s.pool).SetDefault(t.Context(), v, t.Name()); err != nil {
			t.Fatal(err)
		}
	}
	wish(flags.Shadow)
	i := s.start(s.config("a"))
	devstack.Await(t, "it leads and its sessions are proved in its era, so that nothing is processed for want of that", func() bool {
		text := i.metrics()
		return metric(t, text, "crossfade_leader") == 1 && strings.Contains(text, "crossfade_mqtt_session_proved 1") && strings.Contains(text, "crossfade_mirror_session_proved 1")
	})
	c := fleet.DefaultConfig()
	c.Rate, c.PerDevice = 3000, 100
	// Of a tenant that is in no stage yet both copies are processed.
	if err := fleet.Register(t.Context(), s.pool, fleet.Devices(c)); err != nil {
		t.Fatal(err)
	}
	s.arrive(stage.Shadow, fleet.TenantNames(c)...)
	c.Record = s.play(c)
	t.Log(s.reconcile(c.Record))
	devstack.Await(t, "every JetStream copy has stood by and none is held", func() bool {
		text := i.metrics()
		return metric(t, text, "crossfade_standby_total") >= 5500 && // but for those before the instance had heard
			metric(t, text, "crossfade_standby_held") == 0
	})
	if n := metric(t, i.metrics(), "crossfade_dropped_total"); n != 0 {
		t.Errorf("%v copies were dropped in shadow", n)
	}
	for n, v := range []flags.Variant{flags.MQTT, flags.JetStream} {
		wish(v)
		s.arrive(stage.Stage(v), fleet.TenantNames(c)...)
		c.PerDevice += 20
		c.Record = s.play(c)
		s.reconcile(c.Record)
		devstack.Await(t, "every copy of the other path is dropped", func() bool {
			return metric(t, i.metrics(), "crossfade_dropped_total") >= float64(1100*(n+1)) // but for those before the instance had heard
		})
	}
	if n := metric(t, i.metrics(), "crossfade_standby_held"); n != 0 {
		t.Errorf("%v copies are held", n)
	}
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
}
