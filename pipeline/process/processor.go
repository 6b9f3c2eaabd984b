package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// item is a delivery and when it was submitted.
type item struct {
	pipeline.Delivery
	at      time.Time
	refused bool // by PostgreSQL, even for the quarantine, as was logged
	orphan  bool // refused once because its device was gone
}

func (it *item) bytes() int { return len(it.Body) }

// Options of a Processor. DefaultOptions gives sensible ones.
type Options struct {
	// Settings are the checks' limits; SetSettings changes them later.
	Settings check.Settings
	// IDMember is the payload member that holds a device's own message ID; empty for none.
	IDMember string
	// BatchSize is the most copies in one transaction, 1 to 10,000. Throughput halves at 500.
	// Copies of more than 16 MiB together are several batches.
	BatchSize int
	// Linger is how long a batch that is not full waits for more.
	Linger time.Duration
	// Workers run batches side by side, 1 to 64, each for devices of its own. More
	// than two gain nothing on one PostgreSQL with two cores.
	Workers int
	// RegistryTTL is how long a device's registry entry is believed, and a tenant's
	// routes are, of which no change was told.
	RegistryTTL time.Duration
	// AutoProvision has devices registered that are not, by their telemetry.
	AutoProvision bool
	// Routes has messages matched with message_routes, and a row put into the outbox
	// for each match. Without a publisher that empties it the outbox only grows.
	Routes bool
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
		BatchSize:   4000,
		Linger:      5 * time.Millisecond,
		Workers:     2,
		RegistryTTL: time.Minute,
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
	if err := validSettings(&o.Settings); err != nil {
		errs = append(errs, err)
	}
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

func validSettings(s *check.Settings) error {
	switch {
	case s.MaxPayloadBytes < 1 || s.MaxPayloadBytes > 64<<20:
		return fmt.Errorf("MaxPayloadBytes is %d: choose 1 to %d", s.MaxPayloadBytes, 64<<20)
	case !(s.RateLimit >= 0 && s.RateLimit <= 1e6):
		return fmt.Errorf("RateLimit is %g: choose 0 (no limit) to 1000000 messages a second", s.RateLimit)
	case s.RateBurst < 1 || s.RateBurst > 1e6:
		return fmt.Errorf("RateBurst is %d: choose 1 to 1000000 messages", s.RateBurst)
	}
	return nil
}

// Processor is the pipeline at work. Its methods may be called concurrently.
type Processor struct {
	options  Options
	store    *store.Store
	brief    *store.Store // the same, waiting briefly for locks
	workers  []*worker
	current  atomic.Pointer[check.Settings]
	seed     maphash.Seed
	recent   *recent
	registry *registry
	routes   *routes
	metrics  *metrics
	log      *slog.Logger

	inHand  atomic.Int64          // submitted and not settled
	locks   atomic.Int64          // batches that look for who is locked, and devices that are
	failing atomic.Int64          // workers that cannot write their batch,
	trouble atomic.Pointer[error] // and why the last of them could not
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
		brief:    s.Waiting(briefly),
		recent:   newRecent(o.RecentIDs),
		registry: newRegistry(o.RegistryTTL, s, o.AutoProvision, o.Logger),
		routes:   newRoutes(min(o.RegistryTTL, deafTTL), o.Logger, s.Routes),
		log:      o.Logger,
		seed:     maphash.MakeSeed(),
	}
	p.current.Store(&o.Settings)
	p.registry.find = func(ctx context.Context, keys []pipeline.DeviceKey) (map[pipeline.DeviceKey]pipeline.Device, error) {
		return p.patient().Devices(ctx, keys)
	}
	if o.AutoProvision {
		p.registry.provision = func(ctx context.Context, devices []store.NewDevice) ([]pipeline.DeviceKey, error, error) {
			return p.patient().Provision(ctx, devices)
		}
	}
	for range o.Workers {
		p.workers = append(p.workers, newWorker(p))
	}
	p.metrics = newMetrics(o.Registry, func() float64 { return float64(p.waiting()) })
	return p, nil
}

func (p *Processor) waiting() int {
	n := 0
	for _, w := range p.workers {
		n += w.queue.Len()
	}
	return n
}

// SetSettings changes the checks' limits, for messages that are not judged yet. It
// refuses settings out of range and keeps the old ones.
func (p *Processor) SetSettings(s check.Settings) error {
	if err := validSettings(&s); err != nil {
		return err
	}
	p.current.Store(&s)
	return nil
}

// Settings are the checks' limits as they are now.
func (p *Processor) Settings() check.Settings { return *p.current.Load() }

// Submit hands a copy over to be processed and settled. It does not block. After
// Run has ended the copy is released.
func (p *Processor) Submit(d pipeline.Delivery) {
	p.inHand.Add(1)
	p.workerOf(&d).queue.Put(item{Delivery: d, at: time.Now()})
	if p.ended.Load() {
		p.releaseQueued()
	}
}

// Recent tells what this instance remembers of the copy's message. That it is not
// known to be durable means nothing: ask the ledger.
func (p *Processor) Recent(c *pipeline.Identity) pipeline.Known { return p.recent.known(c) }

// InHand is the number of copies submitted and not settled.
func (p *Processor) InHand() int { return int(p.inHand.Load()) }

// Health is nil while all messages can be written, and otherwise says why not. That
// the messages of some devices wait for a lock is told after a second or so.
func (p *Processor) Health() error { return cmp.Or(p.Writing(), p.SetAside()) }

// Writing is nil while batches can be written.
func (p *Processor) Writing() error {
	if p.failing.Load() > 0 {
		return *p.trouble.Load()
	}
	return nil
}

// SetAside is nil while no single message waits for somebody to mend what keeps it
// from being written. The others go on meanwhile.
func (p *Processor) SetAside() error {
	for _, w := range p.workers {
		if err := w.held.trouble(); err != nil {
			return err
		}
	}
	return nil
}

// Run works until ctx ends, once. What is in hand then is released, to come again.
func (p *Processor) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, w := range p.workers {
		wg.Go(func() { w.run(ctx) })
		wg.Go(func() { w.held.run(ctx) })
	}
	wg.Wait()
	p.ended.Store(true)
	p.releaseQueued()
	for _, w := range p.workers {
		w.held.releaseAll()
	}
}

// workerOf gives all messages of a device to one worker: so they stay in order, and
// workers do not wait for one another's locks.
func (p *Processor) workerOf(d *pipeline.Delivery) *worker {
	if len(p.workers) == 1 {
		return p.workers[0]
	}
	hint := pipeline.TopicHint(d)
	topic, ok := pipeline.ParseTopic(hint)
	if !ok {
		topic = pipeline.Topic{Tenant: hint}
	}
	return p.workers[deviceHash(p.seed, topic.Tenant, topic.Device)%uint64(len(p.workers))]
}

// deviceHash differs from process to process, so that nobody can aim at a value.
func deviceHash(seed maphash.Seed, tenant, device string) uint64 {
	return maphash.String(seed, tenant)*31 + maphash.String(seed, device)
}

func (p *Processor) releaseQueued() {
	for _, w := range p.workers {
		for _, it := range w.queue.Poll(nil, math.MaxInt) {
			p.release(&it)
		}
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
