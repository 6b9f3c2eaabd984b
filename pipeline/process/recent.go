package process

import (
	"sync"

	"github.com/crossfade-io/crossfade/pipeline"
)

// recent remembers the IDs committed last, to spare the ledger most look-ups. It
// only ever holds what is durable: an ID that were remembered before its commit
// would let the other copy be acknowledged for a message that is then lost. What
// it has forgotten, the ledger still knows.
type recent struct {
	mu       sync.Mutex
	size     int
	new, old map[pipeline.ID]int64 // when an anonymous one occurred, in microseconds
}

// newRecent remembers at least the last size IDs and at most twice as many.
func newRecent(size int) *recent {
	return &recent{size: size, new: make(map[pipeline.ID]int64), old: make(map[pipeline.ID]int64)}
}

func (r *recent) add(ids []pipeline.Identity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range ids {
		if len(r.new) >= r.size {
			r.old, r.new = r.new, r.old
			clear(r.new)
		}
		var at int64
		if ids[i].Anonymous {
			at = ids[i].Occurred.UnixMicro()
		}
		r.new[ids[i].ID] = at
	}
}

func (r *recent) holds(c *pipeline.Identity) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !c.Anonymous {
		_, ok := r.find(c.ID)
		return ok
	}
	at := c.Occurred.UnixMicro()
	for _, id := range c.ID.Neighbours() {
		if then, ok := r.find(id); ok && max(at-then, then-at) <= pipeline.AnonymousWindow.Microseconds() {
			return true
		}
	}
	return false
}

func (r *recent) find(id pipeline.ID) (int64, bool) {
	if at, ok := r.new[id]; ok {
		return at, true
	}
	at, ok := r.old[id]
	return at, ok
}
