package legacy_mqtt_test

import (
	"testing"

	"github.com/crossfade-io/crossfade/bridge/sourcetest"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// traits: PUBACKs go out in order, and Mosquitto sends more of a backlog than
// the Receive Maximum allows, so the hard limit is the bound that counts.
var traits = sourcetest.Traits{
	OrderedAcks: true,
	MaxInHand:   func(window int) int { return 4 * window },
}

func TestConformance(t *testing.T) {
	sourcetest.Run(t, sourcetest.Harness{
		Setup:  func(t *testing.T) sourcetest.Env { return newEnv(t) },
		Traits: traits,
	})
}

// TestConformanceSharedSubscription: a single member of a group is promised
// the same.
func TestConformanceSharedSubscription(t *testing.T) {
	sourcetest.Run(t, sourcetest.Harness{
		Setup: func(t *testing.T) sourcetest.Env {
			e := newEnv(t)
			e.adjust = func(c *legacy_mqtt.Config) { c.Group = "ingest" }
			return e
		},
		Traits: traits,
	})
}
