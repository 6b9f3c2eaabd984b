// Package backoff is how everything here waits before it tries again: ever longer, up
// to a limit, and with chance, since instances that lost the same server at once must
// not come back in step.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Delay is the wait after a number of failures in a row: least after the first, twice
// that after the next, and so on up to most, of which Jitter takes off. It is 0 where
// nothing has failed.
func Delay(failures int, least, most time.Duration) time.Duration {
	if failures <= 0 {
		return 0
	}
	d := most
	if doublings := failures - 1; doublings < 62 && least<<doublings>>doublings == least {
		d = min(least<<doublings, most)
	}
	return Jitter(d)
}

// Jitter is between half and all of d.
func Jitter(d time.Duration) time.Duration { return d - rand.N(d/2+1) }

// Sleep lets d pass, and reports false if ctx ended before.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
