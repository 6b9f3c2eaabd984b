package jetstream_test

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/sourcetest"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

const ackDeadline = time.Second

func TestConformance(t *testing.T) {
	sourcetest.Run(t, sourcetest.Harness{
		Setup:  func(t *testing.T) sourcetest.Env { return newEnv(t) },
		Traits: sourcetest.Traits{AckDeadline: ackDeadline},
	})
}

// env is a NATS server of its own, with a network path that can be cut.
type env struct {
	*sourcetest.Network
	server *devstack.NATS
	js     natsjs.JetStream // past the network
}

func newEnv(t *testing.T) *env {
	server := devstack.TestNATS(t)
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatalf("parse server URL: %v", err)
	}
	e := &env{Network: sourcetest.NewNetwork(t, u.Host), server: server, js: direct(t, server)}
	createConsumer(t, e.js, func(c *natsjs.ConsumerConfig) { c.AckWait = ackDeadline })
	return e
}

// Cut names what both embedded types have.
func (e *env) Cut(t *testing.T)     { e.Network.Cut(t) }
func (e *env) Restore(t *testing.T) { e.Network.Restore(t) }

func (e *env) New(t *testing.T, window int) bridge.Source {
	conn := connect(t, e.server, e.Addr())
	cfg := jetstream.DefaultSourceConfig()
	cfg.Consumers = []string{jetstream.ConsumerTelemetry}
	cfg.Window = window
	cfg.PullExpiry, cfg.Heartbeat = 2*time.Second, 500*time.Millisecond
	source, err := jetstream.NewSource(conn, cfg, testLog(t))
	if err != nil {
		t.Fatalf("new source: %v", err)
	}
	return owned{source, conn}
}

// owned closes the connection with its one source, as the suite expects it.
type owned struct {
	*jetstream.Source
	conn *jetstream.Conn
}

func (o owned) Close(ctx context.Context) error {
	return errors.Join(o.Source.Close(ctx), o.conn.Close(ctx))
}

func (e *env) Publish(t *testing.T, ids ...string) { publish(t, e.js, ids...) }
func (e *env) ID(d pipeline.Delivery) string       { return bodyOf(d) }
func (e *env) Stop(t *testing.T)                   { e.must(t, e.server.Stop(testContext(t))) }
func (e *env) Start(t *testing.T)                  { e.must(t, e.server.Start(testContext(t))) }
func (e *env) Kill(t *testing.T)                   { e.must(t, e.server.Kill()) }
func (e *env) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("server: %v", err)
	}
}
