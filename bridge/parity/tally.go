package parity

import (
	"strings"
	"time"
	"unicode/utf8"
)

// Counts is what became of copies that stood by.
type Counts struct {
	// Matched: their message was durable. Rescued: it was not in time, or there was
	// no room to wait; RescuedFull are the latter. Mismatched: another content was
	// durable under the same ID of the device's own.
	Matched, Rescued, RescuedFull, Mismatched int64
	// Skew is of the copies whose message was durable.
	Skew Skew
}

// Total is how many copies stood by.
func (c *Counts) Total() int64 { return c.Matched + c.Rescued + c.Mismatched }

func (c *Counts) add(o *Counts) {
	c.Matched += o.Matched
	c.Rescued += o.Rescued
	c.RescuedFull += o.RescuedFull
	c.Mismatched += o.Mismatched
	for i := range c.Skew {
		c.Skew[i] += o.Skew[i]
	}
}

// cell is a tenant's minute, counted since 1970.
type cell struct {
	tenant string
	minute int64
}

// batch is what was counted between two writes.
type batch struct {
	counts  map[cell]*Counts
	samples []Sample
}

func newBatch() *batch { return &batch{counts: make(map[cell]*Counts)} }

const (
	// maxCells bounds what is counted and not yet written, at some 400 bytes each:
	// PostgreSQL may be away for long, and anybody who may publish names tenants.
	maxCells = 50_000
	// maxTenant is the longest name, in bytes, that is counted: it stands in an index.
	maxTenant = 256
)

// Tally counts for one goroutine; its methods are not for concurrent use. What it
// has counted goes to its Recorder by Hand.
type Tally struct {
	batch   *batch
	out     chan *batch // one at most: what the recorder has not taken yet
	sampled sampled
	metrics *metrics
}

// Matched counts a copy whose message is durable, with the same content as far as
// that can be told. skew is how long after that the copy came; less than zero is
// before. tenant is copied where it is kept.
func (t *Tally) Matched(tenant string, now time.Time, skew time.Duration) {
	t.metrics.matched.Inc()
	if c := t.of(tenant, now); c != nil {
		c.Matched++
		c.Skew.add(skew)
	}
}

// Mismatched counts a copy under whose ID other content is durable. wanted is
// whether a sample of it is, to be given to Sample.
func (t *Tally) Mismatched(tenant string, now time.Time, skew time.Duration) (wanted bool) {
	t.metrics.mismatched.Inc()
	c := t.of(tenant, now)
	if c == nil {
		return false
	}
	c.Mismatched++
	c.Skew.add(skew)
	return t.sampled.room(tenant, now)
}

// Rescued counts a copy that was processed since its message was not durable in
// time; full means that there was no room to wait.
func (t *Tally) Rescued(tenant string, now time.Time, full bool) {
	if full {
		t.metrics.rescuedFull.Inc()
	} else {
		t.metrics.rescuedWait.Inc()
	}
	c := t.of(tenant, now)
	if c == nil {
		return
	}
	c.Rescued++
	if full {
		c.RescuedFull++
	}
}

// Sample keeps a sample that Mismatched wanted.
func (t *Tally) Sample(s Sample) {
	if len(t.batch.samples) >= maxSamples {
		t.metrics.lostSamples.Inc()
		return
	}
	t.sampled.note(s.Tenant, s.At)
	t.batch.samples = append(t.batch.samples, s)
}

// of is where to count; nil where there is no room, or the tenant's name is none
// that can be stored.
func (t *Tally) of(tenant string, now time.Time) *Counts {
	key := cell{tenant, now.Unix() / 60}
	if c := t.batch.counts[key]; c != nil {
		return c
	}
	if len(t.batch.counts) >= maxCells || !storable(tenant) {
		t.metrics.lostCounts.Inc()
		return nil
	}
	key.tenant = strings.Clone(tenant) // it shares memory with a message
	c := new(Counts)
	t.batch.counts[key] = c
	return c
}

func storable(tenant string) bool {
	return tenant != "" && len(tenant) <= maxTenant && utf8.ValidString(tenant) && strings.IndexByte(tenant, 0) < 0
}

// Hand gives what was counted to the recorder, unless that still has not taken what
// it was given before. It does not block.
func (t *Tally) Hand() {
	if len(t.batch.counts) == 0 {
		return
	}
	select {
	case t.out <- t.batch:
		t.batch = newBatch()
	default:
	}
}

// Close gives the rest to the recorder, which must run on until it has taken it.
// Nothing may be counted afterwards. It does not block.
func (t *Tally) Close() {
	select {
	case waiting := <-t.out:
		t.batch.merge(waiting)
	default:
	}
	t.out <- t.batch
	t.batch = newBatch()
}

// merge may exceed maxCells by as much again, once.
func (b *batch) merge(o *batch) {
	for key, c := range o.counts {
		if mine := b.counts[key]; mine != nil {
			mine.add(c)
		} else {
			b.counts[key] = c
		}
	}
	b.samples = append(o.samples, b.samples...)
}
