package control

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// TestSessionOfADeadInstance blocks the proof until an operator answers for it.
func TestSessionOfADeadInstance(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	n, p := alone(t, pool, o)
	until(t, "it is in shadow", n.in(stage.Shadow, "t"))
	dead, err := New(brisk(t, pool, "dead", o, nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.SignOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := Forget(t.Context(), pool, "dead"); !errors.Is(err, ErrLive) {
		t.Errorf("Forget of a live instance = %v", err)
	}
	o.wish(stage.MQTT)
	waitsFor(t, pool, "t", "dead (not running: start it, or have its session forgotten)")
	if err := dead.SignOff(t.Context()); err != nil { // a clean stop leaves a session, too
		t.Fatal(err)
	}
	sent := p.count()
	until(t, "another sentinel is sent", func() bool { signal(n.nudge); return p.count() > sent || n.StageOf("t") != stage.Shadow })
	waitsFor(t, pool, "t", "dead (not running")
	if err := Forget(t.Context(), pool, "dead"); err != nil {
		t.Fatal(err)
	}
	if err := Forget(t.Context(), pool, "dead"); !errors.Is(err, ErrNoInstance) {
		t.Errorf("the second Forget = %v", err)
	}
	until(t, "it goes on", n.in(stage.MQTT, "t"))
}

// TestSessionsThatChangeVoidAProof: an instance comes between the sentinel and its
// arrival; another one is sent.
func TestSessionsThatChangeVoidAProof(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	n, p := alone(t, pool, o)
	until(t, "it is in shadow", n.in(stage.Shadow, "t"))
	p.set(func(p *courier) { p.mute[pipeline.PathJetStream] = true })
	o.wish(stage.MQTT)
	waitsFor(t, pool, "t", "JetStream")
	p.set(func(p *courier) {
		p.mute = map[pipeline.Path]bool{pipeline.PathMQTT: true, pipeline.PathJetStream: true}
	})
	var sent []Sentinel
	p.set(func(p *courier) { sent = append(sent, p.sent...) })
	start(t, brisk(t, pool, "b", o, nil))
	// The old one arrives everywhere, on the new session as well.
	if err := n.Saw(t.Context(), sightings(sent, true, true)); err != nil {
		t.Fatal(err)
	}
	for _, s := range sent {
		execute(t, pool, `INSERT INTO crossfade_sightings SELECT $1, 1, 'b', 'telemetry', now()`, s.Nonce)
	}
	until(t, "another one is sent", func() bool { return p.count() > len(sent) })
	if n.StageOf("t") != stage.Shadow {
		t.Error("the proof was of other sessions")
	}
}

// TestAnotherSessionUnderTheSameName: with a new client ID the old session lives on.
func TestAnotherSessionUnderTheSameName(t *testing.T) {
	pool := migrated(t)
	o := newOracle(stage.Shadow)
	for _, client := range []string{"one", "two", "one"} {
		options := brisk(t, pool, "a", o, nil)
		options.Session.ClientID = client
		c, err := New(options)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SignOn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	instances, err := Instances(t.Context(), pool)
	if err != nil || len(instances) != 2 {
		t.Fatalf("instances %+v, %v; want two", instances, err)
	}
	if a, old := instances[0], instances[1]; a.Session != "one" || old.Session != "two" || !a.SessionExists || !old.SessionExists || old.Live {
		t.Errorf("instances %+v; want the one with session one, and a session left behind", instances)
	}
}

// TestMirrorsSession: what a mirror has not brought yet is on its way by JetStream,
// though the sentinel has come by another mirror; that of a dead instance, too.
func TestMirrorsSession(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	n, p := alone(t, pool, o)
	until(t, "it is in shadow", n.in(stage.Shadow, "t"))
	options := brisk(t, pool, "b", o, nil)
	options.Session, options.Mirror = nil, &Session{ClientID: "mirror-b", Expiry: time.Hour}
	b := start(t, options)
	o.wish(stage.MQTT)
	waitsFor(t, pool, "t", "sentinel by JetStream: not yet out of the mirror's session of b")
	b.halt()
	if err := b.SignOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitsFor(t, pool, "t", "not yet out of the mirror's session of b (not running")
	again := start(t, options)
	p.set(func(p *courier) {
		p.also = func(ctx context.Context, list []Sentinel) error {
			var seen []Sighting
			for _, s := range list {
				seen = append(seen, Sighting{s.Nonce, pipeline.PathJetStream, KindMirror, time.Now()})
			}
			return again.Saw(ctx, seen)
		}
	})
	until(t, "it is proved", n.in(stage.MQTT, "t"))
	options.Mirror = &Session{ClientID: "mirror-2", Expiry: Never}
	again.halt()
	start(t, options)
	instances, err := Instances(t.Context(), pool)
	if err != nil || len(instances) != 3 {
		t.Fatalf("instances %+v, %v; want three", instances, err)
	}
	if b, old := instances[1], instances[2]; b.Mirror != "mirror-2" || !b.MirrorExists || b.MirrorUntil != nil || old.Mirror != "mirror-b" || !old.MirrorExists {
		t.Errorf("instances %+v; want b with its mirror's session, and the one it left behind", instances[1:])
	}
}
