package bridge_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/pipeline"
)

// streams publishes to JetStream, past the mirror.
func (s *stack) streams() natsjs.JetStream {
	s.t.Helper()
	nc, err := nats.Connect(s.nats.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	js, err := natsjs.New(nc)
	if err != nil {
		s.t.Fatal(err)
	}
	return js
}

func numberedPayload(seq int) string {
	return fmt.Sprintf(`{"site_id":"s","provision_token":"tok","seq":%d,"metrics":{"a":1}}`, seq)
}

func (s *stack) envelope(js natsjs.JetStream, tenant string, seq int) {
	s.t.Helper()
	body := fmt.Sprintf(`{"topic":"tenant/%s/device/d1/telemetry","payload":%s}`, tenant, numberedPayload(seq))
	if _, err := js.Publish(s.t.Context(), "telemetry."+tenant, []byte(body)); err != nil {
		s.t.Fatal(err)
	}
}

// lag is what is told, with a retention of the test's own.
func (s *stack) lag(retention time.Duration) *control.Lag {
	s.t.Helper()
	l, err := control.ReadLag(s.t.Context(), s.pool, retention)
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

// awaitLag waits until a tenant has as many messages on a path; most -1 is no bound.
func (s *stack) awaitLag(tenant string, p pipeline.Path, least, most int64) {
	s.t.Helper()
	var got control.Bounds
	defer func() {
		if s.t.Failed() {
			s.t.Logf("%s by %s: %+v, want %d to %d", tenant, p, got, least, most)
		}
	}()
	devstack.Await(s.t, "lag", func() bool {
		got = s.lag(0).Of(tenant, p)
		return got.Least == least && got.Most == most
	})
}

// TestLagIsTold: while nothing can be written, what is in hand and what waits in streams
// is told by tenant and by path; afterwards there is nothing, and the broker's queue
// stays unknown. A server that is away makes JetStream's lag unknown too.
func TestLagIsTold(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.register("acme", "globex")
	c := s.config("a")
	c.Mirror = nil
	c.JetStream.Window, c.JetStream.Fetch = 5, 5
	i := s.start(c)
	p, js := s.sender(), s.streams()
	s.stay(stage.Shadow, "acme")
	s.stay(stage.Live, "globex")
	lock, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(t.Context())
	if _, err := lock.Exec(t.Context(), `LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	for seq := range 3 {
		s.device(p, "tenant/acme/device/d1/telemetry", numberedPayload(seq))
		s.envelope(js, "acme", seq)
	}
	for seq := range 20 {
		s.envelope(js, "globex", seq)
	}
	s.awaitLag("acme", pipeline.PathMQTT, 3, -1)
	s.awaitLag("acme", pipeline.PathJetStream, 3, 3)
	s.awaitLag("globex", pipeline.PathJetStream, 20, 20)
	s.awaitLag("initech", pipeline.PathJetStream, 0, 0)
	devstack.Await(t, "the gauges show it", func() bool {
		text := i.metrics()
		return strings.Contains(text, `crossfade_lag_messages{path="jetstream",stream="TELEMETRY"} 23`) &&
			strings.Contains(text, `crossfade_lag_messages{path="mqtt",stream=""} 3`) &&
			strings.Contains(text, `crossfade_lag_messages{path="jetstream",stream="SHADOW"} 0`)
	})
	l := s.lag(0)
	if l.Retention != c.Partitions.LedgerRetention || len(l.Streams) != 3 || l.Of("globex", pipeline.PathJetStream).Oldest <= 0 {
		t.Errorf("%+v", l)
	}

	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.awaitLag("acme", pipeline.PathMQTT, 0, -1)
	s.awaitLag("acme", pipeline.PathJetStream, 0, 0)
	s.awaitLag("globex", pipeline.PathJetStream, 0, 0)
	if err := s.nats.Kill(); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "JetStream's lag is unknown", func() bool {
		b := s.lag(0).Of("acme", pipeline.PathJetStream)
		return b.Most == -1 && strings.Contains(b.Unknown, "TELEMETRY: ")
	})
	devstack.Await(t, "its gauges are gone", func() bool { return !strings.Contains(i.metrics(), `crossfade_lag_messages{path="jetstream"`) })
}

// TestOldMessageKeepsItsTenantFromMoving: and nobody else, for as long as it is there.
func TestOldMessageKeepsItsTenantFromMoving(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.register("acme", "globex")
	c := group(s.config("a"))
	c.StandbyWait, c.Control.Retention = time.Hour, time.Second
	s.start(c)
	p, js := s.sender(), s.streams()
	s.stay(stage.Shadow, "acme")
	s.stay(stage.Shadow, "globex")
	s.envelope(js, "acme", 1) // it has no other copy, and stands by
	devstack.Await(t, "the leader has seen that it is too old", func() bool {
		l := s.lag(c.Control.Retention)
		return l.Overdue("acme") != "" && l.Of("acme", pipeline.PathJetStream).Oldest > 5 // it looks every two seconds
	})
	if _, err := flags.OpenStore(s.pool).SetTargets(t.Context(), []string{"acme", "globex"}, flags.Variant(stage.JetStream), t.Name(), ""); err != nil {
		t.Fatal(err)
	}
	waits := func(tenant, what, in string) func() bool {
		return func() bool {
			return s.count(`SELECT count(*) FROM crossfade_stages WHERE tenant_id = $1 AND waits_for LIKE $2 AND stage = $3`, tenant, what, in) == 1
		}
	}
	devstack.Await(t, "acme is refused", waits("acme", "undelivered messages: the oldest by JetStream is older than the ledger remembers (1s)", "shadow"))
	devstack.Await(t, "globex goes on", waits("globex", "sentinel%", "live"))

	s.device(p, "tenant/acme/device/d1/telemetry", numberedPayload(1)) // the other copy
	for _, tenant := range []string{"acme", "globex"} {
		devstack.Await(t, tenant+" has got there", func() bool {
			return s.count(`SELECT count(*) FROM crossfade_stages WHERE tenant_id = $1 AND stage = 'jetstream'`, tenant) == 1
		})
	}
}

// TestLagOfMQTTIsToldWhileNATSIsMute: the connection is up, and nothing is answered.
func TestLagOfMQTTIsToldWhileNATSIsMute(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.register("acme")
	c := s.config("a")
	c.Mirror = nil
	wire, url := through(t, s.nats.URL())
	c.NATS.URLs = []string{url}
	s.start(c)
	s.stay(stage.Shadow, "acme")
	p := s.sender()
	s.awaitLag("acme", pipeline.PathJetStream, 0, 0)
	lock, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(t.Context())
	if _, err := lock.Exec(t.Context(), `LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	wire.mute()
	defer wire.unmute()
	for seq := range 3 {
		s.device(p, "tenant/acme/device/d1/telemetry", numberedPayload(seq))
	}
	devstack.Await(t, "MQTT's lag is told, and why JetStream's is not", func() bool {
		l := s.lag(0)
		js, mqtt := l.Of("acme", pipeline.PathJetStream), l.Of("acme", pipeline.PathMQTT)
		if strings.Contains(js.Unknown, "not connected") {
			t.Fatalf("not before the client has given the connection up, some 30 s later: %+v, %+v", js, mqtt)
		}
		return mqtt.Least == 3 && js.Most == -1 && strings.Contains(js.Unknown, "does not answer")
	})
}
