package control

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/pipeline"
)

// The leader awaits sentinels from the MQTT sessions that the tables know of. They may
// lose sight of one that exists: its instance was cut off from PostgreSQL for longer
// than the session's expiry and connected to the broker all the while, its row was
// removed, a commit was lost. Copies in that session may be the last ones.
//
// So a session is proved anew whenever its instance begins, or has a lease again after
// one that may have run out: the instance sends a sentinel then, not before, and drops
// no MQTT copy until that has come out of its own session with all before it settled.
// What is behind it was published while the leader waited for this instance. That it
// is one for all tenants rests on a session being one queue.

// sessionTenant is the tenant of sentinels that prove a session: nobody's.
const sessionTenant = pipeline.SentinelDevice

// Bounds of the pauses between two sentinels for the same session, and of how many are
// waited for. A session with a backlog takes long to bring the first one.
const (
	anewPause = 250 * time.Millisecond
	mostAnew  = 1000
)

// anew is the proof of this instance's own MQTT session.
type anew struct {
	proved atomic.Uint64 // the number of the lease for which there is one
	wake   chan struct{} // it has come, or there is another lease
	shown  prometheus.Gauge

	mu     sync.Mutex
	number uint64 // the lease after whose renewal the nonces were sent
	nonces map[string]struct{}
}

func newAnew() *anew {
	return &anew{wake: make(chan struct{}, 1),
		shown: prometheus.NewGauge(prometheus.GaugeOpts{Name: "crossfade_mqtt_session_proved",
			Help: "1 while this instance may drop MQTT copies as far as its own session is concerned, 0 until a sentinel has come out of it."})}
}

// holds reports whether the session is proved under a lease.
func (a *anew) holds(number uint64) bool { return a.proved.Load() == number }

// nonce makes one to be sent under a lease; empty: enough are waited for.
func (a *anew) nonce(number uint64, seal *Seal) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.number != number || a.nonces == nil {
		a.number, a.nonces = number, make(map[string]struct{})
	}
	if len(a.nonces) >= mostAnew {
		return ""
	}
	nonce := seal.Nonce(sessionTenant)
	a.nonces[nonce] = struct{}{}
	return nonce
}

// take takes the session's own sentinels out of what was seen.
func (a *anew) take(seen []Sighting) []Sighting {
	a.mu.Lock()
	defer a.mu.Unlock()
	own := func(s Sighting) bool { _, ok := a.nonces[s.Nonce]; return ok }
	if !slices.ContainsFunc(seen, own) {
		return seen
	}
	if slices.ContainsFunc(seen, func(s Sighting) bool { return s.Path == pipeline.PathMQTT && own(s) }) {
		a.proved.Store(a.number)
		signal(a.wake)
	}
	return slices.DeleteFunc(slices.Clone(seen), own)
}

// proveSession sends sentinels for the instance's own session whenever it needs one,
// until ctx ends.
func (c *Control) proveSession(ctx context.Context) {
	if c.o.Session == nil || c.o.Prober == nil {
		return
	}
	pause, number := anewPause, uint64(0)
	warned := false
	for ctx.Err() == nil {
		l := c.lease.Load()
		proved := c.anew.holds(l.number)
		c.anew.shown.Set(map[bool]float64{true: 1}[proved])
		if l.number != number {
			pause, number, warned = anewPause, l.number, false
		}
		var again <-chan time.Time
		if !proved {
			if nonce := c.anew.nonce(l.number, c.seal.Load()); nonce != "" && l.covers(time.Now(), c.o.LeaseTTL) {
				bounded, cancel := context.WithTimeout(ctx, sendTime)
				err := c.o.Prober.Send(bounded, []Sentinel{{sessionTenant, nonce, proofExpiry}})
				cancel()
				if err != nil && ctx.Err() == nil && !warned {
					warned = true
					c.log.Warn("the sentinel for this instance's own MQTT session could not be sent; no MQTT copy is dropped until one has come", "error", err)
				}
			}
			again = time.After(pause)
			pause = min(2*pause, c.o.ResendMax)
		}
		select {
		case <-ctx.Done():
		case <-again:
		case <-c.anew.wake:
		}
	}
}
