package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// scrape is what the instance says of its JetStream path.
type scrape struct {
	written, quarantined, duplicates int
	latency                          histogram
}

// scrapeInstance reads /metrics at an address.
func scrapeInstance(ctx context.Context, client *http.Client, address string) (scrape, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return scrape{}, err
	}
	res, err := client.Do(req)
	if err != nil {
		return scrape{}, fmt.Errorf("ask the instance for its metrics: %w", err)
	}
	defer res.Body.Close()
	return parseScrape(res.Body)
}

// parseScrape reads those lines of the exposition format that it knows. Labels
// stand in alphabetical order there.
func parseScrape(r io.Reader) (scrape, error) {
	const latencyBucket = `crossfade_commit_latency_seconds_bucket{path="jetstream",le="`
	var s scrape
	counters := map[string]*int{
		`crossfade_messages_total{outcome="written",path="jetstream"}`:     &s.written,
		`crossfade_messages_total{outcome="quarantined",path="jetstream"}`: &s.quarantined,
		`crossfade_messages_total{outcome="duplicate",path="jetstream"}`:   &s.duplicates,
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, text, ok := cutLast(lines.Text(), " ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		counter := counters[name]
		le, isBucket := strings.CutPrefix(name, latencyBucket)
		if counter == nil && !isBucket {
			continue
		}
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return s, fmt.Errorf("metric %s: %w", name, err)
		}
		if counter != nil {
			*counter = int(value)
			continue
		}
		bound, err := strconv.ParseFloat(strings.TrimSuffix(le, `"}`), 64)
		if err != nil {
			return s, fmt.Errorf("metric %s: %w", name, err)
		}
		s.latency = append(s.latency, bucket{bound, value})
	}
	return s, lines.Err()
}

// histogram is a cumulative histogram, in ascending order of its bounds, the
// last of which is infinite.
type histogram []bucket

type bucket struct{ bound, count float64 }

// quantile estimates the q-quantile as Prometheus's histogram_quantile does: by a
// straight line within the bucket. It is NaN for an empty histogram and at most
// the last finite bound.
func (h histogram) quantile(q float64) float64 {
	if len(h) == 0 || h[len(h)-1].count == 0 {
		return math.NaN()
	}
	rank := q * h[len(h)-1].count
	var low bucket
	for _, b := range h {
		if b.count < rank || b.count == low.count {
			low = b
			continue
		}
		if math.IsInf(b.bound, 1) {
			return low.bound
		}
		return low.bound + (b.bound-low.bound)*(rank-low.count)/(b.count-low.count)
	}
	return low.bound
}
