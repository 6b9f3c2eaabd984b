package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/crossfade-io/crossfade/pipeline"
)

// SourceConfig says what a source reads and how much it takes in hand.
type SourceConfig struct {
	// Consumers are durable names; each has a loop and a window of its own.
	Consumers []string
	// Window is the most messages in hand, or on their way, per consumer. A
	// consumer's own max_ack_pending bounds it further.
	Window int
	// WindowBytes is the most bytes of messages in hand, per consumer, 1 and up; one is
	// always taken, and the server is asked to deliver again in a second what is too
	// much. So senders of large messages cannot make us hold any amount while PostgreSQL
	// is slow or away.
	WindowBytes int64
	// Fetch is the most messages in one pull. Larger pulls are faster, up to
	// some thousands.
	Fetch int
	// PullExpiry is how long the server keeps an unanswered pull, and
	// Heartbeat how often it shows that it still has it; two missed beats
	// start the loop over. Heartbeat is at most half of PullExpiry.
	PullExpiry time.Duration
	Heartbeat  time.Duration
	// Setup is how a stream or consumer that is missing, at the start or
	// later, is created.
	Setup SetupOptions
}

// DefaultSourceConfig reads all three consumers, with 16,000 messages in hand
// each and pulls of up to 4,000.
func DefaultSourceConfig() SourceConfig {
	return SourceConfig{
		Consumers:   Consumers(),
		Window:      16000,
		WindowBytes: 128 << 20,
		Fetch:       4000,
		PullExpiry:  30 * time.Second,
		Heartbeat:   5 * time.Second,
		Setup:       DefaultSetupOptions(),
	}
}

// Validate names the first field that is wrong and its remedy.
func (c SourceConfig) Validate() error {
	if len(c.Consumers) == 0 {
		return errors.New("field Consumers: none given; name at least one of ingest-workers, ingest-shadow, ingest-commands")
	}
	for i, name := range c.Consumers {
		if _, ok := specOfConsumer(name); !ok {
			return fmt.Errorf("field Consumers: %q is unknown; use %v", name, Consumers())
		}
		if slices.Contains(c.Consumers[:i], name) {
			return fmt.Errorf("field Consumers: %s is named twice; name it once", name)
		}
	}
	switch {
	case c.Window < 1 || c.Window > 1_000_000:
		return fmt.Errorf("field Window: %d is out of range; use 1 to 1000000", c.Window)
	case c.WindowBytes < 1:
		return fmt.Errorf("field WindowBytes: %d is out of range; use 1 or more, best some hundred times the largest payload that is accepted", c.WindowBytes)
	case c.Fetch < 1:
		return fmt.Errorf("field Fetch: %d is out of range; use 1 or more, best some thousands", c.Fetch)
	case c.PullExpiry < time.Second:
		return fmt.Errorf("field PullExpiry: %s is too short; use 1s or more", c.PullExpiry)
	case c.Heartbeat < 100*time.Millisecond || c.Heartbeat > c.PullExpiry/2:
		return fmt.Errorf("field Heartbeat: %s is out of range; use 100ms to half of PullExpiry (%s)", c.Heartbeat, c.PullExpiry/2)
	}
	return c.Setup.Validate()
}

// Source is the JetStream path: a bridge.Source over one or several durable
// pull consumers. It shares its Conn and leaves that open.
type Source struct {
	conn    *Conn
	log     *slog.Logger
	pullers []*puller

	keeping sync.WaitGroup // the keepers
	closed  chan struct{}
	once    sync.Once
	running atomic.Bool
}

// NewSource returns a source that does nothing until Run. The error is for an
// invalid configuration.
func NewSource(conn *Conn, cfg SourceConfig, log *slog.Logger) (*Source, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("JetStream source: %w", err)
	}
	s := &Source{conn: conn, log: log, closed: make(chan struct{})}
	for _, name := range cfg.Consumers {
		sp, _ := specOfConsumer(name)
		s.pullers = append(s.pullers, newPuller(conn, sp, cfg, log))
	}
	return s, nil
}

// Run delivers until ctx ends: see bridge.Source. Messages that arrive while it
// ends are given back. The error is for existing consumers that cannot be used
// ([ErrUnusable]) and for a second Run.
func (s *Source) Run(ctx context.Context, deliver func(pipeline.Delivery)) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("JetStream source: Run was called before; make a new source")
	}
	select {
	case <-s.closed:
		return errors.New("JetStream source: closed; make a new source")
	default:
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range s.pullers {
		// The keeper outlives Run: deadlines are extended until Close.
		s.keeping.Go(func() { p.keep(s.closed) })
		p.givenUp.start()
		group.Go(func() error { p.givenUp.run(ctx, deliver); return nil })
		group.Go(func() error { return p.run(ctx, deliver) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("JetStream source: %w", err)
	}
	return nil
}

// Close gives back what is still in hand, and returns once the server has taken
// in every acknowledgement that was given before, within ctx. Run must have
// returned.
func (s *Source) Close(ctx context.Context) error {
	first := false
	s.once.Do(func() { first = true; close(s.closed) })
	if !first {
		return nil
	}
	s.keeping.Wait()
	sent := false
	for _, p := range s.pullers {
		sent = p.close() || sent
	}
	if !sent {
		return nil
	}
	if err := s.conn.Flush(ctx); err != nil {
		return fmt.Errorf("JetStream source: close: acknowledgements may be missing, messages may come again: %w", err)
	}
	return nil
}

// Health is nil while every consumer is being pulled from, and otherwise names
// those that are not, and why.
func (s *Source) Health() error {
	if err := s.conn.Health(); err != nil {
		return err
	}
	var errs []error
	for _, p := range s.pullers {
		if err := p.health(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", consumerObject(p.spec), err))
		}
	}
	return errors.Join(errs...)
}

// Largest is the most bytes that the server and every stream took in one message when
// they were last looked at, headers included; 0 until all of them were. It does no I/O.
func (s *Source) Largest() int {
	largest := int64(0)
	for _, p := range s.pullers {
		n := p.largest.Load()
		if n == 0 {
			return 0
		}
		if largest == 0 || n < largest {
			largest = n
		}
	}
	return int(largest)
}

// ConsumerStats counts what one consumer's loop did since the source was made.
type ConsumerStats struct {
	Stream, Consumer string

	Received    uint64 // messages, redeliveries included
	Acked       uint64 // acknowledgements sent
	Released    uint64 // messages given back
	AckErrors   uint64 // acknowledgements refused or put off by a lost connection
	Extensions  uint64 // deadlines extended
	FetchErrors uint64 // times that the loop had to start over
	// Messages that the server gave up after max_deliver deliveries: those that were
	// taken in all the same, and those of which is known that they could not be.
	GivenUpTaken, GivenUpLost uint64

	InHand    int   // messages now in hand
	HeldBytes int64 // their bytes
	Requested int   // messages asked for and not yet come
}

// Stats returns the counters of each consumer.
func (s *Source) Stats() []ConsumerStats {
	list := make([]ConsumerStats, len(s.pullers))
	for i, p := range s.pullers {
		list[i] = p.stats()
	}
	return list
}

// ConsumerLag is how far one consumer is behind, as the server sees it.
type ConsumerLag struct {
	Stream, Consumer string

	Pending     uint64 // stored and never delivered
	AckPending  int    // delivered to some instance and not acknowledged
	Redelivered int    // of those, delivered more than once
}

// Lag asks the server how far each consumer is behind. It fails as a whole when
// one cannot be asked.
func (s *Source) Lag(ctx context.Context) ([]ConsumerLag, error) {
	list := make([]ConsumerLag, len(s.pullers))
	for i, p := range s.pullers {
		c, err := s.conn.js.Consumer(ctx, p.spec.name, p.spec.consumer)
		if err != nil {
			return nil, fmt.Errorf("lag of %s: %w", consumerObject(p.spec), err)
		}
		info := c.CachedInfo()
		list[i] = ConsumerLag{
			Stream: p.spec.name, Consumer: p.spec.consumer,
			Pending: info.NumPending, AckPending: info.NumAckPending, Redelivered: info.NumRedelivered,
		}
	}
	return list, nil
}
