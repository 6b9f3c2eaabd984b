package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/pipeline"
)

// MirrorConfig bounds the mirror's work.
type MirrorConfig struct {
	// MaxInFlight is how many envelopes may be published and not yet
	// confirmed by the server.
	MaxInFlight int
	// AckTimeout is how long a confirmation may take before the envelope is
	// published again. The stream may then hold it twice, which the ledger
	// makes harmless.
	AckTimeout time.Duration
	// RetryBase is the pause before the first retry; it doubles, with jitter,
	// up to 30 s.
	RetryBase time.Duration
	// Sentinel, if set, is told of every sentinel that was stored, and where. It must
	// not block.
	Sentinel func(pipeline.Sentinel, Mark)
	// Awaited, if set, tells whether steps between stages wait for what this mirror's
	// MQTT session brings: by which proof (0: none, so they may not), and until when by
	// this machine's clock. What came in under another proof than it is published under,
	// or is stored later, says in its header that no copy of it may be dropped. It is
	// asked twice for each message and must not block. nil: nothing is said.
	Awaited func() (proof uint64, until time.Time)
}

// DefaultMirrorConfig returns 4,000 in flight, confirmed within 10 s, retried
// from 100 ms on.
func DefaultMirrorConfig() MirrorConfig {
	return MirrorConfig{MaxInFlight: 4000, AckTimeout: 10 * time.Second, RetryBase: 100 * time.Millisecond}
}

// Validate names the first field that is out of range and its remedy.
func (c MirrorConfig) Validate() error {
	switch {
	case c.MaxInFlight < 1 || c.MaxInFlight > 100_000:
		return fmt.Errorf("field MaxInFlight: %d is out of range; use 1 to 100000", c.MaxInFlight)
	case c.AckTimeout < 100*time.Millisecond:
		return fmt.Errorf("field AckTimeout: %s is too short; use 100ms or more", c.AckTimeout)
	case c.RetryBase < time.Millisecond || c.RetryBase > backoffLimit:
		return fmt.Errorf("field RetryBase: %s is out of range; use 1ms to %s", c.RetryBase, backoffLimit)
	}
	return nil
}

// Mirror republishes deliveries of the MQTT path into JetStream as envelopes,
// and acknowledges each one only after the server has confirmed that it is
// stored. It knows no stages: every message goes, whichever path is
// authoritative.
//
// A sentinel is published only after the server has stored all that came before it by
// the same session: whoever finds it in a stream knows that those are there too.
//
// A mirror has no queue limit of its own: the source that feeds it stops at its
// window while receipts are outstanding.
type Mirror struct {
	conn *Conn
	js   natsjs.JetStream
	cfg  MirrorConfig
	log  *slog.Logger

	mu     sync.Mutex
	queue  []item
	ended  bool
	wake   chan struct{} // capacity 1
	warned warnedTenants

	received, published, downlink, unmirrorable, tooLarge atomic.Uint64
	retries, released, ackErrors                          atomic.Uint64
	waiting, inFlight                                     atomic.Int64
}

// MirrorStats counts what a mirror did. Received is Published + Downlink +
// Unmirrorable + TooLarge + Released + Waiting + InFlight.
type MirrorStats struct {
	Received     uint64
	Published    uint64 // stored by the server, and acknowledged
	Downlink     uint64 // our own messages to devices: acknowledged, not published
	Unmirrorable uint64 // no subject for their tenant: acknowledged, not published
	TooLarge     uint64 // refused for their size: acknowledged, not published
	Retries      uint64 // publishes that failed and were tried again
	Released     uint64 // given back at the end
	AckErrors    uint64 // receipts that could not be acknowledged: they come again
	Waiting      int64  // delivered and not published yet, or to be retried
	InFlight     int64  // published and not confirmed yet
}

// NewMirror returns a mirror that keeps what it is given until Run. The error is
// for an invalid configuration.
func NewMirror(conn *Conn, cfg MirrorConfig, log *slog.Logger) (*Mirror, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("mirror: %w", err)
	}
	js, err := natsjs.New(conn.nc,
		natsjs.WithPublishAsyncTimeout(cfg.AckTimeout),
		// Our own bound comes first: nats.go's makes the publisher wait.
		natsjs.WithPublishAsyncMaxPending(2*cfg.MaxInFlight))
	if err != nil {
		return nil, fmt.Errorf("mirror: %w", err)
	}
	return &Mirror{conn: conn, js: js, cfg: cfg, log: log, wake: make(chan struct{}, 1)}, nil
}

// Deliver takes one copy of the MQTT path. It never blocks, and may be called
// from several goroutines. After Run has ended copies are given back at once.
func (m *Mirror) Deliver(d pipeline.Delivery) {
	if s, ok := pipeline.SentinelOf(&d); ok && s.Nonce != "" {
		m.deliverSentinel(d, s)
		return
	}
	m.enqueue(d)
}

// deliverSentinel waits until all that came before is stored and acknowledged. What
// gets lost between that and its own storing is only the sentinel.
func (m *Mirror) deliverSentinel(d pipeline.Delivery, s pipeline.Sentinel) {
	r, ok := d.Receipt.(pipeline.OrderedReceipt)
	if !ok {
		m.enqueue(d)
		return
	}
	d.Receipt = passed{r, s}
	if err := r.AckThen(func() { m.enqueue(d) }); err != nil {
		m.ackErrors.Add(1) // it comes again, or came ahead of others and proves nothing
	}
}

// passed is the receipt of a sentinel that is acknowledged already.
type passed struct {
	pipeline.Receipt
	sentinel pipeline.Sentinel
}

func (passed) Ack() error     { return nil }
func (passed) Release() error { return nil }

func (m *Mirror) enqueue(d pipeline.Delivery) {
	m.received.Add(1)
	var proof uint64
	if m.cfg.Awaited != nil {
		proof, _ = m.cfg.Awaited()
	}
	m.mu.Lock()
	if m.ended {
		m.mu.Unlock()
		m.release(d)
		return
	}
	m.queue = append(m.queue, item{delivery: d, proof: proof})
	first := len(m.queue) == 1
	m.waiting.Add(1)
	m.mu.Unlock()
	if first {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

// Health is nil while envelopes can be published.
func (m *Mirror) Health() error { return m.conn.Health() }

// Stats returns the counters.
func (m *Mirror) Stats() MirrorStats {
	return MirrorStats{
		Received: m.received.Load(), Published: m.published.Load(), Downlink: m.downlink.Load(),
		Unmirrorable: m.unmirrorable.Load(), TooLarge: m.tooLarge.Load(), Retries: m.retries.Load(),
		Released: m.released.Load(), AckErrors: m.ackErrors.Load(),
		Waiting: m.waiting.Load(), InFlight: m.inFlight.Load(),
	}
}

// item is one message on its way.
type item struct {
	delivery pipeline.Delivery
	proof    uint64    // by which the session was awaited when it arrived; 0: by none
	msg      *nats.Msg // nil until the envelope is built
	future   natsjs.PubAckFuture
	attempt  int
	due      time.Time // of the next attempt
}

// Run publishes until ctx ends, then waits up to a second for confirmations
// that are on their way and gives the rest back. It returns nil.
func (m *Mirror) Run(ctx context.Context) error {
	w := &mirrorRun{m: m}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	defer m.js.CleanupPublisher()
	for ctx.Err() == nil {
		w.publishDue()
		var head natsjs.PubAckFuture = noFuture{}
		if len(w.inFlight) > 0 {
			head = w.inFlight[0].future
		}
		select {
		case <-ctx.Done():
		case <-m.wake:
		case ack := <-head.Ok():
			w.confirmed(w.inFlight[0], ack)
			w.inFlight = w.inFlight[1:]
			w.sweep(false)
		case err := <-head.Err():
			w.failed(w.inFlight[0], err)
			w.inFlight = w.inFlight[1:]
			w.sweep(false)
		case <-tick.C:
			w.sweep(true)
		}
		m.inFlight.Store(int64(len(w.inFlight)))
	}
	w.finish(context.WithoutCancel(ctx))
	return nil
}

// noFuture never completes.
type noFuture struct{ natsjs.PubAckFuture }

func (noFuture) Ok() <-chan *natsjs.PubAck { return nil }
func (noFuture) Err() <-chan error         { return nil }

// settleTimes of a run.
const (
	sweepEvery  = 100 * time.Millisecond
	finishGrace = time.Second
)

func (m *Mirror) release(d pipeline.Delivery) {
	m.released.Add(1)
	if err := d.Receipt.Release(); err != nil {
		m.ackErrors.Add(1)
	}
}

// done acknowledges a message and counts it as what it turned out to be.
func (m *Mirror) done(d pipeline.Delivery, as *atomic.Uint64) {
	as.Add(1)
	if err := d.Receipt.Ack(); err != nil {
		m.ackErrors.Add(1)
	}
}

// refusedForSize reports whether no retry can get the envelope stored.
func refusedForSize(err error) bool {
	if errors.Is(err, nats.ErrMaxPayload) {
		return true
	}
	var api *natsjs.APIError
	return errors.As(err, &api) && api.ErrorCode == natsjs.JSErrCodeStreamMessageExceedsMaximum
}
