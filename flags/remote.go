package flags

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	of "github.com/open-feature/go-sdk/openfeature"

	"github.com/crossfade-io/crossfade/internal/backoff"
)

// probeTenant is the targeting key with which a service is asked whether it is up.
// What it answers for it does not matter, so long as it is an answer.
const probeTenant = "crossfade-probe"

// protocol is how a service is asked. An outage is the service's failure; what it
// says about the flag, good or bad, is in the detail.
type protocol interface {
	resolve(ctx context.Context, flag string, evalCtx map[string]any) (of.StringResolutionDetail, *outage)
	// follow hears of changes until ctx ends; nil where the protocol has none.
	follow(ctx context.Context, changed func())
}

// remote is what FlagdProvider and OFREPProvider share: the state of the service,
// found out from the requests themselves while it is up and by probes while it is
// down.
//
//	      GiveUpAfter outages in a row, or a final one
//	up ────────────────────────────────────────────────► down ─┐
//	 ▲                                                    ▲     │ RetryMin…RetryMax,
//	 └───────────────── an answer ────────── probe ◄──────┴─────┘ Retry-After
type remote struct {
	stringsOnly
	name     string
	opts     RemoteOptions
	log      *slog.Logger
	exchange *exchange
	protocol protocol
	*teller

	first     chan struct{} // closed after the first probe
	firstOnce sync.Once
	dropped   chan struct{} // the service went down

	mu       sync.Mutex
	started  bool
	stopped  bool
	cancel   context.CancelFunc
	done     sync.WaitGroup
	down     error // nil while the service is up
	failures int   // outages in a row
	// notBefore is when the service may be asked again, where it has said so.
	notBefore time.Time
}

var errNotProbed = errors.New("the flag service has not been asked yet")

func newRemote(name string, o RemoteOptions) (*remote, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	e, err := newExchange(o)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &remote{
		name: name, opts: o, log: o.Logger, exchange: e, teller: newTeller(name),
		first: make(chan struct{}), dropped: make(chan struct{}, 1), down: errNotProbed,
	}, nil
}

// Metadata names the provider.
func (r *remote) Metadata() of.Metadata { return of.Metadata{Name: r.name} }

// Hooks returns none.
func (r *remote) Hooks() []of.Hook { return nil }

// EventChannel returns the events: READY and ERROR as the service comes and goes,
// CONFIGURATION_CHANGED as it tells.
func (r *remote) EventChannel() <-chan of.Event { return r.events }

// Init is InitWithContext, bounded by twice Timeout.
func (r *remote) Init(evalCtx of.EvaluationContext) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*r.opts.Timeout)
	defer cancel()
	return r.InitWithContext(ctx, evalCtx)
}

// InitWithContext starts the provider and waits until the service was asked once,
// no longer than ctx. A service that is down is no error: Health says so, nobody
// has an answer, and both end when it is found up.
func (r *remote) InitWithContext(ctx context.Context, _ of.EvaluationContext) error {
	if err := r.start(); err != nil {
		return err
	}
	select {
	case <-r.first:
	case <-ctx.Done():
	}
	return nil
}

func (r *remote) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return fmt.Errorf("flag provider %s is shut down: build a new one", r.name)
	}
	if r.started {
		return nil
	}
	r.started = true
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.done.Go(func() { r.teller.run(ctx) })
	r.done.Go(func() { r.watch(ctx) })
	r.done.Go(func() { r.protocol.follow(ctx, func() { r.change(FlagKey) }) })
	return nil
}

// Shutdown is ShutdownWithContext, bounded by twice Timeout.
func (r *remote) Shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*r.opts.Timeout)
	defer cancel()
	if err := r.ShutdownWithContext(ctx); err != nil {
		r.log.Warn("flag provider did not stop in time", "provider", r.name, "error", err)
	}
}

// ShutdownWithContext stops the provider and waits for it, no longer than ctx.
// Twice is fine, and before Init as well.
func (r *remote) ShutdownWithContext(ctx context.Context) error {
	r.mu.Lock()
	r.stopped = true
	if r.cancel != nil {
		r.cancel()
	}
	r.mu.Unlock()
	ended := make(chan struct{})
	go func() { r.done.Wait(); close(ended) }()
	select {
	case <-ended:
		r.exchange.close()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stopping flag provider %s: %w", r.name, ctx.Err())
	}
}

// Health is nil while the service is taken for up. It asks nobody.
func (r *remote) Health() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stopped:
		return fmt.Errorf("flag provider %s is shut down", r.name)
	case r.down != nil:
		return fmt.Errorf("%s at %s is down: %w; tenants stay where they are, and overrides set with crossfade flip still count", r.name, r.exchange.base, r.down)
	}
	return nil
}

func (r *remote) unfit() (Cause, error) { return CauseNotReady, r.Health() }

// StringEvaluation asks the service, unless it is down.
func (r *remote) StringEvaluation(ctx context.Context, flag, defaultValue string, flatCtx of.FlattenedContext) of.StringResolutionDetail {
	detail := r.evaluate(ctx, flag, flatCtx)
	if detail.Error() != nil {
		detail.Value = defaultValue
	}
	return detail
}

func (r *remote) evaluate(ctx context.Context, flag string, flatCtx of.FlattenedContext) of.StringResolutionDetail {
	if tenant, _ := flatCtx[of.TargetingKey].(string); tenant == "" {
		return refused(of.NewTargetingKeyMissingResolutionError("set the targeting key to the tenant ID"))
	}
	if err := r.Health(); err != nil {
		return refused(of.NewProviderNotReadyResolutionError(err.Error()))
	}
	detail, out := r.protocol.resolve(ctx, flag, flatCtx)
	// That our caller gave up says nothing about the service.
	if out == nil || !errors.Is(ctx.Err(), context.Canceled) {
		r.note(out)
	}
	if out != nil {
		return refused(of.NewGeneralResolutionError(fmt.Sprintf("%s at %s: %s", r.name, r.exchange.base, clip(out.Error(), 512))))
	}
	return detail
}

// note takes in how a request went, and logs when the state changes.
func (r *remote) note(out *outage) {
	log := r.log.With("provider", r.name, "url", r.exchange.base.String())
	switch r.turn(out) {
	case of.ProviderReady:
		log.Info("flag service is up")
	case of.ProviderError:
		log.Warn("flag service is down: tenants without an override stay where they are until it answers; check that it runs and can be reached, or use crossfade flip",
			"error", out.err)
		select {
		case r.dropped <- struct{}{}:
		default:
		}
	}
}

// turn returns the new state, and nothing where it is the old one.
func (r *remote) turn(out *outage) of.EventType {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.down
	if out == nil {
		r.failures = 0
		// Others that were under way when the service asked us to wait do not count.
		if before == nil || time.Now().Before(r.notBefore) {
			return ""
		}
		r.down = nil
		r.tell(of.ProviderReady, "the flag service answers")
		return of.ProviderReady
	}
	r.failures++
	if out.after > 0 {
		r.notBefore = time.Now().Add(min(out.after, 10*r.opts.RetryMax))
	}
	if before == nil && !out.final && r.failures < r.opts.GiveUpAfter {
		return ""
	}
	r.down = out.err
	r.tell(of.ProviderError, out.Error())
	if before == nil || errors.Is(before, errNotProbed) {
		return of.ProviderError
	}
	return ""
}

func (r *remote) isDown() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.down != nil
}

// watch probes the service while it is down, until ctx ends.
func (r *remote) watch(ctx context.Context) {
	wait := r.opts.RetryMin
	for ctx.Err() == nil {
		if !r.isDown() {
			wait = r.opts.RetryMin
			select {
			case <-ctx.Done():
				return
			case <-r.dropped:
			}
			// What has just failed does not recover the same moment.
			r.pause(ctx, wait)
			continue
		}
		_, out := r.protocol.resolve(ctx, FlagKey, map[string]any{of.TargetingKey: probeTenant})
		if ctx.Err() != nil {
			return
		}
		r.note(out)
		r.firstOnce.Do(func() { close(r.first) })
		if out != nil {
			r.pause(ctx, wait)
			wait = min(2*wait, r.opts.RetryMax)
		}
	}
}

// pause lets between half and all of d pass, so that instances do not return in
// step, but not less than what the service asked for.
func (r *remote) pause(ctx context.Context, d time.Duration) {
	r.mu.Lock()
	d = max(backoff.Jitter(d), time.Until(r.notBefore))
	r.mu.Unlock()
	backoff.Sleep(ctx, d)
}

// stringsOnly answers every other type of evaluation with a type mismatch.
type stringsOnly struct{}

// BooleanEvaluation is a type mismatch: the flags are strings.
func (stringsOnly) BooleanEvaluation(_ context.Context, _ string, defaultValue bool, _ of.FlattenedContext) of.BoolResolutionDetail {
	return of.BoolResolutionDetail{Value: defaultValue, ProviderResolutionDetail: wrongType()}
}

// FloatEvaluation is a type mismatch: the flags are strings.
func (stringsOnly) FloatEvaluation(_ context.Context, _ string, defaultValue float64, _ of.FlattenedContext) of.FloatResolutionDetail {
	return of.FloatResolutionDetail{Value: defaultValue, ProviderResolutionDetail: wrongType()}
}

// IntEvaluation is a type mismatch: the flags are strings.
func (stringsOnly) IntEvaluation(_ context.Context, _ string, defaultValue int64, _ of.FlattenedContext) of.IntResolutionDetail {
	return of.IntResolutionDetail{Value: defaultValue, ProviderResolutionDetail: wrongType()}
}

// ObjectEvaluation is a type mismatch: the flags are strings.
func (stringsOnly) ObjectEvaluation(_ context.Context, _ string, defaultValue any, _ of.FlattenedContext) of.InterfaceResolutionDetail {
	return of.InterfaceResolutionDetail{Value: defaultValue, ProviderResolutionDetail: wrongType()}
}
