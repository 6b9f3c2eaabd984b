package parity_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/bridge/parity"
)

func TestJudge(t *testing.T) {
	th := parity.Thresholds{MaxRescuedShare: 0.1, MaxMismatched: 2, MinMessages: 10}
	for _, c := range []struct {
		matched, rescued, mismatched int64
		want                         parity.Verdict
		reason                       string
	}{
		{0, 0, 0, parity.Inconclusive, "no traffic"},
		{9, 0, 0, parity.Inconclusive, "too little traffic: 9 of at least 10"},
		{10, 0, 0, parity.Pass, "10 of 10 messages matched"},
		{9, 1, 0, parity.Pass, "1 were rescued"},
		{8, 2, 0, parity.Fail, "2 of 10 messages were rescued"},
		{0, 9, 0, parity.Inconclusive, "too little traffic"},
		{0, 10, 0, parity.Fail, "10 of 10"},
		{8, 0, 2, parity.Pass, "8 of 10"},
		{7, 0, 3, parity.Fail, "3 of 10 messages differ"},
		{0, 0, 3, parity.Fail, "3 of 3 messages differ"},
		{7, 2, 3, parity.Fail, "differ"},
	} {
		w := parity.Window{Counts: parity.Counts{Matched: c.matched, Rescued: c.rescued, Mismatched: c.mismatched}}
		if got := parity.Judge(w, th); got.Verdict != c.want || !strings.Contains(got.Reason, c.reason) {
			t.Errorf("matched %d, rescued %d, mismatched %d: %+v, want %s because of %q", c.matched, c.rescued, c.mismatched, got, c.want, c.reason)
		}
	}
}

// TestJudgeNeverPassesSilence: whatever the thresholds, no traffic is inconclusive, and
// what failed does not pass by more rescues or mismatches.
func TestJudgeNeverPassesSilence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		th := parity.Thresholds{
			MaxRescuedShare: rapid.Float64Range(0, 1).Draw(t, "share"),
			MaxMismatched:   rapid.Int64Range(0, 50).Draw(t, "mismatched at most"),
			MinMessages:     rapid.Int64Range(1, 100).Draw(t, "min"),
		}
		if err := th.Validate(); err != nil {
			t.Fatal(err)
		}
		if got := parity.Judge(parity.Window{}, th); got.Verdict != parity.Inconclusive {
			t.Errorf("silence: %+v", got)
		}
		n := rapid.Int64Range(0, 200)
		w := parity.Window{Counts: parity.Counts{Matched: n.Draw(t, "matched"), Rescued: n.Draw(t, "rescued"), Mismatched: n.Draw(t, "mismatched")}}
		worse := w
		worse.Rescued += n.Draw(t, "more rescued")
		worse.Mismatched += n.Draw(t, "more mismatched")
		if parity.Judge(w, th).Verdict == parity.Fail && worse.Rescued*w.Total() >= w.Rescued*worse.Total() && parity.Judge(worse, th).Verdict != parity.Fail {
			t.Errorf("%+v fails, and %+v does not", w.Counts, worse.Counts)
		}
		if w.Mismatched > th.MaxMismatched && parity.Judge(w, th).Verdict != parity.Fail {
			t.Errorf("%+v does not fail", w.Counts)
		}
	})
}

func TestThresholdsThatMakeNoSense(t *testing.T) {
	if err := parity.DefaultThresholds().Validate(); err != nil {
		t.Error(err)
	}
	for field, spoil := range map[string]func(*parity.Thresholds){
		"MaxRescuedShare": func(t *parity.Thresholds) { t.MaxRescuedShare = 1.5 },
		"MaxMismatched":   func(t *parity.Thresholds) { t.MaxMismatched = -1 },
		"MinMessages":     func(t *parity.Thresholds) { t.MinMessages = 0 },
	} {
		th := parity.DefaultThresholds()
		spoil(&th)
		if err := th.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
