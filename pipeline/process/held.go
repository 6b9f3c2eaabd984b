package process

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// held are the messages that a worker has set aside, to try them again by themselves
// while it goes on with others: those of devices of which another session has locked
// a row, and those whose very quarantine row PostgreSQL refuses. A device's messages
// stand in line, which its later ones join at the end, so that they stay in order.
// There is no bound but what the sources have in hand.
type held struct {
	batch   *batch // of the goroutine that tries again
	decoder *pipeline.Decoder

	mu      sync.Mutex
	lines   map[pipeline.DeviceKey]*line
	order   []*line       // the same, the one tried longest ago first
	refused line          // of messages of any device, behind which nobody waits; why is nil when there are none
	wake    chan struct{} // holds a token after something was set aside
}

// line are the messages of one device. There is one as long as the device has
// messages that are set aside, those that are being tried included.
type line struct {
	key      pipeline.DeviceKey
	why      error
	since    time.Time // when it last moved
	told     bool      // that it does not
	quota    int       // how many messages are tried next: one after a failure, then more
	messages []parked
}

// tellAfter is how long a line stands still before the operator is told.
const tellAfter = time.Second

func newHeld(p *Processor, l *limiter) *held {
	return &held{batch: newBatch(p, l), decoder: pipeline.NewDecoder(p.options.IDMember),
		lines: make(map[pipeline.DeviceKey]*line), refused: line{quota: 1}, wake: make(chan struct{}, 1)}
}

// queues returns why the message's device has a line, and nil if it has none.
func (h *held) queues(m *pipeline.Message) error {
	if h.batch.locks.Load() == 0 {
		return nil // there are no lines
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if l := h.lines[keyOf(m)]; l != nil {
		return l.why
	}
	return nil
}

// keep takes over what the worker's batch has left.
func (h *held) keep(b *batch) {
	if len(b.blocked) == 0 && len(b.refused) == 0 {
		return
	}
	h.mu.Lock()
	for k, left := range b.blocked {
		if len(left.messages) > 0 {
			l := h.line(k, left.why)
			l.messages = append(l.messages, left.messages...)
		}
	}
	h.keepRefused(b)
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// line returns the device's line, a new one if it had none.
func (h *held) line(k pipeline.DeviceKey, why error) *line {
	l := h.lines[k]
	if l == nil {
		k = pipeline.DeviceKey{Tenant: strings.Clone(k.Tenant), Device: strings.Clone(k.Device)}
		l = &line{key: k, why: why, since: time.Now(), quota: 1}
		h.lines[k] = l
		h.order = append(h.order, l)
		h.batch.locks.Add(1)
	}
	return l
}

func (h *held) keepRefused(b *batch) {
	if len(b.refused) > 0 {
		h.refused.messages, h.refused.why = append(h.refused.messages, b.refused...), b.refusal
	}
}

// run tries what is set aside until ctx ends.
func (h *held) run(ctx context.Context) {
	delay := firstRetry
	for ctx.Err() == nil {
		if h.empty() {
			delay = firstRetry
			select {
			case <-ctx.Done():
				return
			case <-h.wake:
			}
		}
		backoff.Sleep(ctx, backoff.Jitter(delay))
		if ctx.Err() == nil && h.try(ctx) {
			delay = firstRetry
		} else {
			delay = min(2*delay, lastRetry)
		}
		h.tell(ctx)
	}
}

func (h *held) empty() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.order) == 0 && len(h.refused.messages) == 0
}

// try runs a batch of what is set aside, and reports whether any of it was settled.
func (h *held) try(ctx context.Context) (moved bool) {
	b := h.batch
	tried := h.take()
	b.limiter.begin(time.Now(), b.current.Load())
	n := len(b.entries)
	b.run(ctx)
	left := len(b.refused)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keepRefused(b)
	h.refused.grow(len(b.refused) == 0)
	if len(h.refused.messages) == 0 {
		h.refused.why = nil
	}
	for k, back := range b.blocked {
		left += len(back.messages)
		l := h.line(k, back.why) // of a refused message's device it may be a new one
		l.why, l.messages = back.why, append(back.messages, l.messages...)
	}
	for _, l := range tried {
		went := b.blocked[l.key] == nil
		if l.grow(went); went {
			l.since, l.told = time.Now(), false
		}
		if len(l.messages) == 0 {
			h.close(l)
		}
	}
	clear(b.entries[:cap(b.entries)]) // let go of the messages
	clear(b.origin[:cap(b.origin)])
	return left < n
}

// grow sets how many of the line's messages are tried next: a line that does not
// move is not worth decoding all of it again and again.
func (l *line) grow(went bool) {
	if went {
		l.quota = min(8*l.quota, 10_000)
	} else {
		l.quota = 1
	}
}

func (h *held) close(l *line) {
	delete(h.lines, l.key)
	h.order = slices.DeleteFunc(h.order, func(o *line) bool { return o == l })
	h.batch.locks.Add(-1)
}

// take fills the batch with the messages of the lines that were tried longest ago,
// and puts those lines last.
func (h *held) take() (tried []*line) {
	b := h.batch
	b.reset()
	h.mu.Lock()
	defer h.mu.Unlock()
	room := maxBatchBytes
	h.takeFrom(&h.refused, b.options.BatchSize, &room)
	limit := len(b.entries) + b.options.BatchSize
	room = maxBatchBytes
	for _, l := range h.order {
		if room <= 0 || len(b.entries) >= limit {
			break
		}
		h.takeFrom(l, limit, &room)
		tried = append(tried, l)
	}
	h.order = append(h.order[len(tried):], tried...)
	return tried
}

// takeFrom moves messages into the batch until it holds limit, or there is no room
// in bytes.
func (h *held) takeFrom(l *line, limit int, room *int) {
	b, n := h.batch, 0
	for ; n < min(len(l.messages), l.quota) && len(b.entries) < limit && *room > 0; n++ {
		m := l.messages[n]
		*room -= m.item.bytes()
		m.entry.Msg = new(pipeline.Message)
		h.decoder.Decode(m.entry.Msg, &m.item.Delivery)
		b.add(m.entry, m.item)
		if m.entry.Reason == pipeline.Accepted && m.entry.Device == nil {
			b.ask(len(b.entries) - 1)
		}
	}
	l.messages = slices.Clone(l.messages[n:])
}

const mendEntry = "mend its rows in device_registry, device_certificates or device_tiers"

// tell logs the line that has stood still for the longest and was not logged yet.
func (h *held) tell(ctx context.Context) {
	var oldest *line
	h.mu.Lock()
	for _, l := range h.order {
		if !l.told && time.Since(l.since) > tellAfter && (oldest == nil || l.since.Before(oldest.since)) {
			oldest = l
		}
	}
	if oldest == nil {
		h.mu.Unlock()
		return
	}
	oldest.told = true
	key, why, devices := oldest.key, oldest.why, len(h.order)
	h.mu.Unlock()
	if !errors.Is(why, store.ErrLocked) {
		h.batch.log.Warn("what the registry says of a device cannot be read, and its messages wait until it can: "+mendEntry,
			"tenant", key.Tenant, "device", key.Device, "devices_waiting", devices, "error", why)
		return
	}
	pid, err := h.batch.store.LockHolder(ctx, key)
	if err != nil {
		pid = 0 // why it is not known is of no use to anybody
	}
	h.batch.log.Warn("a device's messages wait for a row that another session has locked, and are tried again until it is free: look for a long transaction (pg_stat_activity) and end it",
		"tenant", key.Tenant, "device", key.Device, "holder_pid", pid, "devices_waiting", devices, "error", why)
}

// trouble is what keeps messages set aside, nil where it is not worth telling.
func (h *held) trouble() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refused.why != nil { // while they are being tried there are no messages
		return fmt.Errorf("a message can be neither written nor quarantined; mend the constraints or triggers of quarantine_events: %w", h.refused.why)
	}
	for _, l := range h.order {
		switch {
		case !l.told:
		case !errors.Is(l.why, store.ErrLocked):
			return fmt.Errorf("what the registry says of tenant %q, device %q cannot be read, and its messages wait for %v by now (%d devices wait, all others go on); %s: %w",
				l.key.Tenant, l.key.Device, time.Since(l.since).Round(time.Second), len(h.order), mendEntry, l.why)
		default:
			return fmt.Errorf("another session has locked a row that messages of tenant %q, device %q need, for %v by now (%d devices wait, all others go on); look for a long transaction in pg_stat_activity and end it: %w",
				l.key.Tenant, l.key.Device, time.Since(l.since).Round(time.Second), len(h.order), l.why)
		}
	}
	return nil
}

// releaseAll gives back what is set aside, once nobody works on it any more.
func (h *held) releaseAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range slices.Clone(h.order) {
		for _, m := range l.messages {
			h.batch.release(m.item)
		}
		h.close(l)
	}
	for _, m := range h.refused.messages {
		h.batch.release(m.item)
	}
	h.refused.messages, h.refused.why = nil, nil
}
