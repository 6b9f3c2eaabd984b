package process

import (
	"context"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/route"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// maxRoutedTenants bounds the cache of routes (some 100 bytes a tenant, and what the
// routes themselves are).
const maxRoutedTenants = 100_000

// maxToldRoutes bounds the memory of which unreadable routes were logged.
const maxToldRoutes = 1000

// routes caches the tenants' routes, tenants that have none included.
type routes struct {
	find func(context.Context, []string) (map[string]*route.Set, []route.Problem, error)
	ttl  time.Duration
	log  *slog.Logger

	mu      sync.RWMutex
	tenants map[string]cachedRoutes
	// generation counts what was forgotten: an answer that was asked for before is
	// used once and not kept.
	generation uint64
	told       map[string]struct{}
}

type cachedRoutes struct {
	set     *route.Set
	expires time.Time
}

func newRoutes(ttl time.Duration, log *slog.Logger, find func(context.Context, []string) (map[string]*route.Set, []route.Problem, error)) *routes {
	return &routes{find: find, ttl: ttl, log: log, tenants: make(map[string]cachedRoutes), told: make(map[string]struct{})}
}

// match sets the routes of the entries that are to be written and are of the kind
// that is routed. It asks the database once for all tenants that the cache lacks.
// On an error no entry is to be committed.
func (r *routes) match(ctx context.Context, now time.Time, entries []store.Entry) error {
	sets, err := r.lookup(ctx, now, entries)
	if err != nil || len(sets) == 0 {
		return err
	}
	for i := range entries {
		if e := &entries[i]; routed(e) {
			if set := sets[e.Msg.Tenant]; set != nil {
				e.Routes = set.Match(e.Routes[:0], e.Msg)
			}
		}
	}
	return nil
}

func routed(e *store.Entry) bool {
	return e.Reason == pipeline.Accepted && e.Msg.Kind == pipeline.KindTelemetry
}

// lookup returns the routes of the entries' tenants, of those that have any.
func (r *routes) lookup(ctx context.Context, now time.Time, entries []store.Entry) (map[string]*route.Set, error) {
	var sets map[string]*route.Set
	keep := func(tenant string, set *route.Set) {
		if set == nil {
			return
		}
		if sets == nil {
			sets = make(map[string]*route.Set)
		}
		sets[tenant] = set
	}
	missing, generation := r.cached(now, entries, keep)
	if len(missing) == 0 {
		return sets, nil
	}
	answer, problems, err := r.find(ctx, missing)
	if err != nil {
		return nil, err
	}
	r.tell(problems)
	r.mu.Lock()
	defer r.mu.Unlock()
	current := r.generation == generation
	if len(r.tenants)+len(missing) > maxRoutedTenants {
		clear(r.tenants)
	}
	for _, tenant := range missing {
		keep(tenant, answer[tenant])
		if current {
			r.tenants[strings.Clone(tenant)] = cachedRoutes{answer[tenant], now.Add(r.ttl)}
		}
	}
	return sets, nil
}

// cached gives keep what the cache has and returns the tenants that it lacks.
func (r *routes) cached(now time.Time, entries []store.Entry, keep func(string, *route.Set)) (missing []string, generation uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	seen, last := make(map[string]struct{}), ""
	for i := range entries {
		e := &entries[i]
		if !routed(e) || e.Msg.Tenant == last {
			continue
		}
		last = e.Msg.Tenant
		if _, ok := seen[last]; ok {
			continue
		}
		seen[last] = struct{}{}
		if c, ok := r.tenants[last]; ok && now.Before(c.expires) {
			keep(last, c.set)
		} else {
			missing = append(missing, last)
		}
	}
	return missing, r.generation
}

// forget has the tenant's routes read again.
func (r *routes) forget(tenant string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.generation++
	delete(r.tenants, tenant)
}

// forgetAll has all routes read again.
func (r *routes) forgetAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.generation++
	clear(r.tenants)
}

// tell logs each unreadable route once.
func (r *routes) tell(problems []route.Problem) {
	for _, p := range problems {
		line := p.Error()
		r.mu.Lock()
		_, told := r.told[line]
		if !told && len(r.told) >= maxToldRoutes {
			clear(r.told)
		}
		r.told[line] = struct{}{}
		r.mu.Unlock()
		if !told {
			r.log.Warn("a route is left out; mend its row in message_routes", "tenant", p.Tenant, "route", p.ID, "error", p.Err)
		}
	}
}

// matchRoutes sets the routes of the batch's entries. It returns an error only when
// ctx ended.
func (b *batch) matchRoutes(ctx context.Context) error {
	if !b.options.Routes || len(b.entries) == 0 {
		return nil
	}
	return b.retry(ctx, len(b.entries), func() error { return b.routes.match(ctx, time.Now(), b.entries) })
}

// maxPublished bounds what one transaction adds to the outbox, unless a single message
// adds more: a tenant may have thousands of routes that take each of its messages, and
// a batch of those would be a transaction without end.
const maxPublished = 16 << 20

// parts cuts n messages, in their order, into as many transactions as their routes ask
// for. published is how many bytes a message adds to the outbox.
func parts(n int, published func(i int) int) iter.Seq2[int, int] {
	return func(yield func(low, high int) bool) {
		low, bytes := 0, 0
		for i := range n {
			more := published(i)
			if bytes += more; bytes > maxPublished && i > low {
				if !yield(low, i) {
					return
				}
				low, bytes = i, more
			}
		}
		if low < n {
			yield(low, n)
		}
	}
}

// ForgetRoutes has a tenant's routes read again from the next batch on.
func (p *Processor) ForgetRoutes(tenant string) { p.routes.forget(tenant) }

// ForgetAllRoutes has the routes of all tenants read again from the next batch on.
func (p *Processor) ForgetAllRoutes() { p.routes.forgetAll() }
