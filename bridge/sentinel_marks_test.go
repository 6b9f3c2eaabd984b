package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

// lookout is sentinels with a server and a database whose answers the test sets.
type lookout struct {
	*sentinels
	registry *prometheus.Registry

	mu    sync.Mutex
	floor map[string]uint64 // by consumer
	gone  map[string]bool
	asked int
	away  bool // the database
	saw   []string
	ended chan struct{}
	end   context.CancelFunc
}

func newLookout() *lookout {
	reg := prometheus.NewRegistry()
	l := &lookout{sentinels: newSentinels(reg, slog.New(slog.DiscardHandler)), registry: reg,
		floor: make(map[string]uint64), gone: make(map[string]bool), ended: make(chan struct{})}
	l.sentinels.settled = func(_ context.Context, consumer string, marks []jetstream.Mark) ([]jetstream.Progress, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.asked++
		known := make([]jetstream.Progress, len(marks))
		for i, m := range marks {
			switch {
			case l.gone[consumer]:
				known[i] = jetstream.MarkGone
			case m.Sequence <= l.floor[consumer]:
				known[i] = jetstream.MarkSettled
			}
		}
		return known, nil
	}
	l.sentinels.saw = func(_ context.Context, list []control.Sighting) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.away {
			return errors.New("away")
		}
		for _, s := range list {
			l.saw = append(l.saw, fmt.Sprintf("%s %s %s", s.Path, s.Nonce, s.Kind))
		}
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.end = func() { cancel(); <-l.ended }
	go func() { defer close(l.ended); l.run(ctx) }()
	return l
}

func (l *lookout) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func (l *lookout) expect(t *testing.T, want ...string) {
	t.Helper()
	time.Sleep(time.Minute) // of a synctest bubble
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.saw)
	slices.Sort(want)
	if !slices.Equal(l.saw, want) {
		t.Errorf("saw %q, want %q", l.saw, want)
	}
}

func (l *lookout) counted(t *testing.T, result string) float64 {
	t.Helper()
	n := 0.0
	families, err := l.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetLabel()[1].GetValue() == result {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// inStream is a copy by JetStream with a place in a stream.
type inStream struct {
	mark  jetstream.Mark
	acked *int
}

func (r inStream) Ack() error                   { *r.acked++; return nil }
func (r inStream) Release() error               { panic("a sentinel is never given back") }
func (r inStream) Occurred() time.Time          { return time.Unix(0, 0) }
func (r inStream) Mark() (jetstream.Mark, bool) { return r.mark, r.mark.Sequence > 0 }

func ofTenant(tenant, msgType, nonce string) pipeline.Sentinel {
	return pipeline.Sentinel{Tenant: tenant, Type: msgType, Nonce: nonce}
}

// TestMarksWaitForTheFloor: a sentinel by JetStream is acknowledged at once, and seen
// once everything before it is settled too.
func TestMarksWaitForTheFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLookout()
		defer l.end()
		acked := 0
		for seq := range uint64(3) {
			d := pipeline.Delivery{Path: pipeline.PathJetStream, Receipt: inStream{jetstream.Mark{Consumer: "c", Sequence: seq + 1}, &acked}}
			l.take(&d, ofTenant("t", pipeline.SentinelShadow, fmt.Sprint("n", seq+1)))
		}
		l.expect(t)
		if acked != 3 {
			t.Errorf("%d of 3 are acknowledged", acked)
		}
		l.set(func() { l.floor["c"] = 2 })
		l.expect(t, "jetstream n1 shadow", "jetstream n2 shadow")
		l.set(func() { l.gone["c"] = true })
		l.expect(t, "jetstream n1 shadow", "jetstream n2 shadow")
		if n := l.counted(t, sentinelLost); n != 1 {
			t.Errorf("%v are lost, want 1", n)
		}
		asked := 0
		l.set(func() { asked = l.asked })
		l.expect(t, "jetstream n1 shadow", "jetstream n2 shadow")
		if l.asked != asked {
			t.Error("the server is asked although nothing waits")
		}
	})
}

// TestMirrorProofNeedsAllStreams.
func TestMirrorProofNeedsAllStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLookout()
		defer l.end()
		for i, consumer := range jetstream.Consumers() {
			l.expect(t)
			l.mirrored(ofTenant("t", pipeline.SentinelTypes()[i], "n"), jetstream.Mark{Consumer: consumer, Sequence: 7})
			l.mirrored(ofTenant("t", pipeline.SentinelTypes()[i], "n"), jetstream.Mark{Consumer: consumer, Sequence: 8})
			l.expect(t)
			l.set(func() { l.floor[consumer] = 7 })
		}
		l.expect(t, "jetstream n mirror")
	})
}

// TestSightingsSurviveAnOutage of the database, each once.
func TestSightingsSurviveAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLookout()
		defer l.end()
		l.set(func() { l.away = true })
		for range 2 { // as a session gets it that has a subscription of its own
			l.see(pipeline.PathMQTT, control.KindTelemetry, ofTenant("t", pipeline.SentinelTelemetry, "n"))
		}
		l.expect(t)
		l.set(func() { l.away = false })
		l.expect(t, "mqtt n telemetry")
	})
}

// TestForgedSentinelsOfOneTenant, thousands of them while the database is away, take no
// room from those of another.
func TestForgedSentinelsOfOneTenant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLookout()
		defer l.end()
		l.set(func() { l.away = true })
		for i := range 10_000 {
			l.see(pipeline.PathMQTT, control.KindTelemetry, ofTenant("bad", pipeline.SentinelTelemetry, fmt.Sprint("f", i)))
			l.mirrored(ofTenant("bad", pipeline.SentinelTelemetry, fmt.Sprint("f", i)), jetstream.Mark{Consumer: "c", Sequence: 1})
		}
		l.see(pipeline.PathMQTT, control.KindTelemetry, ofTenant("good", pipeline.SentinelTelemetry, "n"))
		if n := l.counted(t, sentinelExcess); n != 2*(10_000-sentinelsPerTenant) {
			t.Errorf("%v in excess", n)
		}
		l.set(func() { l.away = false })
		time.Sleep(time.Minute)
		synctest.Wait()
		l.mu.Lock()
		if len(l.saw) != sentinelsPerTenant+1 || !slices.Contains(l.saw, "mqtt n telemetry") {
			t.Errorf("%d sightings were written: %q", len(l.saw), l.saw[max(0, len(l.saw)-2):])
		}
		l.mu.Unlock()
		// What waits in vain is forgotten, and makes room.
		time.Sleep(marksAge)
		synctest.Wait()
		if len(l.quota.held) != 0 {
			t.Errorf("still counted: %v", l.quota.held)
		}
	})
}
