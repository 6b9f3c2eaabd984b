package jetstream

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoffDelay doubles from base with every attempt up to backoffLimit, and
// takes off up to half at random, so that instances which lost the same server
// do not come back in step.
func backoffDelay(base time.Duration, attempt int) time.Duration {
	d := backoffLimit
	if shift := max(attempt-1, 0); shift < 20 {
		d = min(base<<shift, backoffLimit)
	}
	return d - rand.N(d/2+1)
}

// sleep waits for d, and reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
