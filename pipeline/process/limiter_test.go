package process

import (
	"fmt"
	"hash/maphash"
	"runtime"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// meter charges messages of one device.
type meter struct {
	*limiter
	settings check.Settings
	device   string
}

func newMeter() *meter {
	return &meter{limiter: newLimiter(maxLimited, maphash.MakeSeed()), settings: check.DefaultSettings(), device: "d1"}
}

// send returns how many of n messages pass, which arrive at once; the message's own
// time is sent, or the times after it every step.
func (m *meter) send(n int, arrival, sent time.Time, step time.Duration) (passed int) {
	m.begin(arrival, &m.settings)
	for i := range n {
		e := store.Entry{Metered: true, Msg: &pipeline.Message{Topic: pipeline.Topic{Tenant: "t1", Device: m.device}, Time: sent.Add(time.Duration(i) * step)}}
		m.charge(&e)
		switch {
		case e.Rate == store.RateCharged && e.Reason == pipeline.Accepted:
			passed++
		case e.Rate != store.RateLimited || e.Reason != pipeline.RateLimited:
			panic(fmt.Sprintf("%d %s", e.Rate, e.Reason))
		}
	}
	return passed
}

func TestLimiter(t *testing.T) {
	later := func(d time.Duration) time.Time { return noon.Add(d) }
	type burst struct {
		n             int
		arrival, sent time.Time
		step          time.Duration
		want          int
	}
	for name, bursts := range map[string][]burst{
		"a burst, and what fills up since":   {{30, noon, noon, 0, 20}, {10, later(time.Second), later(time.Second), 0, 5}, {30, later(time.Hour), later(time.Hour), 0, 20}},
		"a backlog at a fair rate":           {{5000, later(time.Hour), noon, 500 * time.Millisecond, 5000}, {30, later(time.Hour), later(time.Hour), 0, 20}},
		"a backlog at twice the rate":        {{1000, later(time.Hour), noon, 100 * time.Millisecond, 519}},
		"a clock that stands still":          {{20, noon, noon, 0, 20}, {10, later(time.Second), noon, 0, 5}, {10, later(2 * time.Second), noon, 0, 5}},
		"a clock of 1970":                    {{20, noon, time.Unix(0, 0), 0, 20}, {10, later(time.Second), time.Unix(1, 0), 0, 5}},
		"a clock of 2099":                    {{20, noon, later(1e6 * time.Hour), time.Hour, 20}, {10, later(time.Second), later(2e6 * time.Hour), time.Hour, 5}},
		"our clock, years ahead for a while": {{20, later(1e5 * time.Hour), later(1e5 * time.Hour), 0, 20}, {10, noon, noon, 0, 0}, {10, later(time.Second), noon, 0, 5}},
		// Another instance has died: what it had in hand comes after newer messages.
		"stragglers at a fair rate": {{20, later(time.Minute), later(time.Minute), 0, 20}, {100, later(time.Minute), noon, 500 * time.Millisecond, 99}},
	} {
		m := newMeter()
		for i, b := range bursts {
			if got := m.send(b.n, b.arrival, b.sent, b.step); got != b.want {
				t.Errorf("%s, burst %d: %d of %d pass, want %d", name, i+1, got, b.n, b.want)
			}
		}
	}
}

// TestLimiterForEver: at the rate itself everything passes, whatever the device's
// clock says.
func TestLimiterForEver(t *testing.T) {
	m := newMeter()
	for i := range 1000 {
		if m.send(1, noon.Add(time.Duration(i)*200*time.Millisecond), noon, 0) == 0 {
			t.Fatalf("message %d is over the limit", i+1)
		}
	}
}

// TestLimiterInvention: who makes up times gets the tokens of limiterBacklog once,
// and once more with stragglers.
func TestLimiterInvention(t *testing.T) {
	m := newMeter()
	most := int(limiterBacklog.Seconds()*m.settings.RateLimit) + m.settings.RateBurst
	if got := m.send(most, noon, noon.Add(-30*24*time.Hour), time.Second); got > m.settings.RateBurst {
		t.Errorf("before the backlog: %d pass", got)
	}
	for _, row := range []string{"latest", "stragglers"} {
		if got := m.send(2*most, noon, noon.Add(-limiterBacklog), 100*time.Millisecond); got > most {
			t.Errorf("%s: %d pass, want %d at most", row, got, most)
		}
	}
	if got := m.send(1000, noon, noon.Add(-limiterBacklog), time.Second); got > 0 {
		t.Errorf("a third time: %d pass", got)
	}
	if got := m.send(1000, noon.Add(time.Second), noon.Add(-limiterBacklog), time.Second); got > 5 {
		t.Errorf("a second later: %d pass", got)
	}
	m.device = "d2"
	if got := m.send(30, noon.Add(time.Second), noon, 0); got != 20 {
		t.Errorf("another device: %d pass", got)
	}
}

// TestLimiterChargesOnce: an entry is charged with its first transaction, and what
// turns out to have no effect is given back.
func TestLimiterChargesOnce(t *testing.T) {
	m := newMeter()
	m.settings.RateBurst = 2
	m.begin(noon, &m.settings)
	entry := func() store.Entry {
		return store.Entry{Metered: true, Msg: &pipeline.Message{Topic: pipeline.Topic{Tenant: "t1", Device: "d1"}, Time: noon}}
	}
	entries := []store.Entry{entry(), entry(), entry()}
	for i := range entries {
		m.charge(&entries[i])
		entries[i].Fresh = i > 0 // the first has taken effect elsewhere meanwhile
	}
	m.refund(entries)
	next := []store.Entry{entry(), entry()}
	for i := range next {
		m.charge(&next[i])
	}
	if entries[1].Rate != store.RateCharged || entries[2].Rate != store.RateLimited || next[0].Rate != store.RateCharged || next[1].Rate != store.RateLimited {
		t.Errorf("got %+v, %+v", entries, next)
	}
}

func TestLimiterOff(t *testing.T) {
	m := newMeter()
	m.settings.RateLimit = 0
	if got := m.send(1000, noon, noon, 0); got != 1000 || len(m.new) != 0 {
		t.Errorf("%d pass, %d devices are remembered", got, len(m.new))
	}
}

// TestLimiterMemory: any number of devices, a bounded number of buckets; those seen
// last are remembered.
func TestLimiterMemory(t *testing.T) {
	m := newMeter()
	m.limiter = newLimiter(1000, maphash.MakeSeed())
	for i := range 10_000 {
		m.device = fmt.Sprint(i)
		m.send(20, noon, noon, 0)
	}
	if n := len(m.new) + len(m.old); n > 1000 {
		t.Errorf("%d buckets", n)
	}
	for i := range 500 {
		m.device = fmt.Sprint(9999 - i)
		if got := m.send(1, noon, noon, 0); got != 0 {
			t.Fatalf("device %s has been forgotten", m.device)
		}
	}
}

// BenchmarkLimiter charges a million devices in turn; B/device is the heap they take.
func BenchmarkLimiter(b *testing.B) {
	m := newMeter()
	m.begin(noon, &m.settings)
	messages := make([]pipeline.Message, 1_000_000)
	for i := range messages {
		messages[i] = pipeline.Message{Topic: pipeline.Topic{Tenant: "t1", Device: fmt.Sprint("d", i)}, Time: noon}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b.ResetTimer()
	for i := range b.N {
		m.charge(&store.Entry{Msg: &messages[i%len(messages)]})
	}
	b.StopTimer()
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(len(m.new)+len(m.old)), "B/device")
	runtime.KeepAlive(messages)
}
