package bridge_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/jackc/pgx/v5"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

// some is a fleet that is large enough for several batches and quick to play.
func some() fleet.Config {
	c := fleet.DefaultConfig()
	c.Rate, c.PerDevice = 0, 50
	return c
}

// flip wishes a stage for tenants and waits until its path has the authority. On to
// the stage itself it is a matter of proof.
func (s *stack) flip(variant flags.Variant, tenants ...string) {
	s.t.Helper()
	if _, err := flags.OpenStore(s.pool).SetTargets(s.t.Context(), tenants, variant, s.t.Name(), ""); err != nil {
		s.t.Fatal(err)
	}
	s.awaitStages("the tenants have the authority of "+string(variant), tenants, func(is stage.Stage) bool {
		return is.Authoritative() == stage.Stage(variant).Authoritative()
	})
}

// arrive waits until tenants are in the very stage.
func (s *stack) arrive(want stage.Stage, tenants ...string) {
	s.t.Helper()
	s.awaitStages("the tenants are in stage "+string(want), tenants, func(is stage.Stage) bool { return is == want })
}

func (s *stack) awaitStages(what string, tenants []string, fits func(stage.Stage) bool) {
	s.t.Helper()
	devstack.Await(s.t, what, func() bool {
		facts, err := bridge.Facts(s.t.Context(), s.pool)
		if err != nil {
			s.t.Fatal(err)
		}
		reached := 0
		for _, f := range facts {
			if slices.Contains(tenants, f.Tenant) && fits(f.Stage) {
				reached++
			}
		}
		return reached == len(tenants)
	})
}

func (s *stack) count(sql string, args ...any) int {
	s.t.Helper()
	var n int
	if err := s.pool.QueryRow(s.t.Context(), sql, args...).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// TestKilledBetweenCommitAndAcknowledgement kills an instance when the rows are
// committed and no acknowledgement has reached a broker: everything is delivered
// again, on both paths, and takes no effect again (P1, P2).
func TestKilledBetweenCommitAndAcknowledgement(t *testing.T) {
	s := newStack(t)
	// What was not acknowledged comes again after ack_wait; our own consumers have a minute.
	s.consumer(s.jetstream(), "TELEMETRY", "telemetry.>", natsjs.ConsumerConfig{
		Durable: "ingest-workers", AckPolicy: natsjs.AckExplicitPolicy, AckWait: 5 * time.Second, MaxAckPending: 20_000})
	s.consumer(s.jetstream(), "SHADOW", "shadow.>", natsjs.ConsumerConfig{
		Durable: "ingest-shadow", AckPolicy: natsjs.AckExplicitPolicy, AckWait: 5 * time.Second, MaxAckPending: 20_000})
	s.consumer(s.jetstream(), "COMMANDS", "commands.>", natsjs.ConsumerConfig{
		Durable: "ingest-commands", AckPolicy: natsjs.AckExplicitPolicy, AckWait: 5 * time.Second, MaxAckPending: 20_000})
	c := s.config("a")
	mqtt, mqttURL := through(t, s.broker.URL())
	nats, natsURL := through(t, s.nats.URL())
	c.MQTT.URL = mqttURL // the mirror keeps its own, unmuted way
	c.NATS.URLs = []string{natsURL}
	c.Mirror = nil
	first := s.spawn(c)
	mirror := s.config("mirror")
	mirror.MQTT, mirror.JetStream = nil, nil
	s.spawn(mirror)

	// Nobody can commit while the table is locked, so all copies come to be in hand.
	lock, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(t.Context())
	if _, err := lock.Exec(t.Context(), `LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	record := s.play(some())
	want := int(record.Counts().Acked)
	devstack.Await(t, "all copies are in hand", func() bool {
		_, metrics := first.get("/metrics")
		return metric(t, metrics, `crossfade_source_received_total`) >= 2*float64(want)
	})
	mqtt.mute()
	nats.mute()
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "all rows are committed", func() bool { return s.count(`SELECT count(*) FROM telemetry`) >= want })
	first.kill()
	mqtt.unmute()
	nats.unmute()

	second := s.spawn(c)
	devstack.Await(t, "all copies have come again", func() bool {
		_, metrics := second.get("/metrics")
		return metric(t, metrics, `crossfade_source_received_total`) >= 2*float64(want)
	})
	s.reconcile(record)
	devstack.Await(t, "nothing is left in hand", func() bool {
		_, metrics := second.get("/metrics")
		return metric(t, metrics, `crossfade_source_in_hand`) == 0
	})
	if code := second.terminate(); code != 0 {
		t.Errorf("a graceful stop exits with %d", code)
	}
	s.reconcile(record)
}

// TestKilledAtAnyMoment kills an instance again and again under load, while
// tenants are flipped there and back (P1, P2, P4).
func TestKilledAtAnyMoment(t *testing.T) {
	s := newStack(t)
	c := s.config("a")
	k := s.spawn(c)
	fc := fleet.DefaultConfig()
	fc.Rate, fc.PerDevice = 2000, 200
	var record *fleet.Record
	var playing sync.WaitGroup
	playing.Go(func() { record = s.play(fc) })
	devstack.Await(t, "rows arrive", func() bool { return s.count(`SELECT count(*) FROM telemetry`) > 0 })
	for i, tenant := range fleet.TenantNames(fc) {
		variant := []flags.Variant{flags.JetStream, flags.MQTT}[i%2]
		s.flip(variant, tenant)
		k.kill()
		k = s.spawn(c)
	}
	playing.Wait()
	s.reconcile(record)
	k.terminate()
}

// TestTwoInstancesRaceForEveryMessage gives both paths to both instances without
// a shared subscription: four copies of each message, two of them on the
// authoritative path of each instance at the same time (P2).
func TestTwoInstancesRaceForEveryMessage(t *testing.T) {
	s := newStack(t)
	a, b := s.config("a"), s.config("b")
	a.StandbyWait, b.StandbyWait = 20*time.Millisecond, 20*time.Millisecond // rescue early: more races
	b.Mirror = nil
	first, second := s.start(a), s.start(b)
	record := s.play(some())
	s.reconcile(record)
	for _, i := range []*instance{first, second} {
		if err := i.shutdown(); err != nil {
			t.Error(err)
		}
	}
	s.reconcile(record)
	if n := s.count(`SELECT count(*) FROM crossfade_ledger WHERE outcome = 2`); n != 0 {
		t.Errorf("%d messages are quarantined", n)
	}
}

// TestGracefulStopWithMessagesInHand stops an instance that holds messages it
// cannot commit yet: it waits for them, exits 0, and none comes again.
func TestGracefulStopWithMessagesInHand(t *testing.T) {
	s := newStack(t)
	i := s.start(s.config("a"))
	lock, err := s.pool.BeginTx(t.Context(), pgx.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(t.Context())
	if _, err := lock.Exec(t.Context(), `LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	record := s.play(some())
	want := int(record.Counts().Acked)
	devstack.Await(t, "all MQTT copies are in hand", func() bool {
		return metric(t, i.metrics(), "crossfade_source_received_total") >= 3*float64(want) // with the mirror's and JetStream's
	})
	i.stop()
	devstack.Await(t, "the instance takes nothing in any more", func() bool {
		r := i.Ready()
		return strings.Contains(r.Checks["mqtt"].Error, "ended") && strings.Contains(r.Checks["jetstream"].Error, "stopped")
	})
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.shutdown(); err != nil {
		t.Fatalf("the stop was not clean: %v", err)
	}
	if n := s.count(`SELECT count(*) FROM crossfade_ledger`); n < want {
		t.Fatalf("%d of the %d messages that were in hand have been written", n, want)
	}
	if n := s.count(`SELECT count(*) FROM crossfade_instances WHERE state = 'running' OR lease_until > now()`); n != 0 {
		t.Errorf("%d instances are still signed on", n)
	}
	next := s.start(s.config("a"))
	s.reconcile(record)
	if err := next.shutdown(); err != nil {
		t.Error(err)
	}
}
