package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
)

// simClock gives PostgreSQL the clock of the bubble: functions ahead of the built-in
// ones in the search path, which read what each connection is told before each
// transaction (wire.flush). Defaults of columns were bound before, and are bound anew.
const simClock = `
CREATE SCHEMA sim;
CREATE FUNCTION sim.now() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT current_setting('sim.now')::timestamptz $$;
CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT current_setting('sim.now')::timestamptz $$;
DO $$
DECLARE c record;
BEGIN
  FOR c IN
    SELECT d.adrelid::regclass AS rel, a.attname AS col
      FROM pg_attrdef AS d JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
     WHERE pg_get_expr(d.adbin, d.adrelid) ~ '^(now|clock_timestamp)\(\)$'
  LOOP
    EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT sim.now()', c.rel, c.col);
  END LOOP;
  FOR c IN SELECT p.oid::regprocedure AS rel FROM pg_proc AS p WHERE p.proconfig::text LIKE '%search_path%' LOOP
    EXECUTE format('ALTER FUNCTION %s SET search_path = sim, pg_catalog, public', c.rel);
  END LOOP;
  EXECUTE format('ALTER DATABASE %I SET search_path = sim, pg_catalog, public', current_database());
END
$$`

// simDatabase is a database whose clock is the bubble's.
func simDatabase(t *testing.T) string {
	t.Helper()
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	simExec(t, url, simClock)
	return url
}

// simCopy is a copy of a database, which is dropped at the end of the test. Nobody may
// be connected to the original.
func simCopy(t *testing.T, url string) string {
	t.Helper()
	c, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%s_%d", c.Database, copies.Add(1))
	simExec(t, url, fmt.Sprintf(`CREATE DATABASE %s TEMPLATE %s`, name, c.Database))
	t.Cleanup(func() { simExec(t, url, fmt.Sprintf(`DROP DATABASE %s WITH (FORCE)`, name)) })
	simExec(t, url, fmt.Sprintf(`ALTER DATABASE %s SET search_path = sim, pg_catalog, public`, name))
	copied := strings.Replace(url, "/"+c.Database, "/"+name, 1)
	simExec(t, copied, `UPDATE crossfade_epoch SET timeline = crossfade_timeline()`) // or a copy begins everything anew
	return copied
}

var copies atomic.Int64

// simExec is for the time before and after a bubble.
func simExec(t *testing.T, url, sql string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
}

// usualDelay is the most that either way of a statement takes when all is well.
const usualDelay = 4 * time.Millisecond

// link is the network between one process and PostgreSQL. Whatever waits in it waits
// on channels and timers of the bubble, so that time goes on meanwhile.
type link struct {
	mu      sync.Mutex
	wires   map[*wire]bool
	down    bool          // nothing gets through
	dead    bool          // its process was killed
	deaf    bool          // facts cannot be read, though all else works
	slow    time.Duration // the most that either way of a statement takes
	changed chan struct{} // closed when down or dead change
	hub     *notices
	draw    func(time.Duration) time.Duration
}

// notices tells the connections that listen when it is worth looking.
type notices struct {
	mu   sync.Mutex
	wake chan struct{}
}

func (n *notices) next() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.wake
}

func (n *notices) ring() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.wake)
	n.wake = make(chan struct{})
}

// newLink takes what it leaves to chance from draw, which returns less than it is given.
func newLink(hub *notices, draw func(time.Duration) time.Duration) *link {
	return &link{wires: make(map[*wire]bool), changed: make(chan struct{}), hub: hub, draw: draw, slow: usualDelay}
}

// set changes the link and wakes up what waits for that.
func (l *link) set(f func(*link)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l)
	close(l.changed)
	l.changed = make(chan struct{})
}

// kill ends all connections as the kernel does when a process ends.
func (l *link) kill() {
	l.set(func(l *link) {
		l.dead = true
		for w := range l.wires {
			w.real.Close()
		}
	})
}

var errLinkDead = errors.New("the process is gone")

// dial is a pgconn.DialFunc.
func (l *link) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w := &wire{link: l, closed: make(chan struct{}), deadline: make(chan struct{})}
	l.mu.Lock()
	down, dead, changed := l.down, l.dead, l.changed
	l.mu.Unlock()
	for down && !dead {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
		l.mu.Lock()
		down, dead, changed = l.down, l.dead, l.changed
		l.mu.Unlock()
	}
	if dead {
		return nil, errLinkDead
	}
	real, err := (&net.Dialer{KeepAlive: -1}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	w.real = real
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		real.Close()
		return nil, errLinkDead
	}
	l.wires[w] = true
	return w, nil
}

// reap ends sessions of a process that is not heard of as PostgreSQL does: those of
// candidates after 4 s, others after 30 s within a transaction.
func (l *link) reap(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.down {
		return
	}
	for w := range l.wires {
		w.mu.Lock()
		quiet := now.Sub(w.last)
		if w.idle && quiet >= 4*time.Second || w.open && quiet >= 30*time.Second {
			w.real.Close()
		}
		w.mu.Unlock()
	}
}
