// Package batchqueue is a first-in-first-out queue that is filled one by one and
// emptied in batches. It has no bound: its users are bounded by what the sources
// hold in hand.
package batchqueue

import (
	"context"
	"sync"
	"time"
)

// Queue may be used by any number of goroutines on either side. Make it with New.
type Queue[T any] struct {
	mu    sync.Mutex
	items []T // what waits begins at head
	head  int
	wake  chan struct{} // holds a token while items may be waiting
}

// New returns an empty queue.
func New[T any]() *Queue[T] { return &Queue[T]{wake: make(chan struct{}, 1)} }

// Put appends an item. It never blocks.
func (q *Queue[T]) Put(item T) {
	q.mu.Lock()
	q.items = append(q.items, item)
	first := len(q.items)-q.head == 1
	q.mu.Unlock()
	if first {
		q.signal()
	}
}

// PutAll appends items in their order. It never blocks.
func (q *Queue[T]) PutAll(items []T) {
	if len(items) == 0 {
		return
	}
	q.mu.Lock()
	first := len(q.items) == q.head
	q.items = append(q.items, items...)
	q.mu.Unlock()
	if first {
		q.signal()
	}
}

func (q *Queue[T]) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Len returns the number of items waiting.
func (q *Queue[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items) - q.head
}

// Wake is readable while items may be waiting. Who reads it calls Poll.
func (q *Queue[T]) Wake() <-chan struct{} { return q.wake }

// Take appends up to limit items to dst. It waits for the first one, and after
// that no longer than linger for more; it returns dst as it is once ctx ends.
func (q *Queue[T]) Take(ctx context.Context, dst []T, limit int, linger time.Duration) []T {
	return q.TakeWeighed(ctx, dst, limit, linger, nil, 0)
}

// TakeWeighed is Take for items that weigh something: it takes no more of them than
// weigh most together, but always one. weight must not use the queue.
func (q *Queue[T]) TakeWeighed(ctx context.Context, dst []T, limit int, linger time.Duration, weight func(*T) int, most int) []T {
	select {
	case <-ctx.Done():
		return dst
	case <-q.wake:
	}
	if n := q.Len(); n > 0 && n < limit && linger > 0 {
		t := time.NewTimer(linger)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
	return q.poll(dst, limit, weight, most)
}

// Poll appends up to limit items to dst without waiting.
func (q *Queue[T]) Poll(dst []T, limit int) []T { return q.poll(dst, limit, nil, 0) }

func (q *Queue[T]) poll(dst []T, limit int, weight func(*T) int, most int) []T {
	q.mu.Lock()
	taken := q.items[q.head:]
	taken = taken[:min(limit, len(taken))]
	if weight != nil {
		taken = taken[:lightest(taken, weight, most)]
	}
	dst = append(dst, taken...)
	clear(taken) // what is taken must not be kept alive from here
	q.head += len(taken)
	rest := len(q.items) - q.head
	if rest <= q.head {
		// Never earlier: taking few of many must not move many.
		copy(q.items, q.items[q.head:])
		clear(q.items[max(rest, q.head):])
		q.items, q.head = q.items[:rest], 0
	}
	q.mu.Unlock()
	if rest > 0 {
		q.signal()
	}
	return dst
}

// lightest is how many items from the first on weigh no more than most, 1 at least
// where there is one.
func lightest[T any](items []T, weight func(*T) int, most int) int {
	sum := 0
	for i := range items {
		if sum += weight(&items[i]); sum > most && i > 0 {
			return i
		}
	}
	return len(items)
}
