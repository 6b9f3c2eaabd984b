package bridge_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
	"github.com/crossfade-io/crossfade/migrations"
)

// metric adds up all the samples of one metric in a Prometheus text.
func metric(t testing.TB, text, name string) float64 {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("metrics: %v", err)
	}
	sum := 0.0
	for _, m := range families[name].GetMetric() {
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return sum
}

// playing runs a fleet beside the test; the function waits and returns its record.
func (s *stack) playing(c fleet.Config) func() *fleet.Record {
	var record *fleet.Record
	var wg sync.WaitGroup
	wg.Go(func() { record = s.play(c) })
	return func() *fleet.Record { wg.Wait(); return record }
}

func loaded() fleet.Config {
	c := fleet.DefaultConfig()
	c.Rate, c.PerDevice = 2000, 150
	return c
}

// TestPostgresStoppedAndStarted takes the database away in mid-flow: readiness
// names it, nothing is lost, nothing doubled (P1, P2).
func TestPostgresStoppedAndStarted(t *testing.T) {
	t.Run("room for all", func(t *testing.T) { stopPostgres(t, func(bridge.Config) {}, func(*instance) {}) })
	t.Run("room for little", func(t *testing.T) {
		const room = 64 << 10
		stopPostgres(t, func(c bridge.Config) {
			c.MQTT.WindowBytes, c.Mirror.WindowBytes, c.JetStream.WindowBytes = room, room, room
			c.MQTT.KeepAlive = time.Second // a full instance reads no answers to pings
		}, func(i *instance) {
			devstack.Await(t, "the instance is full, and connects to the broker again", func() bool {
				return i.series(`crossfade_source_connects_total{part="session",source="mqtt"}`) > 1 &&
					i.series(`crossfade_source_released_total{part="ingest-workers",source="jetstream"}`) > 0
			})
			for _, part := range []string{`part="session",source="mqtt"`, `part="session",source="mirror"`, `part="ingest-workers",source="jetstream"`} {
				if n := i.series("crossfade_source_held_bytes{" + part + "}"); n > room+10_000 {
					t.Errorf("%s: %d bytes are held", part, n)
				}
			}
		})
	})
}

// stopPostgres checks the instance with meanwhile while PostgreSQL is away.
func stopPostgres(t *testing.T, change func(bridge.Config), meanwhile func(*instance)) {
	pg := devstack.TestPostgres(t)
	url, err := pg.CreateDatabase(t.Context(), "crossfade")
	if err != nil {
		t.Fatal(err)
	}
	s := newStackOn(t, url)
	cfg := s.config("a")
	change(cfg)
	i := s.start(cfg)
	record := s.playing(loaded())
	devstack.Await(t, "rows arrive", func() bool { return s.count(`SELECT count(*) FROM telemetry`) > 0 })
	if err := pg.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "readiness names PostgreSQL", func() bool {
		r := i.Ready()
		return !r.Ready && !r.Checks["postgresql"].OK && strings.Contains(r.Checks["postgresql"].Error, "PostgreSQL")
	})
	meanwhile(i)
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the instance is ready again", func() bool { return i.Ready().Ready })
	s.reconcile(record())
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
}

// TestBrokersRestart restarts both brokers in mid-flow, one after the other.
func TestBrokersRestart(t *testing.T) {
	s := newStack(t)
	i := s.start(s.config("a"))
	record := s.playing(loaded())
	devstack.Await(t, "rows arrive", func() bool { return s.count(`SELECT count(*) FROM telemetry`) > 0 })
	s.flip(flags.JetStream, "acme")
	if err := s.nats.Kill(); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "readiness names JetStream", func() bool { return !i.Ready().Checks["jetstream"].OK })
	if err := s.nats.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "JetStream is back", func() bool { return i.Ready().Checks["jetstream"].OK })
	if err := s.broker.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "readiness names MQTT", func() bool { return !i.Ready().Checks["mqtt"].OK })
	if err := s.broker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the instance is ready again", func() bool { return i.Ready().Ready })
	s.reconcile(record())
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
}

// TestFlipsUnderLoad flips every tenant there and back while messages flow, on two
// instances that share the subscription (P4).
func TestFlipsUnderLoad(t *testing.T) {
	s := newStack(t)
	a, b := s.config("a"), s.config("b")
	a.MQTT.Group, b.MQTT.Group = "ingest", "ingest"
	a.Mirror.Group, b.Mirror.Group = "mirror", "mirror"
	first, second := s.start(a), s.start(b)
	c := loaded()
	c.PerDevice = 300
	record := s.playing(c)
	devstack.Await(t, "rows arrive", func() bool { return s.count(`SELECT count(*) FROM telemetry`) > 0 })
	for range 3 {
		for _, tenant := range fleet.TenantNames(c) {
			s.flip(flags.JetStream, tenant)
		}
		s.flip(flags.MQTT, fleet.TenantNames(c)...)
	}
	s.flip(flags.JetStream, fleet.TenantNames(c)...)
	s.arrive(stage.JetStream, fleet.TenantNames(c)...)
	s.flip(flags.MQTT, fleet.TenantNames(c)...)
	s.arrive(stage.MQTT, fleet.TenantNames(c)...)
	s.flip(flags.JetStream, "acme")
	s.reconcile(record())
	for _, i := range []*instance{first, second} {
		if err := i.shutdown(); err != nil {
			t.Error(err)
		}
	}
	if n := s.count(`SELECT count(*) FROM crossfade_stage_history WHERE tenant_id = 'acme'`); n < 7 {
		t.Errorf("the history of acme has %d rows, want at least 7", n)
	}
}

// TestWithoutJetStream runs on MQTT alone when NATS has never been there.
func TestWithoutJetStream(t *testing.T) {
	s := newStack(t)
	if err := s.nats.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := s.config("a")
	c.Mirror = nil
	b := s.launch(c)
	devstack.Await(t, "MQTT is up and JetStream is named", func() bool {
		r := b.Ready()
		return r.Checks["mqtt"].OK && !r.Checks["jetstream"].OK && !r.Ready
	})
	s.reconcile(s.play(some()))
}

// TestDatabaseThatIsNotSetUp is refused at the start, with the remedy.
func TestDatabaseThatIsNotSetUp(t *testing.T) {
	s := newStack(t)
	c := s.config("a")
	c.Store.URL = devstack.TestDatabase(t)
	i := s.launch(c)
	err := <-i.done
	i.done <- err
	if err == nil || !strings.Contains(err.Error(), "crossfade migrate") {
		t.Errorf("Run = %v, want an error that says to run crossfade migrate", err)
	}
	if _, err := migrations.Apply(t.Context(), c.Store.URL, nil); err != nil {
		t.Fatal(err)
	}
	s.start(c)
}
