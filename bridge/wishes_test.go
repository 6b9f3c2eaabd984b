package bridge

import (
	"context"
	"fmt"
	"io"
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

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
)

// followService runs tenants behind an OFREP service of the test's, with the store's
// targets on top.
func followService(t *testing.T, pool *pgxpool.Pool, serve http.HandlerFunc) *tenants {
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
	n := newTenants(pool, wishes{client}, "i", stage.MQTT, time.Hour, func() {}, prometheus.NewRegistry(), quiet())
	if err := n.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); n.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		if err := client.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
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
	pool := migrated(t)
	var names []string
	for i := range 1_000 {
		names = append(names, fmt.Sprint("t", i))
	}
	register(t, pool, names...)
	var inHand atomic.Int64
	release := make(chan struct{})
	t.Cleanup(func() { close(release) }) // runs before the server is closed
	n := followService(t, pool, func(w http.ResponseWriter, r *http.Request) {
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
	until(t, "the service is asked", func() bool { return inHand.Load() > 0 })
	override(t, pool, flags.JetStream, "t77")
	until(t, "the override moves its tenant", func() bool { return n.stageOf("t77") == stage.Toward(stage.JetStream) })
	override(t, pool, flags.MQTT, "t77")
	until(t, "and back", func() bool { return n.stageOf("t77") == stage.Toward(stage.MQTT) })
	facts, err := Facts(t.Context(), pool)
	if err != nil || len(facts) != 1 {
		t.Errorf("%d tenants were moved, %v; want one", len(facts), err)
	}
}

// TestManyTenantsFollowAService: 1,000 tenants move in a few transactions, and
// those with an override go their own way.
func TestManyTenantsFollowAService(t *testing.T) {
	pool := migrated(t)
	var names []string
	for i := range 1_000 {
		names = append(names, fmt.Sprint("t", i))
	}
	register(t, pool, names...)
	override(t, pool, flags.MQTT, names[:100]...)
	followService(t, pool, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"key":"ingest-source","value":"live","reason":"STATIC"}`)
	})
	want := func(tenant string) stage.Stage {
		if slices.Contains(names[:100], tenant) {
			return stage.Toward(stage.MQTT)
		}
		return stage.Toward(stage.Live)
	}
	var facts []Fact
	until(t, "all have moved", func() bool {
		var err error
		if facts, err = Facts(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
		return len(facts) == len(names)
	})
	transactions := map[time.Time]bool{}
	for _, f := range facts {
		if f.Stage != want(f.Tenant) || f.Revision != 1 {
			t.Errorf("%+v", f)
		}
		transactions[f.Since] = true
	}
	if len(transactions) > 100 {
		t.Errorf("%d transactions for %d moves", len(transactions), len(facts))
	}
}

// TestOverrideBeatsAMoveThatIsOnItsWay: what was wished when the service was asked
// does not move a tenant that the operator has overridden since.
func TestOverrideBeatsAMoveThatIsOnItsWay(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "a", "b")
	asked, answer := make(chan struct{}, 2), make(chan struct{})
	var overridden atomic.Bool
	n := newTenants(pool, &slowOracle{asked, answer, &overridden}, "i", stage.MQTT, time.Hour, func() {}, prometheus.NewRegistry(), quiet())
	if err := n.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- n.follow(t.Context()) }()
	<-asked
	overridden.Store(true)
	close(answer)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if facts, err := Facts(t.Context(), pool); err != nil || len(facts) != 1 || facts[0].Tenant != "b" {
		t.Errorf("facts %v, %v; want only b moved", facts, err)
	}
}

// slowOracle wishes live for everybody, and has an override of tenant a once it is told.
type slowOracle struct {
	asked      chan struct{}
	answer     chan struct{}
	overridden *atomic.Bool
}

func (o *slowOracle) WishAll(_ context.Context, tenants []string, took func(string, stage.Stage, error)) {
	o.asked <- struct{}{}
	<-o.answer
	for _, tenant := range tenants {
		took(tenant, stage.Live, nil)
	}
}
func (o *slowOracle) Changes() <-chan struct{}         { return nil }
func (o *slowOracle) OverrideChanges() <-chan struct{} { return nil }
func (o *slowOracle) Override(tenant string) (stage.Stage, bool, error) {
	return stage.MQTT, o.overridden.Load() && tenant == "a", nil
}
