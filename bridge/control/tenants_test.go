package control

import (
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// TestInventedTenants: whoever can publish can invent tenant names; each must not have
// every tenant's wish evaluated (P6).
func TestInventedTenants(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "real")
	o := newOracle(stage.Live)
	options := brisk(t, pool, "a", o, nil)
	options.Beat = time.Hour
	began := time.Now()
	n := start(t, options)
	devstack.Await(t, "the tenant is moved", n.in(stage.Live, "real"))
	for i := range maxNewTenants + 1000 {
		n.StageOf("invented-" + string(rune('a'+i%26)) + time.Now().String())
		if i%100 == 0 {
			time.Sleep(10 * time.Millisecond) // a stream of them, not a burst
		}
	}
	if most := 3 + int64(time.Since(began)/newTenantPause); o.rounds.Load() > most {
		t.Errorf("%d rounds in %v, want %d at most", o.rounds.Load(), time.Since(began), most)
	}
	n.mu.Lock()
	if len(n.seen) > maxNewTenants {
		t.Errorf("%d names are remembered", len(n.seen))
	}
	clear(n.seen) // as the beat does
	n.mu.Unlock()
	register(t, pool, "late")
	other := start(t, brisk(t, pool, "b", o, nil)) // does not lead
	other.StageOf("late")
	devstack.Await(t, "a tenant that another instance meets is moved before the beat", n.in(stage.Live, "late"))
}

// TestBeats measure both paths, and show one that is dead though the tenant is silent.
func TestBeats(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t", "u")
	o := newOracle(stage.Shadow)
	p := &courier{mute: map[pipeline.Path]bool{}}
	options := brisk(t, pool, "a", o, p)
	options.BeatEvery, options.BeatRate, options.Missing = 200*time.Millisecond, 50, 300*time.Millisecond
	n := start(t, options)
	p.set(func(p *courier) { p.carriers = []*Control{n.Control} })
	latency := func(tenant string) Latency {
		all, err := Latencies(t.Context(), pool)
		if err != nil {
			t.Fatal(err)
		}
		return all[tenant]
	}
	devstack.Await(t, "both paths are measured", func() bool {
		l := latency("t")
		return l.MQTT != nil && l.JetStream != nil && l.MQTTMissing == nil && l.JetStreamMissing == nil
	})
	p.set(func(p *courier) { p.mute[pipeline.PathJetStream] = true })
	devstack.Await(t, "the dead path is shown", func() bool { l := latency("u"); return l.JetStreamMissing != nil && l.MQTTMissing == nil })
	p.set(func(p *courier) { p.mute = map[pipeline.Path]bool{} })
	devstack.Await(t, "it is alive again", func() bool { l := latency("u"); return l.JetStreamMissing == nil })
	if n.StageOf("t") != stage.Shadow {
		t.Error("a beat has moved somebody")
	}
}
