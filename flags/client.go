package flags

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	of "github.com/open-feature/go-sdk/openfeature"
	"github.com/open-feature/go-sdk/openfeature/isolated"
)

// Options configures a Client. Begin with DefaultOptions and set Provider.
type Options struct {
	// Provider answers; required. The client starts it and shuts it down.
	Provider Provider
	// Overrides has the last word for every tenant that has a wish of its own in
	// the store, whatever Provider says or does; its rules are not looked at. nil:
	// none. The client starts it and shuts it down. While it cannot be read nobody
	// gets an answer, since nobody knows who is overridden.
	Overrides *StoreProvider
	// Timeout bounds one evaluation.
	Timeout time.Duration
	// InitTimeout bounds how long New waits for a provider to become ready.
	InitTimeout time.Duration
	// Concurrency is how many evaluations EvaluateAll has under way at once, and
	// Rate how many it begins in a second at most; 0 for no limit. Neither holds
	// up answers from memory.
	Concurrency int
	Rate        float64
	// Logger may be nil.
	Logger *slog.Logger
}

// Provider is what can stand behind a Client: a StoreProvider, a FlagdProvider, an
// OFREPProvider, a FileProvider, or any other OpenFeature provider. The name spares
// others the import of OpenFeature.
type Provider = of.FeatureProvider

// DefaultOptions returns the defaults: 2 s for an evaluation, 5 s to start; 8
// evaluations at once and 500 a second.
func DefaultOptions() Options {
	return Options{Timeout: 2 * time.Second, InitTimeout: 5 * time.Second, Concurrency: 8, Rate: 500}
}

// Validate names the first field that cannot work, and the remedy.
func (o Options) Validate() error {
	switch {
	case o.Provider == nil:
		return errors.New("flags Options.Provider is nil: set a provider, for example one from NewStoreProvider")
	case o.Timeout <= 0:
		return fmt.Errorf("flags Options.Timeout is %s: use more than 0 (default 2s)", o.Timeout)
	case o.InitTimeout <= 0:
		return fmt.Errorf("flags Options.InitTimeout is %s: use more than 0 (default 5s)", o.InitTimeout)
	case o.Concurrency < 1:
		return fmt.Errorf("flags Options.Concurrency is %d: use at least 1 (default 8)", o.Concurrency)
	case !(o.Rate >= 0) || o.Rate > 0 && o.Rate < 1:
		return fmt.Errorf("flags Options.Rate is %g: use 0 for no limit, or at least 1 a second (default 500)", o.Rate)
	case o.Overrides != nil && o.Provider == Provider(o.Overrides):
		return errors.New("flags Options.Overrides is the Provider itself: leave it nil, the store's targets come first anyway")
	}
	return nil
}

// Answer is a clean answer.
type Answer struct {
	Variant Variant
	// Reason says where the provider took the variant from; ReasonTarget,
	// ReasonPercent or ReasonDefault from the store.
	Reason Reason
	// Override is set where Options.Overrides had the last word.
	Override bool
}

// maxHung is how many evaluations may hang in the provider at once. Beyond it the
// client answers at once that there is no answer, so that a hanging provider
// costs neither memory without end nor one Timeout per tenant.
const maxHung = 4

// Client asks for wishes through an OpenFeature API of its own: what other parts
// of the process do with OpenFeature's global provider does not touch it. All
// methods may be called concurrently.
type Client struct {
	opts     Options
	log      *slog.Logger
	api      *of.EvaluationAPI
	client   *of.Client
	provider string
	changes  chan struct{}
	// overrides is a client of the store's own, nil without one.
	overrides *Client
	hung      atomic.Int32
	closed    atomic.Bool
	close     sync.Once
	closeErr  error
	ended     chan struct{} // closed when the shutdown has ended
}

// New starts the provider and waits until it is ready or has failed, no longer
// than InitTimeout and ctx. A provider that is not ready is no error (it would
// stop the whole bridge for want of a wish): Health says so, Desired has no
// answer, and both recover with the provider. An error means that the options
// are wrong, that the provider is in use elsewhere, or that ctx has ended.
func New(ctx context.Context, o Options) (*Client, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		opts:     o,
		log:      o.Logger,
		api:      isolated.NewAPI(),
		provider: o.Provider.Metadata().Name,
		changes:  make(chan struct{}, 1),
		ended:    make(chan struct{}),
	}
	c.client = c.api.NewClient()
	signal := func(of.EventDetails) { c.signal() }
	for _, event := range []of.EventType{of.ProviderReady, of.ProviderConfigChange, of.ProviderStale, of.ProviderError} {
		c.client.AddHandler(event, &signal)
	}

	if o.Overrides != nil {
		var err error
		if c.overrides, err = New(ctx, o.ofOverrides()); err != nil {
			return nil, fmt.Errorf("starting the overrides: %w", err)
		}
	}
	initCtx, cancel := context.WithTimeout(ctx, o.InitTimeout)
	defer cancel()
	err := c.api.SetProviderAndWait(initCtx, o.Provider)
	switch {
	case ctx.Err() != nil:
		_ = c.Close(context.WithoutCancel(ctx)) // the caller gave up; that is the error to tell
		return nil, fmt.Errorf("starting flag provider %s: %w", c.provider, ctx.Err())
	case err != nil && initCtx.Err() == nil && c.client.State() == of.NotReadyState:
		// OpenFeature did not even take the provider: a failed Init ends in ERROR.
		_ = c.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("flag provider %s is not accepted: %w", c.provider, err)
	case err != nil:
		c.log.Warn("flag provider is not ready: every tenant stays where it is", "provider", c.provider, "error", err)
	}
	return c, nil
}

// ofOverrides are the options of the client that reads the overrides.
func (o Options) ofOverrides() Options {
	o.Provider, o.Overrides = o.Overrides, nil
	return o
}

// Changes signals that wishes may differ from what was answered before, or that
// the provider became ready, stale or erroneous: evaluate again. Signals that
// nobody has taken become one. The channel is never closed; one receiver gets each.
// What happens to the overrides, OverrideChanges signals.
func (c *Client) Changes() <-chan struct{} { return c.changes }

func (c *Client) signal() {
	if c.closed.Load() {
		return
	}
	select {
	case c.changes <- struct{}{}:
	default:
	}
}

// Health is nil while the provider is fit to answer, and otherwise says what is
// missing. It asks nobody and may be called from any goroutine.
func (c *Client) Health() error {
	if c.closed.Load() {
		return errors.New("flags: the client is closed")
	}
	if c.overrides != nil {
		if err := c.overrides.Health(); err != nil {
			return fmt.Errorf("operator overrides cannot be read: %w", err)
		}
	}
	// Our own provider knows best, and knows it before its event has arrived.
	if p, ok := c.opts.Provider.(interface{ Health() error }); ok {
		if err := p.Health(); err != nil {
			return fmt.Errorf("flag provider %s has no answers, every tenant stays where it is: %w", c.provider, err)
		}
	}
	if state := c.client.State(); state != of.ReadyState {
		return fmt.Errorf("flag provider %s is in state %s, every tenant stays where it is", c.provider, state)
	}
	if c.hung.Load() >= maxHung {
		return fmt.Errorf("flag provider %s hangs (%d evaluations without answer), every tenant stays where it is", c.provider, c.hung.Load())
	}
	return nil
}

// Close shuts the provider down and ends what OpenFeature runs for it, no longer
// than ctx. Afterwards Desired has no answers. Closing twice is fine; each call
// waits for the same end.
func (c *Client) Close(ctx context.Context) error {
	c.close.Do(func() {
		c.closed.Store(true)
		go func() {
			defer close(c.ended)
			c.closeErr = c.api.Shutdown(ctx)
			if c.overrides != nil {
				c.closeErr = errors.Join(c.closeErr, c.overrides.Close(ctx))
			}
		}()
	})
	select {
	case <-c.ended:
		if c.closeErr != nil {
			return fmt.Errorf("closing flag provider %s: %w", c.provider, c.closeErr)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("closing flag provider %s: it has not stopped in time: %w", c.provider, ctx.Err())
	}
}
