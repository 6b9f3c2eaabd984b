package jetstream

import (
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/internal/backoff"
)

// maxResting bounds the memory of who rests: tenants' names come from whoever may
// send.
const maxResting = 10_000

// forgetAfter is longer than any turn.
const forgetAfter = time.Minute

// rests remembers the tenants whose messages failed and when to try them again.
type rests struct {
	base time.Duration

	mu      sync.Mutex
	tenants map[string]*rest
}

type rest struct {
	attempt int
	due     time.Time
	at      time.Time // of the last failure
}

// failed puts the time of the next attempt off, once for each turn.
func (r *rests) failed(tenant string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tenants[tenant]
	switch {
	case t == nil && len(r.tenants) >= maxResting:
		return // it is tried at every turn
	case t == nil:
		if r.tenants == nil {
			r.tenants = make(map[string]*rest)
		}
		t = new(rest)
		r.tenants[tenant] = t
	case t.at.Equal(now):
		return
	}
	t.attempt++
	t.at, t.due = now, now.Add(backoff.Delay(t.attempt, r.base, backoffLimit))
}

// succeeded ends a tenant's rest, unless another of its messages failed in the same
// turn.
func (r *rests) succeeded(tenant string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.tenants[tenant]; t != nil && !t.at.Equal(now) {
		delete(r.tenants, tenant)
	}
}

func (r *rests) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tenants)
}

// none reports whether no tenant has failed lately.
func (r *rests) none(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(now)
	return len(r.tenants) == 0
}

// forget drops tenants that were not tried when they were due: they have nothing
// left to publish here.
func (r *rests) forget(now time.Time) {
	for tenant, t := range r.tenants {
		if now.Sub(t.due) > forgetAfter {
			delete(r.tenants, tenant)
		}
	}
}

// list returns who is not to be tried at this time.
func (r *rests) list(now time.Time) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(now)
	var list []string
	for tenant, t := range r.tenants {
		if t.due.After(now) {
			list = append(list, tenant)
		}
	}
	return list
}
