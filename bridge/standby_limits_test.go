package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/pipeline"
)

// TestStandbyCountsWhatDoesNotStandBy: one tenant's single held MQTT copy keeps
// back the PUBACKs of all others, who never stand by (P6).
func TestStandbyCountsWhatDoesNotStandBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 10)
		defer b.stop()
		b.take(pipeline.PathMQTT, "a", numbered(1))
		b.seq[pipeline.PathMQTT].Add(11) // nothing of it comes to standby
		time.Sleep(2 * standbyTick)
		expect(t, "rescued by distance", b.seen(&b.rescued), "a")
	})
}

// TestStandbyStaysInTheSessionsWindow: a small window is never filled by waiting,
// however large the buffer.
func TestStandbyStaysInTheSessionsWindow(t *testing.T) {
	for window, want := range map[int]int64{0: 4000, 1: -1, 2: 0, 3: 1, 4: 2, 20: 10, 8000: 4000, 65535: 4000} {
		b := newBench(t, time.Hour, 4000)
		b.stop()
		s := newStandby(time.Hour, 4000, window, "", prometheus.NewRegistry(), b.log)
		if s.distance != want {
			t.Errorf("window %d: distance %d, want %d", window, s.distance, want)
		}
	}
}

// TestStandbyAsksAboutEveryCopy: thousands of copies that the ledger will never
// know must not keep those behind them from being asked about.
func TestStandbyAsksAboutEveryCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 100_000)
		defer b.stop()
		for i := range 2*ledgerBatch + 500 {
			b.take(pipeline.PathJetStream, "stuck", numbered(i))
		}
		id := b.take(pipeline.PathJetStream, "young", numbered(1_000_000))
		b.mu.Lock()
		b.ledger[id.ID] = true
		b.mu.Unlock()
		time.Sleep(time.Second)
		expect(t, "acked", b.seen(&b.acked), "young")
	})
}

// TestStandbyKeepsUpWithOtherInstances: everything was committed elsewhere, so
// every copy takes a look-up, far more than one batch a beat.
func TestStandbyKeepsUpWithOtherInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 100_000)
		defer b.stop()
		const copies = 10 * ledgerBatch
		for i := range copies {
			id := b.take(pipeline.PathJetStream, "x", numbered(i))
			b.mu.Lock()
			b.ledger[id.ID] = true
			b.mu.Unlock()
		}
		time.Sleep(2*ledgerBeat + 10*2*standbyTick)
		if n := len(b.seen(&b.acked)); n != copies {
			t.Errorf("%d of %d are acknowledged", n, copies)
		}
	})
}

// TestStandbyOutlivesALedgerThatHangs: waits end meanwhile, and the ledger is asked
// again afterwards.
func TestStandbyOutlivesALedgerThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Minute, 100)
		b.stop()
		answer, asked := b.known, 0
		b.known = func(ctx context.Context, ids []pipeline.Identity) ([]pipeline.Known, error) {
			if asked++; asked == 1 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return answer(ctx, ids)
		}
		b.restart(t)
		defer b.stop()
		id := b.take(pipeline.PathMQTT, "a", numbered(1))
		b.mu.Lock()
		b.ledger[id.ID] = true
		b.mu.Unlock()
		time.Sleep(ledgerTimeout + time.Second)
		expect(t, "acked", b.seen(&b.acked), "a")
	})
}

// TestStandbyForgetsWhatIsDone: one copy that waits long must not keep in memory
// what came and went behind it.
func TestStandbyForgetsWhatIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 100_000)
		defer b.stop()
		b.take(pipeline.PathJetStream, "stuck", numbered(0))
		for i := range 20_000 {
			id := b.take(pipeline.PathJetStream, "x", numbered(i+1))
			synctest.Wait()
			b.durable([]pipeline.Identity{id})
			synctest.Wait()
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := cap(b.lines[pipeline.PathJetStream].copies); n > 8*lineSlack {
			t.Errorf("there is room for %d copies while one is held", n)
		}
		if n := len(b.inquiry.queue); n > 10 {
			t.Errorf("%d copies wait to be asked about while one is held", n)
		}
		if n := len(b.held); n != 1 {
			t.Errorf("%d keys are held, want 1", n)
		}
	})
}

// shown is crossfade_standby_held over both paths.
func (b *bench) shown(t *testing.T) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(b.gauge)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			sum += m.GetGauge().GetValue()
		}
	}
	return sum
}

// TestStandbyShowsWhatItHolds: the gauge falls without further arrivals (P7).
func TestStandbyShowsWhatItHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 100)
		defer b.stop()
		id := b.take(pipeline.PathJetStream, "a", numbered(1))
		synctest.Wait()
		if n := b.shown(t); n != 1 || b.holds(pipeline.PathJetStream) != 1 {
			t.Errorf("the gauge shows %v, want 1", n)
		}
		b.durable([]pipeline.Identity{id})
		synctest.Wait()
		if n := b.shown(t); n != 0 || b.holds(pipeline.PathJetStream) != 0 {
			t.Errorf("the gauge shows %v, want 0", n)
		}
	})
}

func TestStandbyGivesWayToAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 100)
		defer b.stop()
		for i, name := range []string{"a", "b", "c"} {
			b.take(pipeline.PathJetStream, name, numbered(i))
		}
		b.take(pipeline.PathMQTT, "d", numbered(9))
		synctest.Wait()
		b.relieve(pipeline.PathJetStream)
		synctest.Wait()
		expect(t, "the older half", b.seen(&b.rescued), "a", "b")
		b.relieve(pipeline.PathJetStream)
		synctest.Wait()
		expect(t, "all", b.seen(&b.rescued), "a", "b", "c")
		b.relieve(pipeline.PathJetStream) // nothing is left
	})
}

// TestStandbySettlesEachCopyOnce throws everything at it in random order: copies
// of numbered and of equal anonymous content on both paths, commits here and
// elsewhere, flips, stalls, waits that end. Every copy is acknowledged, processed
// or given back exactly once, and none acknowledged that is not durable (P1).
func TestStandbySettlesEachCopyOnce(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) { settleOnce(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func settleOnce(t *testing.T, rnd *rand.Rand) {
	b := newBench(t, 2*time.Second, 40)
	durable := make(map[string]bool) // by name's body
	bodies := make(map[string]string)
	ids := make(map[string]pipeline.Identity)
	for n := range 600 {
		body := numbered(rnd.IntN(80))
		if rnd.IntN(4) == 0 {
			body = `{"site_id":"anonymous"}`
		}
		path := []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream}[rnd.IntN(2)]
		name := fmt.Sprint(n)
		bodies[name], ids[body] = body, b.take(path, name, body)
		switch rnd.IntN(12) {
		case 0, 1:
			b.mu.Lock()
			durable[body] = true
			b.ledger[ids[body].ID] = true
			b.mu.Unlock()
			b.durable([]pipeline.Identity{ids[body]})
		case 2:
			b.mu.Lock()
			durable[body] = true
			b.ledger[ids[body].ID] = true
			b.mu.Unlock()
		case 3:
			time.Sleep(time.Duration(rnd.IntN(900)) * time.Millisecond)
		case 4:
			b.relieve(path)
		case 5:
			b.mu.Lock()
			b.promoted, b.broken = rnd.IntN(4) == 0, rnd.IntN(3) == 0
			b.mu.Unlock()
			b.restage()
		}
	}
	b.stop()
	settled := slices.Concat(b.acked, b.rescued, b.released)
	slices.Sort(settled)
	if twice := len(settled) - len(slices.Compact(slices.Clone(settled))); twice != 0 || len(settled) != 600 {
		t.Errorf("600 copies were settled %d times, %d of them again", len(settled), twice)
	}
	for _, name := range b.acked {
		if !durable[bodies[name]] {
			t.Errorf("%s was acknowledged and is not durable", bodies[name])
		}
	}
	for p := range b.lines {
		if b.lines[p].live != 0 {
			t.Errorf("path %d counts %d as held at the end", p, b.lines[p].live)
		}
	}
	if len(b.held) != 0 {
		t.Errorf("%d keys are held at the end", len(b.held))
	}
}
