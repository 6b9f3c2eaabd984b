package stage_test

import (
	"fmt"
	"slices"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

const (
	maxInstances = 3
	maxMessages  = 3
	maxLag       = 3 // how far an instance may be behind the tenant's row; a search fails if that is not enough
)

// world is one state of everything that matters to one tenant: its row, who
// believes what, what the leader has gathered, and where every copy is.
//
// It is coarser than life only where that allows more to happen: messages overtake
// each other freely (only sentinels keep their place in a queue), an instance whose
// lease has run out is dead to the leader at once, and standing by and being
// processed are one (held: may be committed at any moment, never acknowledged before).
type world struct {
	history   [maxLag + 1]uint8 // the row's stage now, and at the revisions before
	instances [maxInstances]instance
	evidence  evidence
	mirror    mirrorLife
	planned   uint8 // by a leader that does not know it has been replaced: stage to write, plus one
	messages  [maxMessages]message
	broken    violation // not part of the state: a search ends here
}

type instance struct {
	life life
	lag  uint8 // revisions behind the row
	owes uint8 // how many messages its session must have behind it before it may drop MQTT copies
}

// mirrorLife: the mirror copies from a session of its own, which has what is not in the stream.
type mirrorLife struct {
	away bool  // nobody waits for its session
	owes uint8 // how many messages must have been copied before it no longer marks what it copies
}

type life uint8

const (
	valid  life = iota // with a lease
	lapsed             // running, without a lease
	down               // crashed; its session lives on at the broker
)

// evidence is the leader's, for the present revision. Messages are numbered in the
// order in which they are published by MQTT, so "before the sentinel" is a count.
type evidence struct {
	confirmed, dwelt, sent bool
	out                    [maxInstances]bool // by session
	outJS                  bool
	before                 uint8 // published by MQTT before the sentinel
	beforeJS               uint8 // set of those published to JetStream before it, where producers write both
	half                   uint8 // set of those with one copy out when confirmation was complete
	covered, coveredJS     uint8 // before and beforeJS of the sentinel that opened the last outer stage
}

type message struct {
	known bool                // in the ledger
	mqtt  [maxInstances]place // by session; with a shared subscription one of them has it
	js    place
	hand  uint8 // whose hand the JetStream copy is in
	sole  bool  // it is marked: nobody drops it
}

// place is where a copy is.
type place uint8

const (
	unborn  place = iota // not published, not mirrored
	waiting              // in the session's queue, in the stream
	held                 // in an instance's hand: processed or standing by
	doomed               // in an instance's hand: to be dropped, not acknowledged yet
	gone                 // acknowledged
	never                // its publisher or mirror failed to write it
)

// pending reports that a copy has been published and is not settled.
func (p place) pending() bool { return p == waiting || p == held || p == doomed }

func (p place) inHand() bool { return p == held || p == doomed }

type violation uint8

const (
	none violation = iota
	lost
	doubled
	uncovered // dropped although the proof was to cover it
)

// published reports whether the producer has written the message to MQTT. A
// message that has taken effect and is followed no longer counts as published.
func (w *world) published(m int) bool {
	msg := &w.messages[m]
	return slices.Max(msg.mqtt[:]) != unborn || msg.known && msg.js == unborn
}

// publishedCount is how many messages have been written to MQTT, up to the first
// that has not.
func (w *world) publishedCount(n int) uint8 {
	for m := range n {
		if !w.published(m) {
			return uint8(m)
		}
	}
	return uint8(n)
}

// opposed: both outer stages are in force, each on an instance that may drop.
func (w *world) opposed(n int) bool {
	var in [4]bool
	for _, i := range w.instances[:n] {
		in[w.history[i.lag]] = in[w.history[i.lag]] || i.life == valid
	}
	return in[0] && in[3]
}

// codec turns worlds into 64 bits and back. Fields take the space that the rules
// and the size of the world give them.
type codec struct {
	instances, messages int
	wide                bool // producers that write both, copies that never come
	owes, planned       bool
	mirror              bool // it may be away
	packed              bool // lag and owes matter of instances with a lease only
}

// bitstream reads or writes fields one after another.
type bitstream struct {
	word  uint64
	at    uint
	write bool
}

func (b *bitstream) field(v *uint8, width uint) {
	if b.write {
		b.word |= uint64(*v) << b.at
	} else {
		*v = uint8(b.word>>b.at) & (1<<width - 1)
	}
	b.at += width
}

func (b *bitstream) flag(v *bool) {
	if b.write {
		if *v {
			b.word |= 1 << b.at
		}
	} else {
		*v = b.word>>b.at&1 != 0
	}
	b.at++
}

// common codes what belongs to no instance.
func (c *codec) common(b *bitstream, w *world) {
	for i := range w.history {
		b.field(&w.history[i], 2)
	}
	e := &w.evidence
	b.flag(&e.confirmed)
	b.flag(&e.dwelt)
	b.flag(&e.sent)
	b.flag(&e.outJS)
	b.field(&e.before, 2)
	if c.wide {
		n := uint(c.messages)
		b.field(&e.beforeJS, n)
		b.field(&e.half, n)
		b.field(&e.covered, 2)
		b.field(&e.coveredJS, n)
	}
	if c.planned {
		b.field(&w.planned, 3)
	}
	if c.mirror {
		b.flag(&w.mirror.away)
		b.field(&w.mirror.owes, 2)
	}
	for m := range c.messages {
		b.flag(&w.messages[m].known)
		b.field((*uint8)(&w.messages[m].js), 3)
		if c.mirror {
			b.flag(&w.messages[m].sole)
		}
	}
}

// own codes what belongs to one instance: itself, its session, what it has in hand.
func (c *codec) own(b *bitstream, w *world, i uint8) {
	c.self(b, &w.instances[i])
	b.flag(&w.evidence.out[i])
	for m := range c.messages {
		msg := &w.messages[m]
		b.field((*uint8)(&msg.mqtt[i]), 3)
		in := msg.js.inHand() && msg.hand == i
		b.flag(&in)
		if in {
			msg.hand = i
		}
	}
}

// self codes an instance.
func (c *codec) self(b *bitstream, in *instance) {
	if !c.owes || !c.packed {
		b.field((*uint8)(&in.life), 2)
		b.field(&in.lag, 2)
		if c.owes {
			b.field(&in.owes, 2)
		}
		return
	}
	const lags, debts = maxLag + 1, 3 // of two messages at most
	n := in.lag*debts + in.owes
	if in.life != valid {
		n = lags*debts + uint8(in.life) - 1
	}
	b.field(&n, 4)
	switch {
	case b.write:
	case n < lags*debts:
		*in = instance{valid, n / debts, n % debts}
	default:
		*in = instance{life: life(n-lags*debts) + 1}
	}
}

// encode returns the same word for worlds that differ only in which instance is
// which: what belongs to instances is put in order of size.
func (c *codec) encode(w *world) uint64 {
	b := bitstream{write: true}
	c.common(&b, w)
	var owns [maxInstances]uint64
	width := uint(0)
	for i := range c.instances {
		own := bitstream{write: true}
		c.own(&own, w, uint8(i))
		owns[i], width = own.word, own.at
	}
	slices.Sort(owns[:c.instances])
	for _, own := range owns[:c.instances] {
		b.word |= own << b.at
		b.at += width
	}
	if b.at > 64 {
		panic(fmt.Sprintf("a state takes %d bits: search fewer messages or instances", b.at))
	}
	return b.word
}

func (c *codec) decode(word uint64) (w world) {
	b := bitstream{word: word}
	c.common(&b, &w)
	for i := range c.instances {
		c.own(&b, &w, uint8(i))
	}
	return w
}

// stages and paths by number, and what the real function decides, looked up once.
var (
	stages            = stage.All()
	actions           [4][2][2][2]stage.Action // by stage, path, lease and knowledge
	dropsWithoutLease bool
)

func init() {
	for s := range stages {
		for p, path := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
			for _, known := range []bool{false, true} {
				for _, lease := range []bool{false, true} {
					a := stage.Decide(stages[s], path, lease, known)
					actions[s][p][index(lease)][index(known)] = a
					dropsWithoutLease = dropsWithoutLease || a == stage.Drop && !lease
				}
			}
		}
	}
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}
