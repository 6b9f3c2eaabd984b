package fleet

import (
	"fmt"
	"math/bits"
)

// maxSeq bounds what a Set holds: a damaged record file must not be able to
// ask for all memory. One device sends 100 messages/s for four months.
const maxSeq = 1 << 30

// Set is a set of seqs, from 1 to about a thousand million, one bit for each
// up to the highest. The zero value is empty. It is not safe for concurrent use.
type Set struct {
	words []uint64
	n     int64
}

// Add puts seq in and reports whether it was absent. A seq out of range is not
// added.
func (s *Set) Add(seq int64) bool {
	if seq < 1 || seq > maxSeq {
		return false
	}
	word, bit := (seq-1)/64, uint64(1)<<((seq-1)%64)
	for int64(len(s.words)) <= word {
		s.words = append(s.words, 0)
	}
	if s.words[word]&bit != 0 {
		return false
	}
	s.words[word] |= bit
	s.n++
	return true
}

// Has reports whether seq is in the set.
func (s *Set) Has(seq int64) bool {
	if seq < 1 || (seq-1)/64 >= int64(len(s.words)) {
		return false
	}
	return s.words[(seq-1)/64]>>((seq-1)%64)&1 == 1
}

// Len is the number of seqs in the set.
func (s *Set) Len() int64 { return s.n }

// Max is the highest seq in the set, 0 when it is empty.
func (s *Set) Max() int64 {
	for i := len(s.words) - 1; i >= 0; i-- {
		if w := s.words[i]; w != 0 {
			return int64(i)*64 + int64(bits.Len64(w))
		}
	}
	return 0
}

// Clone is an independent copy.
func (s *Set) Clone() Set {
	return Set{words: append([]uint64(nil), s.words...), n: s.n}
}

// All yields the seqs in ascending order.
func (s *Set) All() func(yield func(int64) bool) {
	return func(yield func(int64) bool) {
		for i, w := range s.words {
			for ; w != 0; w &= w - 1 {
				if !yield(int64(i)*64 + int64(bits.TrailingZeros64(w)) + 1) {
					return
				}
			}
		}
	}
}

// Ranges are first and last seq of every unbroken run, in ascending order:
// [1, 5, 7, 7] is 1 to 5, and 7. It is how a set is written to a file.
func (s *Set) Ranges() []int64 {
	var out []int64
	for seq := range s.All() {
		if n := len(out); n > 0 && out[n-1] == seq-1 {
			out[n-1] = seq
		} else {
			out = append(out, seq, seq)
		}
	}
	return out
}

// setOf is the inverse of Ranges.
func setOf(ranges []int64) (Set, error) {
	var s Set
	if len(ranges)%2 != 0 {
		return s, fmt.Errorf("%d numbers where pairs of first and last seq are expected", len(ranges))
	}
	after := int64(0)
	for i := 0; i < len(ranges); i += 2 {
		first, last := ranges[i], ranges[i+1]
		if first <= after || last < first || last > maxSeq {
			return Set{}, fmt.Errorf("the range %d to %d is not in order or not within 1 to %d", first, last, maxSeq)
		}
		for seq := first; seq <= last; seq++ {
			s.Add(seq)
		}
		after = last
	}
	return s, nil
}
