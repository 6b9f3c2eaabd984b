package rollout

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
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
	"github.com/crossfade-io/crossfade/pipeline"
)

// rig is a database, and an instance's control that moves tenants as the flags say.
// Its sentinels come out of every path at once.
type rig struct {
	t    testing.TB
	pool *pgxpool.Pool
}

func newRig(t testing.TB, tenants ...string) *rig {
	t.Helper()
	url := devstack.TestOwnedDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	g := &rig{t, pool}
	g.exec(`INSERT INTO device_registry (tenant_id, device_id) SELECT t, 'd' FROM unnest($1::text[]) AS t`, tenants)
	g.exec(watchWishes)
	g.control()
	g.in(stage.MQTT, tenants...)
	return g
}

// watchWishes writes down every wish, and how many tenants a rollout has on their way
// when it is written.
const watchWishes = `
CREATE TABLE written (id bigint GENERATED ALWAYS AS IDENTITY, tenant text, wish text, by text, moving int);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO written (tenant, wish, by, moving)
  SELECT NEW.tenant_id, NEW.variant, NEW.updated_by,
         (SELECT count(*) FROM crossfade_flag_targets AS f LEFT JOIN crossfade_stages AS s USING (tenant_id)
           WHERE f.updated_by LIKE 'rollout %' AND f.variant IS DISTINCT FROM s.stage);
  RETURN NULL;
END $$;
CREATE TRIGGER watch AFTER INSERT OR UPDATE ON crossfade_flag_targets FOR EACH ROW EXECUTE FUNCTION watch();`

func (g *rig) control() {
	po := flags.DefaultStoreProviderOptions()
	po.Conn, po.Beat, po.Debounce = g.pool.Config().ConnConfig, 200*time.Millisecond, time.Millisecond
	provider, err := flags.NewStoreProvider(po)
	if err != nil {
		g.t.Fatal(err)
	}
	fo := flags.DefaultOptions()
	fo.Provider = provider
	client, err := flags.New(g.t.Context(), fo)
	if err != nil {
		g.t.Fatal(err)
	}
	p := &courier{}
	o := control.DefaultOptions()
	o.Pool, o.Instance, o.Standard, o.Wishes, o.Prober = g.pool, "a", stage.MQTT, storeWishes{client}, p
	o.Session = &control.Session{ClientID: "client-a", Expiry: time.Hour}
	o.Beat, o.Dwell, o.BeatEvery = time.Second, time.Millisecond, 0
	o.Renew, o.Round = 200*time.Millisecond, 20*time.Millisecond
	o.Registry, o.Logger = prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	c, err := control.New(o)
	if err != nil {
		g.t.Fatal(err)
	}
	p.control = c
	if err := c.SignOn(g.t.Context()); err != nil {
		g.t.Fatal(err)
	}
	g.background(func(ctx context.Context) error { c.Run(ctx); return client.Close(context.WithoutCancel(ctx)) })
}

// background runs f until the test ends.
func (g *rig) background(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			g.t.Error(err)
		}
	})
	g.t.Cleanup(stop)
	return stop
}

type storeWishes struct{ *flags.Client }

func (w storeWishes) WishAll(ctx context.Context, tenants []string, took func(string, control.Wish, error)) {
	w.EvaluateAll(ctx, tenants, func(tenant string, a flags.Answer, err error) {
		took(tenant, control.Wish{Stage: stage.Stage(a.Variant), Why: string(a.Reason), Operator: a.Reason == flags.ReasonTarget}, err)
	})
}

func (w storeWishes) Override(tenant string) (stage.Stage, bool, error) {
	v, ok, err := w.Client.Override(tenant)
	return stage.Stage(v), ok, err
}

// courier brings sentinels without a broker.
type courier struct{ control *control.Control }

func (p *courier) Send(ctx context.Context, list []control.Sentinel) error {
	var seen []control.Sighting
	for _, s := range list {
		seen = append(seen, control.Sighting{Nonce: s.Nonce, Path: pipeline.PathMQTT, Kind: control.KindTelemetry, At: time.Now()})
		for _, kind := range []string{control.KindTelemetry, control.KindShadow, control.KindCommands} {
			seen = append(seen, control.Sighting{Nonce: s.Nonce, Path: pipeline.PathJetStream, Kind: kind, At: time.Now()})
		}
	}
	return p.control.Saw(ctx, seen)
}

func (g *rig) exec(sql string, args ...any) {
	g.t.Helper()
	if _, err := g.pool.Exec(context.Background(), sql, args...); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) number(sql string, args ...any) (n int) {
	g.t.Helper()
	if err := g.pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		g.t.Fatal(err)
	}
	return n
}

func (g *rig) until(what string, condition func() bool) {
	g.t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			g.t.Fatalf("gave up waiting until %s\n%s", what, g.story())
		}
	}
}

func (g *rig) look() *Report {
	g.t.Helper()
	r, err := Look(context.Background(), g.pool, "canary", 1000)
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

func (g *rig) story() (s string) {
	r, err := Look(context.Background(), g.pool, "canary", 1000)
	if err != nil {
		return err.Error()
	}
	for _, e := range r.Events {
		s += fmt.Sprintf("%d %s %s %s\n", e.Wave, e.Kind, e.Tenant, e.Message)
	}
	return s + fmt.Sprintf("%+v\n%+v\n%+v", r.Progress, r.Rollout.Tenants, r.Seen)
}

// reaches waits for a state and a phase.
func (g *rig) reaches(s State, p Phase, wave int) *Report {
	g.t.Helper()
	var r *Report
	g.until(fmt.Sprintf("the rollout is %s, %s in wave %d", s, p, wave), func() bool {
		r = g.look()
		return r.State == s && r.Phase == p && r.Wave == wave-1
	})
	return r
}

// in waits until tenants are in a stage.
func (g *rig) in(s stage.Stage, tenants ...string) {
	g.t.Helper()
	g.until(fmt.Sprintf("%v are in %s", tenants, s), func() bool {
		return g.number(`SELECT count(*) FROM crossfade_stages WHERE stage = $1 AND tenant_id = ANY($2)`, s, tenants) == len(tenants)
	})
}

// traffic makes tenants agree, but for so many mismatches, in all windows of the test.
func (g *rig) traffic(mismatched int, tenants ...string) {
	g.t.Helper()
	g.exec(`INSERT INTO crossfade_parity (tenant_id, minute, matched, mismatched, skew_ms_buckets)
		SELECT t, date_trunc('minute', now()) + interval '1 hour', 1000, $2, array_fill(0::int8, ARRAY[32]) FROM unnest($1::text[]) AS t`, tenants, mismatched)
}

func (g *rig) start(p Plan) {
	g.t.Helper()
	p.complete()
	if err := Start(g.t.Context(), g.pool, p, "ann"); err != nil {
		g.t.Fatal(err)
	}
}

func quick(pool *pgxpool.Pool) Options {
	o := DefaultOptions()
	o.Pool, o.Logger = pool, slog.New(slog.DiscardHandler)
	o.Round, o.GatesEvery = 5*time.Millisecond, time.Millisecond
	return o
}

func (g *rig) drive() (stop func()) {
	return g.background(func(ctx context.Context) error { return Drive(ctx, quick(g.pool)) })
}

// childEnv makes this test program a driver of its own, to be killed.
const childEnv = "CROSSFADE_TEST_ROLLOUT"

func runChild() {
	url := os.Getenv(childEnv)
	if url == "" {
		return
	}
	pool, err := pgxpool.New(context.Background(), url)
	if err == nil {
		err = Drive(context.Background(), quick(pool))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// spawn starts a driver, and returns how to kill it.
func (g *rig) spawn() (kill func()) {
	g.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+g.pool.Config().ConnString())
	cmd.Stderr = g.t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	g.t.Cleanup(kill)
	return kill
}

func names(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("t%02d", i+1)
	}
	return all
}

// inWaves is a plan of waves of so many tenants each, with two in transition.
func inWaves(tenants []string, each int) Plan {
	p := DefaultPlan()
	p.Name, p.MaxInTransition = "canary", 2
	for wave := range slices.Chunk(tenants, each) {
		p.Waves = append(p.Waves, Wave{Tenants: wave, Bake: bake(0)})
	}
	return p
}

// mortal is a tracer that cuts a connection before its driver's nth statement, which is
// all that a database sees of a crash.
type mortal struct{ left atomic.Int64 }

func (m *mortal) TraceQueryStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	if m.left.Add(-1) <= 0 {
		_ = conn.PgConn().Conn().Close()
	}
	return ctx
}

func (m *mortal) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
