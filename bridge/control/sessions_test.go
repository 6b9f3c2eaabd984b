package control

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// TestSessionOfADeadInstance blocks the proof until an operator answers for it.
func TestSessionOfADeadInstance(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "it is in shadow", n.in(stage.Shadow, "t"))
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
	devstack.Await(t, "nobody takes it to be running", func() bool {
		instances, err := Instances(t.Context(), pool)
		return err == nil && len(instances) == 2 && !instances[1].Live
	})
	waitsFor(t, pool, "t", "dead (not running")
	if err := Forget(t.Context(), pool, "dead"); err != nil {
		t.Fatal(err)
	}
	if err := Forget(t.Context(), pool, "dead"); !errors.Is(err, ErrNoInstance) {
		t.Errorf("the second Forget = %v", err)
	}
	devstack.Await(t, "it goes on", n.in(stage.MQTT, "t"))
}

// TestNoMoreSentinelsForWhoIsAway: one that has come out of all but sessions of instances
// that do not run waits there, and more of them would pile up.
func TestNoMoreSentinelsForWhoIsAway(t *testing.T) {
	all := sessions{MQTT: map[string]string{"a": "1", "gone": "1"}, Mirrors: map[string]string{"a": "1", "lost": "1"}}
	whole := proof{attempt: 1, age: time.Hour, published: true, sessions: all, mqtt: []string{"a"}, jetstream: kinds, mirrors: []string{"a"}}
	changed := func(f func(*proof)) proof {
		p := whole
		f(&p)
		return p
	}
	for _, c := range []struct {
		what string
		p    proof
		want bool
	}{
		{"all but the dead have seen it", whole, false},
		{"nobody knows whether it was sent", changed(func(p *proof) { p.published = false }), true},
		{"one that runs has not seen it", changed(func(p *proof) { p.mqtt = nil }), true},
		{"one that runs has not mirrored it", changed(func(p *proof) { p.mirrors = nil }), true},
		{"a stream has not brought it", changed(func(p *proof) { p.jetstream = kinds[1:] }), true},
		{"the dead one has been back", changed(func(p *proof) { p.sessions.MQTT = map[string]string{"a": "1", "gone": "0"} }), true},
	} {
		k := known{resend: time.Second, resendMax: time.Minute, peers: peers{sessions: all, dead: map[string]bool{"gone": true, "lost": true}},
			proofs: map[string][]proof{"t": {c.p}}}
		if got := k.due("t"); got != c.want {
			t.Errorf("%s: another is due: %v", c.what, got)
		}
	}
}

// TestSessionsThatChangeVoidAProof: an instance comes between the sentinel and its
// arrival; another one is sent.
func TestSessionsThatChangeVoidAProof(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	n, p := alone(t, pool, o)
	devstack.Await(t, "it is in shadow", n.in(stage.Shadow, "t"))
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
	devstack.Await(t, "another one is sent", func() bool { return p.count() > len(sent) })
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

// TestSwappedSessions: two instances have swapped their names at the broker, or an
// instance goes by another name. Each session is awaited once, from who has it now.
func TestSwappedSessions(t *testing.T) {
	pool := migrated(t)
	o := newOracle(stage.Shadow)
	sign := func(instance, client, mirror string) *Control {
		t.Helper()
		options := brisk(t, pool, instance, o, nil)
		options.Session.ClientID = client
		if mirror != "" {
			options.Mirror = &Session{ClientID: mirror, Expiry: time.Hour}
		}
		c, err := New(options)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SignOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		return c
	}
	off := func(c *Control) {
		t.Helper()
		if err := c.SignOff(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	awaited := func(when string, want ...string) {
		t.Helper()
		instances, err := Instances(t.Context(), pool)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range instances {
			if i.SessionExists {
				got = append(got, i.ID+": "+i.Session)
			}
			if i.MirrorExists {
				got = append(got, i.ID+" mirrors: "+i.Mirror)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	a, b := sign("a", "one", ""), sign("b", "two", "")
	off(a) // one after the other
	a = sign("a", "two", "")
	awaited("half way", "a: two", "a (session one): one", "b: two")
	off(b)
	b = sign("b", "one", "")
	awaited("swapped", "a: two", "b: one")
	off(a) // both at once
	off(b)
	sign("b", "two", "")
	a = sign("a", "one", "")
	awaited("and back", "a: one", "b: two")
	off(a)
	c := sign("c", "one", "mirror")
	awaited("under another name", "b: two", "c: one", "c mirrors: mirror")
	off(c)
	d := sign("d", "one", "")
	awaited("its mirror is another's", "b: two", "c mirrors: mirror", "d: one")
	execute(t, pool, `UPDATE crossfade_instances SET lease_until = now() - interval '1 s' WHERE instance_id = 'd'`)
	off(sign("e", "one", ""))
	awaited("after a crash", "b: two", "c mirrors: mirror", "e: one")
	if err := d.renew(t.Context()); err != nil { // it was no crash
		t.Fatal(err)
	}
	if instances, err := Instances(t.Context(), pool); err != nil || !slices.ContainsFunc(instances, func(i Instance) bool { return i.ID == "d" && i.SessionExists && i.Live }) {
		t.Errorf("an instance that lives is not waited for: %+v, %v", instances, err)
	}
}

// TestMirrorsSession: what a mirror has not brought yet is on its way by JetStream,
// though the sentinel has come by another mirror; that of a dead instance, too.
func TestMirrorsSession(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	n, p := alone(t, pool, o)
	devstack.Await(t, "it is in shadow", n.in(stage.Shadow, "t"))
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
	devstack.Await(t, "it is proved", n.in(stage.MQTT, "t"))
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
