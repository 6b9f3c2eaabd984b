package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/session"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline"
)

// maxNewTenants bounds the names that were seen in traffic and not looked at yet:
// topics are hostile input.
const maxNewTenants = 10_000

// Control is one instance's part in the protocol. Make it with New; SignOn comes
// before anything is taken in, then Run, and SignOff once nothing is in hand any more.
// All methods may be called concurrently.
type Control struct {
	o        Options
	run      string // tells this process from others under the same name
	standard stage.Stage
	log      *slog.Logger

	view    atomic.Pointer[view]
	lease   atomic.Pointer[lease]
	seal    atomic.Pointer[Seal]
	reading sync.Mutex // held while facts are read and put in force
	writing sync.Mutex // held while this instance's row is written
	anew    *anew
	leads   atomic.Bool
	gone    atomic.Bool // signed off: no lease any more

	stale chan struct{} // facts may have changed
	told  chan struct{} // there is an epoch to confirm, or a lease to take
	nudge chan struct{} // the leader has something to look at
	met   chan struct{} // somebody met a tenant without a row
	here  chan struct{} // this instance did

	mu   sync.Mutex
	seen map[string]struct{} // in traffic, without a row, since the last beat

	known       history // what this instance has seen written; under reading
	confirmed   history // what this instance's row has; under writing
	unread      trouble
	unmoved     trouble
	locked      trouble // rows that the leader cannot move
	other       trouble
	unanswered  prometheus.Gauge
	leader      prometheus.Gauge
	moves       *prometheus.CounterVec
	beatMissing *prometheus.GaugeVec
}

// New returns the control of an instance. It does no I/O.
func New(o Options) (*Control, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	c := &Control{
		o: o, run: rand.Text(), standard: stage.Toward(o.Standard), log: o.Logger,
		stale: make(chan struct{}, 1), told: make(chan struct{}, 1), nudge: make(chan struct{}, 1),
		anew: newAnew(), met: make(chan struct{}, 1), here: make(chan struct{}, 1), seen: make(map[string]struct{}),
		unanswered: prometheus.NewGauge(prometheus.GaugeOpts{Name: "crossfade_tenants_without_answer",
			Help: "Tenants held where they are since the flag service gave no clean answer, as the leader sees it."}),
		leader: prometheus.NewGauge(prometheus.GaugeOpts{Name: "crossfade_leader",
			Help: "1 on the instance that moves stages, 0 on others."}),
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_stage_moves_total",
			Help: "Changes of stages that this instance has made as the leader, by the stage entered."}, []string{"stage"}),
		beatMissing: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "crossfade_beats_missing",
			Help: "Tenants whose last sentinel has not come out of a path, by path, as the leader sees it."}, []string{"path"}),
	}
	c.view.Store(&view{stages: map[string]position{}})
	c.lease.Store(&lease{})
	o.Registry.MustRegister(c.unanswered, c.leader, c.moves, c.beatMissing, c.anew.shown, c.anew.mirrored)
	return c, nil
}

// StageOf is the stage in which this instance believes a tenant to be. It does no
// I/O; whoever may drop copies uses Look.
func (c *Control) StageOf(tenant string) stage.Stage {
	s, _ := c.Look(tenant)
	return s
}

// Look is for the message path: a tenant's stage, and whether copies may be dropped
// by it. The two belong together: a stage that was read before the lease ran out
// must not come to be used under the next one.
func (c *Control) Look(tenant string) (s stage.Stage, mayDrop bool) {
	v := c.view.Load()
	p, ok := v.stages[tenant]
	if !ok {
		c.noteNew(tenant)
		return c.standard, false
	}
	if !p.stage.Outer() {
		return p.stage, false
	}
	number, may := c.mayDrop(v, time.Now())
	return p.stage, may && c.covered(p.stage, number)
}

// MayDrop reports whether this instance may drop copies at all, for those who watch;
// decisions are made by Look.
func (c *Control) MayDrop() bool {
	_, may := c.mayDrop(c.view.Load(), time.Now())
	return may
}

// mayDrop reports whether copies may be dropped by a view, and under which lease.
func (c *Control) mayDrop(v *view, now time.Time) (number uint64, may bool) {
	l := c.lease.Load()
	return l.number, v.sure && l.number == v.lease && l.era == v.era && l.covers(now, c.o.LeaseTTL) && !c.gone.Load()
}

// covered: what an outer stage drops is MQTT copies only where this instance's session
// is proved; the streams are everybody's, and proved by the leader.
func (c *Control) covered(s stage.Stage, number uint64) bool {
	return s.Authoritative() == pipeline.PathMQTT || c.o.Session == nil || c.anew.holds(number)
}

// noteNew has a tenant without a row looked at, once a beat at most: most names
// that no device is registered under are somebody's mistake.
func (c *Control) noteNew(tenant string) {
	c.mu.Lock()
	_, known := c.seen[tenant]
	fresh := !known && len(c.seen) < maxNewTenants
	if fresh {
		c.seen[strings.Clone(tenant)] = struct{}{}
	}
	c.mu.Unlock()
	if fresh {
		signal(c.here)
	}
}

// Run follows facts, keeps the lease and leads when it is this instance's turn, until
// ctx ends. It comes after SignOn.
func (c *Control) Run(ctx context.Context) {
	var parts sync.WaitGroup
	parts.Go(func() { c.listen(ctx) })
	parts.Go(func() { c.followFacts(ctx) })
	parts.Go(func() { c.announceNew(ctx) })
	parts.Go(func() { c.stand(ctx) })
	parts.Go(func() { c.proveSessions(ctx) })
	c.keepLease(ctx)
	parts.Wait()
}

// Leading reports whether this instance moves the stages.
func (c *Control) Leading() bool { return c.leads.Load() }

// Health is nil while facts can be read, and moved if this instance leads.
func (c *Control) Health() error {
	if err := errors.Join(c.unread.err(), c.unmoved.err()); err != nil {
		return fmt.Errorf("stages cannot be followed, every tenant stays where it is: %w", err)
	}
	return c.locked.err()
}

// Alone is nil unless another process works under the same name.
func (c *Control) Alone() error { return c.other.err() }

// announceNew tells the leader of tenants that were met here.
func (c *Control) announceNew(ctx context.Context) {
	forget := time.NewTicker(c.o.Beat)
	defer forget.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-forget.C:
			c.mu.Lock()
			clear(c.seen)
			c.mu.Unlock()
			if err := c.readSeal(ctx); err != nil && ctx.Err() == nil {
				c.log.Debug("the seal of sentinels could not be read again; the one that is known stays", "error", err)
			}
		case <-c.here:
			if _, err := c.o.Pool.Exec(ctx, `SELECT pg_notify('`+controlNotifications+`', '`+newTenant+`')`); err != nil {
				c.log.Debug("the leader was not told of a new tenant; it looks by itself at the next beat", "error", err)
			}
			backoff.Sleep(ctx, newTenantPause)
		}
	}
}

// trouble is the error that lasts, or nil.
type trouble struct{ atomic.Pointer[error] }

func (t *trouble) err() error {
	if e := t.Load(); e != nil {
		return *e
	}
	return nil
}

// note keeps how something went, and logs when it begins to fail.
func (c *Control) note(ctx context.Context, in *trouble, err error, what string) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		in.Store(nil)
	case in.Swap(&err) == nil:
		c.log.Warn(what, "error", err)
	}
}

// signal leaves a token, unless there is one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// listen turns notifications into signals, and connects again for as long as ctx
// lives; the beat covers for what is lost meanwhile.
func (c *Control) listen(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.o.Pool.AcquireFunc(ctx, func(pc *pgxpool.Conn) error {
			conn := pc.Hijack() // a session that listens must not go back to the pool
			defer session.Close(conn)
			if _, err := conn.Exec(ctx, "LISTEN "+stageNotifications); err != nil {
				return err
			}
			if _, err := conn.Exec(ctx, "LISTEN "+controlNotifications); err != nil {
				return err
			}
			signal(c.stale) // for what was missed while not listening
			for {
				n, err := conn.WaitForNotification(ctx)
				switch {
				case err != nil:
					return err
				case n.Channel == stageNotifications:
					signal(c.stale)
				case n.Payload == newTenant:
					signal(c.met)
				default:
					signal(c.nudge)
				}
			}
		})
		if ctx.Err() != nil {
			return
		}
		c.log.Debug("listening for stage changes ended; the beat carries on meanwhile", "error", err)
		backoff.Sleep(ctx, time.Second)
	}
}

// The channels that triggers and instances notify. The payload newTenant is for the
// wishes; any other for the leader's next round.
const (
	stageNotifications   = "crossfade_stages"
	controlNotifications = "crossfade_control"
	newTenant            = "new"
)
