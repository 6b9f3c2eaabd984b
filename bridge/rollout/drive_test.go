package rollout

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/session"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
)

// once checks that a rollout that has come to its end has done everything once, and
// never more at a time than it may.
func (g *rig) once(tenants []string, waves int) {
	g.t.Helper()
	g.in(stage.JetStream, tenants...)
	if n := g.number(`SELECT max(moving) FROM written`); n > 2 {
		g.t.Errorf("%d tenants were in transition at once, at most 2 may be", n)
	}
	if n := g.number(`SELECT count(*) FROM written`); n != 2*len(tenants) {
		g.t.Errorf("%d wishes were written, want live and jetstream for each of %d tenants", n, len(tenants))
	}
	begun, judged := 0, map[string]int{}
	for _, e := range g.look().Events {
		switch {
		case e.Kind == "wave" && strings.Contains(e.Message, "begins"):
			begun++
		case e.Kind == "gate":
			judged[e.Tenant]++
			if e.Verdict != parity.Pass || len(e.Evidence) != 1 || e.Evidence[0].Numbers["matched"] != 1000 {
				g.t.Errorf("gate event %+v", e)
			}
		}
	}
	if begun != waves || len(judged) != len(tenants) {
		g.t.Errorf("%d waves have begun, %d tenants were judged\n%s", begun, len(judged), g.story())
	}
	for tenant, n := range judged {
		if n != 1 {
			g.t.Errorf("%s was judged %d times", tenant, n)
		}
	}
}

// TestKilled: drivers, of which there are two, are killed at random moments, and the
// rollout goes on where it was.
func TestKilled(t *testing.T) {
	tenants := names(12)
	g := newRig(t, tenants...)
	g.traffic(0, tenants...)
	g.start(inWaves(tenants, 3))
	drivers := []func(){g.spawn(), g.spawn()}
	kills := 0
	for over := false; !over; kills++ {
		from := g.number(`SELECT revision FROM crossfade_rollouts`)
		steps := 1 + rand.IntN(4)
		g.until("the rollout goes on", func() bool {
			over = g.number(`SELECT count(*) FROM crossfade_rollouts WHERE ended_at IS NOT NULL`) == 1
			return over || g.number(`SELECT revision FROM crossfade_rollouts`) >= from+steps
		})
		i := rand.IntN(2)
		drivers[i]()
		drivers[i] = g.spawn()
	}
	t.Logf("%d drivers were killed", kills)
	g.reaches(Done, Finishing, 4)
	g.once(tenants, 4)
}

// TestCrashBeforeEveryStatement: drivers die before their first, second, third
// statement and so on, again and again, so that no place is left where a crash did
// not happen.
func TestCrashBeforeEveryStatement(t *testing.T) {
	tenants := names(6)
	g := newRig(t, tenants...)
	g.traffic(0, tenants...)
	g.start(inWaves(tenants, 3))
	m := &mortal{}
	config := g.pool.Config()
	config.ConnConfig.Tracer = m
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	lives := 0
	over := func() bool {
		return g.number(`SELECT count(*) FROM crossfade_rollouts WHERE ended_at IS NOT NULL`) == 1
	}
	g.until("the rollout is done", func() bool {
		lives++
		m.left.Store(int64(1 + lives%25))
		d := &driver{o: quick(pool), log: quick(pool).Logger}
		if err := d.connect(t.Context()); err != nil {
			return over()
		}
		defer session.Close(d.conn)
		for err == nil && !over() {
			_, err = d.advance(t.Context())
		}
		err = nil
		return over()
	})
	t.Logf("%d drivers died", lives)
	g.once(tenants, 2)
}

// TestRace: even if two drivers both believe that it is their turn, nothing is done
// twice.
func TestRace(t *testing.T) {
	tenants := names(10)
	g := newRig(t, tenants...)
	g.traffic(0, tenants...)
	g.start(inWaves(tenants, 5))
	for range 3 {
		g.background(func(ctx context.Context) error {
			d := &driver{o: quick(g.pool), log: quick(g.pool).Logger}
			if err := d.connect(ctx); err != nil {
				return err
			}
			defer session.Close(d.conn)
			for ctx.Err() == nil {
				if _, err := d.advance(ctx); err != nil && ctx.Err() == nil {
					return err
				}
			}
			return nil
		})
	}
	g.reaches(Done, Finishing, 2)
	g.once(tenants, 2)
}

// TestOperatorWins: whoever writes a wish for a tenant that a rollout has moved is not
// overruled, at whichever moment it happens.
func TestOperatorWins(t *testing.T) {
	tenants := names(20)
	g := newRig(t, tenants...)
	g.traffic(0, tenants...)
	p := inWaves(tenants, 10)
	p.MaxInTransition = 20
	g.start(p)
	g.drive()
	var operators sync.WaitGroup
	var flips atomic.Int32
	for _, part := range [][]string{tenants[:5], tenants[10:15]} {
		operators.Go(func() {
			for _, tenant := range part {
				g.until(tenant+" is wished for", func() bool {
					return g.number(`SELECT count(*) FROM written WHERE tenant = $1`, tenant) >= rand.IntN(3)
				})
				if _, err := flags.OpenStore(g.pool).SetTargets(context.Background(), []string{tenant}, flags.MQTT, "ann", "mine"); err != nil {
					t.Error(err)
				}
				flips.Add(1)
			}
		})
	}
	operators.Wait()
	g.reaches(Done, Finishing, 2)
	if n := g.number(`SELECT count(*) FROM written AS w WHERE by LIKE 'rollout %' AND EXISTS (SELECT FROM written AS o WHERE o.tenant = w.tenant AND o.by = 'ann' AND o.id < w.id)`); n > 0 {
		t.Errorf("%d wishes were written over an operator's", n)
	}
	g.in(stage.MQTT, append(tenants[:5:5], tenants[10:15]...)...)
	g.in(stage.JetStream, append(tenants[5:10:10], tenants[15:]...)...)
	for _, e := range g.look().Events {
		if e.Kind == "tenant" && !strings.Contains(e.Message, "left alone: mqtt was wished by ann (mine)") {
			t.Errorf("event %+v", e)
		}
	}
}

// TestOperatorInBetween: a wish that somebody writes after the rollout has looked, and
// before it writes, makes it look again.
func TestOperatorInBetween(t *testing.T) {
	g := newRig(t, "t01", "t02")
	g.start(inWaves([]string{"t01", "t02"}, 2))
	operator := flags.OpenStore(g.pool)
	between := func(tenant string, decide func(*Rollout, *Observation) (Change, error)) (looks int) {
		_, _, err := transact(t.Context(), g.pool, "canary", func(ctx context.Context, tx pgx.Tx, r *Rollout) (Change, error) {
			o, err := observe(ctx, tx, r, []string{"t01", "t02"}, nil)
			if looks++; err == nil && looks == 1 {
				_, err = operator.SetTargets(ctx, []string{tenant}, flags.Shadow, "ann", "mine")
			}
			if err != nil {
				return Change{}, err
			}
			return decide(r, o)
		})
		if err != nil {
			t.Fatal(err)
		}
		return looks
	}
	step := func(r *Rollout, o *Observation) (Change, error) { return Step(r, o), nil }
	if _, _, err := transact(t.Context(), g.pool, "canary", func(ctx context.Context, tx pgx.Tx, r *Rollout) (Change, error) {
		o, err := observe(ctx, tx, r, []string{"t01", "t02"}, nil)
		return Step(r, o), err
	}); err != nil {
		t.Fatal(err)
	}
	if looks := between("t01", step); looks != 2 { // it wishes for both, or would
		t.Errorf("%d looks, want that the rollout looks again", looks)
	}
	if r := g.look(); r.Rollout.Tenants[0].State != Taken || r.Rollout.Tenants[1].State != Moving {
		t.Errorf("tenants %+v", r.Rollout.Tenants)
	}
	abort := func(r *Rollout, o *Observation) (Change, error) { return Abort(r, o, "bob", "", true) }
	if looks := between("t02", abort); looks != 2 {
		t.Errorf("%d looks, want that the rollout looks again", looks)
	}
	if n := g.number(`SELECT count(*) FROM crossfade_flag_targets WHERE updated_by = 'ann' AND variant = 'shadow'`); n != 2 {
		t.Errorf("%d of 2 wishes of the operator's are left", n)
	}
}

// TestPauseResumeAbort: once a pause is there no wish is written; a rollback takes all
// waves back.
func TestPauseResumeAbort(t *testing.T) {
	tenants := names(6)
	g := newRig(t, tenants...)
	g.start(inWaves(tenants, 3))
	g.drive()
	g.reaches(Running, Judging, 1) // there is no traffic yet
	r, err := PauseNow(t.Context(), g.pool, "canary", "ann", "lunch")
	if err != nil || r.State != Paused || r.Cause != ByOperator || r.Why != "by ann: lunch" {
		t.Fatalf("pause: %+v, %v", r, err)
	}
	if err := Start(t.Context(), g.pool, named("other", r.Plan), "bob"); !errors.Is(err, ErrActive) {
		t.Errorf("a second rollout: %v", err)
	}
	g.traffic(0, tenants...)
	before := g.number(`SELECT count(*) FROM written`)
	g.until("two seconds have passed in the database", func() bool {
		return g.number(`SELECT extract(epoch FROM now() - since)::int FROM crossfade_rollouts`) >= 0 && time.Since(r.Since) > 2*time.Second
	})
	if n := g.number(`SELECT count(*) FROM written`); n != before || g.look().Revision != r.Revision {
		t.Errorf("a paused rollout goes on: %d wishes, then %d", before, n)
	}
	if _, err := ResumeNow(t.Context(), g.pool, "canary", "ann", false); err != nil {
		t.Fatal(err)
	}
	g.reaches(Done, Finishing, 2)
	if _, err := AbortNow(t.Context(), g.pool, "canary", "ann", "", true); !errors.Is(err, ErrState) {
		t.Errorf("abort of one that is done: %v", err)
	}
	if _, err := PauseNow(t.Context(), g.pool, "nobody", "ann", ""); !errors.Is(err, ErrNone) {
		t.Errorf("pause of none: %v", err)
	}
	if err := Start(t.Context(), g.pool, r.Plan, "bob"); !errors.Is(err, ErrExists) {
		t.Errorf("the same name again: %v", err)
	}
}

func named(name string, p Plan) Plan {
	p.Name = name
	return p
}

func TestAbortRollsBackAllWaves(t *testing.T) {
	tenants := names(6)
	g := newRig(t, tenants...)
	g.traffic(0, tenants[:3]...)
	g.start(inWaves(tenants, 3))
	g.drive()
	g.reaches(Running, Judging, 2)
	g.in(stage.JetStream, tenants[:3]...)
	if _, err := flags.OpenStore(g.pool).SetTargets(t.Context(), tenants[3:4], flags.Shadow, "ann", ""); err != nil {
		t.Fatal(err)
	}
	r, err := AbortNow(t.Context(), g.pool, "canary", "bob", "incident 7", true)
	if err != nil || r.State != Aborted || !strings.Contains(r.Why, "5 tenants go back") {
		t.Fatalf("abort: %+v, %v", r, err)
	}
	g.in(stage.MQTT, append(tenants[:3:3], tenants[4:]...)...)
	g.in(stage.Shadow, tenants[3])
}

// TestFailingGateOnPostgres: exactly the wave goes back, to where it was.
func TestFailingGateOnPostgres(t *testing.T) {
	tenants := names(9)
	g := newRig(t, tenants...)
	g.traffic(0, append(tenants[:4:4], tenants[5:]...)...)
	g.traffic(7, tenants[4])
	g.exec(`INSERT INTO crossfade_flag_targets (flag_key, tenant_id, variant) VALUES ('ingest-source', $1, 'shadow')`, tenants[3])
	g.in(stage.Shadow, tenants[3])
	g.exec(`INSERT INTO crossfade_holds (tenant_id, held_by, reason) VALUES ($1, 'ann', 'incident')`, tenants[5])
	g.start(inWaves(tenants, 3))
	g.drive()
	r := g.reaches(Failed, Baking, 2)
	if !strings.Contains(r.Why, tenants[4]+": parity: 7 of 1007") || r.EndedAt == nil {
		t.Errorf("%+v", r.Progress)
	}
	g.in(stage.JetStream, tenants[:3]...)
	g.in(stage.Shadow, tenants[3])
	g.in(stage.MQTT, tenants[4:]...)
	if n := g.number(`SELECT count(*) FROM written WHERE tenant = ANY($1)`, tenants[5:]); n != 0 {
		t.Errorf("%d wishes were written for tenants that were held or of a later wave", n)
	}
	skipped := false
	for _, e := range r.Events {
		skipped = skipped || e.Tenant == tenants[5] && strings.Contains(e.Message, "skipped: held by ann: incident")
	}
	if !skipped {
		t.Errorf("nobody says that %s was skipped:\n%s", tenants[5], g.story())
	}
}

// TestMeasures: what gates judge by comes from where it is kept, of the window only.
func TestMeasures(t *testing.T) {
	g := newRig(t, "t01")
	p := inWaves([]string{"t01"}, 1)
	p.Gates = Gates{Parity: &ParityGate{1, 0, 0}, Lag: &LagGate{Duration(time.Minute)}, Rescues: &RescueGate{0}, Quarantine: &QuarantineGate{0.5, 1}}
	g.start(p)
	g.drive()
	r := g.reaches(Running, Judging, 1)
	from := r.WindowFrom
	g.exec(`INSERT INTO crossfade_parity (tenant_id, minute, matched, rescued, skew_ms_buckets) VALUES
		('t01', $1::timestamptz - interval '1 minute', 5, 5, array_fill(0::int8, ARRAY[32])), ('t01', $1, 10, 0, array_fill(0::int8, ARRAY[32]))`, from)
	g.exec(`INSERT INTO quarantine_counters_minute (bucket_minute, tenant_id, reason, cnt) VALUES
		($1::timestamptz - interval '1 minute', 't01', 'A', 1000), ($1, 't01', 'A', 1), ($1, 't01', 'B', 2), ($1, 't02', 'B', 9)`, from)
	report := g.look()
	m := report.Seen["t01"].Measured
	if m.Parity.Matched != 10 || m.Parity.Rescued != 0 || m.Quarantined != 3 || report.State != Running {
		t.Errorf("measured %+v while %s", m, report.State)
	}
	if results := report.Results["t01"]; len(results) != 4 || results[1].Verdict != parity.Inconclusive || results[3].Verdict != parity.Pass {
		t.Errorf("results %+v", results)
	}
	g.exec(`INSERT INTO crossfade_path_latency (tenant_id, path, seconds, seen_at) VALUES ('t01', 2, 1.5, $1), ('t01', 1, 900, $1)`, from)
	g.reaches(Done, Finishing, 1)
}

func TestOptions(t *testing.T) {
	if err := Drive(t.Context(), DefaultOptions()); err == nil || !strings.Contains(err.Error(), "Pool and Logger") {
		t.Errorf("options without a pool: %v", err)
	}
	o := DefaultOptions()
	o.Round, o.GatesEvery = time.Minute, 0
	if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "Round is 1m0s") || !strings.Contains(err.Error(), "GatesEvery is 0s") {
		t.Errorf("options: %v", err)
	}
}
