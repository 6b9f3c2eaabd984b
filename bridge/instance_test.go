package bridge_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/devstack"
)

// TestTenantThatWaitsInVainOnMQTT: a few copies stand by for an hour, since their
// siblings never come, and hold back the PUBACKs behind them. The others' messages
// flow all the same, though none of them stands by and the window is small (P6).
func TestTenantThatWaitsInVainOnMQTT(t *testing.T) {
	s := newStack(t)
	c := s.config("a")
	c.Mirror, c.JetStream, c.NATS = nil, nil, nil
	c.StandbyWait = time.Hour
	c.MQTT.Window = 500 // far below StandbyBuffer
	s.register("acme", "globex")
	i := s.start(c)
	s.flip(flags.MQTT, "acme")
	s.flip(flags.JetStream, "globex")
	few := some()
	few.Tenants, few.Devices, few.PerDevice = 2, 4, 5
	s.play(few)
	many := some()
	many.Tenants, many.Devices, many.PerDevice = 1, 20, 200
	want := int(s.play(many).Counts().Acked)
	devstack.Await(t, "the sound tenant's messages are dealt with", func() bool {
		return s.count(`SELECT count(*) FROM crossfade_ledger`) >= want
	})
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
}

// TestTwoInstancesOfOneName are both told, until one has gone.
func TestTwoInstancesOfOneName(t *testing.T) {
	s := newStack(t)
	a, b := s.config("a"), s.config("a")
	b.MQTT.ClientID, a.Mirror, b.Mirror = "another", nil, nil // or they would not even stay connected
	first, second := s.start(a), s.start(b)
	named := func(i *instance) bool {
		r := i.Ready()
		return !r.Ready && strings.Contains(r.Checks["instance"].Error, `"a"`)
	}
	devstack.Await(t, "both name the other", func() bool { return named(first) && named(second) })
	if err := second.shutdown(); err != nil {
		t.Error(err)
	}
	devstack.Await(t, "the one that is left is ready", func() bool { return first.Ready().Ready })
	devstack.Await(t, "it is signed on", func() bool {
		return s.count(`SELECT count(*) FROM crossfade_instances WHERE state = 'running'`) == 1
	})
	if err := first.shutdown(); err != nil {
		t.Error(err)
	}
	if n := s.count(`SELECT count(*) FROM crossfade_instances WHERE state = 'running' OR lease_until > now()`); n != 0 {
		t.Errorf("%d instances are still signed on", n)
	}
}

// TestPartitionsThatCannotBeMade keep nothing from being taken in: somebody holds a
// lock on a table for long.
func TestPartitionsThatCannotBeMade(t *testing.T) {
	s := newStack(t)
	lock, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(context.Background())
	if _, err := lock.Exec(t.Context(), `LOCK TABLE telemetry IN SHARE UPDATE EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	c := s.config("a")
	c.Partitions.LockTimeout, c.Partitions.Attempts = 10*time.Millisecond, 1
	var j devstack.Log
	c.Logger = slog.New(slog.NewTextHandler(&j, nil))
	s.start(c)
	if !strings.Contains(j.String(), "partitions could not be made") {
		t.Error("nothing is said of the partitions")
	}
	s.reconcile(s.play(some()))
}

// TestNewAndRunThatFail leave nothing running (goleak looks at the end), and say why.
func TestNewAndRunThatFail(t *testing.T) {
	s := newStack(t)
	spoil := map[string]func(*bridge.Config){
		"ClientID":    func(c *bridge.Config) { c.Mirror.ClientID = "" },
		"Consumers":   func(c *bridge.Config) { c.JetStream.Consumers = nil },
		"StandbyWait": func(c *bridge.Config) { c.StandbyWait = 0 },
		"database":    func(c *bridge.Config) { c.Store.URL = "postgres://u:pass%zz@127.0.0.1/x" },
		"BatchSize":   func(c *bridge.Config) { c.Pipeline.BatchSize = 0 },
	}
	for what, f := range spoil {
		c := s.config("a")
		f(&c)
		if _, err := bridge.New(t.Context(), c); err == nil || !strings.Contains(err.Error(), what) || strings.Contains(err.Error(), "pass%zz") {
			t.Errorf("New = %v, want an error about %s and no password", err, what)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bridge.New(ended, s.config("a")); err == nil {
		t.Error("New with a context that has ended is fine")
	}
	i := s.start(s.config("a"))
	c := s.config("b")
	c.Listen = i.Address()
	b, err := bridge.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.Listen) {
		t.Errorf("Run = %v, want an error that names the address", err)
	}
}

// TestStoppedBeforePostgresIsThere: the instance has waited, taken nothing in, and
// ends cleanly.
func TestStoppedBeforePostgresIsThere(t *testing.T) {
	pg := devstack.TestPostgres(t)
	database, err := pg.CreateDatabase(t.Context(), "crossfade")
	if err != nil {
		t.Fatal(err)
	}
	s := newStackOn(t, database)
	if err := pg.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	i := s.launch(s.config("a"))
	devstack.Await(t, "readiness says what is waited for", func() bool {
		r := i.Ready()
		return !r.Ready && strings.Contains(r.Checks["postgresql"].Error, "PostgreSQL")
	})
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
}

// TestRunTwice: the second is refused and harms nothing.
func TestRunTwice(t *testing.T) {
	s := newStack(t)
	i := s.start(s.config("a"))
	if err := i.Run(t.Context()); err == nil {
		t.Error("a second Run is not refused")
	}
	if r := i.Ready(); !r.Ready {
		t.Errorf("the first suffers: %+v", r)
	}
}

// TestNoSecretsInReadinessAndLog: whatever is away or refuses us, what is said of it
// names hosts and never a password.
func TestNoSecretsInReadinessAndLog(t *testing.T) {
	pg := devstack.TestPostgres(t)
	database, err := pg.CreateDatabase(t.Context(), "crossfade")
	if err != nil {
		t.Fatal(err)
	}
	s := newStackOn(t, database)
	c := s.config("a")
	c.Mirror = nil
	c.Listen = "127.0.0.1:0"
	var j devstack.Log
	c.Logger = slog.New(slog.NewTextHandler(&j, nil))
	i := s.start(c)
	for _, stop := range []func(context.Context) error{pg.Stop, s.nats.Stop, s.broker.Stop} {
		if err := stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	parts := []string{"postgresql", "jetstream", "mqtt", "stages"}
	devstack.Await(t, "everything is away", func() bool {
		r := i.Ready()
		for _, part := range parts {
			if r.Checks[part].OK {
				return false
			}
		}
		return true
	})
	res, err := http.Get("http://" + i.Address() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer res.Body.Close()
	var r bridge.Readiness
	if err := json.NewDecoder(res.Body).Decode(&r); err != nil || res.StatusCode != http.StatusServiceUnavailable {
		t.Fatalf("/readyz: %d, %v", res.StatusCode, err)
	}
	shown, _ := json.Marshal(r)
	for what, secret := range map[string]string{"PostgreSQL": passwordIn(t, database), "NATS": passwordIn(t, s.nats.URL()), "MQTT": c.MQTT.Password} {
		if secret == "" {
			t.Errorf("there is no password of %s to look for", what)
		} else if strings.Contains(string(shown), secret) || strings.Contains(j.String(), secret) {
			t.Errorf("the password of %s is shown", what)
		}
	}
	if err := i.shutdown(); err != nil { // with nothing in hand
		t.Errorf("stopping with everything away: %v", err)
	}
}

func passwordIn(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	return password
}
