package flags

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// sweepFloor is the least time that EvaluateAll allows itself; for many tenants it
// is four times what Rate needs for them.
const sweepFloor = time.Minute

// EvaluateAll evaluates the flag for many tenants and calls took once for each,
// one call at a time, as the answers come. It bounds what the provider has to
// bear: Concurrency evaluations at once and Rate a second; and how long it takes
// itself: a tenant that was not reached within a minute, or four times what the
// rate needs, has no answer. Tenants are taken in a random order, so that it is not
// always the same who are left out. Overridden tenants come first and wait for
// nobody. When ctx ends, the rest has no answer.
func (c *Client) EvaluateAll(ctx context.Context, tenants []string, took func(tenant string, a Answer, err error)) {
	rest := make([]string, 0, len(tenants))
	for _, tenant := range tenants {
		if v, ok, err := c.Override(tenant); err != nil || ok {
			a, err := overridden(v, err)
			took(tenant, a, err)
			continue
		}
		rest = append(rest, tenant)
	}
	rand.Shuffle(len(rest), func(i, k int) { rest[i], rest[k] = rest[k], rest[i] })
	p := c.pacer()
	limit := max(sweepFloor, 4*time.Duration(len(rest))*p.every)
	sweepCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	type result struct {
		tenant string
		answer Answer
		err    error
	}
	todo, done := make(chan string), make(chan result)
	var workers sync.WaitGroup
	for range min(c.opts.Concurrency, len(rest)) {
		workers.Go(func() {
			for tenant := range todo {
				r := result{tenant: tenant}
				// Before it waits for its turn: a provider that is down costs no time.
				if r.err = c.mayAnswer(tenant); r.err == nil {
					if r.err = p.wait(sweepCtx); r.err != nil {
						r.err = c.notReached(ctx, tenant, limit)
					} else {
						r.answer, r.err = c.Evaluate(sweepCtx, tenant)
					}
				}
				done <- r
			}
		})
	}
	go func() {
		for _, tenant := range rest {
			todo <- tenant
		}
		close(todo)
		workers.Wait()
		close(done)
	}()
	for r := range done {
		took(r.tenant, r.answer, r.err)
	}
}

func (c *Client) notReached(ctx context.Context, tenant string, limit time.Duration) error {
	if ctx.Err() != nil {
		return c.noAnswer(tenant, CauseCancelled, ctx.Err())
	}
	return c.noAnswer(tenant, CauseTimeout, fmt.Errorf("not reached within %s: the provider is too slow for so many tenants", limit))
}

// pacer spaces the beginnings of evaluations.
type pacer struct {
	every time.Duration
	mu    sync.Mutex
	next  time.Time
}

func (c *Client) pacer() *pacer {
	_, local := c.opts.Provider.(interface{ local() })
	if local || c.opts.Rate == 0 {
		return &pacer{}
	}
	return &pacer{every: time.Duration(float64(time.Second) / c.opts.Rate)}
}

// wait returns when it is the caller's turn, or with the error of ctx.
func (p *pacer) wait(ctx context.Context) error {
	p.mu.Lock()
	now := time.Now()
	turn := slices.MaxFunc([]time.Time{now, p.next}, time.Time.Compare)
	p.next = turn.Add(p.every)
	p.mu.Unlock()
	if turn.After(now) {
		timer := time.NewTimer(turn.Sub(now))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}
