package parity_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline"
)

func database(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// counter is a recorder that runs, with its tally.
type counter struct {
	*parity.Tally
	registry *prometheus.Registry
	log      *bytes.Buffer // to be read after stop
	stop     func()
}

func count(t *testing.T, db parity.DB, change ...func(*parity.Options)) *counter {
	t.Helper()
	c := &counter{registry: prometheus.NewRegistry(), log: new(bytes.Buffer)}
	o := parity.DefaultOptions()
	o.Timeout, o.Farewell = time.Minute, time.Minute
	for _, f := range change {
		f(&o)
	}
	o.Logger, o.Registry = slog.New(slog.NewTextHandler(c.log, nil)), c.registry
	r, tally, err := parity.New(db, o)
	if err != nil {
		t.Fatal(err)
	}
	c.Tally = tally
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	c.stop = func() { cancel(); running.Wait() }
	t.Cleanup(c.stop)
	return c
}

func (c *counter) metric(t *testing.T, name string) (sum float64) {
	t.Helper()
	families, err := c.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func windows(t *testing.T, db parity.DB, since time.Time, tenants ...string) []parity.Window {
	t.Helper()
	w, err := parity.Windows(t.Context(), db, tenants, since)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// TestWindowsAddUp over copies, minutes and instances, and begin where they are told to.
func TestWindowsAddUp(t *testing.T) {
	db := database(t, devstack.TestOwnedDatabase(t))
	for range 2 { // instances
		c := count(t, db)
		for i := range 200 {
			c.Matched("a", noon.Add(time.Duration(i)*time.Second), 10*time.Millisecond)
		}
		c.Matched("a", noon, -3*time.Second)
		c.Mismatched("a", noon, time.Hour)
		c.Rescued("a", noon, true)
		c.Rescued("a", noon, false)
		c.Rescued("b", noon.Add(-time.Second), false)
		c.Matched(`{"it's", NULL}`, noon, 0)
		c.Close()
		c.stop()
	}
	got := windows(t, db, noon, "b", "a", "silent", `{"it's", NULL}`)
	if len(got) != 4 || got[0].Tenant != "b" || got[0].Total() != 0 || got[2].Total() != 0 || got[3].Matched != 2 {
		t.Errorf("windows %+v", got)
	}
	a := got[1]
	if a.Matched != 402 || a.Rescued != 4 || a.RescuedFull != 2 || a.Mismatched != 2 || a.Skew.Count() != 404 {
		t.Errorf("a: %+v", a)
	}
	if a.P50 != 16*time.Millisecond || a.P99 != 16*time.Millisecond {
		t.Errorf("a: p50 %v, p99 %v", a.P50, a.P99)
	}
	if late := windows(t, db, noon.Add(time.Minute), "a")[0]; late.Matched != 2*140 || late.Mismatched != 0 {
		t.Errorf("a from the second minute: %+v", late.Counts)
	}
	if before := windows(t, db, noon.Add(-time.Minute), "b")[0]; before.Rescued != 2 {
		t.Errorf("b before noon: %+v", before.Counts)
	}
	if v := parity.Judge(got[2], parity.DefaultThresholds()).Verdict; v != parity.Inconclusive {
		t.Errorf("a silent tenant: %s", v)
	}
}

// TestInstancesDoNotDeadlock: several write the same tenants at once, each having
// counted them in another order, in more than one statement.
func TestInstancesDoNotDeadlock(t *testing.T) {
	db := database(t, devstack.TestOwnedDatabase(t))
	const instances, tenants, rounds = 4, 2500, 12
	var all sync.WaitGroup
	for i := range instances {
		all.Go(func() {
			for range rounds {
				c := count(t, db)
				for n := range tenants {
					c.Matched(fmt.Sprint((n*[]int{1, 3, 7, 9}[i]+i)%tenants), noon, 0)
				}
				c.Close()
				c.stop()
				if n := c.metric(t, "crossfade_parity_write_failures_total"); n != 0 {
					t.Errorf("%v writes failed:\n%s", n, c.log)
				}
			}
		})
	}
	all.Wait()
	names := make([]string, tenants)
	for n := range names {
		names[n] = fmt.Sprint(n)
	}
	for _, w := range windows(t, db, noon, names...) {
		if w.Matched != instances*rounds || w.Skew.Count() != w.Matched {
			t.Fatalf("tenant %s has %d, skew %d, want %d", w.Tenant, w.Matched, w.Skew.Count(), instances*rounds)
		}
	}
}

func hasty(o *parity.Options) { o.Timeout, o.Farewell = time.Second, time.Second }

// TestPostgresAway: what is counted meanwhile is kept, whoever counts does not wait,
// and nothing counts twice afterwards.
func TestPostgresAway(t *testing.T) {
	pg := devstack.TestPostgres(t)
	url, err := pg.CreateDatabase(t.Context(), "parity")
	if err != nil {
		t.Fatal(err)
	}
	db := database(t, url)
	if err := pg.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := count(t, db, hasty)
	const copies = 100
	for range copies {
		c.Matched("a", noon, 0)
		c.Hand()
	}
	devstack.Await(t, "a write has failed", func() bool { return c.metric(t, "crossfade_parity_write_failures_total") > 0 })
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "all is written", func() bool {
		c.Hand()
		w, err := parity.Windows(t.Context(), db, []string{"a"}, noon)
		return err == nil && w[0].Matched == copies
	})
}

// TestTheEndWithoutPostgres is told, and does not take for ever.
func TestTheEndWithoutPostgres(t *testing.T) {
	pg := devstack.TestPostgres(t)
	url, err := pg.CreateDatabase(t.Context(), "parity")
	if err != nil {
		t.Fatal(err)
	}
	db := database(t, url)
	if err := pg.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := count(t, db, hasty)
	c.Matched("a", noon, 0)
	c.Hand()
	devstack.Await(t, "a write has failed", func() bool { return c.metric(t, "crossfade_parity_write_failures_total") > 0 })
	c.Matched("b", noon, 0)
	c.Close()
	c.stop()
	if log := c.log.String(); !strings.Contains(log, "are lost") || !strings.Contains(log, "tenant_minutes=2") {
		t.Errorf("the log says:\n%s", log)
	}
	if n := c.metric(t, "crossfade_parity_lost_total"); n != 2 {
		t.Errorf("%v counts are lost, want 2", n)
	}
}

// sample is a mismatch of tenant's n-th message.
func sample(tenant string, n int, at time.Time) parity.Sample {
	return parity.Sample{
		Tenant: tenant, At: at, ID: pipeline.ID{byte(n), 1}, Path: pipeline.PathJetStream, Digest: int64(n), Other: -5,
		Topic: "tenant/t/device/d/telemetry", Payload: `{"a":"\u0000","message_id":"x"}`, Size: 40,
	}
}

// TestSamplesAreFew: 20 a tenant and hour over all instances, each copy once.
func TestSamplesAreFew(t *testing.T) {
	db := database(t, devstack.TestOwnedDatabase(t))
	for instance := range 2 {
		c := count(t, db)
		for n := range 15 {
			for range 3 { // delivered again and again
				c.Matched("a", noon, 0) // or nothing is handed over
				c.Sample(sample("a", 100*instance+n, noon.Add(time.Duration(n)*time.Second)))
				c.Hand()
			}
		}
		c.Sample(sample("b", 1, noon.Add(time.Duration(instance)*2*time.Hour)))
		c.Close()
		c.stop()
		if log := c.log.String(); log != "" {
			t.Error(log)
		}
	}
	got, err := parity.Samples(t.Context(), db, "a", 100)
	if err != nil {
		t.Fatal(err)
	}
	ids := make(map[pipeline.ID]bool)
	for _, s := range got {
		ids[s.ID] = true
	}
	if len(got) != parity.MaxPerHour || len(ids) != len(got) {
		t.Errorf("%d samples of %d messages of a, want %d", len(got), len(ids), parity.MaxPerHour)
	}
	b, err := parity.Samples(t.Context(), db, "b", 1)
	if err != nil || len(b) != 1 {
		t.Fatal(b, err)
	}
	want := sample("b", 1, noon.Add(2*time.Hour))
	if b[0].At = b[0].At.UTC(); b[0] != want {
		t.Errorf("read %+v, want %+v", b[0], want)
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for field, spoil := range map[string]func(*parity.Options){
		"Interval": func(o *parity.Options) { o.Interval = 0 },
		"Timeout":  func(o *parity.Options) { o.Timeout = 0 },
		"Farewell": func(o *parity.Options) { o.Farewell = -1 },
		"Logger":   func(o *parity.Options) { o.Logger = nil },
	} {
		o := parity.DefaultOptions()
		o.Logger = slog.Default()
		spoil(&o)
		if _, _, err := parity.New(nil, o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// flaky loses its connection before the second statement.
type flaky struct {
	parity.DB
	calls int
}

func (f *flaky) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if f.calls++; f.calls == 2 {
		return pgconn.CommandTag{}, io.ErrUnexpectedEOF
	}
	return f.DB.Exec(ctx, sql, args...)
}

// TestWhatIsWrittenIsNotWrittenAgain when a later part has failed.
func TestWhatIsWrittenIsNotWrittenAgain(t *testing.T) {
	db := database(t, devstack.TestOwnedDatabase(t))
	c := count(t, &flaky{DB: db})
	names := make([]string, 2500)
	for n := range names {
		names[n] = fmt.Sprint(n)
		c.Matched(names[n], noon, 0)
	}
	c.Hand()
	devstack.Await(t, "all is written", func() bool { return windows(t, db, noon, names...)[2499].Matched > 0 })
	c.stop()
	for _, w := range windows(t, db, noon, names...) {
		if w.Matched != 1 {
			t.Fatalf("tenant %s has %d, want 1", w.Tenant, w.Matched)
		}
	}
}
