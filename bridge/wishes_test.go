package bridge

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
)

// installation is a database with n tenants that have a device.
func installation(t *testing.T, n int) (*pgxpool.Pool, []string) {
	t.Helper()
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint("t", i)
	}
	if _, err := pool.Exec(t.Context(), `INSERT INTO device_registry (tenant_id, device_id) SELECT t, 'd' FROM unnest($1::text[]) AS t`, names); err != nil {
		t.Fatal(err)
	}
	return pool, names
}

// followService runs a control behind an OFREP service of the test's, with the store's
// targets on top.
func followService(t *testing.T, pool *pgxpool.Pool, serve http.HandlerFunc) *control.Control {
	t.Helper()
	server := httptest.NewServer(serve)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	ro := flags.DefaultRemoteOptions()
	ro.URL, ro.RetryMin, ro.RetryMax = server.URL, 10*time.Millisecond, 100*time.Millisecond
	provider, err := flags.NewOFREPProvider(ro)
	if err != nil {
		t.Fatal(err)
	}
	so := flags.DefaultStoreProviderOptions()
	if so.Conn, err = pgx.ParseConfig(pool.Config().ConnString()); err != nil {
		t.Fatal(err)
	}
	store, err := flags.NewStoreProvider(so)
	if err != nil {
		t.Fatal(err)
	}
	fo := flags.DefaultOptions()
	fo.Provider, fo.Overrides, fo.Rate = provider, store, 0
	client, err := flags.New(t.Context(), fo)
	if err != nil {
		t.Fatal(err)
	}
	o := control.DefaultOptions()
	o.Pool, o.Instance, o.Wishes, o.Beat, o.Round = pool, "i", wishes{client, false}, time.Hour, 50*time.Millisecond
	o.Registry, o.Logger = prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	c, err := control.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SignOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		if err := client.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func override(t *testing.T, pool *pgxpool.Pool, v flags.Variant, tenants ...string) {
	t.Helper()
	if _, err := flags.OpenStore(pool).SetTargets(t.Context(), tenants, v, "test", ""); err != nil {
		t.Fatal(err)
	}
}

// TestOverridesDoNotWaitForTheFlagService: in the middle of a round over 10,000
// tenants that the service will never end, the operator moves one, and nobody else
// moves (P5).
func TestOverridesDoNotWaitForTheFlagService(t *testing.T) {
	pool, _ := installation(t, 10_000)
	var inHand atomic.Int64
	release := make(chan struct{})
	t.Cleanup(func() { close(release) }) // runs before the server is closed
	c := followService(t, pool, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.Contains(string(body), "crossfade-probe") {
			io.WriteString(w, `{"value":"mqtt","reason":"STATIC"}`)
			return
		}
		inHand.Add(1)
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	devstack.Await(t, "the service is asked", func() bool { return inHand.Load() > 0 })
	override(t, pool, flags.JetStream, "t77")
	devstack.Await(t, "the override moves its tenant", func() bool { return c.StageOf("t77") == stage.Live })
	override(t, pool, flags.MQTT, "t77")
	devstack.Await(t, "and back", func() bool { return c.StageOf("t77") == stage.Shadow })
	facts, err := Facts(t.Context(), pool)
	if err != nil || len(facts) != 1 {
		t.Errorf("%d tenants were moved, %v; want one", len(facts), err)
	}
}

// TestManyTenantsFollowAService: 10,000 tenants move in a few transactions, and
// those with an override go their own way.
func TestManyTenantsFollowAService(t *testing.T) {
	pool, names := installation(t, 10_000)
	override(t, pool, flags.MQTT, names[:100]...)
	followService(t, pool, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"key":"ingest-source","value":"live","reason":"STATIC"}`)
	})
	want := func(tenant string) stage.Stage {
		if slices.Contains(names[:100], tenant) {
			return stage.Shadow
		}
		return stage.Live
	}
	var facts []Fact
	devstack.Await(t, "all have moved", func() bool {
		var err error
		if facts, err = Facts(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
		return len(facts) == len(names)
	})
	epochs := map[int64]bool{}
	for _, f := range facts {
		if f.Stage != want(f.Tenant) || f.Revision != 1 {
			t.Errorf("%+v", f)
		}
		epochs[f.Epoch] = true
	}
	if len(epochs) > len(names)/20 { // a slow machine takes more rounds
		t.Errorf("%d transactions for %d moves", len(epochs), len(facts))
	}
}
