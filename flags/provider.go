package flags

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	of "github.com/open-feature/go-sdk/openfeature"
)

const storeProviderName = "crossfade-store"

// StoreProviderOptions configures a StoreProvider. Begin with
// DefaultStoreProviderOptions and set Conn.
type StoreProviderOptions struct {
	// Conn says how to connect; required. It is copied. The provider keeps one
	// connection of its own, outside of any pool, because it listens on it. Behind
	// a pooler in transaction mode notifications get lost and Beat must do.
	Conn *pgx.ConnConfig
	// Beat is the longest time between two readings of the tables, notified or
	// not; at least 10 ms.
	Beat time.Duration
	// MaxStale is the age of the snapshot beyond which it gives no answer any
	// more; at least twice Beat.
	MaxStale time.Duration
	// Debounce is how long a notification waits for others before the tables are
	// read; at most Beat.
	Debounce time.Duration
	// IOTimeout bounds connecting, and every statement.
	IOTimeout time.Duration
	// RetryMin and RetryMax bound the wait between two attempts to connect. It
	// doubles from one to the other and is spread at random, so that instances
	// do not all return at once.
	RetryMin, RetryMax time.Duration
	// Logger may be nil.
	Logger *slog.Logger
}

// DefaultStoreProviderOptions returns the defaults: a beat of 10 s, answers for
// at most 1 min without PostgreSQL, retries every 250 ms to 30 s.
func DefaultStoreProviderOptions() StoreProviderOptions {
	return StoreProviderOptions{
		Beat:      10 * time.Second,
		MaxStale:  time.Minute,
		Debounce:  20 * time.Millisecond,
		IOTimeout: 5 * time.Second,
		RetryMin:  250 * time.Millisecond,
		RetryMax:  30 * time.Second,
	}
}

// Validate names the first field that cannot work, and the remedy.
func (o StoreProviderOptions) Validate() error {
	switch {
	case o.Conn == nil:
		return errors.New("StoreProviderOptions.Conn is nil: set it, for example to the pool's Config().ConnConfig")
	case o.Beat < 10*time.Millisecond:
		return fmt.Errorf("StoreProviderOptions.Beat is %s: use at least 10ms (default 10s)", o.Beat)
	case o.MaxStale < 2*o.Beat:
		return fmt.Errorf("StoreProviderOptions.MaxStale is %s: use at least twice Beat (%s), or a healthy snapshot counts as stale", o.MaxStale, 2*o.Beat)
	case o.Debounce < 0 || o.Debounce > o.Beat:
		return fmt.Errorf("StoreProviderOptions.Debounce is %s: use 0 to Beat (%s)", o.Debounce, o.Beat)
	case o.IOTimeout <= 0:
		return fmt.Errorf("StoreProviderOptions.IOTimeout is %s: use more than 0 (default 5s)", o.IOTimeout)
	case o.RetryMin <= 0 || o.RetryMax < o.RetryMin:
		return fmt.Errorf("StoreProviderOptions.RetryMin is %s and RetryMax %s: use 0 < RetryMin ≤ RetryMax (defaults 250ms, 30s)", o.RetryMin, o.RetryMax)
	}
	return nil
}

// StoreProvider is an OpenFeature provider over the tables crossfade_flag_rules
// and crossfade_flag_targets. Evaluations read a snapshot in memory, never block
// and may run concurrently. Build one with NewStoreProvider; it runs from Init
// to Shutdown, once.
//
// Its events: READY when the snapshot is fit to answer, CONFIGURATION_CHANGED
// when it differs from the one before, STALE when it is older than MaxStale, and
// ERROR when PostgreSQL refuses to show the tables (missing, no permission).
// PostgreSQL out of reach is no error until the snapshot is stale.
type StoreProvider struct {
	stringsOnly
	opts   StoreProviderOptions
	log    *slog.Logger
	events chan of.Event
	snap   atomic.Pointer[snapshot]

	// loaded tells the announcer that a reading ended, well or not.
	loaded chan struct{}
	// first is closed after the first reading ended.
	first     chan struct{}
	firstOnce sync.Once

	mu         sync.Mutex
	started    bool
	stopped    bool
	initFailed bool
	cancel     context.CancelFunc
	done       sync.WaitGroup
	lastErr    error    // of the last reading; nil when it went well
	refused    bool     // lastErr is PostgreSQL's refusal
	changed    []string // flags that changed and are not announced yet
}

var (
	_ of.FeatureProvider          = (*StoreProvider)(nil)
	_ of.ContextAwareStateHandler = (*StoreProvider)(nil)
	_ of.EventHandler             = (*StoreProvider)(nil)
)

// NewStoreProvider checks the options. It does no I/O: OpenFeature starts the
// provider.
func NewStoreProvider(o StoreProviderOptions) (*StoreProvider, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o.Conn = o.Conn.Copy()
	// A handler from elsewhere would swallow the notifications.
	o.Conn.OnNotification = nil
	if o.Conn.RuntimeParams == nil {
		o.Conn.RuntimeParams = map[string]string{}
	}
	o.Conn.RuntimeParams["application_name"] = "crossfade-flags"
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &StoreProvider{
		opts:   o,
		log:    o.Logger,
		events: make(chan of.Event),
		loaded: make(chan struct{}, 1),
		first:  make(chan struct{}),
	}, nil
}

// Metadata names the provider.
func (p *StoreProvider) Metadata() of.Metadata { return of.Metadata{Name: storeProviderName} }

// Hooks returns none.
func (p *StoreProvider) Hooks() []of.Hook { return nil }

// EventChannel returns the events. They wait for the reader without holding up
// anything; of several that wait, the last state stands for all.
func (p *StoreProvider) EventChannel() <-chan of.Event { return p.events }

// Init is InitWithContext, bounded by twice IOTimeout: connect and read.
func (p *StoreProvider) Init(evalCtx of.EvaluationContext) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*p.opts.IOTimeout)
	defer cancel()
	return p.InitWithContext(ctx, evalCtx)
}

// InitWithContext starts the provider and waits until it has tried to read the
// tables once. ctx ends only the waiting. After an error the provider keeps
// trying, and says READY when it has succeeded; only after Shutdown, Init is
// refused for good.
func (p *StoreProvider) InitWithContext(ctx context.Context, _ of.EvaluationContext) error {
	if err := p.start(); err != nil {
		return err
	}
	var err error
	select {
	case <-p.first:
		err = p.Health()
	case <-ctx.Done():
		err = fmt.Errorf("waiting for the first reading of the flag tables: %w", ctx.Err())
	}
	if err != nil {
		p.mu.Lock()
		p.initFailed = true
		p.mu.Unlock()
	}
	return err
}

func (p *StoreProvider) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return errors.New("the flag store provider is shut down: build a new one")
	}
	if p.started {
		return nil
	}
	p.started = true
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.done.Go(func() { p.follow(ctx) })
	p.done.Go(func() { p.announce(ctx) })
	return nil
}

// Shutdown is ShutdownWithContext, bounded by IOTimeout.
func (p *StoreProvider) Shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), p.opts.IOTimeout)
	defer cancel()
	if err := p.ShutdownWithContext(ctx); err != nil {
		p.log.Warn("flag store provider did not stop in time", "error", err)
	}
}

// ShutdownWithContext stops the provider, closes its connection and waits for
// both, no longer than ctx. Twice is fine, and before Init as well.
func (p *StoreProvider) ShutdownWithContext(ctx context.Context) error {
	p.mu.Lock()
	p.stopped = true
	cancel := p.cancel
	p.mu.Unlock()
	if cancel == nil {
		return nil
	}
	cancel()
	ended := make(chan struct{})
	go func() { p.done.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stopping the flag store provider: %w", ctx.Err())
	}
}

// Health is nil while evaluations are answered. It does no I/O.
func (p *StoreProvider) Health() error {
	p.mu.Lock()
	lastErr, refused, stopped := p.lastErr, p.refused, p.stopped
	p.mu.Unlock()
	snap := p.snap.Load()
	switch {
	case stopped:
		return errors.New("the flag store provider is shut down")
	case refused:
		return lastErr
	case snap == nil && lastErr != nil:
		return fmt.Errorf("the flag tables have not been read yet: %w", lastErr)
	case snap == nil:
		return errors.New("the flag tables have not been read yet")
	}
	if age := time.Since(snap.asOf); age > p.opts.MaxStale {
		err := fmt.Errorf("the flags were last read %s ago, the limit is %s: bring PostgreSQL back", age.Round(time.Second), p.opts.MaxStale)
		if lastErr != nil {
			err = fmt.Errorf("%w (%w)", err, lastErr)
		}
		return err
	}
	return nil
}
