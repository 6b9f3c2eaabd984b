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
	taken, wait := r.take(k, 1, now)
	return wait, taken == 1
}

// take counts those of n requests that may come now. Where not all may, it says how
// long the caller has to wait for the next.
func (r *rates[K]) take(k K, n int, now time.Time) (taken int, wait time.Duration) {
	if r.interval == 0 || n <= 0 {
		return max(n, 0), 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	due, known := r.due[k]
	if due.Before(now) {
		due = now
	}
	if left := r.burst - due.Sub(now); left >= r.interval {
		taken = int(min(int64(n), int64(left/r.interval)))
	}
	due = due.Add(time.Duration(taken) * r.interval)
	if taken < n {
		wait = due.Add(r.interval).Sub(now) - r.burst
	}
	if taken == 0 {
		return 0, wait
	}
	if !known && len(r.due) >= r.max {
		r.makeRoom(now)
	}
	r.due[k] = due
	return taken, wait
}

// makeRoom leaves a tenth free, so that a flood of new callers does not pay for each.
func (r *rates[K]) makeRoom(now time.Time) {
	for k, due := range r.due {
		if !due.After(now) {
			delete(r.due, k)
		}
	}
	for k := range r.due {
		if len(r.due) <= r.max-max(1, r.max/10) {
			return
		}
		delete(r.due, k)
	}
}
