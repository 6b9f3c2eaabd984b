package api

import (
	"sync"
	"time"
)

// burstSeconds is how many seconds' worth of requests may come at once.
const burstSeconds = 4

// maxRated bounds the callers that are remembered, at some 100 bytes each. One that
// is forgotten begins anew, with all of its burst.
const maxRated = 100_000

// rates limits how often each caller may come (the generic cell rate algorithm): it
// remembers the moment at which the caller's requests so far would have been evenly
// spread. What lies in the past is as good as forgotten.
type rates[K comparable] struct {
	interval time.Duration // between requests at the rate; 0 is no limit
	burst    time.Duration
	max      int
	mu       sync.Mutex
	due      map[K]time.Time
}

func newRates[K comparable](perSecond float64) *rates[K] {
	r := &rates[K]{max: maxRated, due: make(map[K]time.Time)}
	if perSecond > 0 {
		r.interval = time.Duration(float64(time.Second) / perSecond)
		r.burst = max(burstSeconds*time.Second, r.interval)
	}
	return r
}

// allow counts a request, or says how long the caller has to wait for the next.
func (r *rates[K]) allow(k K, now time.Time) (wait time.Duration, ok bool) {
	if r.interval == 0 {
		return 0, true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	due, known := r.due[k]
	if due.Before(now) {
		due = now
	}
	next := due.Add(r.interval)
	if over := next.Sub(now) - r.burst; over > 0 {
		return over, false
	}
	if !known && len(r.due) >= r.max {
		r.makeRoom(now)
	}
	r.due[k] = next
	return 0, true
}

func (r *rates[K]) makeRoom(now time.Time) {
	for k, due := range r.due {
		if !due.After(now) {
			delete(r.due, k)
		}
	}
	for k := range r.due {
		if len(r.due) < r.max {
			return
		}
		delete(r.due, k)
	}
}
