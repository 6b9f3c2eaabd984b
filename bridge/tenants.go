package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
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

// Wishes says which stage is wanted for a tenant; flags.Client is one. Anything
// but a clean answer is an error, upon which the tenant stays where it is.
type Wishes interface {
	// Wish takes no longer than its own time-out and ctx.
	Wish(ctx context.Context, tenant string) (stage.Stage, error)
	// Changes signals that answers may differ from those given before.
	Changes() <-chan struct{}
}

// tenants knows the stage of every tenant, and moves it towards the wish. Facts
// are rows of crossfade_stages; every instance follows them by notification, and
// on a slow beat in case one was lost. Wishes are evaluated on their own change
// signal and on the same beat, never per message.
type tenants struct {
	pool     *pgxpool.Pool
	wishes   Wishes
	instance string
	standard stage.Stage // of a tenant without a row
	beat     time.Duration
	moved    func() // some tenant's authority may have changed
	log      *slog.Logger

	facts atomic.Pointer[map[string]Fact]
	kick  chan struct{}

	mu   sync.Mutex
	seen map[string]struct{} // in traffic, without a row, since the last beat

	held    prometheus.Gauge
	warned  map[string]bool // tenants whose wish had no clean answer last time
	trouble atomic.Pointer[error]
}

func newTenants(pool *pgxpool.Pool, wishes Wishes, instance string, standard stage.Stage, beat time.Duration, moved func(), reg prometheus.Registerer, log *slog.Logger) *tenants {
	t := &tenants{
		pool: pool, wishes: wishes, instance: instance, standard: stage.Toward(standard), beat: beat, moved: moved, log: log,
		kick: make(chan struct{}, 1), seen: make(map[string]struct{}), warned: make(map[string]bool),
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
		t.wake()
	}
}

func (t *tenants) wake() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// load reads the facts once; the bridge takes in nothing before that.
func (t *tenants) load(ctx context.Context) error {
	facts, err := Facts(ctx, t.pool)
	if err != nil {
		return err
	}
	now := make(map[string]Fact, len(facts))
	changed := false
	before := *t.facts.Load()
	for _, f := range facts {
		now[f.Tenant] = f
		old, ok := before[f.Tenant]
		was := t.standard
		if ok {
			was = old.Stage
		}
		if was.Authoritative() != f.Stage.Authoritative() {
			changed = true
			t.log.Info("authority", "tenant", f.Tenant, "stage", f.Stage, "path", f.Stage.Authoritative().String(), "revision", f.Revision)
		}
	}
	t.facts.Store(&now)
	if changed {
		t.moved()
	}
	return nil
}

// run follows facts and wishes until ctx ends.
func (t *tenants) run(ctx context.Context) {
	var listening sync.WaitGroup
	listening.Go(func() { t.listen(ctx) })
	defer listening.Wait()
	beat := time.NewTicker(t.beat)
	defer beat.Stop()
	for {
		t.round(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.kick:
		case <-t.wishes.Changes():
		case <-beat.C:
			t.mu.Lock()
			clear(t.seen)
			t.mu.Unlock()
		}
	}
}

// round reads the facts, holds them against the wishes and moves what differs.
func (t *tenants) round(ctx context.Context) {
	err := t.load(ctx)
	if err == nil {
		err = t.follow(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		t.trouble.Store(nil)
		return
	}
	if t.trouble.Swap(&err) == nil {
		t.log.Warn("stages cannot be followed; every tenant stays where it is", "error", err)
	}
}

func (t *tenants) follow(ctx context.Context) error {
	names, err := t.newNames(ctx)
	if err != nil {
		return err
	}
	facts := *t.facts.Load()
	var moves []move
	unanswered := 0
	consider := func(name string, f Fact) {
		wish, err := t.wishes.Wish(ctx, name)
		if err != nil {
			unanswered++
			if !t.warned[name] {
				t.warned[name] = true
				t.log.Warn("no clean answer from the flag service; the tenant stays where it is", "tenant", name, "stage", f.Stage, "error", err)
			}
			return
		}
		delete(t.warned, name)
		if to := stage.Toward(wish); to != f.Stage {
			moves = append(moves, move{name, f.Stage, to, f.Revision})
		}
	}
	for name, f := range facts {
		consider(name, f)
	}
	for _, name := range names {
		consider(name, Fact{Stage: "", Revision: 0})
	}
	t.held.Set(float64(unanswered))
	if len(moves) == 0 || ctx.Err() != nil {
		return ctx.Err()
	}
	if err := apply(ctx, t.pool, moves, "instance "+t.instance, "follows the flag"); err != nil {
		return err
	}
	return t.load(ctx)
}

// newNames returns the tenants that have devices and no row yet.
func (t *tenants) newNames(ctx context.Context) ([]string, error) {
	registered, err := Tenants(ctx, t.pool)
	if err != nil {
		return nil, err
	}
	facts := *t.facts.Load()
	return slices.DeleteFunc(registered, func(name string) bool {
		_, ok := facts[name]
		return ok
	}), nil
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
			t.wake() // for what was missed while not listening
			for {
				if _, err := conn.WaitForNotification(ctx); err != nil {
					return err
				}
				t.wake()
			}
		})
		if ctx.Err() != nil {
			return
		}
		t.log.Debug("listening for stage changes ended; the beat carries on meanwhile", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the session is gone either way
}

// health is nil while facts can be read and moved.
func (t *tenants) health() error {
	if e := t.trouble.Load(); e != nil {
		return fmt.Errorf("stages cannot be followed, every tenant stays where it is: %w", *e)
	}
	return nil
}
