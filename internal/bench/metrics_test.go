package bench

import (
	"math"
	"strings"
	"testing"
)

func TestHistogramQuantile(t *testing.T) {
	inf := math.Inf(1)
	h := histogram{{1, 0}, {2, 10}, {4, 10}, {8, 90}, {inf, 100}}
	for _, c := range []struct {
		q, want float64
	}{
		{.05, 1.5}, // half of the way through the bucket from 1 to 2
		{.10, 2},
		{.50, 6}, // 40 of the 80 between 4 and 8
		{.90, 8},
		{.99, 8}, // in the last bucket: no more is known
	} {
		if got := h.quantile(c.q); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("quantile %v is %v, want %v", c.q, got, c.want)
		}
	}
	if got := (histogram{{1, 0}, {inf, 0}}).quantile(.5); !math.IsNaN(got) {
		t.Errorf("quantile of nothing is %v", got)
	}
	if got := (histogram{}).quantile(.5); !math.IsNaN(got) {
		t.Errorf("quantile without buckets is %v", got)
	}
}

func TestScrape(t *testing.T) {
	s, err := parseScrape(strings.NewReader(`# HELP crossfade_messages_total Copies.
# TYPE crossfade_messages_total counter
crossfade_messages_total{outcome="duplicate",path="jetstream"} 3
crossfade_messages_total{outcome="quarantined",path="jetstream"} 2
crossfade_messages_total{outcome="written",path="jetstream"} 1.5e+06
crossfade_messages_total{outcome="written",path="mqtt"} 7
crossfade_commit_latency_seconds_bucket{path="jetstream",le="0.001"} 4
crossfade_commit_latency_seconds_bucket{path="jetstream",le="+Inf"} 5
crossfade_commit_latency_seconds_bucket{path="mqtt",le="0.001"} 9
crossfade_commit_latency_seconds_sum{path="jetstream"} 0.5
`))
	if err != nil {
		t.Fatal(err)
	}
	if s.written != 1_500_000 || s.quarantined != 2 || s.duplicates != 3 {
		t.Errorf("counters %+v", s)
	}
	if len(s.latency) != 2 || s.latency[0] != (bucket{.001, 4}) || !math.IsInf(s.latency[1].bound, 1) || s.latency[1].count != 5 {
		t.Errorf("histogram %v", s.latency)
	}
	if _, err := parseScrape(strings.NewReader(`crossfade_messages_total{outcome="written",path="jetstream"} many`)); err == nil {
		t.Error("a value that is no number was read")
	}
}
