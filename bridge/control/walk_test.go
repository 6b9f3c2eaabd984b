package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// TestThereAndBack takes a tenant from nothing to mqtt, to jetstream and back, and
// reads the history of it.
func TestThereAndBack(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.MQTT)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "it is in mqtt", n.in(stage.MQTT, "t"))
	o.wish(stage.JetStream)
	devstack.Await(t, "it is in jetstream", n.in(stage.JetStream, "t"))
	o.wish(stage.MQTT)
	devstack.Await(t, "it is back in mqtt", n.in(stage.MQTT, "t"))
	if s, drop := n.Look("t"); s != stage.MQTT || !drop {
		t.Errorf("Look = %s, %v; want that copies may be dropped", s, drop)
	}
	changes, err := History(t.Context(), pool, HistoryQuery{Tenants: []string{"t"}})
	if err != nil {
		t.Fatal(err)
	}
	var story []string
	for _, c := range changes {
		story = append(story, fmt.Sprintf("%d %s>%s", c.Revision, c.From, c.To))
		if proved := strings.Contains(string(c.Evidence), "sentinel"); proved != (c.To.Outer()) {
			t.Errorf("revision %d to %s has the evidence %s", c.Revision, c.To, c.Evidence)
		}
		if c.ChangedBy != "instance a" || c.Reason == "" {
			t.Errorf("revision %d was changed by %q because %q", c.Revision, c.ChangedBy, c.Reason)
		}
	}
	want := "7 shadow>mqtt, 6 jetstream>shadow, 5 live>jetstream, 4 shadow>live, 3 mqtt>shadow, 2 shadow>mqtt, 1 >shadow"
	if got := strings.Join(story, ", "); got != want {
		t.Errorf("history: %s\nwant:    %s", got, want)
	}
	devstack.Await(t, "it waits for nothing", func() bool {
		f := fact(t, pool, "t")
		return f.WaitsFor == "" && f.Wanted == stage.MQTT && f.WantedWhy == "test" && f.ConfirmedAt != nil
	})
}

// TestEveryWait: what a step waits for is shown, and when it has come the step is taken.
func TestEveryWait(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	n, p := alone(t, pool, o)
	devstack.Await(t, "it is in shadow", n.in(stage.Shadow, "t"))

	p.set(func(p *courier) { p.err = errors.New("the broker is down") })
	o.wish(stage.MQTT)
	waitsFor(t, pool, "t", "sentinel to be sent: the broker is down")
	p.set(func(p *courier) { p.err, p.mute[pipeline.PathMQTT] = nil, true })
	waitsFor(t, pool, "t", "sentinel by MQTT: not yet out of the session of a")
	p.set(func(p *courier) { p.mute[pipeline.PathMQTT], p.mute[pipeline.PathJetStream] = false, true })
	execute(t, pool, `DELETE FROM crossfade_sentinels`)
	waitsFor(t, pool, "t", "sentinel by JetStream: not yet out of commands, shadow, telemetry; is the mirror running?")
	since := fact(t, pool, "t").WaitsSince
	if since == nil || time.Since(*since) > time.Minute {
		t.Errorf("it waits since %v", since)
	}
	if got := n.StageOf("t"); got != stage.Shadow {
		t.Fatalf("it is in %s without proof", got)
	}
	p.set(func(p *courier) { p.mute = map[pipeline.Path]bool{} })
	execute(t, pool, `DELETE FROM crossfade_sentinels`)
	devstack.Await(t, "it is in mqtt", n.in(stage.MQTT, "t"))
}

// TestDwellComesBeforeTheSentinel: a sentinel that is sent sooner does not cover the
// second copies of producers that write to both transports.
func TestDwellComesBeforeTheSentinel(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	p := &courier{mute: map[pipeline.Path]bool{}}
	options := brisk(t, pool, "a", newOracle(stage.MQTT), p)
	options.Dwell = 1500 * time.Millisecond
	n := start(t, options)
	p.set(func(p *courier) { p.carriers = []*Control{n.Control} })
	waitsFor(t, pool, "t", "dwell")
	if p.count() > 0 {
		t.Error("a sentinel was sent before the dwell was over")
	}
	devstack.Await(t, "it is in mqtt", n.in(stage.MQTT, "t"))
	var early bool
	if err := pool.QueryRow(t.Context(), `SELECT n.created_at - s.since < interval '1.5 s' FROM crossfade_sentinels AS n
		JOIN crossfade_stage_history AS h ON h.tenant_id = n.tenant_id AND h.evidence->>'sentinel' = n.nonce
		JOIN (SELECT tenant_id, at AS since FROM crossfade_stage_history WHERE revision = 1) AS s ON s.tenant_id = n.tenant_id`).Scan(&early); err != nil || early {
		t.Errorf("the sentinel of the proof was sent early: %v, %v", early, err)
	}
}

// TestRollbackNeedsNothing: from either stage of JetStream's authority the way back
// is one step, whatever is broken, and whoever is not there.
func TestRollbackNeedsNothing(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t", "u")
	o := newOracle(stage.JetStream)
	o.wish(stage.Live, "u")
	n, p := alone(t, pool, o)
	devstack.Await(t, "t is in jetstream", n.in(stage.JetStream, "t"))
	devstack.Await(t, "u is in live", n.in(stage.Live, "u"))
	p.set(func(p *courier) { p.err = errors.New("the broker is down") })
	// An instance that will confirm nothing.
	execute(t, pool, `INSERT INTO crossfade_instances (instance_id, run, lease_until) VALUES ('stuck', 'r', now() + interval '1 hour')`)
	o.wish(stage.MQTT)
	o.wish(stage.MQTT, "u")
	devstack.Await(t, "both are in shadow", n.in(stage.Shadow, "t", "u"))
	waitsFor(t, pool, "t", "confirmation of stage shadow by stuck")
}

// TestHolds: who is held stays, all or one; but an operator's own wish for a tenant
// gives MQTT its authority back all the same.
func TestHolds(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t", "u")
	o := newOracle(stage.Live)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "both are in live", n.in(stage.Live, "t", "u"))
	if err := Hold(t.Context(), pool, []string{"t", Everybody}, "ann", "no changes on Friday"); err != nil {
		t.Fatal(err)
	}
	if err := Hold(t.Context(), pool, []string{"t"}, "bob", "incident 7"); err != nil {
		t.Fatal(err)
	}
	holds, err := Holds(t.Context(), pool)
	if err != nil || len(holds) != 2 || holds[0].Tenant != Everybody || holds[1].Reason != "incident 7" {
		t.Errorf("holds %+v, %v", holds, err)
	}
	o.wish(stage.Shadow)
	waitsFor(t, pool, "t", "release from the hold by bob: incident 7")
	waitsFor(t, pool, "u", "release from the hold of all tenants by ann: no changes on Friday")
	o.override(stage.JetStream, "t") // an operator's wish, but no way back
	devstack.Await(t, "the override is seen", func() bool { return fact(t, pool, "t").Wanted == stage.JetStream })
	o.override(stage.MQTT, "t")
	devstack.Await(t, "the emergency exit is open", n.in(stage.Shadow, "t"))
	waitsFor(t, pool, "t", "release from the hold by bob") // and no further
	if n.StageOf("u") != stage.Live {
		t.Error("u has moved though everybody was held")
	}
	released, err := Release(t.Context(), pool, []string{"t", Everybody, "nobody"})
	if err != nil || fmt.Sprint(released) != "[ t]" {
		t.Errorf("released %q, %v", released, err)
	}
	devstack.Await(t, "t goes on", n.in(stage.MQTT, "t"))
	devstack.Await(t, "u goes on", n.in(stage.Shadow, "u"))
}

// TestNoAnswerMovesNobody: not by the last answer, either, though the tenant is half
// way; nor by one that names no stage (P5).
func TestNoAnswerMovesNobody(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t", "u")
	o := newOracle(stage.Shadow)
	n, p := alone(t, pool, o)
	devstack.Await(t, "both are in shadow", n.in(stage.Shadow, "t", "u"))
	p.set(func(p *courier) { p.mute[pipeline.PathJetStream] = true })
	o.wish(stage.JetStream) // which would go as far as live
	devstack.Await(t, "both are in live", n.in(stage.Live, "t", "u"))
	waitsFor(t, pool, "t", "JetStream")
	o.fail(errors.New("flag service down"))
	waitsFor(t, pool, "t", noAnswer)
	p.set(func(p *courier) { p.mute = map[pipeline.Path]bool{} })
	execute(t, pool, `DELETE FROM crossfade_sentinels`)
	rounds := o.rounds.Load()
	devstack.Await(t, "the flags were asked three times", func() bool { signal(o.changes); return o.rounds.Load() > rounds+3 })
	if f := fact(t, pool, "t"); f.Stage != stage.Live || f.Wanted != "" {
		t.Errorf("without an answer it is in %s, wanted %q", f.Stage, f.Wanted)
	}
	o.override(stage.MQTT, "u")
	devstack.Await(t, "the override counts", n.in(stage.MQTT, "u"))
	o.fail(nil)
	o.wish("sideways")
	waitsFor(t, pool, "t", noAnswer)
	o.wish(stage.JetStream)
	devstack.Await(t, "t goes on", n.in(stage.JetStream, "t"))
}

// multitude is how many tenants are flipped at once.
var multitude = 10_000

// TestMultitudeAtOnce: a flip of all tenants takes as many round trips as one of one.
func TestMultitudeAtOnce(t *testing.T) {
	plain := migrated(t)
	names := many(t, plain, multitude)
	trips := new(roundTrips)
	config := plain.Config()
	config.ConnConfig.Tracer = trips
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	o := newOracle(stage.Live)
	p := &courier{mute: map[pipeline.Path]bool{}}
	options := brisk(t, pool, "a", o, p)
	n := start(t, options)
	p.set(func(p *courier) { p.carriers = []*Control{n.Control} })
	devstack.Await(t, "all have a row", n.in(stage.Live, names...))
	devstack.Await(t, "all is noted", func() bool {
		var left int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM crossfade_stages WHERE confirmed_at IS NULL`).Scan(&left); err != nil {
			t.Fatal(err)
		}
		return left == 0
	})
	for _, to := range []stage.Stage{stage.Shadow, stage.MQTT, stage.JetStream, stage.Shadow} {
		began, before := time.Now(), trips.Load()
		o.wish(to)
		devstack.Await(t, "all are in "+string(to), n.in(to, names...))
		took, made := time.Since(began), trips.Load()-before
		var epochs int
		if err := pool.QueryRow(t.Context(), `SELECT count(DISTINCT epoch) FROM crossfade_stages`).Scan(&epochs); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d tenants to %s: %v, %d round trips, %d epochs", len(names), to, took.Round(time.Millisecond), made, epochs)
		if made > 300 { // with those for leases, and for looking whether there is anything to do
			t.Errorf("%d round trips for %d tenants", made, len(names))
		}
		if epochs > 20 {
			t.Errorf("%d epochs", epochs)
		}
	}
}

// roundTrips counts what is sent to PostgreSQL.
type roundTrips struct{ atomic.Int64 }

func (r *roundTrips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	r.Add(1)
	return ctx
}
func (r *roundTrips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (r *roundTrips) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	r.Add(1)
	return ctx
}
func (r *roundTrips) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (r *roundTrips) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// TestOverrideBeatsAnAnswerThatIsOnItsWay: what was wished when the service was asked
// does not move a tenant that the operator has overridden since.
func TestOverrideBeatsAnAnswerThatIsOnItsWay(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t", "u")
	o := &slowOracle{oracle: newOracle(stage.Live), asked: make(chan struct{}, 1), answer: make(chan struct{})}
	n := start(t, brisk(t, pool, "a", o, nil))
	<-o.asked
	o.mu.Lock()
	o.overrides["t"] = stage.MQTT // of which no signal has come yet
	o.mu.Unlock()
	close(o.answer)
	devstack.Await(t, "both have moved", func() bool { return n.StageOf("u") == stage.Live && fact(t, pool, "t").Stage == stage.Shadow })
	if changes, err := History(t.Context(), pool, HistoryQuery{Tenants: []string{"t"}}); err != nil || len(changes) != 1 {
		t.Errorf("history of t: %+v, %v; want one change, to shadow", changes, err)
	}
}

// slowOracle answers once it is told to.
type slowOracle struct {
	*oracle
	asked, answer chan struct{}
}

func (o *slowOracle) WishAll(ctx context.Context, tenants []string, took func(string, Wish, error)) {
	signal(o.asked)
	select {
	case <-ctx.Done():
	case <-o.answer:
	}
	o.oracle.WishAll(ctx, tenants, took)
}
