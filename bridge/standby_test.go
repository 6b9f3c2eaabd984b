package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// bench is a standby with everything around it recorded.
type bench struct {
	*standby
	mu       sync.Mutex
	ledger   map[pipeline.ID]bool
	digests  map[pipeline.ID]int64 // of explicit messages in it
	broken   bool
	promoted bool
	acked    []string
	released []string
	rescued  []string
	seq      [3]atomic.Uint64 // by path
	cancel   context.CancelFunc
	ended    chan struct{}

	parityRegistry *prometheus.Registry
}

func newBench(t *testing.T, wait time.Duration, buffer int) *bench {
	b := &bench{ledger: make(map[pipeline.ID]bool), digests: make(map[pipeline.ID]int64), ended: make(chan struct{})}
	b.standby = newStandby(wait, buffer, 8*buffer, "message_id", prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	b.paritySetup(t)
	b.recent = func(*pipeline.Identity) pipeline.Known { return pipeline.Known{} }
	b.known = func(_ context.Context, copies []pipeline.Identity) ([]pipeline.Known, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.broken {
			return nil, errors.New("away")
		}
		known := make([]pipeline.Known, len(copies))
		for i, c := range copies {
			known[i].Durable = b.ledger[c.ID]
			if digest, ok := b.digests[c.ID]; ok {
				known[i].Differs, known[i].Digest = digest != c.Digest, digest
			}
		}
		return known, nil
	}
	b.arrived = func(p pipeline.Path) uint64 { return b.seq[p].Load() }
	b.process = func(d pipeline.Delivery) { b.note(&b.rescued, d.Receipt.(*slip).name) }
	b.decide = func(*pipeline.Delivery) stage.Action {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.promoted {
			return stage.Process
		}
		return stage.StandBy
	}
	b.restart(t)
	return b
}

// restart runs the standby, after stop again.
func (b *bench) restart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	b.cancel, b.ended = cancel, ended
	go func() { defer close(ended); b.run(ctx) }()
}

func (b *bench) stop() { b.cancel(); <-b.ended }

func (b *bench) note(list *[]string, name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*list = append(*list, name)
}

func (b *bench) seen(list *[]string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(*list)
}

// slip is a receipt that notes how it was settled.
type slip struct {
	*bench
	name string
	at   time.Time
}

func (s *slip) Ack() error          { s.note(&s.acked, s.name); return nil }
func (s *slip) Release() error      { s.note(&s.released, s.name); return nil }
func (s *slip) Occurred() time.Time { return s.at }

// take stands a copy by and returns its identity. A body with seq is a message
// of its own; without, it is anonymous.
func (b *bench) take(path pipeline.Path, name, body string) pipeline.Identity {
	d := pipeline.Delivery{Path: path, Topic: "tenant/t/device/d/telemetry", Body: []byte(body), Receipt: &slip{b, name, time.Now()}}
	if path == pipeline.PathJetStream {
		d.Topic, d.Subject = "", "telemetry.t"
		d.Body = fmt.Appendf(nil, `{"topic":"tenant/t/device/d/telemetry","payload":%s}`, body)
	}
	var m pipeline.Message
	pipeline.NewDecoder("message_id").Decode(&m, &d)
	b.hold(d, b.seq[path].Add(1))
	return m.Identity
}

func numbered(n int) string { return fmt.Sprintf(`{"seq":%d,"site_id":"s"}`, n) }

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestStandbyIsConfirmedByThisInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 5*time.Second, 100)
		defer b.stop()
		first := b.take(pipeline.PathJetStream, "a", numbered(1))
		b.take(pipeline.PathJetStream, "a again", numbered(1))
		b.take(pipeline.PathJetStream, "b", numbered(2))
		synctest.Wait()
		expect(t, "nothing before the commit", b.seen(&b.acked))
		b.durable([]pipeline.Identity{first})
		synctest.Wait()
		got := b.seen(&b.acked)
		slices.Sort(got)
		expect(t, "all copies of what is durable, and no other", got, "a", "a again")
		expect(t, "rescued", b.seen(&b.rescued))
	})
}

func TestStandbyIsConfirmedByTheLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 5*time.Second, 100)
		defer b.stop()
		id := b.take(pipeline.PathMQTT, "a", numbered(1))
		time.Sleep(time.Second)
		expect(t, "before the ledger has it", b.seen(&b.acked))
		b.mu.Lock()
		b.ledger[id.ID] = true // another instance has committed it
		b.mu.Unlock()
		time.Sleep(time.Second)
		expect(t, "acked", b.seen(&b.acked), "a")
	})
}

func TestStandbyIsRescuedWhenTheWaitIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 5*time.Second, 100)
		defer b.stop()
		b.broken = true // and the ledger can't be asked
		b.take(pipeline.PathMQTT, "a", numbered(1))
		time.Sleep(2 * time.Second)
		b.take(pipeline.PathMQTT, "b", numbered(2))
		time.Sleep(2900 * time.Millisecond)
		expect(t, "before the wait is over", b.seen(&b.rescued))
		time.Sleep(200 * time.Millisecond)
		expect(t, "after a's wait", b.seen(&b.rescued), "a")
		time.Sleep(2 * time.Second)
		expect(t, "after b's wait", b.seen(&b.rescued), "a", "b")
		expect(t, "a rescue is not an acknowledgement", b.seen(&b.acked))
	})
}

// TestStandbyNeverStallsTheSession: what arrives behind a held MQTT copy is kept
// back with it, so the oldest is rescued by distance though few are held (P6).
func TestStandbyNeverStallsTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 10)
		defer b.stop()
		b.take(pipeline.PathMQTT, "a", numbered(1))
		b.seq[pipeline.PathMQTT].Add(10) // other tenants' messages, which do not stand by
		b.take(pipeline.PathMQTT, "b", numbered(2))
		synctest.Wait()
		expect(t, "rescued by distance", b.seen(&b.rescued), "a")
		b.take(pipeline.PathJetStream, "c", numbered(3))
		b.seq[pipeline.PathJetStream].Add(1000)
		b.take(pipeline.PathJetStream, "d", numbered(4))
		synctest.Wait()
		expect(t, "JetStream acknowledges in any order", b.seen(&b.rescued), "a")
	})
}

func TestStandbyHoldsNoMoreThanItsBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 3)
		defer b.stop()
		for i, name := range []string{"a", "b", "c", "d", "e"} {
			b.take(pipeline.PathJetStream, name, numbered(i))
		}
		synctest.Wait()
		expect(t, "the oldest", b.seen(&b.rescued), "a", "b")
	})
}

func TestStandbyFollowsAFlip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 100)
		defer b.stop()
		b.take(pipeline.PathMQTT, "a", numbered(1))
		synctest.Wait()
		b.mu.Lock()
		b.promoted = true
		b.mu.Unlock()
		b.restage()
		synctest.Wait()
		expect(t, "what was held before the flip", b.seen(&b.rescued), "a")
		b.take(pipeline.PathMQTT, "b", numbered(2)) // was on its way to standby
		synctest.Wait()
		expect(t, "what was on its way", b.seen(&b.rescued), "a", "b")
	})
}

func TestStandbyGivesBackAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 100)
		b.take(pipeline.PathMQTT, "a", numbered(1))
		synctest.Wait()
		b.stop()
		expect(t, "released", b.seen(&b.released), "a")
		expect(t, "acked", b.seen(&b.acked))
	})
}

// TestStandbyTellsOccurrencesApart: equal anonymous content an hour apart is two
// messages, and one's commit confirms only its own copies.
func TestStandbyTellsOccurrencesApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2*time.Hour, 100)
		defer b.stop()
		const beat = `{"site_id":"s"}`
		first := b.take(pipeline.PathMQTT, "nine", beat)
		time.Sleep(time.Hour)
		b.take(pipeline.PathMQTT, "ten", beat)
		synctest.Wait()
		b.durable([]pipeline.Identity{first})
		synctest.Wait()
		expect(t, "acked", b.seen(&b.acked), "nine")
	})
}

func TestStandbyIgnoresDownlink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 100)
		defer b.stop()
		d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t/device/d/commands", Body: []byte(`{}`), Receipt: &slip{bench: b, name: "command"}}
		b.hold(d, 1)
		synctest.Wait()
		expect(t, "acked at once", b.seen(&b.acked), "command")
	})
}
