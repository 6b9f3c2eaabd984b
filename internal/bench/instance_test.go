package bench

import (
	"context"
	"strings"
	"testing"
	"time"
)

// TestInstanceTellsWhyItEnded: an instance that cannot start is reported with
// its own words, at once.
func TestInstanceTellsWhyItEnded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := startInstance(ctx, crossfade, []string{"CROSSFADE_MQTT_ENABLED=false", "CROSSFADE_NATS_URL=neither://a:b"})
	if err == nil || !strings.Contains(err.Error(), "--nats-url") {
		t.Errorf("got %v", err)
	}
}
