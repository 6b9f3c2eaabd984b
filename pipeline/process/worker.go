package process

import (
	"context"
	"errors"
	"time"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/internal/batchqueue"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// How long to wait before a batch is run again.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// maxBatchBytes bounds the bodies of a batch, unless a single one is longer. Decoded
// they may take twelve times as much, all of them at once.
const maxBatchBytes = 16 << 20

// worker runs one batch at a time, of the devices that are its own, and beside it
// tries again what it had to set aside.
type worker struct {
	*Processor
	queue    *batchqueue.Queue[item]
	decoder  *pipeline.Decoder
	limiter  *limiter
	settings *check.Settings // of this batch
	items    []item
	messages []pipeline.Message
	batch    *batch
	held     *held
}

func newWorker(p *Processor) *worker {
	w := &worker{
		Processor: p,
		queue:     batchqueue.New[item](),
		decoder:   pipeline.NewDecoder(p.options.IDMember),
		messages:  make([]pipeline.Message, p.options.BatchSize),
		limiter:   newLimiter(maxLimited/p.options.Workers, p.seed),
	}
	w.batch = newBatch(p, w.limiter)
	w.held = newHeld(p, w.limiter)
	return w
}

func (w *worker) run(ctx context.Context) {
	for ctx.Err() == nil {
		clear(w.items)
		w.items = w.queue.TakeWeighed(ctx, w.items[:0], w.options.BatchSize, w.options.Linger, (*item).bytes, maxBatchBytes)
		if len(w.items) == 0 {
			continue
		}
		w.metrics.batch.Observe(float64(len(w.items)))
		w.read()
		w.batch.run(ctx)
		w.held.keep(w.batch)
		for i := range w.items {
			w.messages[i].Forget()
		}
	}
}

// read decodes the items, sets aside those that need no transaction (downlink,
// sentinels, and copies of what is known to be durable) and gives the others their
// verdict at once, where the cache knows the device: what was just decoded is in
// the CPU's cache too, and is not a batch later.
func (w *worker) read() {
	w.batch.reset()
	now := time.Now()
	w.settings = w.current.Load()
	w.limiter.begin(now, w.settings)
	for i := range w.items {
		it, m := &w.items[i], &w.messages[i]
		w.decoder.Decode(m, &it.Delivery)
		switch {
		case m.Kind.Ignored():
			w.metrics.byPath[it.Path].ignored.Inc()
			w.ack(it, now)
		case w.recent.holds(&m.Identity):
			w.metrics.byPath[it.Path].duplicate.Inc()
			w.ack(it, now)
		default:
			waits := w.held.queues(m)
			w.batch.add(store.Entry{Msg: m}, it)
			w.judge(len(w.batch.entries)-1, now, waits)
		}
	}
}

// judge gives an entry its verdict, or notes that its device must be asked for. One
// that waits behind others of its device is judged by its content only.
func (w *worker) judge(i int, now time.Time, waits error) {
	e := &w.batch.entries[i]
	v := check.Content(check.Input{Message: e.Msg, Settings: w.settings, Now: now})
	e.Reason, e.Detail, e.Metered = v.Reason, v.Detail, v.Metered
	switch {
	case waits != nil:
		w.batch.block(keyOf(e.Msg), waits)
	case v.Reason != pipeline.Accepted:
	default:
		if device, ok := w.registry.cached(now, e.Msg); ok {
			checkRegistry(e, device, w.settings, now)
		} else {
			w.batch.ask(i)
		}
	}
}

func checkRegistry(e *store.Entry, device *pipeline.Device, s *check.Settings, now time.Time) {
	e.Device = device
	v := check.Registry(check.Input{Message: e.Msg, Device: device, Settings: s, Now: now})
	e.Reason, e.Detail, e.Metered = v.Reason, v.Detail, v.Metered
}

// refused is the reason for a message that passed the checks but not PostgreSQL's.
func refused(k pipeline.Kind) pipeline.Reason {
	switch k {
	case pipeline.KindShadow:
		return pipeline.ShadowInvalid
	case pipeline.KindCommandAck:
		return pipeline.CommandAckInvalid
	}
	return pipeline.MetricValueInvalid
}

// finish tells what is durable now, and acknowledges it. An anonymous or explicit
// copy that was not fresh is not told: the ledger holds when the first copy
// occurred and what it said, and judging later ones by this one would stretch the
// window, or take the wrong content for the one that counted. durable is memory for
// it to use.
func (p *Processor) finish(durable []pipeline.Identity, entries []store.Entry, origin []*item) []pipeline.Identity {
	for i := range entries {
		if e := &entries[i]; e.Fresh || !e.Msg.Anonymous && !e.Msg.Explicit {
			durable = append(durable, e.Msg.Identity)
		}
	}
	p.recent.add(durable)
	p.options.Committed(durable)
	now := time.Now()
	for i := range entries {
		e, it := &entries[i], origin[i]
		m := &p.metrics.byPath[it.Path]
		switch {
		case !e.Fresh:
			m.duplicate.Inc()
		case e.Reason != pipeline.Accepted:
			m.quarantined.Inc()
			p.metrics.quarantined.WithLabelValues(string(e.Reason)).Inc()
		default:
			m.written.Inc()
		}
		p.ack(it, now)
	}
	return durable
}

func (p *Processor) releaseAll(items []*item) {
	for _, it := range items {
		p.release(it)
	}
}

// retry runs f until it succeeds, PostgreSQL refuses the data, or ctx ends. All
// other trouble holds what is in hand: no delivery is given back and none is
// acknowledged, and Health says why.
func (p *Processor) retry(ctx context.Context, messages int, f func() error) error {
	delay, failing := firstRetry, false
	defer func() {
		if failing {
			p.failing.Add(-1)
		}
	}()
	for {
		err := f()
		if err == nil || errors.Is(err, store.ErrData) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.metrics.retries.Inc()
		p.trouble.Store(&err)
		if !failing {
			failing = true
			p.failing.Add(1)
			p.log.Warn("a batch cannot be written and is held; trying again until it can", "messages", messages, "error", err)
		}
		backoff.Sleep(ctx, backoff.Jitter(delay))
		delay = min(2*delay, lastRetry)
	}
}
