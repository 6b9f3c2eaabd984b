package control

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/backoff"
)

// newTenantPause is the least between two looks at the wishes for the sake of
// tenants that were met in traffic: whoever can publish can invent names.
const newTenantPause = 500 * time.Millisecond

// registryPatience is how long the tenants of device_registry may take to be read. A test
// has more of it.
var registryPatience = 10 * time.Second

// flushEvery is how long answers wait for more while they are still coming.
const flushEvery = time.Second

// wishes keeps the answers that a leader has got itself, in its term. Three goroutines
// work at it, so that none keeps the others waiting: overrides need no I/O at all, and
// tenants that have a row need nothing of device_registry, which others may lock.
//
//	override changed ───────────────────► followOverrides ──► answers
//	row, flag changed, beat ────────────► follow: WishAll ──► answers
//	tenant met, beat ──► discover ──new──────┘
type wishes struct {
	c       *Control
	changed chan struct{}
	fresh   chan struct{} // there are tenants that have not been asked for

	mu         sync.Mutex
	answers    map[string]answer
	registered []string // tenants that have a device, as they were last read
	warned     bool
}

// answer is the newest one of a tenant; err: there is no clean one.
type answer struct {
	wish Wish
	err  error
}

func newWishes(c *Control) *wishes {
	return &wishes{c: c, changed: make(chan struct{}, 1), fresh: make(chan struct{}, 1), answers: make(map[string]answer)}
}

// all returns the answers as they are now.
func (w *wishes) all() map[string]answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := make(map[string]answer, len(w.answers))
	for tenant, a := range w.answers {
		now[tenant] = a
	}
	return now
}

// follow asks for all wishes when they may have changed, when there are new tenants,
// and on the beat, until ctx ends.
func (w *wishes) follow(ctx context.Context) {
	beat := time.NewTicker(w.c.o.Beat)
	defer beat.Stop()
	for ctx.Err() == nil {
		w.ask(ctx)
		backoff.Sleep(ctx, factsPause)
		// A round over many tenants may last longer than the beat: it pauses all the same.
		beat.Reset(w.c.o.Beat)
		select {
		case <-ctx.Done():
		case <-w.c.o.Wishes.Changes():
		case <-w.fresh:
		case <-beat.C:
		}
	}
}

// discover looks for tenants that have a device and no row, when one was met and on
// the beat, until ctx ends.
func (w *wishes) discover(ctx context.Context) {
	beat := time.NewTicker(w.c.o.Beat)
	defer beat.Stop()
	failing := false
	for ctx.Err() == nil {
		err := w.readRegistry(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			w.c.log.Warn("new tenants cannot be looked for, all others go on; trying again", "error", err)
		}
		failing = err != nil
		backoff.Sleep(ctx, newTenantPause)
		beat.Reset(w.c.o.Beat)
		select {
		case <-ctx.Done():
		case <-w.c.met:
		case <-beat.C:
		}
	}
}

func (w *wishes) readRegistry(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, registryPatience)
	defer cancel()
	names, err := Tenants(ctx, w.c.o.Pool)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.registered = names
	for _, name := range names {
		if _, ok := w.answers[name]; !ok {
			signal(w.fresh)
			break
		}
	}
	return nil
}

// ask evaluates the wishes of all tenants that have a row or a device.
func (w *wishes) ask(ctx context.Context) {
	names := w.names()
	if len(names) == 0 {
		return
	}
	w.followOverridesOf(names)
	asked := make(map[string]struct{}, len(names))
	for _, name := range names {
		asked[name] = struct{}{}
	}
	unanswered, flushed := 0, time.Now()
	var refusal error
	w.c.o.Wishes.WishAll(ctx, names, func(tenant string, wish Wish, err error) {
		if ctx.Err() != nil {
			return // its end is no answer
		}
		if err == nil {
			_, err = stage.Parse(string(wish.Stage))
		}
		if err != nil {
			unanswered, refusal = unanswered+1, err
		}
		w.take(tenant, answer{wish, err})
		if time.Since(flushed) >= flushEvery {
			signal(w.changed)
			flushed = time.Now()
		}
	})
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	for tenant := range w.answers {
		if _, ok := asked[tenant]; !ok {
			delete(w.answers, tenant)
		}
	}
	w.mu.Unlock()
	w.noteAnswers(unanswered, refusal)
	signal(w.changed)
}

// names are those of all tenants that have a device or a row, as far as they are known.
func (w *wishes) names() []string {
	w.mu.Lock()
	registered := w.registered
	w.mu.Unlock()
	facts := w.c.view.Load().stages
	all := make([]string, 0, len(facts)+len(registered))
	for name := range facts {
		all = append(all, name)
	}
	for _, name := range registered {
		if _, ok := facts[name]; !ok {
			all = append(all, name)
		}
	}
	return all
}

// take keeps an answer, unless the operator has overridden that tenant since it was
// asked for.
func (w *wishes) take(tenant string, a answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if over, ok := w.override(tenant); ok {
		a = over
	}
	w.answers[tenant] = a
}

func (w *wishes) override(tenant string) (answer, bool) {
	wish, ok, err := w.c.o.Wishes.Override(tenant)
	switch {
	case err != nil:
		return answer{err: err}, true
	case !ok:
		return answer{}, false
	}
	return answer{wish: Wish{Stage: wish, Why: whyOverride, Operator: true}}, true
}

// whyOverride says that an operator's override was followed.
const whyOverride = "override"

// followOverrides takes up overrides as soon as they are, beside the rounds over all
// tenants, which a slow flag service may draw out.
func (w *wishes) followOverrides(ctx context.Context) {
	for {
		w.followOverridesOf(w.names())
		select {
		case <-ctx.Done():
			return
		case <-w.c.o.Wishes.OverrideChanges():
		}
	}
}

// followOverridesOf takes up what the operator has set for tenants, without any I/O.
func (w *wishes) followOverridesOf(names []string) {
	w.mu.Lock()
	for _, name := range names {
		if over, ok := w.override(name); ok && over.err == nil {
			w.answers[name] = over
		}
	}
	w.mu.Unlock()
	signal(w.changed)
}

// errNotAsked stands for the answer of a tenant whose turn has not come in this term.
var errNotAsked = errors.New("the flag service has not been asked yet")

// noteAnswers says once that answers are missing, however many tenants lack one;
// the newest error names one of them.
func (w *wishes) noteAnswers(unanswered int, refusal error) {
	w.c.unanswered.Set(float64(unanswered))
	if unanswered > 0 && !w.warned {
		w.c.log.Warn("no clean answer from the flag service; these tenants stay where they are until there is one, or until crossfade flip sets an override",
			"tenants", unanswered, "error", refusal)
	}
	w.warned = unanswered > 0
}
