package jetstream

import (
	"sync"
	"time"
)

// hand is what one consumer has delivered and not yet seen settled, in the
// order in which deadlines were last extended, and what it has asked the server
// for. Both together never exceed the window, but for what the server has given up.
type hand struct {
	mu          sync.Mutex
	first, last *receipt // first: extended longest ago
	held        int
	bytes       int64 // of what is held
	requested   int   // asked of the server and not yet come
	window      int
	windowBytes int64
	average     int64 // bytes of the messages that came last
	threshold   int   // room that is worth a pull while others are under way
	woken       bool
	wake        chan struct{} // capacity 1: look whether to pull
}

func newHand() *hand { return &hand{wake: make(chan struct{}, 1)} }

// resize sets the window and the room that is worth a pull.
func (h *hand) resize(window, threshold int, bytes int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.window, h.threshold, h.windowBytes = window, threshold, bytes
}

// room is for how many more messages there is room. A pull cannot be told how many bytes
// it may bring without one large message ending it, so that is guessed.
func (h *hand) room() int {
	n := h.window - h.held
	if h.average > 0 {
		n = min(n, int((h.windowBytes-h.bytes)/h.average))
	}
	if h.held == 0 {
		n = max(n, 1)
	}
	return n - h.requested
}

// add takes a message that arrived, in answer to a pull or otherwise.
func (h *hand) add(r *receipt, now int64, pulled bool) {
	h.mu.Lock()
	r.extended = now
	h.pushBack(r)
	h.held++
	h.bytes += r.size
	if pulled {
		h.arrived(1)
	}
	h.mu.Unlock()
}

// refuses reports whether a message that was pulled is too much, in bytes, to be taken in
// hand, and counts it as one that came. One is always taken.
func (h *hand) refuses(size int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.average += (size - h.average) / 16
	if h.held == 0 || h.bytes+size <= h.windowBytes {
		return false
	}
	h.arrived(1)
	return true
}

// full reports whether as much as the window permits is in hand.
func (h *hand) full() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held >= h.window || h.bytes >= h.windowBytes
}

// arrived notes that n requested messages came, or will never come.
func (h *hand) arrived(n int) {
	h.requested = max(h.requested-n, 0)
	if h.requested == 0 {
		h.signal()
	}
}

// expired is arrived for pulls that ended with n messages short.
func (h *hand) expired(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.arrived(n)
}

// remove takes the receipt out, and reports false if it was settled before.
func (h *hand) remove(r *receipt) bool {
	h.mu.Lock()
	if r.settled {
		h.mu.Unlock()
		return false
	}
	r.settled = true
	h.unlink(r)
	h.held--
	h.bytes -= r.size
	if h.requested == 0 || h.room() >= h.threshold {
		h.signal()
	}
	h.mu.Unlock()
	return true
}

// signal wakes the pulling loop, once until it has looked.
func (h *hand) signal() {
	if h.woken {
		return
	}
	h.woken = true
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// reserve says how many messages to ask for now, at most limit, and counts them
// as requested. Small room is left to grow while other pulls are under way;
// with none under way, patient says whether to leave it to grow for a moment
// longer. later is true where there is room that was left.
func (h *hand) reserve(limit int, patient bool) (n int, later bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.woken = false
	room := h.room()
	if room <= 0 {
		return 0, false
	}
	if room < h.threshold && (h.requested > 0 || patient) {
		return 0, h.requested == 0
	}
	n = min(room, limit)
	h.requested += n
	return n, false
}

// forget drops all requests: their subscription is gone.
func (h *hand) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requested = 0
}

func (h *hand) counts() (held, requested int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held, h.requested
}

func (h *hand) heldBytes() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.bytes
}

// due appends to buf up to limit replies whose deadline was extended before
// the given time, and counts them as extended now. Receipts of another
// generation are only moved out of the way.
func (h *hand) due(buf []string, before, now int64, generation uint64, limit int) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.first != nil && h.first.extended <= before && limit > 0 {
		r := h.first
		h.unlink(r)
		r.extended = now
		h.pushBack(r)
		if r.generation == generation {
			buf = append(buf, r.reply)
			limit--
		}
	}
	return buf
}

// overdue makes every deadline due: after a reconnection nobody knows how much
// of it has passed.
func (h *hand) overdue() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := h.first; r != nil; r = r.next {
		r.extended = 0
	}
}

// replies lists what is in hand of a generation.
func (h *hand) replies(generation uint64) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]string, 0, h.held)
	for r := h.first; r != nil; r = r.next {
		if r.generation == generation {
			list = append(list, r.reply)
		}
	}
	return list
}

// abandon empties the hand and returns what was in it: settling any of it
// afterwards is refused.
func (h *hand) abandon() []*receipt {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []*receipt
	for r := h.first; r != nil; r = h.first {
		h.unlink(r)
		r.settled = true
		list = append(list, r)
	}
	h.held, h.bytes = 0, 0
	return list
}

func (h *hand) pushBack(r *receipt) {
	r.prev, r.next = h.last, nil
	if h.last != nil {
		h.last.next = r
	} else {
		h.first = r
	}
	h.last = r
}

func (h *hand) unlink(r *receipt) {
	if r.prev != nil {
		r.prev.next = r.next
	} else {
		h.first = r.next
	}
	if r.next != nil {
		r.next.prev = r.prev
	} else {
		h.last = r.prev
	}
	r.prev, r.next = nil, nil
}

// started anchors the monotonic clock that deadlines are kept in.
var started = time.Now()

// monotonic is nanoseconds since the process started, never 0 again.
func monotonic() int64 { return int64(time.Since(started)) + 1 }
