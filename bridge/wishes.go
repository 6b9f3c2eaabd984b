package bridge

import (
	"context"
	"slices"
	"time"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// newTenantPause is the least between two looks at the wishes for the sake of
// tenants that were met in traffic: whoever can publish can invent names.
const newTenantPause = 500 * time.Millisecond

// flushEvery is how long moves wait for more while the wishes are still coming.
const flushEvery = time.Second

// Wishes says which stage is wanted for a tenant; flags.Client is one. Anything
// but a clean answer is an error, upon which the tenant stays where it is.
type Wishes interface {
	// WishAll calls took once for each tenant, one call at a time, as answers come.
	// It takes no longer than its own bounds and ctx.
	WishAll(ctx context.Context, tenants []string, took func(tenant string, wish stage.Stage, err error))
	// Changes signals that answers may differ from those given before.
	Changes() <-chan struct{}
	// Override is what the operator has set for a tenant, from memory: it counts
	// whatever else is wished, and however long that takes to find out.
	Override(tenant string) (wish stage.Stage, ok bool, err error)
	// OverrideChanges signals that overrides may differ; nil where there are none.
	OverrideChanges() <-chan struct{}
}

// followWishes moves tenants to where they are wished until ctx ends.
func (t *tenants) followWishes(ctx context.Context) {
	beat := time.NewTicker(t.beat)
	defer beat.Stop()
	for ctx.Err() == nil {
		err := t.follow(ctx)
		t.note(ctx, &t.unmoved, err, "stages cannot be moved; every tenant stays where it is")
		sleep(ctx, factsPause)
		// A round over many tenants may last longer than the beat: it pauses all the same.
		beat.Reset(t.beat)
		t.awaitReason(ctx, beat.C, time.After(newTenantPause))
	}
}

// followOverrides moves overridden tenants as soon as they are, beside the rounds
// over all tenants, which a slow flag service may draw out.
func (t *tenants) followOverrides(ctx context.Context) {
	again := (<-chan time.Time)(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wishes.OverrideChanges():
		case <-t.recheck:
		case <-again:
		}
		again = nil
		tried, err := t.moveOverridden(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			t.log.Warn("overrides cannot be followed; trying again", "error", err)
			again = time.After(time.Second)
		case tried: // another instance may have been there first, from a fact that has passed
			again = time.After(5 * factsPause)
		}
	}
}

// moveOverridden reports whether there was anything to move.
func (t *tenants) moveOverridden(ctx context.Context) (tried bool, err error) {
	names, err := t.newNames(ctx)
	if err != nil {
		return false, err
	}
	facts := *t.facts.Load()
	var moves []move
	consider := func(name string, f Fact) {
		wish, ok, err := t.wishes.Override(name)
		if to := stage.Toward(wish); err == nil && ok && to != f.Stage {
			moves = append(moves, move{name, f.Stage, to, f.Revision})
		}
	}
	for name, f := range facts {
		consider(name, f)
	}
	for _, name := range names {
		consider(name, Fact{})
	}
	if len(moves) == 0 {
		return false, nil
	}
	if err := apply(ctx, t.pool, moves, "instance "+t.instance, "follows the override"); err != nil {
		return true, err
	}
	return true, t.load(ctx)
}

// awaitReason returns when the wishes are to be looked at again. soon is the
// earliest at which that is done for a new tenant.
func (t *tenants) awaitReason(ctx context.Context, beat, soon <-chan time.Time) {
	met := (<-chan struct{})(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wishes.Changes():
			return
		case <-beat:
			t.mu.Lock()
			clear(t.seen)
			t.mu.Unlock()
			return
		case <-soon:
			met = t.met
		case <-met:
			return
		}
	}
}

// follow holds the facts against the wishes and moves what differs, at the end and
// every flushEvery until then.
func (t *tenants) follow(ctx context.Context) error {
	names, err := t.newNames(ctx)
	if err != nil {
		return err
	}
	facts := *t.facts.Load()
	for name := range facts {
		names = append(names, name)
	}
	var moves []move
	var refusal, failure error
	unanswered, flushed := 0, time.Now()
	t.wishes.WishAll(ctx, names, func(name string, wish stage.Stage, err error) {
		f := facts[name] // the zero Fact of a tenant that has no row
		if err != nil {
			unanswered, refusal = unanswered+1, err
		} else if to := stage.Toward(wish); to != f.Stage {
			moves = append(moves, move{name, f.Stage, to, f.Revision})
		}
		if failure == nil && time.Since(flushed) >= flushEvery {
			failure = t.flush(ctx, moves)
			moves, flushed = nil, time.Now()
		}
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	t.noteAnswers(unanswered, refusal)
	if failure != nil {
		return failure
	}
	return t.flush(ctx, moves)
}

// flush carries out moves that follow the flag, but for tenants that the operator
// has overridden since they were asked for.
func (t *tenants) flush(ctx context.Context, moves []move) error {
	moves = slices.DeleteFunc(moves, func(m move) bool {
		wish, ok, err := t.wishes.Override(m.tenant)
		return err != nil || ok && stage.Toward(wish) != m.to
	})
	if len(moves) == 0 {
		return nil
	}
	if err := apply(ctx, t.pool, moves, "instance "+t.instance, "follows the flag"); err != nil {
		return err
	}
	signal(t.recheck) // whom an override reached between that look and the move
	return t.load(ctx)
}

// noteAnswers says once that answers are missing, however many tenants lack one;
// the newest error names one of them.
func (t *tenants) noteAnswers(unanswered int, refusal error) {
	t.held.Set(float64(unanswered))
	if unanswered > 0 && t.unanswered == 0 {
		t.log.Warn("no clean answer from the flag service; these tenants stay where they are until there is one, or until crossfade flip sets an override",
			"tenants", unanswered, "error", refusal)
	}
	t.unanswered = unanswered
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
