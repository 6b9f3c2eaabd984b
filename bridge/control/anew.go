package control

import (
	"context"
	"maps"
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
//
// The mirror's session, in the same way, may have the last copies of messages whose MQTT
// copies were dropped. There it is not what this instance drops that must wait: others
// drop what the mirror has put into the streams. So until one of these sentinels has come
// through the mirror, all before it stored, the mirror marks what it publishes, and
// nobody drops that (Awaited).

// sessionTenant is the tenant of sentinels that prove a session: nobody's.
const sessionTenant = pipeline.SentinelDevice

// Bounds of the pauses between two sentinels for the same session, and of how many are
// waited for. A session with a backlog takes long to bring the first one.
const (
	anewPause = 250 * time.Millisecond
	mostAnew  = 1000
)

// anew is the proof of this instance's own MQTT sessions.
type anew struct {
	proved   atomic.Uint64 // the number of the lease for which there is one of the source's
	mirror   atomic.Uint64 // and of the mirror's
	wake     chan struct{} // one has come, or there is another lease
	shown    prometheus.Gauge
	mirrored prometheus.Gauge

	mu     sync.Mutex
	number uint64               // the lease after whose renewal the nonces were sent
	nonces map[string]time.Time // and when each was made
}

func newAnew() *anew {
	return &anew{wake: make(chan struct{}, 1),
		shown: prometheus.NewGauge(prometheus.GaugeOpts{Name: "crossfade_mqtt_session_proved",
			Help: "1 while this instance may drop MQTT copies as far as its own session is concerned, 0 until a sentinel has come out of it."}),
		mirrored: prometheus.NewGauge(prometheus.GaugeOpts{Name: "crossfade_mirror_session_proved",
			Help: "1 while others may drop what this instance's mirror brings, 0 until a sentinel has come out of its session."})}
}

// holds reports whether the source's session is proved under a lease.
func (a *anew) holds(number uint64) bool { return a.proved.Load() == number }

// lacks reports whether a session of this instance's is not proved under a lease, and
// shows which are.
func (c *Control) lacks(number uint64) bool {
	source, mirror := c.anew.holds(number), c.anew.mirror.Load() == number
	c.anew.shown.Set(map[bool]float64{true: 1}[source])
	c.anew.mirrored.Set(map[bool]float64{true: 1}[mirror])
	return !source && c.o.Session != nil || !mirror && c.o.Mirror != nil
}

// Mirrored is told of a sentinel that this instance's mirror has put into a stream, as
// it has everything that came to its session before. It does not block.
func (c *Control) Mirrored(nonce string) {
	a := c.anew
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, own := a.nonces[nonce]; own {
		a.mirror.Store(a.number)
		signal(a.wake)
	}
}

// Awaited reports by which proof, and until when by the clock of this machine, the leader
// waits for whatever may be in the session of this instance's mirror; 0: it may not. What
// came out of the session under one proof and is in a stream before the end of that time
// precedes there whatever a later step waits for. It does no I/O.
func (c *Control) Awaited() (proof uint64, until time.Time) {
	l := c.lease.Load()
	if c.anew.mirror.Load() != l.number || c.gone.Load() || !l.covers(time.Now(), c.o.LeaseTTL) {
		return 0, time.Time{}
	}
	return l.number, l.from.Round(0).Add(c.o.LeaseTTL)
}

// nonce makes one to be sent under a lease; empty: enough are waited for. Brokers have
// let those expire that are older than proofExpiry: they make room. Younger ones do not,
// or none would be known any more when a session with a long backlog brings it.
func (a *anew) nonce(number uint64, seal *Seal, now time.Time) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.number != number || a.nonces == nil {
		a.number, a.nonces = number, make(map[string]time.Time)
	}
	if len(a.nonces) >= mostAnew {
		maps.DeleteFunc(a.nonces, func(_ string, made time.Time) bool { return now.Sub(made) > proofExpiry })
	}
	if len(a.nonces) >= mostAnew {
		return ""
	}
	nonce := seal.Nonce(sessionTenant)
	a.nonces[nonce] = now
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

// proveSessions sends sentinels for the instance's own sessions whenever one needs it,
// until ctx ends.
func (c *Control) proveSessions(ctx context.Context) {
	if c.o.Session == nil && c.o.Mirror == nil || c.o.Prober == nil {
		return
	}
	pause, number := anewPause, uint64(0)
	warned := false
	for ctx.Err() == nil {
		l := c.lease.Load()
		lacks := c.lacks(l.number)
		if l.number != number {
			pause, number, warned = anewPause, l.number, false
		}
		var again <-chan time.Time
		if lacks {
			nonce, now := "", time.Now()
			if l.covers(now, c.o.LeaseTTL) {
				nonce = c.anew.nonce(l.number, c.seal.Load(), now)
			}
			if nonce != "" {
				bounded, cancel := context.WithTimeout(ctx, sendTime)
				err := c.o.Prober.Send(bounded, []Sentinel{{sessionTenant, nonce, proofExpiry}})
				cancel()
				if err != nil && ctx.Err() == nil && !warned {
					warned = true
					c.log.Warn("the sentinel for this instance's own MQTT sessions could not be sent; until one has come it drops no MQTT copy, and nobody drops what its mirror brings", "error", err)
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
