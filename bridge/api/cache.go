package api

import (
	"sync"
	"time"
)

// cache remembers values for a short time, and at most max of them: at the limit
// it forgets what is too old, and then whichever comes to hand until a tenth is free.
type cache[K comparable, V any] struct {
	ttl     time.Duration
	max     int
	mu      sync.Mutex
	entries map[K]cached[V]
}

type cached[V any] struct {
	value V
	until time.Time
}

func newCache[K comparable, V any](limit int, ttl time.Duration) *cache[K, V] {
	return &cache[K, V]{ttl: ttl, max: limit, entries: make(map[K]cached[V])}
}

func (c *cache[K, V]) get(k K, now time.Time) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[k]
	if !ok || !now.Before(e.until) {
		var none V
		return none, false
	}
	return e.value, true
}

// put remembers a value that was read when the caller's look-up began: counting from
// there, nothing is believed for longer than the TTL.
func (c *cache[K, V]) put(k K, v V, read time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.entries[k]; !known && len(c.entries) >= c.max {
		c.makeRoom(read)
	}
	c.entries[k] = cached[V]{v, read.Add(c.ttl)}
}

// makeRoom looks at all there is. It frees a tenth, so that of a flood of guesses one
// in many pays for that, and not each under the lock that the others wait for.
func (c *cache[K, V]) makeRoom(now time.Time) {
	for k, e := range c.entries {
		if !now.Before(e.until) {
			delete(c.entries, k)
		}
	}
	for k := range c.entries {
		if len(c.entries) <= c.max-max(1, c.max/10) {
			return
		}
		delete(c.entries, k)
	}
}
