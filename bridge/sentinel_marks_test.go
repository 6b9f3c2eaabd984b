package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
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
	l.sentinels.genuine = func(_, nonce string) bool { return !strings.HasPrefix(nonce, "forged") }
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
			d := pipeline.Delivery{Path: pipeline.PathJetStream, Receipt: inStream{jetstream.Mark{Consumer: jetstream.ConsumerShadow, Sequence: seq + 1}, &acked}}
			l.take(&d, ofTenant("t", pipeline.SentinelShadow, fmt.Sprint("n", seq+1)))
		}
		l.expect(t)
		if acked != 3 {
			t.Errorf("%d of 3 are acknowledged", acked)
		}
		l.set(func() { l.floor[jetstream.ConsumerShadow] = 2 })
		l.expect(t, "jetstream n1 shadow", "jetstream n2 shadow")
		l.set(func() { l.gone[jetstream.ConsumerShadow] = true })
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

// byStream is a copy of a sentinel that came out of a consumer's stream.
func byStream(consumer string, acked *int) *pipeline.Delivery {
	return &pipeline.Delivery{Path: pipeline.PathJetStream, Receipt: inStream{jetstream.Mark{Consumer: consumer, Sequence: 1}, acked}}
}

// TestSentinelsAstray: what came out of a stream for messages of another type proves
// nothing, neither of that stream nor of its own.
func TestSentinelsAstray(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLookout()
		defer l.end()
		acked := 0
		for _, msgType := range pipeline.SentinelTypes() { // a mirror that knows one subject only
			l.take(byStream(jetstream.ConsumerTelemetry, &acked), ofTenant("t", msgType, "n"))
			l.mirrored(ofTenant("t", msgType, "n"), jetstream.Mark{Consumer: jetstream.ConsumerTelemetry, Sequence: 1})
		}
		l.set(func() { l.floor[jetstream.ConsumerTelemetry] = 1 })
		l.expect(t, "jetstream n telemetry")
		if n := l.counted(t, sentinelAstray); n != 4 || acked != 3 {
			t.Errorf("%v astray, want 4; %d acknowledged, want 3", n, acked)
		}
	})
}

// TestForgedSentinels take no room: thousands of them while nothing is settled and the
// database is away keep none out that a leader has sent, of the same tenant.
func TestForgedSentinels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLookout()
		defer l.end()
		l.set(func() { l.away = true })
		acked := 0
		for i := range 10_000 {
			forged := ofTenant("t", pipeline.SentinelTelemetry, fmt.Sprint("forged", i))
			l.take(byStream(jetstream.ConsumerTelemetry, &acked), forged)
			l.take(&pipeline.Delivery{Path: pipeline.PathMQTT, Receipt: atOnce{&acked}}, forged)
			l.mirrored(forged, jetstream.Mark{Consumer: jetstream.ConsumerTelemetry, Sequence: 1})
		}
		real := ofTenant("t", pipeline.SentinelTelemetry, "n")
		l.take(byStream(jetstream.ConsumerTelemetry, &acked), real)
		l.take(&pipeline.Delivery{Path: pipeline.PathMQTT, Receipt: atOnce{&acked}}, real)
		if n := l.counted(t, sentinelForged); n != 20_000 || acked != 20_002 {
			t.Errorf("%v count as forged, %d are acknowledged", n, acked)
		}
		l.set(func() { l.away, l.floor[jetstream.ConsumerTelemetry] = false, 1 })
		l.expect(t, "jetstream n telemetry", "mqtt n telemetry")
	})
}

// atOnce is a receipt whose acknowledgement has its turn at once.
type atOnce struct{ acked *int }

func (r atOnce) Ack() error                { return r.AckThen(func() {}) }
func (r atOnce) AckThen(then func()) error { *r.acked++; then(); return nil }
func (r atOnce) Release() error            { panic("a sentinel is never given back") }
func (r atOnce) Occurred() time.Time       { return time.Unix(0, 0) }

// TestRepeatedSentinels: somebody has recorded thousands of genuine ones and sends them
// again, while nothing is settled and the database is away. One that is newer is seen all
// the same, whenever it comes, and what is kept stays within bounds.
func TestRepeatedSentinels(t *testing.T) {
	nonce := func(i int) string { return fmt.Sprintf("n%06d", i) }
	const recorded = 5000
	synctest.Test(t, func(t *testing.T) {
		l := newLookout()
		defer l.end()
		l.set(func() { l.away = true })
		acked := 0
		flood := func() {
			for i := range recorded {
				old := ofTenant("t", pipeline.SentinelShadow, nonce(i))
				l.take(byStream(jetstream.ConsumerShadow, &acked), old)
				l.take(&pipeline.Delivery{Path: pipeline.PathMQTT, Receipt: atOnce{&acked}}, old)
			}
		}
		flood()
		real := ofTenant("t", pipeline.SentinelShadow, nonce(recorded))
		l.take(byStream(jetstream.ConsumerShadow, &acked), real)
		l.take(&pipeline.Delivery{Path: pipeline.PathMQTT, Receipt: atOnce{&acked}}, real)
		time.Sleep(time.Second)
		flood()
		for key, list := range l.quota.held {
			if len(list) > noncesPerTenant {
				t.Errorf("%d nonces are kept by %s", len(list), key.path)
			}
		}
		l.set(func() { l.away, l.floor[jetstream.ConsumerShadow] = false, 1 })
		time.Sleep(time.Minute)
		synctest.Wait()
		l.mu.Lock()
		for _, want := range []string{"jetstream " + real.Nonce + " shadow", "mqtt " + real.Nonce + " shadow"} {
			if !slices.Contains(l.saw, want) {
				t.Errorf("not seen: %s", want)
			}
		}
		l.mu.Unlock()
		if len(l.quota.held) != 0 {
			t.Errorf("still counted: %v", l.quota.held)
		}
		// What waits in vain is forgotten, and makes room.
		l.mirrored(ofTenant("t", pipeline.SentinelShadow, nonce(recorded+1)), jetstream.Mark{Consumer: jetstream.ConsumerShadow, Sequence: 9})
		time.Sleep(marksAge + time.Minute)
		synctest.Wait()
		if len(l.quota.held) != 0 {
			t.Errorf("still counted: %v", l.quota.held)
		}
	})
}
