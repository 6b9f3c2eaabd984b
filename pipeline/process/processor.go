package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/internal/batchqueue"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// item is a delivery and when it was submitted.
type item struct {
	pipeline.Delivery
	at time.Time
}

// Options of a Processor. DefaultOptions gives sensible ones.
type Options struct {
	// Settings are the checks' limits.
	Settings check.Settings
	// IDMember is the payload member that holds a device's own message ID; empty for none.
	IDMember string
	// BatchSize is the most copies in one transaction, 1 to 10,000. Throughput halves at 500.
	BatchSize int
	// Linger is how long a batch that is not full waits for more.
	Linger time.Duration
	// Workers run batches side by side, 1 to 64. More than two gain nothing on one
	// PostgreSQL with two cores.
	Workers int
	// RegistryTTL is how long a device's registry entry is believed.
	RegistryTTL time.Duration
	// RecentIDs is how many committed IDs are remembered at least.
	RecentIDs int
	// Committed, if set, is told which messages are durable, before their receipts
	// are acknowledged. It must not block and not keep the slice.
	Committed func([]pipeline.Identity)
	Logger    *slog.Logger
	Registry  prometheus.Registerer
}

// DefaultOptions returns the defaults.
func DefaultOptions() Options {
	return Options{
		Settings:    check.DefaultSettings(),
		IDMember:    pipeline.DefaultMessageIDMember,
		BatchSize:   2000,
		Linger:      5 * time.Millisecond,
		Workers:     2,
		RegistryTTL: 5 * time.Second,
		RecentIDs:   200_000,
	}
}

func (o *Options) validate() error {
	var errs []error
	bound := func(name string, v, low, high int) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("option %s is %d: choose %d to %d", name, v, low, high))
		}
	}
	bound("BatchSize", o.BatchSize, 1, 10_000)
	bound("Workers", o.Workers, 1, 64)
	bound("RecentIDs", o.RecentIDs, 1, 100_000_000)
	bound("Settings.MaxPayloadBytes", o.Settings.MaxPayloadBytes, 1, 64<<20)
	if o.Linger < 0 || o.Linger > time.Second {
		errs = append(errs, fmt.Errorf("option Linger is %v: choose 0 to 1s", o.Linger))
	}
	if o.RegistryTTL < 0 {
		errs = append(errs, fmt.Errorf("option RegistryTTL is %v: choose 0 or more", o.RegistryTTL))
	}
	if o.Logger == nil || o.Registry == nil {
		errs = append(errs, errors.New("options Logger and Registry must be set"))
	}
	return errors.Join(errs...)
}

// Processor is the pipeline at work. Its methods may be called concurrently.
type Processor struct {
	options  Options
	store    *store.Store
	queue    *batchqueue.Queue[item]
	recent   *recent
	registry *registry
	metrics  *metrics
	log      *slog.Logger

	inHand  atomic.Int64          // submitted and not settled
	failing atomic.Int64          // workers that cannot write their batch,
	trouble atomic.Pointer[error] // and why the last of them could not
	stuck   atomic.Pointer[error] // why one message can't, while others may
	ended   atomic.Bool           // Run has returned, or is about to
}

// New returns a processor that writes to s.
func New(s *store.Store, o Options) (*Processor, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("pipeline options: %w", err)
	}
	if o.Committed == nil {
		o.Committed = func([]pipeline.Identity) {}
	}
	p := &Processor{
		options:  o,
		store:    s,
		queue:    batchqueue.New[item](),
		recent:   newRecent(o.RecentIDs),
		registry: newRegistry(o.RegistryTTL, s.Devices),
		log:      o.Logger,
	}
	p.metrics = newMetrics(o.Registry, func() float64 { return float64(p.queue.Len()) })
	return p, nil
}

// Submit hands a copy over to be processed and settled. It does not block. After
// Run has ended the copy is released.
func (p *Processor) Submit(d pipeline.Delivery) {
	p.inHand.Add(1)
	p.queue.Put(item{Delivery: d, at: time.Now()})
	if p.ended.Load() {
		p.releaseQueued()
	}
}

// Recent reports whether the message is known to be durable. False means nothing:
// ask the ledger.
func (p *Processor) Recent(c *pipeline.Identity) bool { return p.recent.holds(c) }

// InHand is the number of copies submitted and not settled.
func (p *Processor) InHand() int { return int(p.inHand.Load()) }

// Health is nil while batches can be written, and otherwise says why not.
func (p *Processor) Health() error {
	if p.failing.Load() > 0 {
		return *p.trouble.Load()
	}
	if e := p.stuck.Load(); e != nil {
		return *e
	}
	return nil
}

// Run works until ctx ends, once. What is in hand then is released, to come again.
func (p *Processor) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for range p.options.Workers {
		wg.Go(func() { newWorker(p).run(ctx) })
	}
	wg.Wait()
	p.ended.Store(true)
	p.releaseQueued()
}

func (p *Processor) releaseQueued() {
	for _, it := range p.queue.Poll(nil, math.MaxInt) {
		p.release(&it)
	}
}

// Drain waits until nothing is in hand, or until ctx ends.
func (p *Processor) Drain(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for p.inHand.Load() > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d messages are still in hand and will come again at the next start: %w", p.InHand(), ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

func (p *Processor) ack(it *item, now time.Time) {
	p.metrics.settled(it, now, it.Receipt.Ack())
	p.inHand.Add(-1)
}

func (p *Processor) release(it *item) {
	if err := it.Receipt.Release(); err != nil {
		p.metrics.byPath[it.Path].ackErrors.Inc()
	}
	p.inHand.Add(-1)
}
