package control

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline"
)

// oracle answers wishes as a test says: for each tenant, or for all others ("").
type oracle struct {
	mu         sync.Mutex
	answers    map[string]stage.Stage
	overrides  map[string]stage.Stage
	err        error
	rounds     atomic.Int64
	changes    chan struct{}
	overChange chan struct{}
}

func newOracle(all stage.Stage) *oracle {
	return &oracle{answers: map[string]stage.Stage{"": all}, overrides: map[string]stage.Stage{},
		changes: make(chan struct{}, 1), overChange: make(chan struct{}, 1)}
}

func (o *oracle) WishAll(_ context.Context, tenants []string, took func(string, Wish, error)) {
	o.rounds.Add(1)
	for _, tenant := range tenants {
		o.mu.Lock()
		wish, ok := o.answers[tenant]
		if !ok {
			wish = o.answers[""]
		}
		err := o.err
		o.mu.Unlock()
		took(tenant, Wish{Stage: wish, Why: "test"}, err)
	}
}
func (o *oracle) Changes() <-chan struct{}         { return o.changes }
func (o *oracle) OverrideChanges() <-chan struct{} { return o.overChange }
func (o *oracle) Override(tenant string) (stage.Stage, bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	wish, ok := o.overrides[tenant]
	return wish, ok, nil
}

// wish changes answers, for tenants or for all.
func (o *oracle) wish(s stage.Stage, tenants ...string) {
	o.mu.Lock()
	if len(tenants) == 0 {
		tenants = []string{""}
	}
	for _, t := range tenants {
		o.answers[t] = s
	}
	o.mu.Unlock()
	signal(o.changes)
}

func (o *oracle) override(s stage.Stage, tenants ...string) {
	o.mu.Lock()
	for _, t := range tenants {
		o.overrides[t] = s
	}
	o.mu.Unlock()
	signal(o.overChange)
}

func (o *oracle) fail(err error) {
	o.mu.Lock()
	o.err = err
	o.mu.Unlock()
	signal(o.changes)
}

// courier is a Prober whose sentinels come out of every path at once, on every
// instance of the rig, unless a test wants otherwise.
type courier struct {
	mu       sync.Mutex
	err      error
	mute     map[pipeline.Path]bool
	sent     []Sentinel
	own      []Sentinel // which instances send for their own sessions
	carriers []*Control // whose sessions sentinels come out of
	also     func(context.Context, []Sentinel) error
}

func (p *courier) Send(ctx context.Context, list []Sentinel) error {
	p.mu.Lock()
	for _, s := range list {
		if s.Tenant == sessionTenant {
			p.own = append(p.own, s)
		} else {
			p.sent = append(p.sent, s)
		}
	}
	carriers, err, also := slices.Clone(p.carriers), p.err, p.also
	mqtt, js := !p.mute[pipeline.PathMQTT], !p.mute[pipeline.PathJetStream]
	p.mu.Unlock()
	if err != nil {
		return err
	}
	for i, c := range carriers {
		if err := c.Saw(ctx, sightings(list, mqtt, js && i == 0)); err != nil {
			return err
		}
	}
	if also != nil {
		return also(ctx, list)
	}
	return nil
}

// sightings are those of one instance.
func sightings(list []Sentinel, mqtt, js bool) []Sighting {
	var seen []Sighting
	for _, s := range list {
		if mqtt {
			seen = append(seen, Sighting{s.Nonce, pipeline.PathMQTT, KindTelemetry, time.Now()})
		}
		for _, kind := range kinds {
			if js {
				seen = append(seen, Sighting{s.Nonce, pipeline.PathJetStream, kind, time.Now()})
			}
		}
	}
	return seen
}

func (p *courier) set(f func(*courier)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

func (p *courier) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sent)
}

func migrated(t testing.TB) *pgxpool.Pool {
	t.Helper()
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	return open(t, url)
}

func open(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func execute(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func register(t testing.TB, pool *pgxpool.Pool, tenants ...string) {
	t.Helper()
	execute(t, pool, `INSERT INTO device_registry (tenant_id, device_id) SELECT t, 'd' FROM unnest($1::text[]) AS t`, tenants)
}

// many are n tenants that have a device.
func many(t testing.TB, pool *pgxpool.Pool, n int) []string {
	t.Helper()
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("t%05d", i)
	}
	register(t, pool, names...)
	return names
}

func quiet(t testing.TB) *slog.Logger {
	if os.Getenv("CROSSFADE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// brisk are options for tests: short waits, no beats.
func brisk(t testing.TB, pool *pgxpool.Pool, instance string, wishes Wishes, prober Prober) Options {
	o := DefaultOptions()
	o.Pool, o.Instance, o.Wishes, o.Prober = pool, instance, wishes, prober
	o.Session = &Session{ClientID: "client-" + instance, Expiry: time.Hour}
	o.Beat, o.Dwell, o.BeatEvery = time.Second, 10*time.Millisecond, 0
	o.LeaseTTL, o.LeaseMost, o.Renew, o.Round = 2*time.Second, 2*time.Second, 200*time.Millisecond, 50*time.Millisecond
	o.Resend, o.ResendMax = time.Second, 2*time.Second
	o.Registry, o.Logger = prometheus.NewRegistry(), quiet(t)
	return o
}

// node is a running Control.
type node struct {
	*Control
	t      testing.TB
	cancel context.CancelFunc
	ended  chan struct{}
}

func start(t testing.TB, o Options) *node {
	t.Helper()
	o.Registry = prometheus.NewRegistry()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SignOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := &node{Control: c, t: t}
	n.resume()
	t.Cleanup(n.halt)
	return n
}

// resume runs the control, and halt ends that, as if the process were gone.
func (n *node) resume() {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.ended = cancel, make(chan struct{})
	go func() { defer close(n.ended); n.Run(ctx) }()
}

func (n *node) halt() {
	n.cancel()
	<-n.ended
}

// alone starts one instance with a courier that serves it.
func alone(t testing.TB, pool *pgxpool.Pool, o *oracle) (*node, *courier) {
	t.Helper()
	p := &courier{mute: map[pipeline.Path]bool{}}
	n := start(t, brisk(t, pool, "a", o, p))
	p.set(func(p *courier) { p.carriers = []*Control{n.Control} })
	return n, p
}

func fact(t testing.TB, pool *pgxpool.Pool, tenant string) Fact {
	t.Helper()
	facts, err := Facts(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range facts {
		if f.Tenant == tenant {
			return f
		}
	}
	return Fact{}
}

func (n *node) in(s stage.Stage, tenants ...string) func() bool {
	return func() bool {
		return !slices.ContainsFunc(tenants, func(tenant string) bool { return n.StageOf(tenant) != s })
	}
}

func waitsFor(t testing.TB, pool *pgxpool.Pool, tenant, what string) {
	t.Helper()
	var last Fact
	defer func() {
		if t.Failed() {
			t.Logf("%+v", last)
		}
	}()
	devstack.Await(t, tenant+" waits for "+what, func() bool {
		last = fact(t, pool, tenant)
		return strings.Contains(last.WaitsFor, what)
	})
}
