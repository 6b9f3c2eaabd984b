package bridge

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/pipeline"
)

// paritySetup gives the bench a tally, which nobody writes.
func (b *bench) paritySetup(t *testing.T) {
	t.Helper()
	o := parity.DefaultOptions()
	o.Logger = slog.New(slog.DiscardHandler)
	b.parityRegistry = prometheus.NewRegistry()
	o.Registry = b.parityRegistry
	var err error
	if _, b.tally, err = parity.New(nil, o); err != nil {
		t.Fatal(err)
	}
	b.handOver = o.Interval
}

// counted is crossfade_parity_total by result.
func (b *bench) counted(t *testing.T) string {
	t.Helper()
	families, err := b.parityRegistry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	by := make(map[string]int)
	for _, f := range families {
		if f.GetName() != "crossfade_parity_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			by[m.GetLabel()[0].GetValue()] = int(m.GetCounter().GetValue())
		}
	}
	return fmt.Sprintf("matched %d, mismatched %d, wait %d, full %d", by["matched"], by["mismatched"], by["rescued_wait"], by["rescued_full"])
}

func explicit(id string, value int) string {
	return fmt.Sprintf(`{"message_id":%q,"site_id":"s","metrics":{"v":%d}}`, id, value)
}

// TestStandbyCountsHowItEnds in each way that says something of parity, and not in
// the others.
func TestStandbyCountsHowItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2*time.Second, 3)
		defer b.stop()
		here := b.take(pipeline.PathJetStream, "here", numbered(1))
		synctest.Wait()
		b.durable([]pipeline.Identity{here})
		elsewhere := b.take(pipeline.PathJetStream, "elsewhere", numbered(2))
		b.mu.Lock()
		b.ledger[elsewhere.ID] = true
		b.mu.Unlock()
		time.Sleep(time.Second)
		expect(t, "acked", b.seen(&b.acked), "here", "elsewhere")
		b.take(pipeline.PathMQTT, "waits", numbered(3))
		time.Sleep(3 * time.Second)
		for i := range 4 {
			b.take(pipeline.PathJetStream, "many", numbered(10+i))
		}
		synctest.Wait()
		b.mu.Lock()
		b.promoted = true
		b.mu.Unlock()
		b.restage()
		synctest.Wait()
		if got, want := b.counted(t), "matched 2, mismatched 0, wait 1, full 1"; got != want {
			t.Errorf("counted %s, want %s", got, want)
		}
	})
}

// TestStandbyFindsMismatches in whichever way it learns of the commit. The copy is
// acknowledged all the same: the first counts.
func TestStandbyFindsMismatches(t *testing.T) {
	for name, learn := range map[string]func(b *bench, counted pipeline.Identity){
		"committed here": func(b *bench, counted pipeline.Identity) { b.durable([]pipeline.Identity{counted}) },
		"the ledger": func(b *bench, counted pipeline.Identity) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.digests[counted.ID] = counted.Digest
			b.ledger[counted.ID] = true
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, 5*time.Second, 100)
				defer b.stop()
				counted := identityOf(explicit("x", 1))
				same := identityOf(explicit("y", 1))
				b.take(pipeline.PathJetStream, "differs", explicit("x", 2))
				b.take(pipeline.PathJetStream, "agrees", explicit("y", 1))
				synctest.Wait()
				learn(b, counted)
				learn(b, same)
				time.Sleep(time.Second)
				expect(t, "acked", b.seen(&b.acked), "differs", "agrees")
				if got, want := b.counted(t), "matched 1, mismatched 1, wait 0, full 0"; got != want {
					t.Errorf("counted %s, want %s", got, want)
				}
			})
		})
	}
}

// TestStandbyAsksTheLedgerWhatDiffers: this instance's memory has only half of the
// digest, and a sample shows the whole.
func TestStandbyAsksTheLedgerWhatDiffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 5*time.Second, 100)
		b.stop()
		b.recent = func(*pipeline.Identity) pipeline.Known { return pipeline.Known{Durable: true, Differs: true} }
		b.restart(t)
		defer b.stop()
		counted := identityOf(explicit("x", 1))
		b.ledger[counted.ID], b.digests[counted.ID] = true, counted.Digest
		b.take(pipeline.PathMQTT, "differs", explicit("x", 2))
		synctest.Wait()
		expect(t, "acked before the ledger was asked", b.seen(&b.acked))
		time.Sleep(time.Second)
		expect(t, "acked", b.seen(&b.acked), "differs")
		if got, want := b.counted(t), "matched 0, mismatched 1, wait 0, full 0"; got != want {
			t.Errorf("counted %s, want %s", got, want)
		}
	})
}

func identityOf(body string) pipeline.Identity {
	d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t/device/d/telemetry", Body: []byte(body), Receipt: &slip{at: time.Now()}}
	var m pipeline.Message
	pipeline.NewDecoder("message_id").Decode(&m, &d)
	return m.Identity
}

// TestStandbyEndsASilence: a broker whose own window is smaller than the session's
// has stopped sending, long before the wait is over (P6).
func TestStandbyEndsASilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, 100)
		defer b.stop()
		b.take(pipeline.PathMQTT, "a", numbered(1))
		b.take(pipeline.PathMQTT, "b", numbered(2))
		time.Sleep(time.Minute)
		expect(t, "few copies wait in peace", b.seen(&b.rescued))
		b.seq[pipeline.PathMQTT].Add(silenceMin - 2) // which do not stand by
		time.Sleep(silenceStall + 3*standbyTick)
		expect(t, "the older half", b.seen(&b.rescued), "a")
	})
}

// TestStandbyHoldsNothingInAWindowOfOne: nothing can arrive behind it that would show
// the distance.
func TestStandbyHoldsNothingInAWindowOfOne(t *testing.T) {
	for window, want := range map[int]int{1: 3, 2: 2} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, time.Hour, 100)
			b.stop()
			b.distance = newStandby(time.Hour, 100, window, "", prometheus.NewRegistry(), b.log).distance
			b.restart(t)
			defer b.stop()
			for i := range 3 {
				b.take(pipeline.PathMQTT, "x", numbered(i))
				synctest.Wait()
			}
			if n := len(b.seen(&b.rescued)); n != want {
				t.Errorf("window %d: %d are rescued, want %d", window, n, want)
			}
		})
	}
}
