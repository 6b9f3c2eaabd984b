package control

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/session"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline"
)

// leaders is how many sessions hold the leader's lock.
func leaders(t testing.TB, pool *pgxpool.Pool) int {
	t.Helper()
	var n int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted
		AND (classid::int8 << 32 | objid::int8) = $1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
		int64(leaderLock)).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestLeaderIsKilled: another one takes over, and goes on where the first stood.
func TestLeaderIsKilled(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	first := spawn(t, pool, "a", stage.Live)
	devstack.Await(t, "a leads", func() bool { return first.last().leading })
	second := spawn(t, pool, "b", stage.Shadow)
	devstack.Await(t, "the tenant is where a wishes it", func() bool { return second.last().stage == stage.Live })
	if second.last().leading || leaders(t, pool) != 1 {
		t.Error("two instances lead")
	}
	killed := time.Now()
	first.kill()
	devstack.Await(t, "b leads", func() bool { return second.last().leading })
	t.Logf("another led %v after the leader was killed", time.Since(killed).Round(time.Millisecond))
	devstack.Await(t, "the tenant is where b wishes it", func() bool { return second.last().stage == stage.Shadow })
}

// TestLeaderIsFrozen: its session is ended by PostgreSQL, since its kernel goes on
// answering for it, and when it wakes it is not the leader any more.
func TestLeaderIsFrozen(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	first := spawn(t, pool, "a", stage.Live)
	devstack.Await(t, "a leads", func() bool { return first.last().leading })
	second := spawn(t, pool, "b", stage.Shadow)
	devstack.Await(t, "the tenant is where a wishes it", func() bool { return second.last().stage == stage.Live })
	first.send(syscall.SIGSTOP)
	devstack.Await(t, "b leads", func() bool { return second.last().leading })
	devstack.Await(t, "the tenant is where b wishes it", func() bool { return second.last().stage == stage.Shadow })
	first.send(syscall.SIGCONT)
	devstack.Await(t, "a knows", func() bool { return !first.last().leading })
	if leaders(t, pool) != 1 || !second.last().leading {
		t.Error("b does not lead any more")
	}
	if f := fact(t, pool, "t"); f.Stage != stage.Shadow {
		t.Errorf("a moved the tenant to %s after its term", f.Stage)
	}
}

// TestFrozenInstanceDropsNothing: while it does not renew its lease nobody waits for
// it, so when it wakes it must not drop by what it knew, but read the facts first.
func TestFrozenInstanceDropsNothing(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.MQTT)
	n, p := alone(t, pool, o)
	sleeper := spawn(t, pool, "b", "")
	relay(t, pool, p, n.Control, "b")
	devstack.Await(t, "b drops in mqtt", func() bool { l := sleeper.last(); return l.stage == stage.MQTT && l.drop })
	frozen := time.Now()
	sleeper.send(syscall.SIGSTOP)
	before := len(sleeper.all())
	o.wish(stage.JetStream)
	devstack.Await(t, "the others have gone on to jetstream", n.in(stage.JetStream, "t"))
	waited := time.Since(frozen)
	if waited < n.o.LeaseTTL-n.o.Renew {
		t.Errorf("the others went on after %v, though the lease was not over", waited)
	}
	// It renews its lease and cannot read the facts yet.
	lock, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(context.Background())
	if _, err := lock.Exec(t.Context(), `LOCK TABLE crossfade_stages`); err != nil {
		t.Fatal(err)
	}
	sleeper.send(syscall.SIGCONT)
	devstack.Await(t, "b has its lease again", func() bool {
		var leased bool
		if err := pool.QueryRow(t.Context(), `SELECT lease_until > now() FROM crossfade_instances WHERE instance_id = 'b'`).Scan(&leased); err != nil {
			t.Fatal(err)
		}
		return leased
	})
	woken := len(sleeper.all())
	devstack.Await(t, "b has decided by it", func() bool { return len(sleeper.all()) > woken+50 })
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "b drops again", func() bool { return sleeper.last().drop })
	for _, s := range sleeper.all()[before:] {
		if s.drop && s.stage != stage.JetStream && s.at > frozen.Add(n.o.LeaseTTL).UnixNano() {
			t.Fatalf("%v after it was frozen it would have dropped in stage %s", time.Duration(s.at-frozen.UnixNano()), s.stage)
		}
	}
}

// relay makes sentinels come out of the session of an instance in another process, too.
func relay(t testing.TB, pool *pgxpool.Pool, p *courier, c *Control, instance string) {
	t.Helper()
	p.set(func(p *courier) {
		p.also = func(ctx context.Context, list []Sentinel) error {
			for _, s := range list {
				if _, err := pool.Exec(ctx, `INSERT INTO crossfade_sightings (nonce, path, instance_id, kind, seen_at)
					SELECT $1, 1, $2, 'telemetry', now() WHERE EXISTS (SELECT FROM crossfade_sentinels WHERE nonce = $1)`, s.Nonce, instance); err != nil {
					return err
				}
			}
			return nil
		}
	})
}

// TestStepWaitsForALiveInstance, and goes on when its lease is over.
func TestStepWaitsForALiveInstance(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "it is in shadow", n.in(stage.Shadow, "t"))
	devstack.Await(t, "it is confirmed", func() bool { return fact(t, pool, "t").ConfirmedAt != nil })
	execute(t, pool, `INSERT INTO crossfade_instances (instance_id, run, lease_until) VALUES ('slow', 'r', now() + interval '4 s')`)
	// What was confirmed before it came stays confirmed, for it has read the row.
	o.wish(stage.Live)
	devstack.Await(t, "it is in live", n.in(stage.Live, "t"))
	o.wish(stage.Shadow)
	devstack.Await(t, "it is in shadow", n.in(stage.Shadow, "t"))
	o.wish(stage.Live)
	waitsFor(t, pool, "t", "confirmation of stage shadow by slow")
	if n.StageOf("t") != stage.Shadow {
		t.Error("it has moved without confirmation")
	}
	devstack.Await(t, "it goes on when the lease is over", n.in(stage.Live, "t"))
	var over bool
	if err := pool.QueryRow(t.Context(), `SELECT lease_until < now() FROM crossfade_instances WHERE instance_id = 'slow'`).Scan(&over); err != nil || !over {
		t.Errorf("it went on before: %v, %v", over, err)
	}
}

// TestClockThatIsSet: PostgreSQL's clock says that a lease is over, but the leader has
// seen the instance renew it lately.
func TestClockThatIsSet(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Live)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "it is in live", n.in(stage.Live, "t"))
	execute(t, pool, `INSERT INTO crossfade_instances (instance_id, run, lease_until) VALUES ('early', 'r', now() - interval '1 hour')`)
	ctx, stop := context.WithCancel(t.Context())
	renewing := make(chan struct{})
	go func() {
		defer close(renewing)
		for ctx.Err() == nil {
			_, _ = pool.Exec(ctx, `UPDATE crossfade_instances SET seen_at = clock_timestamp() WHERE instance_id = 'early'`)
			backoff.Sleep(ctx, 50*time.Millisecond)
		}
	}()
	o.wish(stage.Shadow)
	devstack.Await(t, "it is in shadow", n.in(stage.Shadow, "t"))
	o.wish(stage.Live)
	waitsFor(t, pool, "t", "confirmation of stage shadow by early")
	stop()
	<-renewing
	devstack.Await(t, "it goes on when nothing was heard for long enough", n.in(stage.Live, "t"))
}

// TestEarlierRunIsWaitedFor: a process was killed and started again within its lease.
// The killed one may, for all that is known, still be at work.
func TestEarlierRunIsWaitedFor(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Live)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "it is in live", n.in(stage.Live, "t"))
	execute(t, pool, `INSERT INTO crossfade_instances (instance_id, run, lease_until) VALUES ('b', 'r', now() + interval '3 s')`)
	options := brisk(t, pool, "b", o, nil)
	options.Session = nil
	start(t, options)
	o.wish(stage.Shadow)
	devstack.Await(t, "it is in shadow", n.in(stage.Shadow, "t"))
	o.wish(stage.Live)
	waitsFor(t, pool, "t", "earlier run of b")
	devstack.Await(t, "it goes on", n.in(stage.Live, "t"))
}

// TestStaleLeaderChangesNothing: whoever moves by what has passed moves nobody.
func TestStaleLeaderChangesNothing(t *testing.T) {
	pool := migrated(t)
	execute(t, pool, `INSERT INTO crossfade_stages (tenant_id, stage, revision) VALUES ('t', 'shadow', 5), ('u', 'live', 1)`)
	execute(t, pool, `INSERT INTO crossfade_stage_history (tenant_id, revision, to_stage) VALUES ('back', 2, 'live'), ('u', 7, 'live')`)
	c, err := New(brisk(t, pool, "a", newOracle(stage.Shadow), nil))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := c.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close(conn)
	turn := newTerm(c, conn)
	if err := turn.readBook(t.Context()); err != nil {
		t.Fatal(err)
	}
	wish := Wish{Stage: stage.Live}
	moves := []move{
		{tenant: "t", from: stage.Shadow, to: stage.Live, revision: 4, wish: wish},  // has passed
		{tenant: "t", from: stage.MQTT, to: stage.Live, revision: 5, wish: wish},    // is not where it is
		{tenant: "u", to: stage.Shadow, wish: wish},                                 // has a row
		{tenant: "u", from: stage.Live, to: stage.Shadow, revision: 1, wish: wish},  // is right
		{tenant: "back", to: stage.Live, wish: wish},                                // was there once
		{tenant: "gone", from: stage.Live, to: stage.Live, revision: 1, wish: wish}, // has no row
	}
	if err := turn.moveAll(t.Context(), moves); err != nil {
		t.Fatal(err)
	}
	want := map[string]Fact{"t": {Stage: stage.Shadow, Revision: 5}, "u": {Stage: stage.Shadow, Revision: 8}, "back": {Stage: stage.Live, Revision: 3}}
	facts, err := Facts(t.Context(), pool)
	if err != nil || len(facts) != len(want) {
		t.Fatalf("facts %+v, %v", facts, err)
	}
	for _, f := range facts {
		if w := want[f.Tenant]; f.Stage != w.Stage || f.Revision != w.Revision {
			t.Errorf("%s is in %s, revision %d; want %s, %d", f.Tenant, f.Stage, f.Revision, w.Stage, w.Revision)
		}
	}
}

// TestStagesThatSomebodyElseChanges: by hand, or by an instance of an older release.
func TestStagesThatSomebodyElseChanges(t *testing.T) {
	pool := migrated(t)
	o := newOracle("")
	o.fail(errors.New("no answer"))
	options := brisk(t, pool, "a", o, nil)
	options.Beat = time.Hour // notifications must do
	n := start(t, options)
	execute(t, pool, `INSERT INTO crossfade_stages (tenant_id, stage, revision) VALUES ('t', 'live', 1), ('u', 'live', 1)`)
	devstack.Await(t, "the rows are heard", n.in(stage.Live, "t", "u"))
	execute(t, pool, `UPDATE crossfade_stages SET stage = 'shadow', revision = revision + 1 WHERE tenant_id = 't'`)
	devstack.Await(t, "the change is heard", n.in(stage.Shadow, "t"))
	execute(t, pool, `DELETE FROM crossfade_stages WHERE tenant_id = 'u'`)
	devstack.Await(t, "the removal is heard", n.in(stage.Shadow, "u"))
	// Into an outer stage there is no way without the leader.
	_, err := pool.Exec(t.Context(), `UPDATE crossfade_stages SET stage = 'jetstream' WHERE tenant_id = 't'`)
	if err == nil || !strings.Contains(err.Error(), "on proof only") {
		t.Errorf("an outer stage was entered by hand: %v", err)
	}
	// An older state is brought back: epochs go back as well.
	epoch := n.view.Load().epoch
	execute(t, pool, `BEGIN; UPDATE crossfade_epoch SET epoch = 2; TRUNCATE crossfade_stages;
		INSERT INTO crossfade_stages (tenant_id, stage, revision, epoch) VALUES ('t', 'live', 1, 2); COMMIT`)
	devstack.Await(t, "the older state is heard", n.in(stage.Live, "t"))
	devstack.Await(t, "it is confirmed, in the era that begins upon it", func() bool {
		var confirmed bool
		if err := pool.QueryRow(t.Context(), `SELECT i.confirmed_revision = e.epoch AND i.confirmed_era = e.era AND e.continues IS NULL
			FROM crossfade_instances AS i, crossfade_epoch AS e`).Scan(&confirmed); err != nil {
			t.Fatal(err)
		}
		return confirmed
	})
	if epoch <= 2 {
		t.Errorf("the epoch was %d before", epoch)
	}
}

// TestLeaderEndsBetweenSentinelAndSending: the one after sends another at once.
func TestLeaderEndsBetweenSentinelAndSending(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	stuck := &stuckProber{asked: make(chan struct{}, 1)}
	first := start(t, brisk(t, pool, "a", o, stuck))
	devstack.Await(t, "a leads", first.Leading)
	p := &courier{mute: map[pipeline.Path]bool{}}
	options := brisk(t, pool, "b", o, p)
	options.Resend, options.ResendMax = time.Hour, time.Hour
	second := start(t, options)
	p.set(func(p *courier) { p.carriers = []*Control{second.Control, first.Control} })
	o.wish(stage.MQTT)
	devstack.Await(t, "the row is written, and nothing is sent", func() bool { return len(stuck.asked) > 0 })
	first.halt()
	devstack.Await(t, "b leads", second.Leading)
	first.resume()
	devstack.Await(t, "b has proved it", second.in(stage.MQTT, "t"))
	if !second.Leading() && !first.Leading() {
		t.Error("nobody leads")
	}
}

type stuckProber struct{ asked chan struct{} }

func (p *stuckProber) Send(ctx context.Context, _ []Sentinel) error {
	signal(p.asked)
	<-ctx.Done()
	return ctx.Err()
}

// TestWhoCannotSendSentinelsGivesWay to one who can.
func TestWhoCannotSendSentinelsGivesWay(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.MQTT)
	options := brisk(t, pool, "a", o, nil)
	options.Session = nil
	first := start(t, options)
	waitsFor(t, pool, "t", "the leader, instance a, has no MQTT connection to send it by")
	p := &courier{mute: map[pipeline.Path]bool{}}
	second := start(t, brisk(t, pool, "b", o, p))
	p.set(func(p *courier) { p.carriers = []*Control{second.Control} })
	devstack.Await(t, "b leads", func() bool { return second.Leading() && !first.Leading() })
	devstack.Await(t, "it is proved", first.in(stage.MQTT, "t"))
}

// TestWhoseBrokerIsAwayGivesWay to another instance.
func TestWhoseBrokerIsAwayGivesWay(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.MQTT)
	broken := &courier{err: errors.New("no route to the broker")}
	first := start(t, brisk(t, pool, "a", o, broken))
	waitsFor(t, pool, "t", "no route to the broker")
	p := &courier{mute: map[pipeline.Path]bool{}}
	second := start(t, brisk(t, pool, "b", o, p))
	p.set(func(p *courier) { p.carriers = []*Control{second.Control, first.Control} })
	devstack.Await(t, "it is proved", first.in(stage.MQTT, "t"))
}
