package main

import (
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/process"
	"github.com/crossfade-io/crossfade/pipeline/store"
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
		bc := configured(t, c.args...)
		if got := bc.Partitions; got.TelemetryRetention != c.telemetry || got.QuarantineRetention != c.quarantine {
			t.Errorf("%v: telemetry %v, quarantine %v", c.args, got.TelemetryRetention, got.QuarantineRetention)
		}
		if err := bc.Partitions.Validate(); err != nil {
			t.Error(err)
		}
	}
}

// TestCheckSettings: by default the checks are as documented (no certificate logins, and
// no trust in topics), and each setting arrives where it belongs, alone.
func TestCheckSettings(t *testing.T) {
	documented := check.Settings{MaxPayloadBytes: 8192, RateLimit: 5, RateBurst: 20, RequireToken: true}
	for arg, change := range map[string]func(*check.Settings){
		"":                                 func(*check.Settings) {},
		"--pipeline-max-payload-bytes=100": func(s *check.Settings) { s.MaxPayloadBytes = 100 },
		"--pipeline-rate-limit-rps=7":      func(s *check.Settings) { s.RateLimit = 7 },
		"--pipeline-rate-limit-burst=8":    func(s *check.Settings) { s.RateBurst = 8 },
		"--no-pipeline-require-token":      func(s *check.Settings) { s.RequireToken = false },
		"--pipeline-cert-auth-enabled":     func(s *check.Settings) { s.CertAuth = true },
		"--pipeline-cert-trust-topic":      func(s *check.Settings) { s.CertTrustTopic = true },
	} {
		want := documented
		change(&want)
		if got := configured(t, strings.Fields(arg)...).Pipeline.Settings; got != want {
			t.Errorf("%q: %+v, want %+v", arg, got, want)
		}
	}
	if configured(t).Pipeline.AutoProvision || !configured(t, "--pipeline-auto-provision").Pipeline.AutoProvision {
		t.Error("devices are provisioned where that is not asked for, or not where it is")
	}
}

// TestWindowSettings: what bounds the memory of messages in hand arrives at every source.
func TestWindowSettings(t *testing.T) {
	bc := configured(t, "--mirror", "--mqtt-receive-maximum=11", "--mqtt-window-bytes=2000000", "--nats-window=13", "--nats-window-bytes=3000000")
	if m := bc.MQTT; m.Window != 11 || m.WindowBytes != 2_000_000 {
		t.Errorf("MQTT: %d messages, %d bytes", m.Window, m.WindowBytes)
	}
	if m := bc.Mirror; m.Window != 11 || m.WindowBytes != 2_000_000 {
		t.Errorf("mirror: %d messages, %d bytes", m.Window, m.WindowBytes)
	}
	if n := bc.JetStream; n.Window != 13 || n.WindowBytes != 3_000_000 {
		t.Errorf("JetStream: %d messages, %d bytes", n.Window, n.WindowBytes)
	}
}

// TestPipelineRanges: the pipeline takes whatever the settings' documented ranges allow.
func TestPipelineRanges(t *testing.T) {
	s, err := store.Open(t.Context(), store.DefaultConfig("postgres://127.0.0.1:1/none"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for _, field := range reflect.VisibleFields(reflect.TypeFor[config.Pipeline]()) {
		least, most, ranges := strings.Cut(field.Tag.Get("range"), "..")
		if !ranges {
			continue
		}
		for _, end := range []string{least, most} {
			arg := "--" + field.Tag.Get("name") + "=" + end
			o := configured(t, arg).Pipeline
			o.Logger, o.Registry = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
			if _, err := process.New(s, o); err != nil {
				t.Errorf("%s: %v", arg, err)
			}
		}
	}
}

// configured is what `crossfade run` makes of some arguments and the needed ones.
func configured(t *testing.T, args ...string) bridge.Config {
	t.Helper()
	var r config.Run
	parser, err := kong.New(&r, config.Options()...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(append(args, "--database-url=postgres://db/iot", "--mqtt-url=mqtt://broker", "--nats-url=nats://nats")); err != nil {
		t.Fatal(err)
	}
	bc, err := bridgeConfig(&r)
	if err != nil {
		t.Fatal(err)
	}
	return bc
}

// TestStageSettings: the documented defaults are those of the package that uses them,
// what is set arrives there, and a lease is renewed often enough at any length.
func TestStageSettings(t *testing.T) {
	type settings struct {
		dwell, lease, renew, beatEvery, missing time.Duration
		rate                                    float64
	}
	of := func(o control.Options) settings {
		return settings{o.Dwell, o.LeaseTTL, o.Renew, o.BeatEvery, o.Missing, o.BeatRate}
	}
	if got, want := of(configured(t).Control), of(control.DefaultOptions()); got != want {
		t.Errorf("without arguments %+v, want %+v", got, want)
	}
	got := of(configured(t, "--stages-dwell=1s", "--stages-lease-ttl=20s", "--stages-beat-every=2m", "--stages-beat-rate=3.5", "--stages-missing=4s").Control)
	if want := (settings{time.Second, 20 * time.Second, time.Second, 2 * time.Minute, 4 * time.Second, 3.5}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, ttl := range []string{"1s", "5m"} {
		if o := configured(t, "--stages-lease-ttl="+ttl).Control; o.LeaseTTL < 3*o.Renew || o.Renew > time.Second {
			t.Errorf("a lease of %v is renewed every %v", o.LeaseTTL, o.Renew)
		}
	}
}
