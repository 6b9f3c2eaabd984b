package main

import (
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/crossfade-io/crossfade/internal/config"
)

// TestRetentionSettings: what is set is what partitions are dropped by, and by
// default none is.
func TestRetentionSettings(t *testing.T) {
	for _, c := range []struct {
		args                  []string
		telemetry, quarantine time.Duration
	}{
		{nil, 0, 0},
		{[]string{"--pipeline-telemetry-retention=720h", "--pipeline-quarantine-retention=48h"}, 720 * time.Hour, 48 * time.Hour},
	} {
		var r config.Run
		parser, err := kong.New(&r, config.Options()...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(append(c.args, "--database-url=postgres://db/iot", "--mqtt-url=mqtt://broker", "--nats-url=nats://nats")); err != nil {
			t.Fatal(err)
		}
		bc, err := bridgeConfig(&r)
		if err != nil {
			t.Fatal(err)
		}
		if got := bc.Partitions; got.TelemetryRetention != c.telemetry || got.QuarantineRetention != c.quarantine {
			t.Errorf("%v: telemetry %v, quarantine %v", c.args, got.TelemetryRetention, got.QuarantineRetention)
		}
		if err := bc.Partitions.Validate(); err != nil {
			t.Error(err)
		}
	}
}
