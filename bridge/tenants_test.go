package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
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
)

// oracle answers wishes as a test says.
type oracle struct {
	answer  func(ctx context.Context, tenant string) (stage.Stage, error)
	changes chan struct{}
}

func (o *oracle) WishAll(ctx context.Context, tenants []string, took func(string, stage.Stage, error)) {
	for _, tenant := range tenants {
		wish, err := o.answer(ctx, tenant)
		took(tenant, wish, err)
	}
}
func (o *oracle) Changes() <-chan struct{}                               { return o.changes }
func (o *oracle) Override(string) (wish stage.Stage, ok bool, err error) { return "", false, nil }
func (o *oracle) OverrideChanges() <-chan struct{}                       { return nil }

func migrated(t *testing.T) *pgxpool.Pool {
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
	return pool
}

func execute(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func register(t *testing.T, pool *pgxpool.Pool, tenants ...string) {
	t.Helper()
	execute(t, pool, `INSERT INTO device_registry (tenant_id, device_id) SELECT t, 'd' FROM unnest($1::text[]) AS t`, tenants)
}

// startTenants starts tenants, with facts loaded, until the test ends.
func startTenants(t *testing.T, pool *pgxpool.Pool, instance string, beat time.Duration, moved func(), log *slog.Logger,
	answer func(context.Context, string) (stage.Stage, error)) (*tenants, *oracle) {
	t.Helper()
	o := &oracle{answer, make(chan struct{}, 1)}
	n := newTenants(pool, o, instance, stage.MQTT, beat, moved, prometheus.NewRegistry(), log)
	if err := n.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { n.run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return n, o
}

func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting until %s", what)
		}
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestStagesMoveWhateverHistoryHolds: rows of a tenant that was removed and came
// back, or of stages brought back from a backup, keep nobody from moving (P6).
func TestStagesMoveWhateverHistoryHolds(t *testing.T) {
	pool := migrated(t)
	execute(t, pool, `INSERT INTO crossfade_stage_history (tenant_id, revision, to_stage) VALUES ('back', 1, 'shadow'), ('back', 2, 'live'), ('old', 5, 'live')`)
	execute(t, pool, `INSERT INTO crossfade_stages (tenant_id, stage, revision) VALUES ('old', 'shadow', 4)`)
	moves := []move{{"back", "", stage.Shadow, 0}, {"old", stage.Shadow, stage.Live, 4}, {"other", "", stage.Live, 0}}
	if err := apply(t.Context(), pool, moves, "test", "test"); err != nil {
		t.Fatal(err)
	}
	facts, err := Facts(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Fact{"back": {Stage: stage.Shadow, Revision: 3}, "old": {Stage: stage.Live, Revision: 6}, "other": {Stage: stage.Live, Revision: 1}}
	for _, f := range facts {
		if w := want[f.Tenant]; f.Stage != w.Stage || f.Revision != w.Revision {
			t.Errorf("%s is in %s, revision %d; want %s, %d", f.Tenant, f.Stage, f.Revision, w.Stage, w.Revision)
		}
	}
	// From a revision that has passed nothing moves.
	if err := apply(t.Context(), pool, []move{{"old", stage.Shadow, stage.Shadow, 4}, {"other", "", stage.Shadow, 0}}, "test", "test"); err != nil {
		t.Fatal(err)
	}
	if again, err := Facts(t.Context(), pool); err != nil || fmt.Sprint(again) != fmt.Sprint(facts) {
		t.Errorf("stages moved from revisions that had passed: %v, %v", again, err)
	}
}

// TestStagesMoveThoughAnotherMovesOthers: who finds another instance at it waits
// for its turn instead of leaving its own moves undone until the next beat.
func TestStagesMoveThoughAnotherMovesOthers(t *testing.T) {
	pool := migrated(t)
	other, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(context.Background())
	if _, err := other.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, int64(stageLock)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- apply(t.Context(), pool, []move{{"t", "", stage.Live, 0}}, "test", "test")
	}()
	until(t, "the lock is waited for", func() bool {
		var n int
		err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			t.Fatalf("apply returned %v while another held the lock", err)
		default:
		}
		return n == 1
	})
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if facts, err := Facts(t.Context(), pool); err != nil || len(facts) != 1 {
		t.Errorf("facts: %v, %v", facts, err)
	}
}

// TestFactsAreHeardWhileFlagsHang: a flag service that does not answer must not
// keep an instance from hearing what another has moved (P4, P5).
func TestFactsAreHeardWhileFlagsHang(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "a", "b")
	var asked atomic.Int64
	var moved atomic.Int64
	n, _ := startTenants(t, pool, "i", time.Hour, func() { moved.Add(1) }, quiet(), func(ctx context.Context, _ string) (stage.Stage, error) {
		asked.Add(1)
		<-ctx.Done()
		return "", ctx.Err()
	})
	until(t, "the flags are asked", func() bool { return asked.Load() > 0 })
	execute(t, pool, `INSERT INTO crossfade_stages (tenant_id, stage, revision) VALUES ('a', 'live', 1)`)
	until(t, "the move is heard", func() bool { return n.stageOf("a") == stage.Live })
	if moved.Load() != 1 {
		t.Errorf("authority moved %d times, want once", moved.Load())
	}
	execute(t, pool, `DELETE FROM crossfade_stages`)
	until(t, "the removal is heard", func() bool { return n.stageOf("a") == stage.Shadow })
	until(t, "what is held is looked at again", func() bool { return moved.Load() == 2 })
}

// TestNoAnswerMovesNobody: and it is said once, not once for each tenant (P5, P7).
func TestNoAnswerMovesNobody(t *testing.T) {
	pool := migrated(t)
	var names []string
	for i := range 500 {
		names = append(names, fmt.Sprintf("t%d", i))
	}
	register(t, pool, names...)
	execute(t, pool, `INSERT INTO crossfade_stages (tenant_id, stage, revision) VALUES ('t1', 'live', 1)`)
	var mu sync.Mutex
	var buf bytes.Buffer
	log := slog.New(slog.NewTextHandler(writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return buf.Write(p)
	}), nil))
	var rounds atomic.Int64
	startTenants(t, pool, "i", 20*time.Millisecond, func() {}, log, func(_ context.Context, tenant string) (stage.Stage, error) {
		if tenant == "t1" {
			rounds.Add(1)
		}
		return stage.MQTT, errors.New("no clean answer")
	})
	until(t, "the flags were asked three times", func() bool { return rounds.Load() > 3 })
	facts, err := Facts(t.Context(), pool)
	if err != nil || len(facts) != 1 || facts[0].Revision != 1 || facts[0].Stage != stage.Live {
		t.Errorf("somebody was moved: %v, %v", facts, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if lines := strings.Count(buf.String(), "no clean answer from the flag service"); lines != 1 || !strings.Contains(buf.String(), "tenants=500") {
		t.Errorf("%d lines are logged, want one that counts 500 tenants:\n%.500s", lines, buf.String())
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// TestInventedTenantsCauseFewRounds: whoever can publish can invent tenant names;
// each must not have every tenant's wish evaluated (P6).
func TestInventedTenantsCauseFewRounds(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "real")
	var rounds atomic.Int64
	began := time.Now()
	n, _ := startTenants(t, pool, "i", time.Hour, func() {}, quiet(), func(_ context.Context, tenant string) (stage.Stage, error) {
		rounds.Add(1)
		return stage.JetStream, nil
	})
	until(t, "the tenant is moved", func() bool { return n.stageOf("real") == stage.Live })
	for i := range maxNewTenants + 1000 {
		n.stageOf(fmt.Sprintf("invented-%d", i))
		if i%100 == 0 {
			time.Sleep(10 * time.Millisecond) // a stream of them, not a burst
		}
	}
	if most := 2 + int64(time.Since(began)/newTenantPause); rounds.Load() > most {
		t.Errorf("%d rounds in %v, want %d at most", rounds.Load(), time.Since(began), most)
	}
	if len(n.seen) > maxNewTenants {
		t.Errorf("%d names are remembered", len(n.seen))
	}
	register(t, pool, "late")
	n.mu.Lock()
	clear(n.seen) // as the beat does
	n.mu.Unlock()
	n.stageOf("late")
	until(t, "a tenant that is met is moved before the beat", func() bool { return n.stageOf("late") == stage.Live })
}

// TestInstancesThatDisagree see different wishes for good: they must not chase each
// other from notification to notification.
func TestInstancesThatDisagree(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	const beat = 400 * time.Millisecond
	began := time.Now()
	wish := func(s stage.Stage) func(context.Context, string) (stage.Stage, error) {
		return func(context.Context, string) (stage.Stage, error) { return s, nil }
	}
	startTenants(t, pool, "a", beat, func() {}, quiet(), wish(stage.MQTT))
	startTenants(t, pool, "b", beat, func() {}, quiet(), wish(stage.JetStream))
	revision := func() int64 {
		facts, err := Facts(t.Context(), pool)
		if err != nil {
			t.Fatal(err)
		}
		if len(facts) == 0 {
			return 0
		}
		return facts[0].Revision
	}
	until(t, "each has moved it several times", func() bool { return revision() >= 8 })
	if r, most := revision(), 4+2*int64(time.Since(began)/beat); r > most {
		t.Errorf("%d moves in %v, want %d at most", r, time.Since(began), most)
	}
}
