package process

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// How long to wait before a batch is run again.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// worker runs one batch at a time in memory that it keeps.
type worker struct {
	*Processor
	decoder  *pipeline.Decoder
	items    []item
	messages []pipeline.Message
	entries  []store.Entry
	origin   []int // the item of each entry
	devices  map[pipeline.DeviceKey]*pipeline.Device
	durable  []pipeline.Identity
}

func newWorker(p *Processor) *worker {
	return &worker{
		Processor: p,
		decoder:   pipeline.NewDecoder(p.options.IDMember),
		messages:  make([]pipeline.Message, p.options.BatchSize),
		devices:   make(map[pipeline.DeviceKey]*pipeline.Device),
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
	}
}

// batch settles every item, one way or the other.
func (w *worker) batch(ctx context.Context) {
	w.read()
	if err := w.check(ctx); err != nil {
		w.releaseAll()
		return
	}
	w.write(ctx, w.entries, w.origin)
}

// read decodes the items and sets aside those that need no transaction: downlink
// messages, and copies of what is known to be durable.
func (w *worker) read() {
	w.entries, w.origin = w.entries[:0], w.origin[:0]
	now := time.Now()
	for i := range w.items {
		it, m := &w.items[i], &w.messages[i]
		w.decoder.Decode(m, &it.Delivery)
		switch {
		case m.Kind == pipeline.KindDownlink && m.Failed != pipeline.TenantMismatchEnvelope:
			w.metrics.byPath[it.Path].ignored.Inc()
			w.ack(it, now)
		case w.recent.holds(&m.Identity):
			w.metrics.byPath[it.Path].duplicate.Inc()
			w.ack(it, now)
		default:
			w.entries = append(w.entries, store.Entry{Msg: m})
			w.origin = append(w.origin, i)
		}
	}
}

// check gives every entry its verdict. It returns an error only when ctx ended.
func (w *worker) check(ctx context.Context) error {
	s := &w.options.Settings
	clear(w.devices)
	for i := range w.entries {
		e := &w.entries[i]
		if e.Reason, e.Detail = check.Content(e.Msg, s); e.Reason == pipeline.Accepted {
			w.devices[pipeline.DeviceKey{Tenant: e.Msg.Tenant, Device: e.Msg.Device}] = nil
		}
	}
	if len(w.devices) == 0 {
		return nil
	}
	if err := w.retry(ctx, func() error { return w.registry.lookup(ctx, time.Now(), w.devices) }); err != nil {
		return err
	}
	for i := range w.entries {
		e := &w.entries[i]
		if e.Reason != pipeline.Accepted {
			continue
		}
		device := w.devices[pipeline.DeviceKey{Tenant: e.Msg.Tenant, Device: e.Msg.Device}]
		if e.Reason, e.Detail = check.Registry(e.Msg, device, s); e.Reason == pipeline.Accepted {
			e.Site = device.Site
		}
	}
	return nil
}

// write commits entries and acknowledges their items. Where PostgreSQL refuses
// the data it halves the batch until the culprit stands alone, and quarantines that.
func (w *worker) write(ctx context.Context, entries []store.Entry, origin []int) {
	if len(entries) == 0 {
		return
	}
	err := w.retry(ctx, func() error { return w.store.Commit(ctx, entries) })
	switch {
	case err == nil:
		w.settle(entries, origin)
	case !errors.Is(err, store.ErrData):
		for _, i := range origin {
			w.release(&w.items[i])
		}
	case len(entries) > 1:
		half := len(entries) / 2
		w.write(ctx, entries[:half], origin[:half])
		w.write(ctx, entries[half:], origin[half:])
	case entries[0].Reason == pipeline.Accepted:
		entries[0].Reason, entries[0].Detail = pipeline.MetricValueInvalid, store.Detail(err)
		w.write(ctx, entries, origin)
	default:
		w.unquarantinable(ctx, entries, origin, err)
	}
}

// unquarantinable holds a message whose very quarantine row is refused: giving it
// up would lose it, so it is tried again until somebody mends the table.
func (w *worker) unquarantinable(ctx context.Context, entries []store.Entry, origin []int, err error) {
	w.log.Error("PostgreSQL refuses a quarantine row; the message is held until it takes it: look for constraints or triggers on quarantine_events",
		"message_id", entries[0].Msg.ID.String(), "tenant", entries[0].Msg.Tenant, "reason", entries[0].Reason, "error", err)
	wait(ctx, lastRetry)
	if ctx.Err() != nil {
		w.release(&w.items[origin[0]])
		return
	}
	w.write(ctx, entries, origin)
}

// settle tells what is durable now, and acknowledges it. An anonymous copy that
// was not fresh is not told: the ledger holds when the first copy occurred, and
// judging later ones by this one would stretch the window.
func (w *worker) settle(entries []store.Entry, origin []int) {
	w.durable = w.durable[:0]
	for i := range entries {
		if e := &entries[i]; e.Fresh || !e.Msg.Anonymous {
			w.durable = append(w.durable, e.Msg.Identity)
		}
	}
	w.recent.add(w.durable)
	w.options.Committed(w.durable)
	now := time.Now()
	for i := range entries {
		e, it := &entries[i], &w.items[origin[i]]
		p := &w.metrics.byPath[it.Path]
		switch {
		case !e.Fresh:
			p.duplicate.Inc()
		case e.Reason != pipeline.Accepted:
			p.quarantined.Inc()
			w.metrics.quarantined.WithLabelValues(string(e.Reason)).Inc()
		default:
			p.written.Inc()
		}
		w.ack(it, now)
	}
}

func (w *worker) releaseAll() {
	for _, i := range w.origin {
		w.release(&w.items[i])
	}
}

// retry runs f until it succeeds, PostgreSQL refuses the data, or ctx ends. All
// other trouble holds what is in hand: no delivery is given back and none is
// acknowledged, and Health says why.
func (w *worker) retry(ctx context.Context, f func() error) error {
	delay := firstRetry
	for {
		err := f()
		if err == nil || errors.Is(err, store.ErrData) {
			w.trouble.Store(nil)
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.metrics.retries.Inc()
		if w.trouble.Swap(&err) == nil {
			w.log.Warn("a batch cannot be written and is held; trying again until it can", "messages", len(w.items), "error", err)
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
