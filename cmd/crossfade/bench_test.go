package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/fleet"
)

func TestBenchHistogramQuantile(t *testing.T) {
	inf := math.Inf(1)
	h := benchHistogram{{1, 0}, {2, 10}, {4, 10}, {8, 90}, {inf, 100}}
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
	if got := (benchHistogram{{1, 0}, {inf, 0}}).quantile(.5); !math.IsNaN(got) {
		t.Errorf("quantile of nothing is %v", got)
	}
	if got := (benchHistogram{}).quantile(.5); !math.IsNaN(got) {
		t.Errorf("quantile without buckets is %v", got)
	}
}

func TestBenchScrape(t *testing.T) {
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
	if len(s.latency) != 2 || s.latency[0] != (benchBucket{.001, 4}) || !math.IsInf(s.latency[1].bound, 1) || s.latency[1].count != 5 {
		t.Errorf("histogram %v", s.latency)
	}
	if _, err := parseScrape(strings.NewReader(`crossfade_messages_total{outcome="written",path="jetstream"} many`)); err == nil {
		t.Error("a value that is no number was read")
	}
}

func TestBenchProcStat(t *testing.T) {
	const line = "4711 (a (very) odd name) S 42 4711 4711 0 -1 4194560 100 200 0 0 150 50 1000 500 20 0 1 0 12345 1000000 500"
	s, err := parseProcStat(line)
	want := procStat{parent: 42, own: 2 * time.Second, reaped: 15 * time.Second}
	if err != nil || s != want {
		t.Errorf("%+v, %v; want %+v", s, err, want)
	}
	for _, bad := range []string{"", "1 (x) S 2", "1 x S 42 4711 4711 0 -1 4194560 100 200 0 0 150 50 1000 500", strings.Replace(line, " 150 ", " x ", 1)} {
		if _, err := parseProcStat(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestBenchSplitCopy(t *testing.T) {
	header := []byte("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	row := func(n int) []byte {
		b := binary.BigEndian.AppendUint16(nil, 2)
		b = binary.BigEndian.AppendUint32(b, 0xFFFFFFFF) // NULL has no bytes
		value := fmt.Sprintf("row %d", n)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(value))), value...)
	}
	stream := func(rows ...int) []byte {
		b := bytes.Clone(header)
		for _, n := range rows {
			b = append(b, row(n)...)
		}
		return append(b, 0xFF, 0xFF)
	}
	for _, c := range []struct {
		rows []int
		want [][]byte
	}{
		{nil, nil},
		{[]int{1}, [][]byte{stream(1)}},
		{[]int{1, 2}, [][]byte{stream(1, 2)}},
		{[]int{1, 2, 3}, [][]byte{stream(1, 2), stream(3)}},
	} {
		got, err := splitCopy(stream(c.rows...), 2)
		if err != nil || !equalBytes(got, c.want) {
			t.Errorf("%v: %q, %v; want %q", c.rows, got, err, c.want)
		}
	}
	whole := stream(1, 2, 3)
	for n := range len(whole) {
		if _, err := splitCopy(whole[:n], 2); err == nil {
			t.Errorf("the first %d of %d bytes were taken for a whole stream", n, len(whole))
		}
	}
}

func equalBytes(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// TestBenchSummary: ratios are medians of each run's own, not ratios of medians.
func TestBenchSummary(t *testing.T) {
	r := benchResult{Messages: 1000, Rounds: make([]benchRound, 3)}
	for i, rates := range [][3]float64{{100, 200, 1000}, {40, 50, 400}, {90, 300, 100}} {
		r.Rounds[i].Pipeline = benchMeasure{Rate: rates[0], PeakBytes: int64(i + 1), P99: float64(i)}
		r.Rounds[i].Copy.Rate, r.Rounds[i].Pull.Rate = rates[1], rates[2]
	}
	r.summarize()
	if r.ToCopy != .5 || r.ToPull != .1 || r.Median.Pipeline.Rate != 90 || r.Median.Copy.Rate != 200 ||
		r.Median.Pipeline.PeakBytes != 2 || r.Median.Pipeline.P99 != 1 {
		t.Errorf("%+v", r)
	}
	if got := medianOf([]float64{4, 1, 3, 2}, func(v *float64) float64 { return *v }); got != 2.5 {
		t.Errorf("the median of 1 to 4 is %v", got)
	}
	if got := medianOf(nil, func(v *float64) float64 { return *v }); got != 0 {
		t.Errorf("the median of nothing is %v", got)
	}
}

// TestBenchBacklogFits: no subject gets more than the stream keeps of one, and the
// record knows every message once.
func TestBenchBacklogFits(t *testing.T) {
	for _, c := range []struct{ messages, devices int }{{1000, 20}, {300_000, 1000}, {300_000, 999}, {1_234_567, 1000}} {
		b := newBenchBacklog(c.messages, c.devices, time.Now())
		perTenant := map[string]int{}
		for i := range b.messages {
			d, _ := b.message(i)
			perTenant[d.Tenant]++
		}
		for tenant, n := range perTenant {
			if n > benchPerTenant {
				t.Errorf("%d messages of %d devices: %d are %s's", c.messages, c.devices, n, tenant)
			}
		}
		if counts := b.record.Counts(); counts.Attempted != int64(c.messages) || counts.Acked != int64(c.messages) || counts.Unrouted != 0 {
			t.Errorf("%d messages are recorded as %+v", c.messages, counts)
		}
		if len(perTenant) != len(b.tenants()) || len(perTenant) < 3 {
			t.Errorf("%d messages are of %d tenants, tenants() names %d", c.messages, len(perTenant), len(b.tenants()))
		}
	}
}

// TestBenchReconciled: whatever is not exactly the backlog is a no.
func TestBenchReconciled(t *testing.T) {
	b := &bench{options: benchCommand{Messages: 10}}
	good := fleet.Report{Tally: fleet.Tally{Sent: 10, Stored: 10, Rows: 10}}
	if err := b.reconciled(good); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*fleet.Report){
		"lost":        func(r *fleet.Report) { r.Lost = 1 },
		"duplicated":  func(r *fleet.Report) { r.Duplicated = 1 },
		"unexpected":  func(r *fleet.Report) { r.Unexpected = 1 },
		"short":       func(r *fleet.Report) { r.Rows = 9 },
		"quarantined": func(r *fleet.Report) { r.Quarantined = map[string]int64{"TOKEN_INVALID": 1} },
	} {
		r := good
		spoil(&r)
		if err := b.reconciled(r); !errors.Is(err, errNo) || exitCode(err, &bytes.Buffer{}) != exitNo {
			t.Errorf("%s: %v, want an error with exit code %d", name, err, exitNo)
		}
	}
}

func TestBenchRefusesOptions(t *testing.T) {
	for _, args := range [][]string{
		{"--messages", "999"}, {"--messages", "2000001"}, {"--runs", "0"}, {"--devices", "19"},
		{"--batch-size", "10001"}, {"--workers", "65"}, {"--output", "xml"},
	} {
		var out, err bytes.Buffer
		if code := run(t.Context(), append([]string{"bench"}, args...), &out, &err); code != exitUsage || !strings.Contains(err.String(), args[0]) {
			t.Errorf("%v: exit code %d, %s", args, code, &err)
		}
	}
}

// benchProgram is this test program, which as a child is crossfade.
func benchProgram(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(beCrossfade, "1")
	return self
}

// TestBenchInstanceTellsWhyItEnded: an instance that cannot start is reported with
// its own words, at once.
func TestBenchInstanceTellsWhyItEnded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := startBenchInstance(ctx, benchProgram(t), []string{beCrossfade + "=1", "CROSSFADE_MQTT_ENABLED=false", "CROSSFADE_NATS_URL=neither://a:b"})
	if err == nil || !strings.Contains(err.Error(), "--nats-url") {
		t.Errorf("got %v", err)
	}
}

// TestBenchEndToEnd measures a small backlog with everything real. What it took is
// nobody's promise; that it was stored once each, and that nothing is left, is.
func TestBenchEndToEnd(t *testing.T) {
	// Below /tmp, not below t.TempDir, whose parents are closed to the OS user
	// postgres.
	temporary, err := os.MkdirTemp("", "bench-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(temporary); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(temporary, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", temporary)
	b := &bench{options: benchCommand{Messages: 5000, Runs: 1, Devices: 50, BatchSize: 500, Workers: 2}, program: benchProgram(t), progress: func(string) {}}
	if err := b.options.validate(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CROSSFADE_PIPELINE_BATCH_SIZE", "nonsense") // the user's own settings are not the instance's
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	r, err := b.run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	round := r.Rounds[0]
	if round.Report.Stored != 5000 || round.Report.Rows != 5000 || !round.Report.OK() {
		t.Errorf("reconciled: %s", round.Report)
	}
	for name, m := range map[string]benchMeasure{"crossfade run": round.Pipeline, "bare COPY": round.Copy, "pull and ack": round.Pull} {
		if m.Rate <= 0 || m.Seconds <= 0 || math.Abs(m.Rate*m.Seconds-5000) > 1 {
			t.Errorf("%s: %+v", name, m)
		}
	}
	if p := round.Pipeline; !(p.P50 > 0 && p.P50 <= p.P99) || p.PeakBytes < 1<<20 {
		t.Errorf("latency or memory are not measured: %+v", p)
	}
	rows := 0
	for _, stream := range b.rows {
		split, err := splitCopy(stream, 1)
		if err != nil {
			t.Fatal(err)
		}
		rows += len(split)
	}
	if rows != 5000 {
		t.Errorf("bare COPY had %d rows", rows)
	}
	showBoth(t, r)
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func showBoth(t *testing.T, r *benchResult) {
	t.Helper()
	var text, asJSON bytes.Buffer
	if err := errors.Join(r.show(&text, "text"), r.show(&asJSON, "json")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"5000 messages", "bare COPY", "pull and ack", "p99", "lost 0  duplicated 0"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text does not say %q:\n%s", want, &text)
		}
	}
	var back benchResult
	if err := json.Unmarshal(asJSON.Bytes(), &back); err != nil || back.ToCopy != r.ToCopy || back.Median.Pipeline != r.Median.Pipeline {
		t.Errorf("the JSON does not say the same: %v\n%s", err, &asJSON)
	}
}
