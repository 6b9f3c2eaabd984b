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

// Wishes says which stage is wanted for a tenant; flags.Client is one. Anything
// but a clean answer is an error, upon which the tenant stays where it is.
type Wishes interface {
	// Wish takes no longer than its own time-out and ctx.
	Wish(ctx context.Context, tenant string) (stage.Stage, error)
	// Changes signals that answers may differ from those given before.
	Changes() <-chan struct{}
}

// followWishes moves tenants to where they are wished until ctx ends.
func (t *tenants) followWishes(ctx context.Context) {
	beat := time.NewTicker(t.beat)
	defer beat.Stop()
	for ctx.Err() == nil {
		err := t.follow(ctx)
		t.note(ctx, &t.unmoved, err, "stages cannot be moved; every tenant stays where it is")
		sleep(ctx, factsPause)
		t.awaitReason(ctx, beat.C, time.After(newTenantPause))
	}
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

// follow holds the facts against the wishes and moves what differs.
func (t *tenants) follow(ctx context.Context) error {
	names, err := t.newNames(ctx)
	if err != nil {
		return err
	}
	var moves []move
	var refusal error
	unanswered := 0
	consider := func(name string, f Fact) {
		wish, err := t.wishes.Wish(ctx, name)
		if err != nil {
			unanswered, refusal = unanswered+1, err
			return
		}
		if to := stage.Toward(wish); to != f.Stage {
			moves = append(moves, move{name, f.Stage, to, f.Revision})
		}
	}
	for name, f := range *t.facts.Load() {
		consider(name, f)
	}
	for _, name := range names {
		consider(name, Fact{Stage: "", Revision: 0})
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	t.noteAnswers(unanswered, refusal)
	if len(moves) == 0 {
		return nil
	}
	if err := apply(ctx, t.pool, moves, "instance "+t.instance, "follows the flag"); err != nil {
		return err
	}
	return t.load(ctx)
}

// noteAnswers says once that answers are missing, however many tenants lack one;
// the newest error names one of them.
func (t *tenants) noteAnswers(unanswered int, refusal error) {
	t.held.Set(float64(unanswered))
	if unanswered > 0 && t.unanswered == 0 {
		t.log.Warn("no clean answer from the flag service; these tenants stay where they are", "tenants", unanswered, "error", refusal)
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
