package process

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

const (
	// briefly is how long a transaction waits for a lock while another session is
	// known to hold one: whoever waits holds up others, and can come again.
	briefly = 100 * time.Millisecond
	// maxLocked bounds how often a batch runs into locks before all of it that did is
	// set aside, the innocent with the others: 3.2 s at most.
	maxLocked = 32
)

// batch are entries on their way into PostgreSQL. It is run by one goroutine.
type batch struct {
	*Processor
	limiter  *limiter
	entries  []store.Entry
	origin   []*item // of each entry
	unjudged []int   // entries whose device is not in the cache,
	devices  wanted  // and those devices
	durable  []pipeline.Identity

	blocked map[pipeline.DeviceKey]*blocked // devices whose messages have to wait
	refused []parked                        // messages that cannot even be quarantined
	refusal error
	locked  int // how often it ran into a lock,
	unread  int // and into a device that cannot be read
}

// blocked are messages of one device in their order, and why they wait.
type blocked struct {
	why      error
	messages []parked
}

// parked is an entry without its message, which is decoded again: what is set aside
// takes no more memory than the delivery itself. An accepted one without a Device is
// not judged yet.
type parked struct {
	entry store.Entry
	item  *item
}

func newBatch(p *Processor, l *limiter) *batch {
	return &batch{Processor: p, limiter: l, devices: make(wanted), blocked: make(map[pipeline.DeviceKey]*blocked)}
}

func (b *batch) reset() {
	b.entries, b.origin, b.unjudged = b.entries[:0], b.origin[:0], b.unjudged[:0]
	clear(b.devices)
	clear(b.blocked)
	b.refused, b.refusal, b.locked, b.unread = nil, nil, 0, 0
}

func (b *batch) add(e store.Entry, it *item) {
	b.entries, b.origin = append(b.entries, e), append(b.origin, it)
}

// ask has the device of an entry looked up.
func (b *batch) ask(i int) {
	b.devices.add(b.entries[i].Msg)
	b.unjudged = append(b.unjudged, i)
}

// block keeps back the device's messages, as far as they are not written yet.
func (b *batch) block(k pipeline.DeviceKey, why error) {
	if b.blocked[k] == nil {
		b.blocked[k] = &blocked{why: why}
	}
}

// run settles every entry, one way or the other, or leaves it in blocked or refused.
func (b *batch) run(ctx context.Context) {
	err := b.check(ctx)
	if err == nil {
		b.entries, b.origin = b.pass(b.entries, b.origin)
		err = b.matchRoutes(ctx)
	}
	if err != nil {
		b.releaseAll(b.origin)
		return
	}
	published := func(i int) int { return b.entries[i].Publishes(len(b.origin[i].Body)) }
	for low, high := range parts(len(b.entries), published) {
		b.write(ctx, b.entries[low:high], b.origin[low:high])
	}
}

// pass takes out what is blocked.
func (b *batch) pass(entries []store.Entry, origin []*item) ([]store.Entry, []*item) {
	if len(b.blocked) == 0 {
		return entries, origin
	}
	n := 0
	for i := range entries {
		if line := b.blocked[keyOf(entries[i].Msg)]; line != nil {
			line.messages = append(line.messages, park(&entries[i], origin[i]))
			continue
		}
		entries[n], origin[n] = entries[i], origin[i]
		n++
	}
	return entries[:n], origin[:n]
}

func park(e *store.Entry, it *item) parked {
	m := parked{*e, new(item)}
	*m.item = *it // the worker goes on to its next batch
	m.entry.Msg, m.entry.Routes, m.entry.Detail = nil, nil, strings.Clone(e.Detail)
	return m
}

// try is retry that leaves it to the caller what to do about a lock.
func (b *batch) try(ctx context.Context, f func() error) (locked, err error) {
	err = b.retry(ctx, len(b.entries), func() error {
		err := f()
		if errors.Is(err, store.ErrLocked) {
			b.metrics.retries.Inc()
			b.locked++
			locked, err = err, nil
		}
		return err
	})
	return locked, err
}

// check gives the entries that are left their verdict. It returns an error only
// when ctx ended.
func (b *batch) check(ctx context.Context) error {
	if len(b.unjudged) == 0 {
		return nil
	}
	if err := b.lookup(ctx); err != nil {
		return err
	}
	now, settings := time.Now(), b.current.Load()
	for _, i := range b.unjudged {
		if e := &b.entries[i]; b.blocked[keyOf(e.Msg)] == nil {
			checkRegistry(e, b.devices.of(e.Msg), settings, now)
		}
	}
	return nil
}

// maxUnread bounds the look-ups that a batch spends on devices that cannot be read.
const maxUnread = 16

// find is try for a look-up. What PostgreSQL cannot make sense of in the rows of a
// device is like a lock: it concerns that device.
func (b *batch) find(ctx context.Context, devices wanted) (stuck, err error) {
	stuck, err = b.try(ctx, func() error { return b.registry.lookup(ctx, time.Now(), devices) })
	if errors.Is(err, store.ErrData) {
		return err, nil
	}
	return stuck, err
}

// lookup asks for the devices. Where something is in the way (the lock of a tenant's
// subscription, when devices are provisioned) it blocks those that need it.
func (b *batch) lookup(ctx context.Context) error {
	stuck, err := b.find(ctx, b.devices)
	if stuck == nil {
		return err
	}
	defer b.hurry()()
	registered := make(wanted, len(b.devices))
	for k := range b.devices {
		registered[k] = want{} // and provision nothing
	}
	if err := b.lookupPart(ctx, registered); err != nil {
		return err
	}
	strangers := make(wanted)
	for k, asked := range b.devices {
		switch {
		case b.blocked[k] != nil:
		case registered[k].device == nil && asked.site != "":
			strangers[k] = asked
		default:
			b.devices[k] = registered[k]
		}
	}
	if err := b.lookupPart(ctx, strangers); err != nil {
		return err
	}
	maps.Copy(b.devices, strangers)
	return nil
}

// lookupPart halves what is stuck, by tenants where it is locked. Where nothing is to
// be provisioned a lock is one on a whole table, and stands before every half. A device
// of which PostgreSQL can make nothing is told by its answer; with many of them the rest
// waits, and is asked for again beside what else there is to do.
func (b *batch) lookupPart(ctx context.Context, devices wanted) error {
	if len(devices) == 0 {
		return nil
	}
	stuck, err := b.find(ctx, devices)
	if stuck == nil {
		return err
	}
	locked := errors.Is(stuck, store.ErrLocked)
	if !locked && len(devices) == 1 && b.unread < maxUnread {
		b.unread++
		for k, asked := range devices {
			devices[k] = want{asked.site, b.registry.unreadable(k, stuck)}
		}
		return nil
	}
	first, second := devices.halves(!locked)
	if len(first) == 0 || b.locked > maxLocked || b.unread >= maxUnread || locked && !devices.provision() {
		for k := range devices {
			b.block(k, stuck)
		}
		return nil
	}
	for _, part := range []wanted{first, second} {
		if err := b.lookupPart(ctx, part); err != nil {
			return err
		}
		maps.Copy(devices, part)
	}
	return nil
}

// hurry makes everybody's waits for locks brief until the function it returns is
// called.
func (p *Processor) hurry() (enough func()) {
	p.locks.Add(1)
	return func() { p.locks.Add(-1) }
}

// patient is the store, which waits only briefly for locks once one was met.
func (p *Processor) patient() *store.Store {
	if p.locks.Load() > 0 {
		return p.brief
	}
	return p.store
}

// write commits entries and acknowledges their items. Where PostgreSQL refuses
// the data it halves the batch until the culprit stands alone, and quarantines that.
func (b *batch) write(ctx context.Context, entries []store.Entry, origin []*item) {
	entries, origin = b.pass(entries, origin)
	if len(entries) == 0 {
		return
	}
	locked, err := b.try(ctx, func() error { return b.patient().CommitMetered(ctx, entries, b.limiter.charge) })
	switch {
	case locked != nil:
		b.separate(ctx, entries, origin, locked)
	case err == nil:
		b.limiter.refund(entries)
		b.durable = b.finish(b.durable[:0], entries, origin)
	case !errors.Is(err, store.ErrData):
		b.releaseAll(origin)
	case len(entries) > 1:
		half := len(entries) / 2
		b.write(ctx, entries[:half], origin[:half])
		b.write(ctx, entries[half:], origin[half:])
	case entries[0].Reason == pipeline.Accepted && store.Orphaned(err) && !origin[0].orphan:
		origin[0].orphan = true
		b.askAgain(ctx, entries, origin)
	case entries[0].Reason == pipeline.Accepted:
		entries[0].Reason, entries[0].Detail = refused(entries[0].Msg.Kind), store.Detail(err)
		b.write(ctx, entries, origin)
	case !entries[0].Bare:
		entries[0].Bare = true
		entries[0].Detail += store.Shortened + store.Detail(err)
		b.write(ctx, entries, origin)
	default:
		b.refuse(&entries[0], origin[0], err)
	}
}

// askAgain writes a message whose device may have been deleted since it was looked up,
// by what the registry says now.
func (b *batch) askAgain(ctx context.Context, entries []store.Entry, origin []*item) {
	e := &entries[0]
	device := make(wanted)
	device.add(e.Msg)
	b.registry.deviceChanged(keyOf(e.Msg))
	stuck, err := b.find(ctx, device)
	switch {
	case stuck != nil:
		e.Device, origin[0].orphan = nil, false // to be judged by what is said later
		b.block(keyOf(e.Msg), stuck)
	case err != nil:
		b.releaseAll(origin)
		return
	default:
		checkRegistry(e, device.of(e.Msg), b.current.Load(), time.Now())
	}
	b.write(ctx, entries, origin)
}

// refuse sets a message aside whose very quarantine row PostgreSQL refuses: to give
// it up would lose it, and to wait for it would hold up others.
func (b *batch) refuse(e *store.Entry, it *item, err error) {
	if !it.refused {
		b.log.Error("PostgreSQL refuses a quarantine row; the message is held until it takes it: look for constraints or triggers on quarantine_events",
			"message_id", e.Msg.ID.String(), "tenant", e.Msg.Tenant, "reason", e.Reason, "error", err)
	}
	it.refused = true
	b.refused, b.refusal = append(b.refused, park(e, it)), err
}

// separate finds the devices whose rows are locked, by halves of devices, so that
// the others need not wait. The order of a device's messages stays.
func (b *batch) separate(ctx context.Context, entries []store.Entry, origin []*item, locked error) {
	defer b.hurry()()
	entries, origin = byDevice(entries, origin)
	half := middle(entries)
	if half == 0 || b.locked > maxLocked {
		for i := range entries {
			b.block(keyOf(entries[i].Msg), locked)
		}
		b.pass(entries, origin)
		return
	}
	b.write(ctx, entries[:half], origin[:half])
	b.write(ctx, entries[half:], origin[half:])
}

// byDevice sorts by tenant, so that one tenant's devices are found together, and by device.
func byDevice(entries []store.Entry, origin []*item) ([]store.Entry, []*item) {
	order := make([]int, len(entries))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		x, y := &entries[a].Msg.Topic, &entries[b].Msg.Topic
		return cmp.Or(strings.Compare(x.Tenant, y.Tenant), strings.Compare(x.Device, y.Device))
	})
	sorted, from := make([]store.Entry, len(entries)), make([]*item, len(entries))
	for i, n := range order {
		sorted[i], from[i] = entries[n], origin[n]
	}
	return sorted, from
}

// middle is where the device begins that is nearest to the middle of entries that
// are sorted, and 0 where there is only one device.
func middle(entries []store.Entry) int {
	best, distance := 0, len(entries)
	for i := 1; i < len(entries); i++ {
		if d := max(2*i-len(entries), len(entries)-2*i); d < distance && keyOf(entries[i].Msg) != keyOf(entries[i-1].Msg) {
			best, distance = i, d
		}
	}
	return best
}
