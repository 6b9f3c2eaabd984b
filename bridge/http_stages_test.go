package bridge_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/crossfade-io/crossfade/bridge/ingest"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/jetstream"
)

// byToken lets in who has the token of fleet.Register in this package's tests.
type byToken struct{}

func (byToken) Device(_ context.Context, _, _, token string) error {
	if token != "tok" {
		return ingest.ErrUnauthorized
	}
	return nil
}

func (byToken) Bearer(context.Context, string, string, string) error { return ingest.ErrUnauthorized }
func (byToken) Gateway(context.Context, string, string) (string, error) {
	return "", ingest.ErrUnauthorized
}
func (byToken) MoreOfDevice(_, _ string, n int) (int, error) { return n, nil }
func (byToken) MoreOfGateway(context.Context, string, int) (int, error) {
	return 0, ingest.ErrUnauthorized
}

// httpIngest serves the ingest operations before the stack's NATS.
func (s *stack) httpIngest() *httptest.Server {
	s.t.Helper()
	cfg := jetstream.DefaultConfig()
	cfg.URLs = []string{s.nats.URL()}
	conn, err := jetstream.Connect(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	o := ingest.DefaultOptions()
	if o.Publisher, err = jetstream.NewIngest(conn, 5*time.Second); err != nil {
		s.t.Fatal(err)
	}
	o.Authenticator = byToken{}
	mux := http.NewServeMux()
	if err := ingest.Register(humago.New(mux, huma.DefaultConfig("test", "1")), o); err != nil {
		s.t.Fatal(err)
	}
	server := httptest.NewServer(mux)
	s.t.Cleanup(server.Close)
	return server
}

// TestHTTPInEveryStage: messages that came by HTTP are written exactly once, though
// JetStream copies are dropped in the stage mqtt, and wait for siblings in shadow (for
// an hour here). What devices send by MQTT is written once beside them, and the mirror's
// copies of it are dropped as ever.
func TestHTTPInEveryStage(t *testing.T) {
	s := newStack(t)
	stages := stage.All()
	var tenants []string
	for _, st := range stages {
		tenants = append(tenants, string(st))
	}
	s.register(tenants...)
	c := s.config("a")
	c.StandbyWait = time.Hour
	c.Listen = "127.0.0.1:0"
	i := s.start(c)
	for _, st := range stages {
		s.flip(flags.Variant(st), string(st))
		s.arrive(st, string(st))
	}
	server := s.httpIngest()
	const n = 40
	post := func(path, body string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Provision-Token", "tok")
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusAccepted {
			t.Fatalf("%s: %s", path, res.Status)
		}
	}
	sender := s.sender()
	for k := range n {
		body := fmt.Sprintf(`{"ts":"2026-01-01T00:00:%02dZ","site_id":"s","seq":%d}`, k, k)
		byMQTT := fmt.Sprintf(`{"ts":"2026-01-01T00:00:%02dZ","site_id":"s","seq":%d,"provision_token":"tok"}`, k, 1000+k)
		for _, tenant := range tenants {
			path := "/ingest/v1/tenant/" + tenant + "/device/d1/telemetry"
			post(path, body)
			if k%3 == 0 { // a client that has not heard the answer
				post(path, body)
			}
			s.device(sender, "tenant/"+tenant+"/device/d1/telemetry", byMQTT)
		}
	}
	devstack.Await(t, "everything is written", func() bool {
		return s.count(`SELECT count(*) FROM telemetry`) >= 2*n*len(tenants)
	})
	js := s.jetstream()
	devstack.Await(t, "all copies are dealt with", func() bool {
		consumer, err := js.Consumer(t.Context(), "TELEMETRY", jetstream.ConsumerTelemetry)
		if err != nil {
			t.Fatal(err)
		}
		info := consumer.CachedInfo()
		return info.NumPending == 0 && info.NumAckPending == 0 && info.Delivered.Stream >= 2*n*uint64(len(tenants))
	})
	if got := s.count(`SELECT count(*) FROM telemetry`); got != 2*n*len(tenants) {
		t.Errorf("%d rows, want %d", got, 2*n*len(tenants))
	}
	if got := s.count(`SELECT count(DISTINCT (tenant_id, seq)) FROM telemetry`); got != 2*n*len(tenants) {
		t.Errorf("%d different messages, want %d", got, 2*n*len(tenants))
	}
	if got := s.count(`SELECT count(*) FROM quarantine_events`); got != 0 {
		t.Errorf("%d messages are in quarantine", got)
	}
	if metrics := i.metrics(); !strings.Contains(metrics, "\n"+`crossfade_dropped_total{path="jetstream"} `) || strings.Contains(metrics, "\n"+`crossfade_dropped_total{path="jetstream"} 0`) {
		t.Error("no copy of the mirror's was dropped in the stage mqtt")
	}
}
