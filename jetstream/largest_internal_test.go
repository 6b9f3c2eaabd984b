package jetstream

import "testing"

// TestLargest: as long as one stream has not been looked at, it may be the one that takes
// least.
func TestLargest(t *testing.T) {
	s := &Source{pullers: []*puller{{}, {}}}
	for _, c := range []struct {
		first, second int64
		want          int
	}{{0, 0, 0}, {8192, 0, 0}, {0, 8192, 0}, {8192, 65536, 8192}, {65536, 8192, 8192}} {
		s.pullers[0].largest.Store(c.first)
		s.pullers[1].largest.Store(c.second)
		if got := s.Largest(); got != c.want {
			t.Errorf("streams that take %d and %d: %d, want %d", c.first, c.second, got, c.want)
		}
	}
}
