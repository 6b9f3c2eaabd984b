package control

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline"
)

// watch looks at a tenant all the time, as the message path does.
func watch(t testing.TB, n *node, tenant string) (looks func() []look) {
	var mu sync.Mutex
	var seen []look
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			s, drop := n.Look(tenant)
			mu.Lock()
			if l := (look{s, drop, time.Now()}); len(seen) == 0 || seen[len(seen)-1].stage != s || seen[len(seen)-1].drop != drop {
				seen = append(seen, l)
			}
			mu.Unlock()
			backoff.Sleep(ctx, 100*time.Microsecond)
		}
	}()
	t.Cleanup(func() { stop(); <-ended })
	return func() []look {
		mu.Lock()
		defer mu.Unlock()
		return append([]look(nil), seen...)
	}
}

type look struct {
	stage stage.Stage
	drop  bool
	at    time.Time
}

// proofsAnew is how often tenants were taken inside since commits may be lost.
func proofsAnew(t testing.TB, pool *pgxpool.Pool, tenant string) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM crossfade_stage_history WHERE tenant_id = $1 AND reason LIKE 'PostgreSQL may have lost commits%'`, tenant).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFailoverToAReplicaThatLagged: a tenant was moved from mqtt to jetstream, and the
// commits that say so are lost. While PostgreSQL is a standby it is refused; once it is
// promoted nobody drops by the row that has come back, before it is proved anew.
func TestFailoverToAReplicaThatLagged(t *testing.T) {
	server := devstack.TestPostgres(t)
	url, err := server.CreateDatabase(t.Context(), "control")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	pool := open(t, url)
	register(t, pool, "t")
	o := newOracle(stage.MQTT)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "it is in mqtt", func() bool { s, drop := n.Look("t"); return s == stage.MQTT && drop })
	replica := copyCluster(t, server)
	o.wish(stage.JetStream)
	devstack.Await(t, "it is in jetstream", func() bool { s, drop := n.Look("t"); return s == stage.JetStream && drop })
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	looks := watch(t, n, "t")
	takePlace(t, replica, server)
	devstack.Await(t, "the standby is refused by who runs", func() bool {
		return errors.Is(n.unread.err(), errStandby) && errors.Is(n.unmoved.err(), errStandby) && n.Health() != nil
	})
	late, err := New(brisk(t, pool, "late", o, nil))
	if err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the standby is refused by who signs on", func() bool { // its pool has dead connections first
		err := late.SignOn(t.Context())
		return errors.Is(err, errStandby) && strings.Contains(err.Error(), "target_session_attrs")
	})
	devstack.Await(t, "the lease of the server that is gone is over", func() bool { return !n.MayDrop() })
	execute(t, pool, `SELECT pg_promote()`)
	devstack.Await(t, "it is taken inside", func() bool { return proofsAnew(t, pool, "t") == 1 })
	devstack.Await(t, "it is in jetstream again", func() bool { s, drop := n.Look("t"); return s == stage.JetStream && drop })
	for _, l := range looks() {
		if l.stage == stage.MQTT && l.drop {
			t.Error("it would have dropped by the stage that came back")
		}
	}
	var settled bool
	if err := pool.QueryRow(t.Context(), `SELECT e.settles_at > '-infinity' AND min(h.at) >= e.settles_at FROM crossfade_epoch AS e, crossfade_stage_history AS h
		WHERE h.to_stage = 'jetstream' GROUP BY e.settles_at`).Scan(&settled); err != nil || !settled {
		t.Errorf("it was in jetstream before leases of the other history were over: %v, %v", settled, err)
	}
}

// copyCluster stops a server, copies its data and starts it again.
func copyCluster(t testing.TB, server *devstack.Postgres) (copied string) {
	t.Helper()
	copied = filepath.Join(server.Dir(), "replica")
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", filepath.Join(server.Dir(), "data"), copied).CombinedOutput(); err != nil {
		t.Fatalf("copy the cluster: %v: %s", err, out)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return copied
}

// takePlace has the copy take the place of a server that is gone, as a standby.
func takePlace(t testing.TB, copied string, server *devstack.Postgres) {
	t.Helper()
	data := filepath.Join(server.Dir(), "data")
	if err := errors.Join(os.Rename(data, data+".gone"), os.Rename(copied, data),
		os.WriteFile(filepath.Join(data, "standby.signal"), nil, 0o644), server.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// TestInstanceThatKnowsMore: nothing but what an instance has seen tells that commits
// are lost. It has everything proved anew, and drops nothing before others' leases are
// over.
func TestInstanceThatKnowsMore(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	n, _ := alone(t, pool, newOracle(stage.MQTT))
	devstack.Await(t, "it is in mqtt", func() bool { s, drop := n.Look("t"); return s == stage.MQTT && drop })
	looks := watch(t, n, "t")
	execute(t, pool, `UPDATE crossfade_epoch SET epoch = epoch - 1`)
	execute(t, pool, `NOTIFY crossfade_stages`)
	devstack.Await(t, "it is taken inside", func() bool { return proofsAnew(t, pool, "t") == 1 })
	devstack.Await(t, "it knows", func() bool { _, drop := n.Look("t"); return !drop })
	known := time.Now()
	devstack.Await(t, "it is in mqtt again", func() bool { s, drop := n.Look("t"); return s == stage.MQTT && drop })
	list := looks()
	if last := list[len(list)-1]; !last.drop || last.at.Sub(known) < n.o.LeaseTTL-n.o.Renew {
		t.Errorf("it drops again %v after commits were seen to be lost, though leases last for %v", last.at.Sub(known), n.o.LeaseTTL)
	}
	for _, l := range list {
		if l.drop && l.at.After(known) && l.at.Before(known.Add(n.o.LeaseTTL-n.o.Renew)) {
			t.Errorf("it would have dropped in %s", l.stage)
		}
	}
}

// TestLost: an instance knows of commits that are not there.
func TestLost(t *testing.T) {
	at := func(epoch int64) *int64 { return &epoch }
	for _, c := range []struct {
		what  string
		known history
		found view
		want  bool
	}{
		{"nothing is known", history{}, view{era: "a", epoch: 1}, false},
		{"nothing new", history{"a", 5}, view{era: "a", epoch: 5}, false},
		{"changes", history{"a", 5}, view{era: "a", epoch: 9}, false},
		{"fewer", history{"a", 5}, view{era: "a", epoch: 4}, true},
		{"the next era", history{"a", 5}, view{era: "b", epoch: 5, continues: at(5)}, false},
		{"a later era", history{"a", 5}, view{era: "c", epoch: 9, continues: at(7)}, false},
		{"an era that began without the last", history{"a", 5}, view{era: "b", epoch: 9, continues: at(4)}, true},
		{"the era before", history{"b", 5}, view{era: "a", epoch: 5, continues: at(1)}, true},
		{"an era that began anew", history{"a", 5}, view{era: "b", epoch: 2}, false},
	} {
		if got := c.found.lost(c.known); got != c.want {
			t.Errorf("%s: lost = %v", c.what, got)
		}
	}
}

// TestConfirmationOfAnotherEra is none, however high the number.
func TestConfirmationOfAnotherEra(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "it is confirmed", func() bool { return fact(t, pool, "t").ConfirmedAt != nil })
	execute(t, pool, `INSERT INTO crossfade_instances (instance_id, run, lease_until, confirmed_revision, confirmed_era) VALUES ('astray', 'r', now() + interval '3 s', 1000000, 'another')`)
	o.wish(stage.Live)
	devstack.Await(t, "it is in live", n.in(stage.Live, "t"))
	o.wish(stage.Shadow)
	devstack.Await(t, "it is in shadow", n.in(stage.Shadow, "t"))
	o.wish(stage.Live)
	waitsFor(t, pool, "t", "confirmation of stage shadow by astray")
	devstack.Await(t, "it goes on when the lease is over", n.in(stage.Live, "t"))
}

// TestEveryTermIsAnEra: numbers that were given twice are found out with the next
// leader, since everything is read anew.
func TestEveryTermIsAnEra(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	first, _ := alone(t, pool, o)
	devstack.Await(t, "it has a row", func() bool { return fact(t, pool, "t").Stage == stage.Shadow })
	options := brisk(t, pool, "b", o, nil)
	options.Beat = time.Hour // nothing but the era makes it read everything
	second := start(t, options)
	o.fail(errors.New("no answer"))
	execute(t, pool, `BEGIN; SET LOCAL session_replication_role = replica; UPDATE crossfade_stages SET stage = 'live'; COMMIT`)
	era := second.view.Load().era
	first.halt()
	devstack.Await(t, "b leads", second.Leading)
	devstack.Await(t, "b has read everything", second.in(stage.Live, "t"))
	devstack.Await(t, "b may drop in the new era", second.MayDrop)
	if second.view.Load().era == era {
		t.Error("the era is the same")
	}
}

// TestRowsChangedByHand: what the protocol rests on cannot be taken from under it.
func TestRowsChangedByHand(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	n, _ := alone(t, pool, newOracle(stage.Shadow))
	devstack.Await(t, "it is in shadow", n.in(stage.Shadow, "t"))
	for statement, want := range map[string]string{
		`INSERT INTO crossfade_stages (tenant_id, stage, revision) VALUES ('u', 'jetstream', 1)`:        "on proof only",
		`INSERT INTO crossfade_stages (tenant_id, stage, revision, epoch) VALUES ('u', 'mqtt', 1, 100)`: "on proof only",
		`DELETE FROM crossfade_instances WHERE instance_id = 'a'`:                                       "instance a is running",
		`TRUNCATE crossfade_instances`: "instance a is running",
	} {
		if _, err := pool.Exec(t.Context(), statement); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", statement, err)
		}
	}
	n.halt()
	if err := n.SignOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `DELETE FROM crossfade_instances`)
	// One that has no session takes its row with it.
	options := brisk(t, pool, "b", newOracle(stage.Shadow), nil)
	options.Session = nil
	b := start(t, options)
	b.halt()
	if err := b.SignOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if instances, err := Instances(t.Context(), pool); err != nil || len(instances) != 0 {
		t.Errorf("instances %+v, %v; want none", instances, err)
	}
}

// TestNewEraOfAMultitude takes as many round trips as that of one tenant, and one
// sentinel for all.
func TestNewEraOfAMultitude(t *testing.T) {
	plain := migrated(t)
	names := many(t, plain, multitude/5)
	o := newOracle(stage.JetStream)
	first, _ := alone(t, plain, o)
	devstack.Await(t, "all are in jetstream", first.in(stage.JetStream, names...))
	trips := new(roundTrips)
	config := plain.Config()
	config.ConnConfig.Tracer = trips
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	own := &courier{mute: map[pipeline.Path]bool{}}
	options := brisk(t, pool, "b", o, own)
	options.Round, options.Beat = 2*time.Second, time.Hour
	second := start(t, options)
	own.set(func(own *courier) { own.carriers = []*Control{second.Control} })
	drops := func() bool { s, drop := second.Look(names[0]); return s == stage.JetStream && drop }
	devstack.Await(t, "b drops", drops)
	era, before, sent := second.view.Load().era, trips.Load(), len(own.own)
	execute(t, plain, `UPDATE crossfade_epoch SET era = 'another', continues = epoch`)
	devstack.Await(t, "b drops in the new era", func() bool { return second.view.Load().era != era && drops() })
	made := trips.Load() - before
	t.Logf("%d round trips", made)
	if made > 60 {
		t.Errorf("%d round trips for %d tenants", made, len(names))
	}
	own.set(func(own *courier) {
		if made := len(own.own) - sent; made < 1 || made > 5 {
			t.Errorf("%d sentinels for one session", made)
		}
	})
}
