package bench

import (
	"context"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

// TestReconciled: whatever is not exactly the backlog is a no.
func TestReconciled(t *testing.T) {
	b := &bench{Options: Options{Messages: 10}}
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
		if err := b.reconciled(r); !errors.Is(err, ErrNotReconciled) {
			t.Errorf("%s: %v, want %v", name, err, ErrNotReconciled)
		}
	}
}

// TestEndToEnd measures a small backlog with everything real. What it took is
// nobody's promise; that it was stored once each, and that nothing is left, is.
func TestEndToEnd(t *testing.T) {
	temporary := devstack.TestTempDir(t)
	b := &bench{Options: Options{Messages: 5000, Runs: 1, Devices: 50, BatchSize: 500, Workers: 2, Program: crossfade}, progress: func(string) {}}
	if err := b.Validate(); err != nil {
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
	for name, m := range map[string]Measure{"crossfade run": round.Pipeline, "bare COPY": round.Copy, "pull and ack": round.Pull} {
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

func TestOptionsNameTheFieldAndTheRemedy(t *testing.T) {
	if err := DefaultOptions().Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*Options){
		"bench option Messages is 999: choose 1000 to 2000000":     func(o *Options) { o.Messages = 999 },
		"bench option Messages is 2000001: choose 1000 to 2000000": func(o *Options) { o.Messages = 2_000_001 },
		"bench option Runs is 0: choose 1 to 100":                  func(o *Options) { o.Runs = 0 },
		"bench option Devices is 19: choose 20 to 100000":          func(o *Options) { o.Devices = 19 },
		"bench option BatchSize is 10001: choose 1 to 10000":       func(o *Options) { o.BatchSize = 10_001 },
		"bench option Workers is 65: choose 1 to 64":               func(o *Options) { o.Workers = 65 },
	} {
		o := DefaultOptions()
		spoil(&o)
		if _, err := Run(t.Context(), o, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
