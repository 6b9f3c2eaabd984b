package control

import (
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// TestLeaseRunsOutByEitherClock: the monotonic clock stands still while a machine is
// suspended, and the wall clock is set by others.
func TestLeaseRunsOutByEitherClock(t *testing.T) {
	const ttl = 5 * time.Second
	for _, c := range []struct {
		what          string
		elapsed, wall time.Duration
		want          bool
	}{
		{"renewed now", 0, 0, true},
		{"almost over", ttl - 1, ttl - 1, true},
		{"over", ttl, ttl, false},
		{"suspended, and the monotonic clock stood still", time.Millisecond, ttl, false},
		{"the wall clock was set back", ttl - 1, -time.Millisecond, false},
		{"the wall clock was set back to within the lease", ttl, time.Second, false},
	} {
		if got := lasts(c.elapsed, c.wall, ttl); got != c.want {
			t.Errorf("%s: lasts = %v", c.what, got)
		}
	}
	now := time.Now()
	for at, want := range map[time.Duration]bool{0: true, ttl - 1: true, ttl: false} {
		l := lease{number: 1, from: now}
		if got := l.covers(now.Add(at), ttl); got != want {
			t.Errorf("after %v: covers = %v", at, got)
		}
	}
	if (&lease{}).covers(now, ttl) {
		t.Error("covers although it was never renewed")
	}
}

// TestStandstill: a machine is stopped with both its clocks for longer than its lease.
// PostgreSQL tells it so with the next renewal, and what a stream stored until then does.
func TestStandstill(t *testing.T) {
	pool := migrated(t)
	options := brisk(t, pool, "a", newOracle(stage.MQTT), nil)
	c, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	if c.Spans(time.Unix(0, 0)) {
		t.Error("there is no lease, and something is within it")
	}
	if err := c.SignOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := c.lease.Load()
	if !c.Spans(l.from.Round(0).Add(options.LeaseTTL-1)) || c.Spans(l.from.Round(0).Add(options.LeaseTTL)) {
		t.Error("a lease spans other moments than those before its end")
	}
	if err := c.renew(t.Context()); err != nil || c.lease.Load().number != l.number {
		t.Errorf("a lease that was renewed in time is another: %v", err)
	}
	execute(t, pool, `UPDATE crossfade_instances SET lease_until = now() - interval '1 ms'`)
	if err := c.renew(t.Context()); err != nil || c.lease.Load().number != l.number+1 {
		t.Errorf("a lease that had run out is the same as before: %v", err)
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
	seen := func(lease uint64, era string, sure bool) *view {
		return &view{stages: map[string]position{"t": {stage.MQTT, 1}}, epoch: 1, lease: lease, era: era, sure: sure}
	}
	c.view.Store(seen(0, "e", true))
	may(false, "before the first lease")
	c.lease.Store(&lease{1, time.Now(), "e"})
	may(false, "under a lease, with facts from before it")
	c.view.Store(seen(1, "e", true))
	may(true, "with facts that were read under the lease")
	c.view.Store(seen(1, "f", true))
	may(false, "with facts of another era than the lease's")
	c.view.Store(seen(1, "e", false))
	may(false, "while others may go by another history")
	c.view.Store(seen(1, "e", true))
	c.lease.Store(&lease{1, time.Now().Add(-c.o.LeaseTTL), "e"})
	may(false, "after the lease")
	c.lease.Store(&lease{2, time.Now(), "e"})
	may(false, "under the next lease, with facts from before it")
	c.gone.Store(true)
	c.view.Store(seen(2, "e", true))
	may(false, "after signing off")
	if s, drop := c.Look("unknown"); s != stage.Shadow || drop {
		t.Errorf("a tenant without a row: %s, %v", s, drop)
	}
}

// TestTwoRunsOfOneName: the later one has the row; the earlier drops nothing, says so,
// and takes the row back once it is free. Neither leaves a session behind that it has.
func TestTwoRunsOfOneName(t *testing.T) {
	pool := migrated(t)
	execute(t, pool, `INSERT INTO crossfade_stages (tenant_id, stage, revision) VALUES ('t', 'shadow', 1)`)
	o := newOracle(stage.MQTT)
	first := start(t, brisk(t, pool, "a", o, nil))
	devstack.Await(t, "it may drop", first.MayDrop)
	options := brisk(t, pool, "a", o, nil)
	options.Session = &Session{ClientID: "client-2", Expiry: time.Hour}
	second := start(t, options)
	devstack.Await(t, "both know", func() bool { return first.Alone() != nil && second.Alone() != nil })
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
	devstack.Await(t, "the first has the row again", func() bool { return first.Alone() == nil && first.MayDrop() })
	waits("client-a", 2) // and the session of the second
}
