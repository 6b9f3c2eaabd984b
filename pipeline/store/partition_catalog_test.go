package store

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestSpanReadsWhatLiteralWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.Int64Range(0, 4102444800000).Draw(t, "ms") // until 2100
		if got, err := keyID.parseBound(keyID.literal(ms * 1000)); err != nil || got != ms*1000 {
			t.Fatalf("uuid: %d became %d, %v", ms*1000, got, err)
		}
	})
	for bounds, want := range map[string]span{
		`FOR VALUES FROM ('2026-02-09 00:00:00+00') TO ('2026-02-10 01:02:03.000004+00')`: {
			time.Date(2026, 2, 9, 0, 0, 0, 0, time.UTC).UnixMicro(), time.Date(2026, 2, 10, 1, 2, 3, 4000, time.UTC).UnixMicro()},
		`FOR VALUES FROM (MINVALUE) TO ('2026-02-10 00:00:00+00')`: {minBound, time.Date(2026, 2, 10, 0, 0, 0, 0, time.UTC).UnixMicro()},
		`FOR VALUES FROM ('-infinity') TO (MAXVALUE)`:              {minBound, maxBound},
	} {
		if got, err := keyTime.parseSpan(bounds); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", bounds, got, err, want)
		}
	}
	for _, bounds := range []string{"", "FOR VALUES IN ('a')", "FOR VALUES FROM ('x') TO ('y')", "FOR VALUES FROM ('2026-02-09 00:00:00+00', 1) TO ('2026-02-10 00:00:00+00', 1)"} {
		if got, err := keyTime.parseSpan(bounds); err == nil {
			t.Errorf("%q was read as %v", bounds, got)
		}
	}
	if got, err := keyID.parseBound("'00000000-0001-0000-0000-000000000001'"); err == nil {
		t.Errorf("a bound within a millisecond was read as %d", got)
	}
}

// TestUncovered: what is left and the parts together cover the span, without
// overlap.
func TestUncovered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cuts := rapid.SliceOfNDistinct(rapid.Int64Range(0, 60), 0, 12, rapid.ID[int64]).Draw(t, "cuts")
		slices.Sort(cuts)
		var parts []partition
		for i := 0; i+1 < len(cuts); i++ {
			if rapid.Bool().Draw(t, "taken") {
				parts = append(parts, partition{span: span{cuts[i], cuts[i+1]}})
			}
		}
		lo := rapid.Int64Range(0, 50).Draw(t, "lo")
		s := span{lo, lo + rapid.Int64Range(1, 10).Draw(t, "width")}
		left := uncovered(s, parts)
		for at := int64(0); at < 70; at++ {
			n := 0
			for _, p := range parts {
				if p.lo <= at && at < p.hi {
					n++
				}
			}
			taken := n
			for _, l := range left {
				if l.lo <= at && at < l.hi {
					n++
				}
			}
			if inside := s.lo <= at && at < s.hi; inside && n != 1 || !inside && n != taken {
				t.Fatalf("%d is covered %d times: span %v, parts %v, left %v", at, n, s, parts, left)
			}
		}
	})
}

func TestPartitionNames(t *testing.T) {
	for at, want := range map[time.Time]string{
		time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC): "t_20261123",
		time.Date(2026, 11, 23, 4, 0, 0, 0, time.UTC): "t_20261123t040000",
	} {
		if got := partitionName("t", at.UnixMicro()); got != want {
			t.Errorf("%v: %s, want %s", at, got, want)
		}
	}
}
