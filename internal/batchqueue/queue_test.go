package batchqueue_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-io/crossfade/internal/batchqueue"
)

func TestTakeLingersForMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := batchqueue.New[int]()
		go func() {
			for i := range 5 {
				q.Put(i)
				time.Sleep(time.Millisecond)
			}
		}()
		got := q.Take(t.Context(), nil, 100, 10*time.Millisecond)
		if len(got) != 5 {
			t.Fatalf("took %v, want the five that came within the linger", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := q.Take(ctx, nil, 100, time.Millisecond); len(got) != 0 {
			t.Fatalf("took %v from an empty queue", got)
		}
	})
}

func TestEveryItemIsTakenOnceInOrder(t *testing.T) {
	const producers, each = 4, 5000
	q := batchqueue.New[[2]int]()
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	next := make([]int, producers)
	left := producers * each
	var takers, makers sync.WaitGroup
	takers.Go(func() { // one taker: order per producer is only defined for one
		for ctx.Err() == nil {
			for _, it := range q.Take(ctx, nil, 37, 0) {
				mu.Lock()
				if it[1] != next[it[0]] {
					t.Errorf("producer %d: got %d, want %d", it[0], it[1], next[it[0]])
				}
				next[it[0]]++
				if left--; left == 0 {
					cancel()
				}
				mu.Unlock()
			}
		}
	})
	for p := range producers {
		makers.Go(func() {
			for i := range each {
				q.Put([2]int{p, i})
			}
		})
	}
	makers.Wait()
	takers.Wait()
	if left != 0 || q.Len() != 0 {
		t.Fatalf("%d not taken, %d left in the queue", left, q.Len())
	}
}

// TestTakeWeighed: a batch ends before it is too heavy, what is left is taken next,
// and an item that alone is too heavy is taken alone.
func TestTakeWeighed(t *testing.T) {
	q := batchqueue.New[int]()
	q.PutAll([]int{4, 4, 2, 1, 30, 1, 9, 1, 0, 1, 1, 1})
	itself := func(n *int) int { return *n }
	for _, want := range [][]int{{4, 4, 2}, {1}, {30}, {1, 9}, {1, 0, 1, 1}, {1}} {
		if got := q.TakeWeighed(t.Context(), nil, 4, 0, itself, 10); !slices.Equal(got, want) {
			t.Errorf("took %v, want %v", got, want)
		}
	}
	if q.Len() != 0 {
		t.Errorf("%d are left", q.Len())
	}
}
