package control

import (
	"errors"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// TestSessionIsProvedAnew: an instance that begins, or has a lease again, drops no MQTT
// copy before a sentinel that it has sent since has come out of its session, for the
// tables may have lost sight of that one. JetStream copies are everybody's.
func TestSessionIsProvedAnew(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t", "u")
	o := newOracle(stage.JetStream)
	o.wish(stage.MQTT, "u")
	n, p := alone(t, pool, o)
	devstack.Await(t, "t is in jetstream", n.in(stage.JetStream, "t"))
	devstack.Await(t, "u is in mqtt", n.in(stage.MQTT, "u"))
	own := &courier{mute: map[pipeline.Path]bool{pipeline.PathMQTT: true}}
	b := start(t, brisk(t, pool, "b", o, own))
	own.set(func(own *courier) { own.carriers = []*Control{b.Control} })
	p.set(func(p *courier) { p.carriers = append(p.carriers, b.Control) })
	drops := func(tenant string) func() bool {
		return func() bool { _, drop := b.Look(tenant); return drop }
	}
	sentinels := func() (list []Sentinel) {
		own.set(func(own *courier) { list = append(list, own.own...) })
		return list
	}
	devstack.Await(t, "b drops JetStream copies", drops("u"))
	devstack.Await(t, "b has sent a sentinel, and another one", func() bool { return len(sentinels()) > 1 })
	if s, drop := b.Look("t"); s != stage.JetStream || drop {
		t.Errorf("in %s, MQTT copies may be dropped: %v", s, drop)
	}
	earlier := sentinels()
	if err := b.Saw(t.Context(), sightings(earlier[:1], false, true)); err != nil || drops("t")() {
		t.Errorf("a sentinel that came by JetStream proves the session, %v", err)
	}
	if err := b.Saw(t.Context(), sightings(earlier[:1], true, true)); err != nil {
		t.Fatal(err)
	}
	if !drops("t")() {
		t.Error("the first sentinel has come, and MQTT copies may not be dropped")
	}
	// The tables lose sight of it while its connection to the broker lasts.
	execute(t, pool, `UPDATE crossfade_instances SET lease_until = now() WHERE instance_id = 'b'; DELETE FROM crossfade_instances WHERE instance_id = 'b'`)
	devstack.Await(t, "b has another lease", func() bool { return b.lease.Load().number > 1 && drops("u")() })
	devstack.Await(t, "b has sent another sentinel", func() bool { return len(sentinels()) > len(earlier)+1 })
	if err := b.Saw(t.Context(), sightings(earlier, true, false)); err != nil || drops("t")() {
		t.Errorf("what was sent before proves the session, %v", err)
	}
	own.set(func(own *courier) { own.mute = map[pipeline.Path]bool{} })
	devstack.Await(t, "b drops MQTT copies", drops("t"))
}

// TestSessionThatCannotBeProved: nobody sends, nothing is dropped; the streams go on.
func TestSessionThatCannotBeProved(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.JetStream)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "it is in jetstream", n.in(stage.JetStream, "t"))
	own := &courier{err: errors.New("the broker is away")}
	b := start(t, brisk(t, pool, "b", o, own))
	devstack.Await(t, "b knows", func() bool { return b.MayDrop() && b.StageOf("t") == stage.JetStream })
	if _, drop := b.Look("t"); drop {
		t.Error("b drops")
	}
	options := brisk(t, pool, "c", o, nil)
	options.Session = nil // no session, no copies in it
	c := start(t, options)
	devstack.Await(t, "c would drop", func() bool { _, drop := c.Look("t"); return drop })
}

// TestSessionIsKeptForLonger than was asked, where the broker says so.
func TestSessionIsKeptForLonger(t *testing.T) {
	pool := migrated(t)
	granted := 48 * time.Hour
	for _, c := range []struct {
		granted, least, most time.Duration // most 0: for ever
	}{{0, 0, time.Hour}, {time.Minute, 0, time.Hour}, {granted, granted - time.Hour, granted}, {Never, 0, 0}} {
		options := brisk(t, pool, "a", newOracle(stage.Shadow), nil)
		options.Session.Granted = func() time.Duration { return c.granted }
		options.Mirror = &Session{ClientID: "mirror", Expiry: time.Hour, Granted: options.Session.Granted}
		a, err := New(options)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.SignOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		instances, err := Instances(t.Context(), pool)
		if err != nil || len(instances) != 1 {
			t.Fatalf("instances %+v, %v", instances, err)
		}
		for _, until := range []*time.Time{instances[0].SessionUntil, instances[0].MirrorUntil} {
			if until == nil && c.most > 0 || until != nil && (c.most == 0 || time.Until(*until) < c.least || time.Until(*until) > c.most+time.Minute) {
				t.Errorf("granted %v: until %v", c.granted, until)
			}
		}
	}
}

// TestSessionAfterALongOutage: sentinels that brokers have let expire take no room from
// those that can still come.
func TestSessionAfterALongOutage(t *testing.T) {
	a, seal, now := newAnew(), &Seal{key: make([]byte, 32)}, time.Now()
	for range mostAnew {
		if a.nonce(1, seal, now) == "" {
			t.Fatal("there is no room")
		}
	}
	if a.nonce(1, seal, now.Add(proofExpiry)) != "" {
		t.Error("there is no bound")
	}
	late := a.nonce(1, seal, now.Add(proofExpiry+time.Second))
	if late == "" || len(a.nonces) != 1 {
		t.Fatalf("an hour later: %q, of %d", late, len(a.nonces))
	}
	if a.take([]Sighting{{Nonce: late, Path: pipeline.PathMQTT}}); !a.holds(1) {
		t.Error("it has come and proves nothing")
	}
}
