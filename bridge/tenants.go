package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// maxNewTenants bounds the names that were seen in traffic and not looked at yet:
// topics are hostile input.
const maxNewTenants = 10_000

// factsPause is the least between two readings of the facts, however many
// notifications come.
const factsPause = 20 * time.Millisecond

// tenants knows the stage of every tenant, and moves it towards the wish. Facts
// are rows of crossfade_stages; every instance follows them by notification, and
// on a slow beat in case one was lost. Wishes are evaluated on their own change
// signal and on the same beat, never per message. Facts, wishes and the operator's
// overrides are followed side by side: a flag service that is slow must not keep an
// instance from hearing what another has moved, nor the operator from moving.
type tenants struct {
	pool     *pgxpool.Pool
	wishes   Wishes
	instance string
	standard stage.Stage // of a tenant without a row
	beat     time.Duration
	moved    func() // some tenant's authority may have changed
	log      *slog.Logger

	reading sync.Mutex // so that an older reading never replaces a newer one
	facts   atomic.Pointer[map[string]Fact]
	kick    chan struct{} // the facts may have changed
	met     chan struct{} // a tenant without a row was met
	recheck chan struct{} // overrides are to be held against the facts once more

	mu   sync.Mutex
	seen map[string]struct{} // in traffic, without a row, since the last beat

	held       prometheus.Gauge
	unanswered int // tenants without a clean answer last time
	unread     trouble
	unmoved    trouble
}

func newTenants(pool *pgxpool.Pool, wishes Wishes, instance string, standard stage.Stage, beat time.Duration, moved func(), reg prometheus.Registerer, log *slog.Logger) *tenants {
	t := &tenants{
		pool: pool, wishes: wishes, instance: instance, standard: stage.Toward(standard), beat: beat, moved: moved, log: log,
		kick: make(chan struct{}, 1), met: make(chan struct{}, 1), recheck: make(chan struct{}, 1), seen: make(map[string]struct{}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{Name: "crossfade_tenants_without_answer",
			Help: "Tenants held where they are since the flag service gave no clean answer."}),
	}
	t.facts.Store(&map[string]Fact{})
	reg.MustRegister(t.held)
	return t
}

// stageOf is on the message path: a look-up in memory.
func (t *tenants) stageOf(tenant string) stage.Stage {
	if f, ok := (*t.facts.Load())[tenant]; ok {
		return f.Stage
	}
	t.noteNew(tenant)
	return t.standard
}

// noteNew has a tenant without a row looked at, once a beat at most: most names
// that no device is registered under are somebody's mistake.
func (t *tenants) noteNew(tenant string) {
	t.mu.Lock()
	_, known := t.seen[tenant]
	fresh := !known && len(t.seen) < maxNewTenants
	if fresh {
		t.seen[strings.Clone(tenant)] = struct{}{}
	}
	t.mu.Unlock()
	if fresh {
		signal(t.met)
	}
}

// signal leaves a token, unless there is one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// load reads the facts once; the bridge takes in nothing before that.
func (t *tenants) load(ctx context.Context) error {
	t.reading.Lock()
	defer t.reading.Unlock()
	facts, err := Facts(ctx, t.pool)
	if err != nil {
		return err
	}
	now := make(map[string]Fact, len(facts))
	for _, f := range facts {
		now[f.Tenant] = f
	}
	before := *t.facts.Load()
	t.facts.Store(&now)
	changed := false
	for _, f := range facts {
		if t.in(before, f.Tenant).Authoritative() != f.Stage.Authoritative() {
			changed = true
			t.log.Info("authority", "tenant", f.Tenant, "stage", f.Stage, "path", f.Stage.Authoritative().String(),
				"revision", f.Revision, "changed_by", f.ChangedBy)
		}
	}
	for name, f := range before { // rows that somebody removed
		changed = changed || t.in(now, name).Authoritative() != f.Stage.Authoritative()
	}
	if changed {
		t.moved()
	}
	return nil
}

// in is a tenant's stage by the given facts.
func (t *tenants) in(facts map[string]Fact, name string) stage.Stage {
	if f, ok := facts[name]; ok {
		return f.Stage
	}
	return t.standard
}

// run follows facts and wishes until ctx ends.
func (t *tenants) run(ctx context.Context) {
	var parts sync.WaitGroup
	parts.Go(func() { t.listen(ctx) })
	parts.Go(func() { t.followWishes(ctx) })
	parts.Go(func() { t.followOverrides(ctx) })
	t.followFacts(ctx)
	parts.Wait()
}

func (t *tenants) followFacts(ctx context.Context) {
	beat := time.NewTicker(t.beat)
	defer beat.Stop()
	for ctx.Err() == nil {
		err := t.load(ctx)
		t.note(ctx, &t.unread, err, "stages cannot be read; every tenant stays where it is")
		sleep(ctx, factsPause)
		select {
		case <-ctx.Done():
		case <-t.kick:
		case <-beat.C:
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
func (t *tenants) note(ctx context.Context, in *trouble, err error, what string) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		in.Store(nil)
	case in.Swap(&err) == nil:
		t.log.Warn(what, "error", err)
	}
}

// sleep lets d pass, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// listen turns notifications into kicks, and connects again for as long as ctx
// lives; the beat covers for what is lost meanwhile.
func (t *tenants) listen(ctx context.Context) {
	for ctx.Err() == nil {
		err := t.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
			conn := c.Hijack() // a session that listens must not go back to the pool
			defer closeConn(conn)
			if _, err := conn.Exec(ctx, "LISTEN "+stageNotifications); err != nil {
				return err
			}
			signal(t.kick) // for what was missed while not listening
			for {
				if _, err := conn.WaitForNotification(ctx); err != nil {
					return err
				}
				signal(t.kick)
			}
		})
		if ctx.Err() != nil {
			return
		}
		t.log.Debug("listening for stage changes ended; the beat carries on meanwhile", "error", err)
		sleep(ctx, time.Second)
	}
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the session is gone either way
}

// health is nil while facts can be read and moved.
func (t *tenants) health() error {
	if err := errors.Join(t.unread.err(), t.unmoved.err()); err != nil {
		return fmt.Errorf("stages cannot be followed, every tenant stays where it is: %w", err)
	}
	return nil
}
