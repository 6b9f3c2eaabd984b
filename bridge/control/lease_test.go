package control

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// TestLeaseRunsOutByEitherClock: the monotonic clock stands still while a machine is
// suspended, and the wall clock is set by others.
func TestLeaseRunsOutByEitherClock(t *testing.T) {
	now := time.Now()
	const ttl = 5 * time.Second
	wall := func(d time.Duration) time.Time { return now.Round(0).Add(d) } // without the monotonic clock
	for _, c := range []struct {
		what string
		l    lease
		at   time.Time
		want bool
	}{
		{"never renewed", lease{}, now, false},
		{"renewed now", lease{1, now}, now, true},
		{"almost over", lease{1, now}, now.Add(ttl - 1), true},
		{"over", lease{1, now}, now.Add(ttl), false},
		{"over by the wall clock", lease{1, now}, wall(ttl), false},
		{"set back", lease{1, now}, wall(-time.Millisecond), false},
	} {
		if got := c.l.covers(c.at, ttl); got != c.want {
			t.Errorf("%s: covers = %v", c.what, got)
		}
	}
}

// TestViewOfAnEarlierLease: what was read before the lease ran out is no good for
// dropping under the next one.
func TestViewOfAnEarlierLease(t *testing.T) {
	c, err := New(brisk(t, new(pgxpool.Pool), "a", newOracle(stage.MQTT), nil))
	if err != nil {
		t.Fatal(err)
	}
	may := func(want bool, when string) {
		t.Helper()
		if s, drop := c.Look("t"); s != stage.MQTT || drop != want || c.MayDrop() != want {
			t.Errorf("%s: Look = %s, %v", when, s, drop)
		}
	}
	stages := map[string]position{"t": {stage.MQTT, 1}}
	c.view.Store(&view{stages, 1, 0})
	may(false, "before the first lease")
	c.lease.Store(&lease{1, time.Now()})
	may(false, "under a lease, with facts from before it")
	c.view.Store(&view{stages, 1, 1})
	may(true, "with facts that were read under the lease")
	c.lease.Store(&lease{1, time.Now().Add(-c.o.LeaseTTL)})
	may(false, "after the lease")
	c.lease.Store(&lease{2, time.Now()})
	may(false, "under the next lease, with facts from before it")
	c.gone.Store(true)
	c.view.Store(&view{stages, 1, 2})
	may(false, "after signing off")
	if s, drop := c.Look("unknown"); s != stage.Shadow || drop {
		t.Errorf("a tenant without a row: %s, %v", s, drop)
	}
}

// TestTwoRunsOfOneName: the later one has the row; the earlier drops nothing, says so,
// and takes the row back once it is free. Neither leaves a session behind that it has.
func TestTwoRunsOfOneName(t *testing.T) {
	pool := migrated(t)
	execute(t, pool, `INSERT INTO crossfade_stages (tenant_id, stage, revision) VALUES ('t', 'mqtt', 1)`)
	o := newOracle(stage.MQTT)
	first := start(t, brisk(t, pool, "a", o, nil))
	until(t, "it may drop", first.MayDrop)
	options := brisk(t, pool, "a", o, nil)
	options.Session = &Session{ClientID: "client-2", Expiry: time.Hour}
	second := start(t, options)
	until(t, "both know", func() bool { return first.Alone() != nil && second.Alone() != nil })
	if first.MayDrop() {
		t.Error("the one that lost the row would drop")
	}
	waits := func(session string, n int) {
		t.Helper()
		instances, err := Instances(t.Context(), pool)
		if err != nil {
			t.Fatal(err)
		}
		if len(instances) != n || instances[0].Session != session {
			t.Errorf("instances %+v; want %d, and a with session %s", instances, n, session)
		}
	}
	waits("client-2", 2) // and the session of the first
	second.halt()
	if err := second.SignOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the first has the row again", func() bool { return first.Alone() == nil && first.MayDrop() })
	waits("client-a", 2) // and the session of the second
}
