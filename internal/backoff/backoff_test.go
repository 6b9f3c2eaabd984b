package backoff_test

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/internal/backoff"
)

// TestDelay: it doubles, up to the limit and for any number of failures, and chance
// takes off no more than half.
func TestDelay(t *testing.T) {
	if d := backoff.Delay(0, time.Second, time.Minute); d != 0 {
		t.Errorf("without a failure %v", d)
	}
	rapid.Check(t, func(t *rapid.T) {
		least := time.Duration(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "least"))
		most := least + time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "more"))
		failures := rapid.IntRange(1, 100).Draw(t, "failures")
		whole := min(float64(least)*math.Pow(2, float64(failures-1)), float64(most))
		if d := float64(backoff.Delay(failures, least, most)); d > whole || d < math.Floor(whole/2) {
			t.Fatalf("after %d failures %v, of %v", failures, d, whole)
		}
	})
}

// TestJitterSpreads: all of the range is used.
func TestJitterSpreads(t *testing.T) {
	low, high := time.Hour, time.Duration(0)
	for range 1000 {
		d := backoff.Jitter(time.Second)
		low, high = min(low, d), max(high, d)
	}
	if low < 500*time.Millisecond || low > 550*time.Millisecond || high > time.Second || high < 950*time.Millisecond {
		t.Errorf("from %v to %v", low, high)
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if !backoff.Sleep(t.Context(), time.Minute) || time.Since(began) != time.Minute {
			t.Errorf("slept for %v", time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if backoff.Sleep(ctx, time.Hour) || time.Since(began) != time.Minute+time.Second {
			t.Errorf("woke after %v", time.Since(began))
		}
	})
}
