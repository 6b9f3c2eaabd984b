package jetstream_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/bridge/sourcetest"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(m), sourcetest.LeftByProxy()) }

const patience = 30 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// connect opens the connection under test to the server at address ("": its own).
func connect(t testing.TB, n *devstack.NATS, address string) *jetstream.Conn {
	t.Helper()
	u, err := url.Parse(n.URL())
	if err != nil {
		t.Fatalf("parse server URL: %v", err)
	}
	if address != "" {
		u.Host = address
	}
	cfg := jetstream.DefaultConfig()
	cfg.URLs = []string{u.String()}
	conn, err := jetstream.Connect(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := conn.Close(ctx); err != nil {
			t.Errorf("close connection: %v", err)
		}
	})
	devstack.Await(t, "connection", func() bool { return address != "" || conn.Health() == nil })
	return conn
}

// direct opens a plain connection of the test's own.
func direct(t testing.TB, n *devstack.NATS) natsjs.JetStream {
	t.Helper()
	nc, err := nats.Connect(n.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond),
		nats.ReconnectJitter(0, 0))
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(nc.Close)
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	return js
}

// publish stores one message for each ID on telemetry.t1. The server may just
// have been started.
func publish(t testing.TB, js natsjs.JetStream, ids ...string) {
	t.Helper()
	for _, id := range ids {
		devstack.Await(t, "publish of "+id, func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			_, err := js.Publish(ctx, "telemetry.t1", []byte(id), natsjs.WithMsgID(id))
			return err == nil
		})
	}
}

func names(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s-%05d", prefix, i)
	}
	return ids
}

func bodyOf(d pipeline.Delivery) string { return string(d.Body) }

// createConsumer makes the TELEMETRY stream and its consumer with settings of
// the test's own, as an existing installation would have them.
func createConsumer(t testing.TB, js natsjs.JetStream, change func(*natsjs.ConsumerConfig)) {
	t.Helper()
	ctx := testContext(t)
	_, err := js.CreateOrUpdateStream(ctx, natsjs.StreamConfig{Name: "TELEMETRY", Subjects: []string{"telemetry.>"}})
	if err != nil {
		t.Fatalf("create stream: %v", err)
	}
	config := natsjs.ConsumerConfig{
		Durable: jetstream.ConsumerTelemetry, AckPolicy: natsjs.AckExplicitPolicy,
		AckWait: time.Second, MaxDeliver: -1, MaxAckPending: 1000,
	}
	if change != nil {
		change(&config)
	}
	if _, err := js.CreateOrUpdateConsumer(ctx, "TELEMETRY", config); err != nil {
		t.Fatalf("create consumer: %v", err)
	}
}
