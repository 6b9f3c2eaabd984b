package control

import (
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// TestMirrorIsProvedAnew: an instance that has only a mirror says that its session is
// awaited once a sentinel that it has sent under its lease has come through, not before,
// and no longer than the lease lasts.
func TestMirrorIsProvedAnew(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	own := &courier{}
	options := brisk(t, pool, "m", newOracle(stage.Shadow), own)
	options.Session, options.Mirror = nil, &Session{ClientID: "mirror-m", Expiry: time.Hour}
	m := start(t, options)
	sent := func() (nonces []string) {
		own.set(func(own *courier) {
			for _, s := range own.own {
				nonces = append(nonces, s.Nonce)
			}
		})
		return nonces
	}
	unproved := func(when string) {
		t.Helper()
		if proof, _ := m.Awaited(); proof != 0 {
			t.Errorf("%s: awaited by proof %d", when, proof)
		}
	}
	devstack.Await(t, "it goes by an era that it has begun", func() bool {
		var ok bool
		err := pool.QueryRow(t.Context(), `SELECT era = $1 FROM crossfade_epoch`, m.lease.Load().era).Scan(&ok)
		return err == nil && ok && m.Leading() && m.in(stage.Shadow, "t")() && m.MayDrop()
	})
	before := len(sent())
	devstack.Await(t, "it has sent a sentinel, and another one", func() bool { return len(sent()) > before+1 })
	unproved("a sentinel was sent")
	m.Mirrored(m.seal.Load().Nonce(sessionTenant))
	unproved("one has come that another instance sent")
	earlier := sent()
	m.Mirrored(earlier[len(earlier)-1])
	first, end := m.Awaited()
	if left := time.Until(end); first == 0 || left <= 0 || left > options.LeaseTTL {
		t.Errorf("after its own: proof %d for %v", first, left)
	}
	devstack.Await(t, "it is awaited for longer", func() bool { p, e := m.Awaited(); return p == first && e.After(end) })

	// The tables lose sight of it.
	execute(t, pool, `UPDATE crossfade_instances SET lease_until = now() WHERE instance_id = 'm'; DELETE FROM crossfade_instances WHERE instance_id = 'm'`)
	devstack.Await(t, "it has another lease", func() bool { return m.lease.Load().number > first && m.MayDrop() })
	unproved("it has another lease")
	devstack.Await(t, "it has sent another sentinel", func() bool { return len(sent()) > len(earlier)+1 })
	for _, nonce := range earlier {
		m.Mirrored(nonce)
	}
	unproved("those have come that were sent before")
	last := sent()
	m.Mirrored(last[len(last)-1])
	if second, _ := m.Awaited(); second == 0 || second == first {
		t.Errorf("proofs %d and %d", first, second)
	}
	m.halt()
	devstack.Await(t, "its lease has run out", func() bool { proof, _ := m.Awaited(); return proof == 0 })
}

// TestAwaitedAsLongAsLeased: a session that the broker hardly keeps is awaited while its
// instance goes by a lease.
func TestAwaitedAsLongAsLeased(t *testing.T) {
	pool := migrated(t)
	options := brisk(t, pool, "m", newOracle(stage.Shadow), nil)
	options.LeaseTTL, options.LeaseMost = time.Minute, time.Minute
	options.Session.Expiry, options.Mirror = 0, &Session{ClientID: "mirror-m", Expiry: time.Second}
	start(t, options)
	var ok bool
	if err := pool.QueryRow(t.Context(), `SELECT session_until >= lease_until AND mirror_until >= lease_until FROM crossfade_instances`).Scan(&ok); err != nil || !ok {
		t.Errorf("both as long as the lease: %v, %v", ok, err)
	}
}
