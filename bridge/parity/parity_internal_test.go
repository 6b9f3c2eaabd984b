package parity

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/pipeline"
)

// TestSkewQuantiles: of any times, a quantile is no earlier than the true one and at
// most twice as far from zero (or a millisecond, or the end of the scale).
func TestSkewQuantiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		times := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) time.Duration {
			ms := rapid.Int64Range(0, 1<<rapid.IntRange(0, 16).Draw(t, "bits")).Draw(t, "ms")
			return time.Duration(rapid.SampledFrom([]int64{-1, 1}).Draw(t, "sign")*ms)*time.Millisecond + time.Duration(rapid.Int64Range(-900, 900).Draw(t, "µs"))*time.Microsecond
		}), 1, 50).Draw(t, "times")
		var s Skew
		for _, d := range times {
			s.add(d)
		}
		slices.Sort(times)
		q := rapid.SampledFrom([]float64{0, 0.01, 0.5, 0.9, 0.99, 1}).Draw(t, "q")
		exact := times[max(int(math.Ceil(q*float64(len(times)))), 1)-1]
		got, ok := s.Quantile(q)
		const end = 1 << 14 * time.Millisecond
		switch {
		case !ok || s.Count() != int64(len(times)):
			t.Fatalf("%d times, %v", s.Count(), ok)
		case exact >= end || exact <= -end:
			if got.Abs() != end || (got < 0) != (exact < 0) {
				t.Errorf("%v is shown as %v", exact, got)
			}
		case got < exact || exact >= 0 && got > max(2*exact, time.Millisecond) || exact < 0 && got > exact/2+time.Millisecond:
			t.Errorf("quantile %v is %v, shown as %v", q, exact, got)
		}
	})
	if _, ok := new(Skew).Quantile(0.5); ok {
		t.Error("a quantile of nothing")
	}
	var s Skew
	s.add(math.MinInt64)
	s.add(math.MaxInt64)
	if s[0] != 1 || s[Buckets-1] != 1 {
		t.Errorf("the ends of time: %v", s)
	}
}

func newTally(t *testing.T) *Tally {
	t.Helper()
	o := DefaultOptions()
	o.Logger = slog.New(slog.DiscardHandler)
	_, tally, err := New(nil, o)
	if err != nil {
		t.Fatal(err)
	}
	return tally
}

// TestTallyIsBounded in tenants, and takes only names that can be stored.
func TestTallyIsBounded(t *testing.T) {
	tally, now := newTally(t), time.Now()
	for _, name := range []string{"", "a\x00b", "\xff", strings.Repeat("x", maxTenant+1)} {
		if tally.Matched(name, now, 0); len(tally.batch.counts) != 0 {
			t.Errorf("%.20q is counted", name)
		}
	}
	for i := range maxCells + 10 {
		tally.Rescued(fmt.Sprint(i), now, false)
	}
	tally.Rescued("0", now, true)
	if n, c := len(tally.batch.counts), tally.batch.counts[cell{"0", now.Unix() / 60}]; n != maxCells || c.Rescued != 2 {
		t.Errorf("%d tenants, the first %+v", n, c)
	}
}

// TestTallyHandsOver without waiting for the recorder, and loses nothing.
func TestTallyHandsOver(t *testing.T) {
	tally, now := newTally(t), time.Now()
	for range 3 { // nobody takes it
		tally.Matched("a", now, 0)
		tally.Hand()
	}
	tally.Close()
	if c := (<-tally.out).counts[cell{"a", now.Unix() / 60}]; c == nil || c.Matched != 3 {
		t.Errorf("handed over: %+v, want 3 matched", c)
	}
}

func TestTallyDoesNotAllocate(t *testing.T) {
	tally, now := newTally(t), time.Now()
	tally.Matched("a", now, 0)
	topic := strings.Repeat("a", 1)
	if n := testing.AllocsPerRun(100, func() { tally.Matched(topic, now, time.Second) }); n != 0 {
		t.Errorf("%v allocations per copy", n)
	}
}

// TestTallyBoundsSamples per tenant and hour.
func TestTallyBoundsSamples(t *testing.T) {
	tally, at := newTally(t), time.Unix(1_000_000_800, 0)
	take := func(tenant string, at time.Time) {
		if tally.Mismatched(tenant, at, 0) {
			tally.Sample(Sample{Tenant: tenant, At: at})
		}
	}
	for range 3 * MaxPerHour {
		take("a", at)
	}
	take("b", at)
	if n := len(tally.batch.samples); n != MaxPerHour+1 {
		t.Errorf("%d samples, want %d of a and one of b", n, MaxPerHour)
	}
	take("a", at.Add(time.Hour))
	if n := len(tally.batch.samples); n != MaxPerHour+2 {
		t.Errorf("%d samples after an hour", n)
	}
}

// sampleOf is the sample of an MQTT copy.
func sampleOf(topic, body string) Sample {
	d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(body), Receipt: occurred{}}
	var m pipeline.Message
	pipeline.NewDecoder("message_id").Decode(&m, &d)
	return NewSample(&m, "t1", 7, time.Unix(1_700_000_000, 0).UTC())
}

type occurred struct{}

func (occurred) Ack() error          { return nil }
func (occurred) Release() error      { return nil }
func (occurred) Occurred() time.Time { return time.Unix(1_700_000_000, 0) }

// TestSamplesHoldNoSecret, wherever a device may have put it.
func TestSamplesHoldNoSecret(t *testing.T) {
	for _, body := range []string{
		`{"provision_token":"SECRET","message_id":"x"}`,
		`{"provision_token":"a","provision_token":"SECRET","message_id":"x"}`,
		`{"Provision_Token":"SECRET","message_id":"x"}`,
		`{"a":[{"b":{"provision_token":{"c":"SECRET"}}}],"message_id":"x"}`,
		`{"inner":"{\"provision_token\":\"SECRET\"}","message_id":"x"}`,
		`{"inner":"{\"provision\\u005ftoken\":\"SECRET\"}","message_id":"x"}`,
		`{"provision\u005ftoken":"SECRET","message_id":"x"}`,
		`{"inner":"{\"provision\\u005ftoken\":\"SECRET\"","message_id":"x"}`, // no JSON: it is cut off
		`{"log":"provision_token=SECRET","message_id":"x"}`,
		`{"message_id":"x","pad":"` + strings.Repeat("p", MaxPayload-60) + `","provision_token":"SECRET"}`,
	} {
		s := sampleOf("tenant/t1/device/d1/telemetry", body)
		if strings.Contains(s.Payload, "SECRET") || !strings.Contains(s.Payload, "message_id") {
			t.Errorf("%.100s is shown as %.200s", body, s.Payload)
		}
	}
}

// TestSamplesAreStorable whatever the device sent.
func TestSamplesAreStorable(t *testing.T) {
	for _, body := range []string{
		`{"message_id":"x","a":"\u0000\ud800"}`, "{\"message_id\":\"x\",\"a\":\"\xff\"}", `{"message_id":"x","n":1e400000}`,
		`{"message_id":"x","long":"` + strings.Repeat("ä", MaxPayload) + `"}`,
		`{"message_id":"x","long":"` + strings.Repeat("y", 2*maxRead) + `"}`,
	} {
		s := sampleOf("tenant/t1/device/d1/"+strings.Repeat("ü", MaxTopic), body)
		for what, text := range map[string]string{"payload": s.Payload, "topic": s.Topic} {
			if !utf8.ValidString(text) || strings.ContainsRune(text, 0) || len(text) > MaxPayload || text == "" {
				t.Errorf("%.50s: the %s is %d bytes: %.100q", body, what, len(text), text)
			}
		}
		if len(s.Topic) > MaxTopic || s.Size == 0 {
			t.Errorf("%.50s: topic of %d bytes, size %d", body, len(s.Topic), s.Size)
		}
		if raw, err := json.Marshal(stored{s.Topic, s.Payload, s.Size}); err != nil || strings.Contains(strings.ReplaceAll(string(raw), `\\`, ""), `\u0000`) {
			t.Errorf("%.50s: %s, %v", body, raw, err)
		}
	}
}
