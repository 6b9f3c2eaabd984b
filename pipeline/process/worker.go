package process

import (
	"context"
	"errors"
	"fmt"
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
	origin   []int                                   // the item of each entry
	unjudged []int                                   // entries whose device is not in the cache,
	devices  map[pipeline.DeviceKey]*pipeline.Device // and those devices
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

// read decodes the items, sets aside those that need no transaction (downlink
// messages, and copies of what is known to be durable) and gives the others their
// verdict at once, where the cache knows the device: what was just decoded is in
// the CPU's cache too, and is not a batch later.
func (w *worker) read() {
	w.entries, w.origin, w.unjudged = w.entries[:0], w.origin[:0], w.unjudged[:0]
	clear(w.devices)
	now := time.Now()
	for i := range w.items {
		it, m := &w.items[i], &w.messages[i]
		w.decoder.Decode(m, &it.Delivery)
		switch {
		case m.Kind == pipeline.KindDownlink:
			w.metrics.byPath[it.Path].ignored.Inc()
			w.ack(it, now)
		case w.recent.holds(&m.Identity):
			w.metrics.byPath[it.Path].duplicate.Inc()
			w.ack(it, now)
		default:
			w.entries = append(w.entries, store.Entry{Msg: m})
			w.origin = append(w.origin, i)
			w.judge(len(w.entries)-1, now)
		}
	}
}

// judge gives an entry its verdict, or notes that its device must be asked for.
func (w *worker) judge(i int, now time.Time) {
	e := &w.entries[i]
	if e.Reason, e.Detail = check.Content(e.Msg, &w.options.Settings); e.Reason != pipeline.Accepted {
		return
	}
	key := pipeline.DeviceKey{Tenant: e.Msg.Tenant, Device: e.Msg.Device}
	if device, ok := w.registry.cached(now, key); ok {
		w.checkRegistry(e, device)
		return
	}
	w.devices[key] = nil
	w.unjudged = append(w.unjudged, i)
}

func (w *worker) checkRegistry(e *store.Entry, device *pipeline.Device) {
	e.Device = device
	e.Reason, e.Detail = check.Registry(e.Msg, device, &w.options.Settings)
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
	for _, i := range w.unjudged {
		e := &w.entries[i]
		w.checkRegistry(e, w.devices[pipeline.DeviceKey{Tenant: e.Msg.Tenant, Device: e.Msg.Device}])
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
		entries[0].Reason, entries[0].Detail = refused(entries[0].Msg.Kind), store.Detail(err)
		w.write(ctx, entries, origin)
	case !entries[0].Bare:
		entries[0].Bare = true
		entries[0].Detail += "; the row is shortened: " + store.Detail(err)
		w.write(ctx, entries, origin)
	default:
		w.unquarantinable(ctx, entries, origin, err)
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

// unquarantinable holds a message whose very quarantine row is refused: giving it
// up would lose it, so it is tried again until somebody mends the table.
func (w *worker) unquarantinable(ctx context.Context, entries []store.Entry, origin []int, err error) {
	defer w.stuck.Store(nil)
	for {
		w.log.Error("PostgreSQL refuses a quarantine row; the message is held until it takes it: look for constraints or triggers on quarantine_events",
			"message_id", entries[0].Msg.ID.String(), "tenant", entries[0].Msg.Tenant, "reason", entries[0].Reason, "error", err)
		held := fmt.Errorf("a message can be neither written nor quarantined; mend the constraints or triggers of quarantine_events: %w", err)
		w.stuck.Store(&held)
		wait(ctx, lastRetry)
		err = w.retry(ctx, func() error { return w.store.Commit(ctx, entries) })
		switch {
		case err == nil:
			w.settle(entries, origin)
			return
		case !errors.Is(err, store.ErrData):
			w.release(&w.items[origin[0]])
			return
		}
	}
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
	delay, failing := firstRetry, false
	defer func() {
		if failing {
			w.failing.Add(-1)
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
		w.metrics.retries.Inc()
		w.trouble.Store(&err)
		if !failing {
			failing = true
			w.failing.Add(1)
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
