package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/rollout"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
)

// asideBrief is what the wishes wait for a rollout to be paused. They win over a
// rollout's either way.
const asideBrief = 200 * time.Millisecond

// Bounds of reading the registry: of a lock, and of all. A migration of somebody else's
// may keep it locked for as long as it likes.
const (
	registryLock    = 300 * time.Millisecond
	registryReading = 2 * time.Second
)

// readForRollback reads what a rollback needs. It can do without the registry, which it
// reads last, and only where it may tell something new: with all tenants (no names), or
// where one that is named has no stage.
func readForRollback(ctx context.Context, pool *pgxpool.Pool, names []string) (*overview, error) {
	o := &overview{facts: make(map[string]control.Fact)}
	var err error
	if o.wishes, err = flags.OpenStore(pool).List(ctx); err != nil {
		return nil, err
	}
	facts, err := control.Facts(ctx, pool)
	if err != nil {
		return nil, err
	}
	for _, f := range facts {
		o.facts[f.Tenant] = f
	}
	unmoved := func(name string) bool { _, ok := o.facts[name]; return !ok }
	if len(names) > 0 && !slices.ContainsFunc(names, unmoved) {
		return o, nil
	}
	o.unread = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		set := fmt.Sprintf("SET LOCAL lock_timeout = %d; SET LOCAL statement_timeout = %d", registryLock.Milliseconds(), registryReading.Milliseconds())
		if _, err := tx.Exec(ctx, set); err != nil {
			return err
		}
		o.devices, err = control.Tenants(ctx, tx)
		return err
	})
	slices.Sort(o.devices) // the database's collation may order otherwise
	return o, ctx.Err()
}

// refuse keeps a misspelt tenant from becoming a wish that nobody follows. Where it
// cannot be told, the wish goes ahead.
func (o *overview) refuse(names []string) error {
	if o.unread != nil {
		return nil
	}
	return refuse(o.names(), names, "check the name")
}

// wayBack is a rollback under way.
type wayBack struct {
	*rollbackCommand
	console  *console
	pool     *pgxpool.Pool
	store    *flags.Store
	overview *overview
	names    []string
	began    time.Time

	answers   []flipped // of those whose wish is set
	left      []string  // the others
	notWished error     // why, but for locks
	aside     *rollout.Rollout
	notAside  error // why a rollout could not be paused
	notRule   error // why percentage and default could not be set
}

// walk wishes at once whatever can be wished at once. What others have locked is tried
// again while the rest is waited for.
func (w *wayBack) walk(ctx context.Context) error {
	w.aside, w.notAside = w.standAside(ctx, asideBrief)
	w.sayAside()
	w.answers, w.left, w.notWished = w.wish(ctx, w.names, 0)
	if len(w.left) > 0 && w.notWished == nil {
		fmt.Fprintf(w.console.err, "the wishes of %s are locked by another session; the others are set, and these are tried again for %v: %s\n", tenants(len(w.left)), w.Timeout, someNames(w.left))
	}
	var rest sync.WaitGroup
	var late []flipped
	if w.All { // even if not every tenant's wish could be set
		rest.Go(func() { w.notRule = w.rule(ctx) })
	}
	if len(w.left) > 0 && w.notWished == nil {
		rest.Go(func() { late, w.left, w.notWished = w.wish(ctx, w.left, w.remaining()) })
	}
	paused := w.notAside == nil
	if !paused {
		rest.Go(func() { w.pauseLate(ctx) })
	}
	err := w.await(ctx, w.answers)
	rest.Wait()
	if !paused {
		w.sayAside()
	}
	if len(late) > 0 && err == nil {
		err = w.await(ctx, late)
	}
	w.answers = append(w.answers, late...)
	if err != nil {
		return errors.Join(err, w.notWished)
	}
	return ctx.Err()
}

// remaining is what is left of the timeout; a moment always is.
func (w *wayBack) remaining() time.Duration {
	return max(w.Timeout-time.Since(w.began), min(w.Timeout, time.Second))
}

// standAside pauses a rollout that goes the other way.
func (w *wayBack) standAside(ctx context.Context, patience time.Duration) (*rollout.Rollout, error) {
	names := append([]string{}, w.names...) // nil would be everybody
	if w.All {
		names = nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience+asideBrief) // there is more than one lock
	defer cancel()
	aside, err := rollout.StandAside(ctx, w.pool, names, who(w.By), w.Reason, patience)
	if err != nil {
		return nil, fmt.Errorf("the rollout that is under way could not be paused, and may go on with other tenants: crossfade rollout pause: %w", err)
	}
	return aside, nil
}

// pauseLate pauses a rollout after the wishes. What it has written over them meanwhile
// is wished once more.
func (w *wayBack) pauseLate(ctx context.Context) {
	if w.aside, w.notAside = w.standAside(ctx, w.remaining()); w.notAside != nil || w.aside == nil {
		return
	}
	wishes, err := w.store.List(ctx)
	var lost []string
	for _, t := range wishes.Targets {
		if _, ours := slices.BinarySearch(w.names, t.Tenant); ours && t.Variant != flags.MQTT && t.UpdatedBy == rollout.By(w.aside.Plan.Name) {
			lost = append(lost, t.Tenant)
		}
	}
	if len(lost) > 0 {
		_, left, failed := w.wish(ctx, lost, w.remaining())
		if err = errors.Join(err, failed); len(left) > 0 && err == nil {
			err = fmt.Errorf("the rollout has wished anew for %s, and these wishes are locked: repeat: %s", tenants(len(left)), someNames(left))
		}
	}
	w.notAside = err
}

func (w *wayBack) sayAside() {
	if a := w.aside; a != nil {
		fmt.Fprintf(w.console.err, "rollout %[1]s is paused in wave %[2]d of %[3]d (%[4]s); once resumed it leaves these tenants alone (crossfade rollout resume %[1]s, or abort %[1]s --rollback)\n",
			a.Plan.Name, a.Wave+1, len(a.Plan.Waves), printable(a.Why))
	}
}

// wish wishes mqtt for the tenants, and returns those for whom it could not. Those whom
// nobody runs by come last: nobody follows their wish.
func (w *wayBack) wish(ctx context.Context, names []string, patience time.Duration) (answers []flipped, left []string, err error) {
	done, left, err := w.store.SetTargetsUrgently(ctx, names, flags.MQTT, who(w.By), w.Reason, patience)
	for _, p := range done {
		answers = append(answers, flipped{Tenant: p.Tenant, Wished: stage.MQTT, Before: string(p.Variant)})
	}
	slices.SortStableFunc(answers, func(a, b flipped) int {
		return cmp.Or(w.overview.follower(b.Tenant)-w.overview.follower(a.Tenant), strings.Compare(a.Tenant, b.Tenant))
	})
	return answers, left, err
}

// rule is for tenants without a wish of their own, and those that are yet to come.
func (w *wayBack) rule(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.remaining())
	defer cancel()
	return errors.Join(w.store.SetPercent(ctx, 0, flags.MQTT, who(w.By)), w.store.SetDefault(ctx, flags.MQTT, who(w.By)))
}

// await waits until MQTT has authority, if that is asked for.
func (w *wayBack) await(ctx context.Context, answers []flipped) error {
	if !w.Wait {
		return nil
	}
	wait := waiter{console: w.console, pool: w.pool, goal: goalBack, timeout: w.remaining(), began: w.began}
	return wait.await(ctx, w.overview.followed(answers))
}
