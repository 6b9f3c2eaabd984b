package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// TestSummary: ratios are medians of each run's own, not ratios of medians.
func TestSummary(t *testing.T) {
	r := Result{Messages: 1000, Rounds: make([]Round, 3)}
	for i, rates := range [][3]float64{{100, 200, 1000}, {40, 50, 400}, {90, 300, 100}} {
		r.Rounds[i].Pipeline = Measure{Rate: rates[0], PeakBytes: int64(i + 1), P99: float64(i)}
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

func showBoth(t *testing.T, r *Result) {
	t.Helper()
	var text, asJSON bytes.Buffer
	if err := errors.Join(r.WriteText(&text), r.WriteJSON(&asJSON)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"5000 messages", "bare COPY", "pull and ack", "p99", "lost 0  duplicated 0"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text does not say %q:\n%s", want, &text)
		}
	}
	var back Result
	if err := json.Unmarshal(asJSON.Bytes(), &back); err != nil || back.ToCopy != r.ToCopy || back.Median.Pipeline != r.Median.Pipeline {
		t.Errorf("the JSON does not say the same: %v\n%s", err, &asJSON)
	}
}
