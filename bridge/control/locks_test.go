package control

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/session"
	"github.com/crossfade-io/crossfade/bridge/stage"
)

// keepLocked runs a statement in a transaction that stays open until the returned
// function, or the test, ends it.
func keepLocked(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) (end func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	end = func() { _ = tx.Rollback(context.Background()) } // a second time does nothing
	t.Cleanup(end)
	if _, err := tx.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
	return end
}

// TestLockedRowDelaysItsTenantOnly: whoever keeps one tenant's row locked keeps nobody
// else's from its way back to MQTT, nor from confirmation and notes.
func TestLockedRowDelaysItsTenantOnly(t *testing.T) {
	pool := migrated(t)
	names := many(t, pool, 21)
	o := newOracle(stage.JetStream)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "all are in jetstream", n.in(stage.JetStream, names...))
	stuck, others := names[7], append(append([]string(nil), names[:7]...), names[8:]...)
	end := keepLocked(t, pool, `SELECT FROM crossfade_stages WHERE tenant_id = $1 FOR UPDATE`, stuck)
	o.override(stage.MQTT, names...)
	devstack.Await(t, "the others are back, and as far as mqtt", n.in(stage.MQTT, others...))
	if got := n.StageOf(stuck); got != stage.JetStream {
		t.Errorf("the locked one is in %s", got)
	}
	devstack.Await(t, "it is said why it waits", func() bool {
		err := n.Health()
		return err != nil && strings.Contains(err.Error(), "locked ("+stuck+")")
	})
	if !n.Leading() {
		t.Error("the leader has given up")
	}
	epoch := func() (e int64) {
		if err := pool.QueryRow(t.Context(), `SELECT epoch FROM crossfade_epoch`).Scan(&e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	before, rounds := epoch(), o.rounds.Load()
	devstack.Await(t, "it was tried again", func() bool { signal(o.changes); return o.rounds.Load() > rounds+3 })
	if after := epoch(); after != before {
		t.Errorf("epochs were used up for nothing: %d, then %d", before, after)
	}
	end()
	devstack.Await(t, "it follows", n.in(stage.MQTT, stuck))
	devstack.Await(t, "nothing is said any more", func() bool { return n.Health() == nil })
}

// TestOverridesNeedNothingElse: neither a registry that somebody keeps locked nor a flag
// service that never answers delays what the operator has set.
func TestOverridesNeedNothingElse(t *testing.T) {
	defer func(was time.Duration) { registryPatience = was }(registryPatience)
	registryPatience = time.Hour // so that it is seen who waits for the registry
	pool := migrated(t)
	names := many(t, pool, 3)
	o := newOracle(stage.Live)
	first, _ := alone(t, pool, o)
	devstack.Await(t, "all are in live", first.in(stage.Live, names...))
	first.halt()
	if err := first.SignOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	end := keepLocked(t, pool, `LOCK TABLE device_registry IN ACCESS EXCLUSIVE MODE`)
	silent := &slowOracle{oracle: o, asked: make(chan struct{}, 1), answer: make(chan struct{})}
	o.override(stage.MQTT, names[0])
	n := start(t, brisk(t, pool, "b", silent, nil))
	devstack.Await(t, "an override from before the term is followed", n.in(stage.Shadow, names[0]))
	o.override(stage.MQTT, names[1])
	devstack.Await(t, "and one that is set in it", n.in(stage.Shadow, names[1]))
	if n.StageOf(names[2]) != stage.Live {
		t.Error("somebody moved who was not overridden")
	}
	close(silent.answer)
	o.wish(stage.Shadow)
	devstack.Await(t, "flags are followed beside the lock, too", n.in(stage.Shadow, names[2]))
	end()
	register(t, pool, "late")
	devstack.Await(t, "new tenants are found", n.in(stage.Shadow, "late"))
	n.halt()
}

// TestLockedEpoch: a change of stages by hand that is not committed keeps everybody
// where he is, since epochs are in order; the leader says so and stays the leader.
func TestLockedEpoch(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t", "u")
	o := newOracle(stage.Live)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "both are in live", n.in(stage.Live, "t", "u"))
	end := keepLocked(t, pool, `UPDATE crossfade_stages SET stage = 'shadow', revision = revision + 1 WHERE tenant_id = 'u'`)
	o.override(stage.MQTT, "t")
	devstack.Await(t, "it is said why nobody moves", func() bool {
		err := n.Health()
		return err != nil && strings.Contains(err.Error(), "another session holds a lock")
	})
	if !n.Leading() {
		t.Error("the leader has given up")
	}
	end()
	devstack.Await(t, "it goes on", n.in(stage.Shadow, "t"))
	devstack.Await(t, "all is well", func() bool { return n.Health() == nil })
}

// TestForeignEpochIsRead: a change by somebody else that comes between the leader's
// reading and its own change is read all the same.
func TestForeignEpochIsRead(t *testing.T) {
	pool := migrated(t)
	execute(t, pool, `INSERT INTO crossfade_stages (tenant_id, stage, revision) VALUES ('t', 'live', 1), ('u', 'live', 1)`)
	options := brisk(t, pool, "a", newOracle(stage.Live), nil)
	options.Beat = time.Hour
	c, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close(conn)
	term := newTerm(c, conn)
	read := func() {
		t.Helper()
		if err := term.readBook(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	read()
	execute(t, pool, `UPDATE crossfade_stages SET stage = 'shadow', revision = revision + 1 WHERE tenant_id = 'u'`)
	if err := term.moveAll(t.Context(), []move{{tenant: "t", from: stage.Live, to: stage.Shadow, revision: 1, wish: Wish{Stage: stage.Shadow}}}); err != nil {
		t.Fatal(err)
	}
	read()
	if u := term.book.facts["u"]; u.Stage != stage.Shadow || u.Revision != 2 {
		t.Errorf("the leader takes u to be in %s, revision %d", u.Stage, u.Revision)
	}
	if f := term.book.facts["t"]; f.Stage != stage.Shadow || f.Revision != 2 {
		t.Errorf("and t to be in %s, revision %d", f.Stage, f.Revision)
	}
}
