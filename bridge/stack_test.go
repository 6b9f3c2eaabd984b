package bridge_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/migrations"
)

// stack is a whole installation: broker, NATS server, database, all private.
type stack struct {
	t        testing.TB
	broker   *devstack.Mosquitto
	nats     *devstack.NATS
	database string
	pool     *pgxpool.Pool
}

func newStack(t testing.TB) *stack {
	return newStackOn(t, devstack.TestOwnedDatabase(t))
}

func newStackOn(t testing.TB, database string) *stack {
	t.Helper()
	s := &stack{t: t, broker: devstack.TestMosquitto(t), nats: devstack.TestNATS(t), database: database}
	if _, err := migrations.Apply(t.Context(), database, nil); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s.pool = pool
	return s
}

// config is that of an instance of this installation, with the mirror.
func (s *stack) config(instance string) bridge.Config {
	c := bridge.DefaultConfig(s.database)
	c.Instance = instance
	c.FlagBeat = time.Second
	c.StandbyWait, c.Control.Dwell = 2*time.Second, 100*time.Millisecond // the mirror makes the second copy
	m := legacy_mqtt.DefaultConfig()
	m.URL, m.ClientID, m.Username, m.Password = s.broker.URL(), "crossfade-"+instance, s.broker.User(), s.broker.Password()
	mirror := m
	mirror.ClientID = "crossfade-mirror-" + instance
	c.MQTT, c.Mirror = &m, &mirror
	c.Pipeline.Settings.RateLimit = 0 // fleets play in fast motion
	n := jetstream.DefaultConfig()
	n.URLs = []string{s.nats.URL()}
	c.NATS = &n
	js := jetstream.DefaultSourceConfig()
	c.JetStream = &js
	level := slog.LevelError
	if os.Getenv("CROSSFADE_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	c.Logger = slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: level}))
	return c
}

// instance is a running bridge in this process.
type instance struct {
	*bridge.Bridge
	t    testing.TB
	stop context.CancelFunc
	done chan error
}

func (s *stack) start(c bridge.Config) *instance {
	s.t.Helper()
	i := s.launch(c)
	devstack.Await(s.t, "the instance is ready", func() bool {
		select {
		case err := <-i.done:
			i.done <- err
			s.t.Fatalf("the instance has ended: %v", err)
		default:
		}
		return i.Ready().Ready
	})
	return i
}

// launch starts an instance and does not wait for it.
func (s *stack) launch(c bridge.Config) *instance {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b, err := bridge.New(ctx, c)
	if err != nil {
		cancel()
		s.t.Fatal(err)
	}
	i := &instance{Bridge: b, t: s.t, stop: cancel, done: make(chan error, 1)}
	go func() { i.done <- b.Run(ctx) }()
	s.t.Cleanup(func() { i.shutdown() })
	return i
}

// metrics is what /metrics answers.
func (i *instance) metrics() string {
	i.t.Helper()
	defer http.DefaultClient.CloseIdleConnections()
	res, err := http.Get("http://" + i.Address() + "/metrics")
	if err != nil {
		i.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		i.t.Fatal(err)
	}
	return string(body)
}

// series is the value of one series of whole numbers, named with its labels as in
// /metrics; 0 where there is none.
func (i *instance) series(name string) (n int) {
	i.t.Helper()
	_, rest, _ := strings.Cut(i.metrics(), "\n"+name+" ")
	_, _ = fmt.Sscan(rest, &n)
	return n
}

// shutdown stops gracefully and returns what Run returned; twice is fine.
func (i *instance) shutdown() error {
	i.stop()
	err := <-i.done
	i.done <- err
	return err
}

// play runs a fleet to its end and returns its record.
func (s *stack) play(c fleet.Config) *fleet.Record {
	s.t.Helper()
	c.BrokerURL, c.User, c.Password = s.broker.URL(), s.broker.User(), s.broker.Password()
	f, err := fleet.New(c)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := fleet.Register(s.t.Context(), s.pool, f.Devices()); err != nil {
		s.t.Fatal(err)
	}
	if err := f.Run(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return f.Record()
}

// reconcile fails the test unless the database holds exactly what was sent.
func (s *stack) reconcile(r *fleet.Record) fleet.Report {
	s.t.Helper()
	report, err := fleet.AwaitReconciled(s.t.Context(), s.pool, r, 2*time.Minute)
	if err != nil {
		s.t.Fatal(err)
	}
	if !report.OK() {
		s.t.Fatalf("not reconciled:\n%s", report)
	}
	return report
}
