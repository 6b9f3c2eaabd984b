package parity

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Window is what was counted for one tenant over some time.
type Window struct {
	Tenant string
	Counts
	// P50 and P99 are quantiles of Skew: how long after their messages were durable
	// half, and all but a hundredth, of the copies had come; less than zero is before.
	// Zero where Skew is empty.
	P50, P99 time.Duration
}

// newWindow computes the quantiles.
func newWindow(tenant string, c Counts) Window {
	w := Window{Tenant: tenant, Counts: c}
	w.P50, _ = c.Skew.Quantile(0.5)
	w.P99, _ = c.Skew.Quantile(0.99)
	return w
}

// RescuedShare is the share of rescues in all copies that stood by, from 0 to 1; 0
// without any.
func (w *Window) RescuedShare() float64 {
	if w.Total() == 0 {
		return 0
	}
	return float64(w.Rescued) / float64(w.Total())
}

// Verdict is what to think of a tenant's parity.
type Verdict string

// The verdicts. Inconclusive is neither of the others: nothing, or too little, was
// seen.
const (
	Pass         Verdict = "pass"
	Fail         Verdict = "fail"
	Inconclusive Verdict = "inconclusive"
)

// Judgement is a verdict with its reason, for people.
type Judgement struct {
	Verdict Verdict
	Reason  string
}

// Thresholds say what passes.
type Thresholds struct {
	// MaxRescuedShare is the largest share of rescues that passes, from 0 to 1.
	MaxRescuedShare float64
	// MaxMismatched is the largest number of mismatches that passes, 0 or more.
	MaxMismatched int64
	// MinMessages is how many copies must have stood by for a verdict, 1 or more. Too
	// many mismatches fail whatever the number.
	MinMessages int64
}

// DefaultThresholds pass where, of at least 100 messages, one in a hundred at most was
// rescued and none mismatched.
func DefaultThresholds() Thresholds {
	return Thresholds{MaxRescuedShare: 0.01, MaxMismatched: 0, MinMessages: 100}
}

// Validate names the fields that are out of range, and what would be in it.
func (t Thresholds) Validate() error {
	var errs []error
	if math.IsNaN(t.MaxRescuedShare) || t.MaxRescuedShare < 0 || t.MaxRescuedShare > 1 {
		errs = append(errs, fmt.Errorf("parity: MaxRescuedShare is %v: choose 0 to 1 (0.01 is one in a hundred)", t.MaxRescuedShare))
	}
	if t.MaxMismatched < 0 {
		errs = append(errs, fmt.Errorf("parity: MaxMismatched is %d: choose 0 or more", t.MaxMismatched))
	}
	if t.MinMessages < 1 {
		errs = append(errs, fmt.Errorf("parity: MinMessages is %d: choose 1 or more; without traffic nothing can be said", t.MinMessages))
	}
	return errors.Join(errs...)
}

// Judge says what to think of a window. It is pure. Without traffic it is
// inconclusive, whatever the thresholds.
func Judge(w Window, t Thresholds) Judgement {
	n := w.Total()
	switch {
	case n <= 0:
		return Judgement{Inconclusive, "no traffic: no copy stood by"}
	case w.Mismatched > t.MaxMismatched:
		return Judgement{Fail, fmt.Sprintf("%d of %d messages differ between the paths (at most %d may): see crossfade_parity_samples", w.Mismatched, n, t.MaxMismatched)}
	case n < t.MinMessages:
		return Judgement{Inconclusive, fmt.Sprintf("too little traffic: %d of at least %d messages", n, t.MinMessages)}
	case w.RescuedShare() > t.MaxRescuedShare:
		return Judgement{Fail, fmt.Sprintf("%d of %d messages were rescued, %d of them for want of room to wait (at most %.3g %% may be): the authoritative path did not bring them in time",
			w.Rescued, n, w.RescuedFull, 100*t.MaxRescuedShare)}
	}
	return Judgement{Pass, fmt.Sprintf("%d of %d messages matched, %d were rescued", w.Matched, n, w.Rescued)}
}
