package process

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

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

// worker runs one batch at a time, of the devices that are its own.
type worker struct {
	*Processor
	queue    *batchqueue.Queue[item]
	decoder  *pipeline.Decoder
	limiter  *limiter
	settings *check.Settings // of this batch
	items    []item
	messages []pipeline.Message
	entries  []store.Entry
	origin   []*item // of each entry
	unjudged []int   // entries whose device is not in the cache,
	devices  wanted  // and those devices
	durable  []pipeline.Identity
}

func newWorker(p *Processor) *worker {
	return &worker{
		Processor: p,
		queue:     batchqueue.New[item](),
		decoder:   pipeline.NewDecoder(p.options.IDMember),
		messages:  make([]pipeline.Message, p.options.BatchSize),
		limiter:   newLimiter(maxLimited/p.options.Workers, p.seed),
		devices:   make(wanted),
	}
}

func (w *worker) run(ctx context.Context) {
	for ctx.Err() == nil {
		clear(w.items)
		w.items = w.queue.Take(ctx, w.items[:0], w.options.BatchSize, w.options.Linger)
		if len(w.items) == 0 {
			continue
		}
		w.metrics.batch.Observe(float64(len(w.items)))
		w.batch(ctx)
		for i := range w.items {
			w.messages[i].Forget()
		}
	}
}

// batch settles every item, one way or the other.
func (w *worker) batch(ctx context.Context) {
	w.read()
	if err := w.check(ctx); err != nil {
		w.releaseAll(w.origin)
		return
	}
	if err := w.matchRoutes(ctx); err != nil {
		w.releaseAll(w.origin)
		return
	}
	w.write(ctx, w.entries, w.origin)
}

// read decodes the items, sets aside those that need no transaction (downlink,
// sentinels, and copies of what is known to be durable) and gives the others their
// verdict at once, where the cache knows the device: what was just decoded is in
// the CPU's cache too, and is not a batch later.
func (w *worker) read() {
	w.entries, w.origin, w.unjudged = w.entries[:0], w.origin[:0], w.unjudged[:0]
	clear(w.devices)
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
			w.entries = append(w.entries, store.Entry{Msg: m})
			w.origin = append(w.origin, it)
			w.judge(len(w.entries)-1, now)
		}
	}
}

// judge gives an entry its verdict, or notes that its device must be asked for.
func (w *worker) judge(i int, now time.Time) {
	e := &w.entries[i]
	v := check.Content(check.Input{Message: e.Msg, Settings: w.settings, Now: now})
	if e.Reason, e.Detail, e.Metered = v.Reason, v.Detail, v.Metered; v.Reason != pipeline.Accepted {
		return
	}
	if device, ok := w.registry.cached(now, e.Msg); ok {
		w.checkRegistry(e, device, now)
		return
	}
	w.devices.add(e.Msg)
	w.unjudged = append(w.unjudged, i)
}

func (w *worker) checkRegistry(e *store.Entry, device *pipeline.Device, now time.Time) {
	e.Device = device
	v := check.Registry(check.Input{Message: e.Msg, Device: device, Settings: w.settings, Now: now})
	e.Reason, e.Detail, e.Metered = v.Reason, v.Detail, v.Metered
}

// check gives the entries that are left their verdict. It returns an error only
// when ctx ended.
func (w *worker) check(ctx context.Context) error {
	if len(w.unjudged) == 0 {
		return nil
	}
	if err := w.retry(ctx, func() error { return w.registry.lookup(ctx, time.Now(), w.devices) }); err != nil {
		return err
	}
	now := time.Now()
	for _, i := range w.unjudged {
		e := &w.entries[i]
		w.checkRegistry(e, w.devices.of(e.Msg), now)
	}
	return nil
}

// write commits entries and acknowledges their items. Where PostgreSQL refuses
// the data it halves the batch until the culprit stands alone, and quarantines that.
func (w *worker) write(ctx context.Context, entries []store.Entry, origin []*item) {
	if len(entries) == 0 {
		return
	}
	err := w.retry(ctx, func() error { return w.store.CommitMetered(ctx, entries, w.limiter.charge) })
	switch {
	case err == nil:
		w.limiter.refund(entries)
		w.settle(entries, origin)
	case !errors.Is(err, store.ErrData):
		w.releaseAll(origin)
	case len(entries) > 1:
		half := len(entries) / 2
		w.write(ctx, entries[:half], origin[:half])
		w.write(ctx, entries[half:], origin[half:])
	case entries[0].Reason == pipeline.Accepted:
		entries[0].Reason, entries[0].Detail = refused(entries[0].Msg.Kind), store.Detail(err)
		w.write(ctx, entries, origin)
	case !entries[0].Bare:
		entries[0].Bare = true
		entries[0].Detail += store.Shortened + store.Detail(err)
		w.write(ctx, entries, origin)
	default:
		w.hold(entries[0], *origin[0], err)
	}
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

// settle tells what is durable now, and acknowledges it. An anonymous or explicit
// copy that was not fresh is not told: the ledger holds when the first copy
// occurred and what it said, and judging later ones by this one would stretch the
// window, or take the wrong content for the one that counted.
func (w *worker) settle(entries []store.Entry, origin []*item) {
	w.durable = w.finish(w.durable[:0], entries, origin)
}

// finish appends to durable what is durable now.
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

func (w *worker) releaseAll(items []*item) {
	for _, it := range items {
		w.release(it)
	}
}

// retry is Processor.retry with a word on the batch.
func (w *worker) retry(ctx context.Context, f func() error) error {
	return w.Processor.retry(ctx, len(w.items), f)
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
		wait(ctx, delay/2+rand.N(delay/2+1))
		delay = min(2*delay, lastRetry)
	}
}

// wait lets d pass, unless ctx ends before.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
