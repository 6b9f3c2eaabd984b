package process

import (
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

// recent remembers the IDs committed last, to spare the ledger most look-ups. It
// only ever holds what is durable: an ID that were remembered before its commit
// would let the other copy be acknowledged for a message that is then lost. What
// it has forgotten, the ledger still knows.
type recent struct {
	mu       sync.Mutex
	size     int
	began    time.Time
	new, old map[pipeline.ID]trace
}

// trace is what is remembered of a message: in the upper half when it was
// committed, in the lower half its mark. There are hundreds of thousands of them,
// so they are kept small.
type trace uint64

// newRecent remembers at least the last size IDs and at most twice as many.
func newRecent(size int) *recent {
	return &recent{size: size, began: time.Now(), new: make(map[pipeline.ID]trace), old: make(map[pipeline.ID]trace)}
}

// mark is half of the digest of an explicit message: as good as the whole to see
// that two differ. Of an anonymous one it is the millisecond in which it occurred,
// modulo 2^32, which is no loss: its ID tells the half minute.
func mark(c *pipeline.Identity) uint32 {
	switch {
	case c.Explicit:
		return uint32(uint64(c.Digest) >> 32)
	case c.Anonymous:
		return uint32(c.Occurred.UnixMilli())
	}
	return 0
}

func (t trace) mark() uint32 { return uint32(t) }

// clock counts milliseconds, modulo 2^32: 49 days.
func (r *recent) clock() uint32 { return uint32(time.Since(r.began).Milliseconds()) }

func (r *recent) add(ids []pipeline.Identity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := trace(r.clock()) << 32
	for i := range ids {
		if len(r.new) >= r.size {
			r.old, r.new = r.new, r.old
			clear(r.new)
		}
		r.new[ids[i].ID] = now | trace(mark(&ids[i]))
	}
}

// holds reports whether the message is durable.
func (r *recent) holds(c *pipeline.Identity) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.find(c)
	return ok
}

// known is holds with what else is remembered.
func (r *recent) known(c *pipeline.Identity) pipeline.Known {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.find(c)
	if !ok {
		return pipeline.Known{}
	}
	age := r.clock() - uint32(t>>32)
	return pipeline.Known{
		Durable: true,
		Differs: c.Explicit && t.mark() != mark(c),
		Age:     time.Duration(age) * time.Millisecond,
	}
}

func (r *recent) find(c *pipeline.Identity) (trace, bool) {
	if !c.Anonymous {
		return r.get(c.ID)
	}
	at := mark(c)
	for _, id := range c.ID.Neighbours() {
		// Milliseconds are cut, so a distance of exactly the window may be a little
		// more than that. The ledger knows.
		if t, ok := r.get(id); ok && distance(at, t.mark()) < uint32(pipeline.AnonymousWindow.Milliseconds()) {
			return t, true
		}
	}
	return 0, false
}

// distance is how far apart two marks of anonymous messages are, in milliseconds.
func distance(a, b uint32) uint32 { return min(a-b, b-a) }

func (r *recent) get(id pipeline.ID) (trace, bool) {
	if t, ok := r.new[id]; ok {
		return t, true
	}
	t, ok := r.old[id]
	return t, ok
}
