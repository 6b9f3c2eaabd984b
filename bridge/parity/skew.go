package parity

import (
	"math"
	"math/bits"
	"time"
)

// Buckets is how many buckets a Skew has: one half for copies that came after their
// message was durable, the other for those that came before.
const Buckets = 2 * side

const side = 16

// Skew is a histogram of how long after their messages were durable the copies that
// stood by came; less than zero is before. Each half has buckets of less than 1, 2,
// 4, … 16,384 ms and one for all beyond. As stored: never renumber.
type Skew [Buckets]int64

// add counts one copy.
func (s *Skew) add(d time.Duration) { s[bucketOf(d)]++ }

// bucketOf goes from far before (0) over just before (15) and just after (16) to
// far after (31).
func bucketOf(d time.Duration) int {
	n := min(bits.Len64(uint64(d.Abs().Milliseconds())), side-1)
	if d < 0 {
		return side - 1 - n
	}
	return side + n
}

// upper is the latest time in bucket i; in the last, which has none, the earliest.
func upper(i int) time.Duration {
	switch n := side - 1 - i; {
	case n > 0:
		return -(time.Millisecond << (n - 1))
	case n == 0:
		return 0
	}
	return time.Millisecond << min(i-side, side-2)
}

// Count is how many copies the histogram is of.
func (s *Skew) Count() (n int64) {
	for _, c := range s {
		n += c
	}
	return n
}

// Quantile returns a time such that at least the share q (0 to 1) of the copies came
// no later after their messages were durable; less than zero is before. It is exact
// to a factor of two, and no further from zero than ±16.384 s. It is not ok where
// there are no copies.
func (s *Skew) Quantile(q float64) (d time.Duration, ok bool) {
	total := s.Count()
	if total == 0 {
		return 0, false
	}
	rank := max(int64(math.Ceil(q*float64(total))), 1)
	for i, c := range s {
		if rank -= c; rank <= 0 {
			return upper(i), true
		}
	}
	return upper(Buckets - 1), true
}
