package stage_test

import (
	"fmt"
	"slices"
)

// search visits every state that can be reached, breadth first, so that the first
// violation has a shortest story.
type search struct {
	model
	states  []uint64 // in order of discovery
	parents []uint32
	table   []uint32 // open addressing: index into states, plus one
	starts  uint32   // the first of them are where a tenant may begin
	visited int      // transitions
	bad     *badEnd
	opposed int // states in which both outer stages are in force
}

type badEnd struct {
	parent uint32
	event  event
	world  world
}

func newSearch(r rules) *search {
	s := &search{model: model{rules: r, codec: r.codec()}, table: make([]uint32, 1<<16)}
	for n, first := range stages {
		if r.from == "" || r.from == first {
			w := world{history: [maxLag + 1]uint8{uint8(n)}}
			s.add(s.codec.encode(&w), 0)
		}
	}
	s.starts = uint32(len(s.states))
	return s
}

// run searches until there is nothing more to visit, or something is broken.
func (s *search) run() *search {
	for at := 0; at < len(s.states) && s.bad == nil; at++ {
		w := s.codec.decode(s.states[at])
		if w.opposed(s.instances) {
			s.opposed++
		}
		s.emit = func(e event, next *world) {
			s.visited++
			if next.broken != none && s.bad == nil {
				s.bad = &badEnd{uint32(at), e, *next}
			}
			s.add(s.codec.encode(next), uint32(at))
		}
		s.expand(&w)
	}
	return s
}

// add notes a state, unless it is known, and returns its number.
func (s *search) add(state uint64, parent uint32) uint32 {
	if len(s.states)*2 > len(s.table) {
		s.grow()
	}
	slot := s.slot(state)
	if n := s.table[slot]; n > 0 {
		return n - 1
	}
	s.states, s.parents = append(s.states, state), append(s.parents, parent)
	s.table[slot] = uint32(len(s.states))
	return uint32(len(s.states) - 1)
}

// slot is where a state is in the table, or belongs.
func (s *search) slot(state uint64) uint64 {
	mask := uint64(len(s.table) - 1)
	slot := (state ^ state>>32) * 0x9e3779b97f4a7c15
	slot = (slot ^ slot>>32) * 0xd6e8feb86659fd93
	for slot = slot >> 32 & mask; s.table[slot] > 0 && s.states[s.table[slot]-1] != state; {
		slot = (slot + 1) & mask
	}
	return slot
}

func (s *search) grow() {
	s.table = make([]uint32, 2*len(s.table))
	for n, state := range s.states {
		s.table[s.slot(state)] = uint32(n + 1)
	}
}

// deadEnds counts the states from which the tenant cannot come to rest in the
// wished stage, with every message in effect and every copy settled, although from
// then on nothing fails and nobody wishes otherwise.
func (s *search) deadEnds(wish uint8, arcs []arc) (count int, example string) {
	back := make([][]uint32, len(s.states))
	for _, a := range arcs {
		if a.step == 0 || leads(a.stage, a.step-1, wish) {
			back[a.to] = append(back[a.to], a.from)
		}
	}
	var queue []uint32
	for n, state := range s.states {
		if w := s.codec.decode(state); s.atRest(&w, wish) {
			queue = append(queue, uint32(n))
		}
	}
	reaches := make([]bool, len(s.states))
	for len(queue) > 0 {
		n := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if !reaches[n] {
			reaches[n] = true
			queue = append(queue, back[n]...)
		}
	}
	for n, ok := range reaches {
		if !ok {
			count, example = count+1, fmt.Sprintf("%+v", s.codec.decode(s.states[n]))
		}
	}
	return count, example
}

// arc leads from one state to another without a failure; step is the stage that the
// leader moves to, plus one, and stage the one before.
type arc struct {
	from, to    uint32
	stage, step uint8
}

func (s *search) arcsWithoutFailure() (arcs []arc) {
	for at, state := range s.states {
		w := s.codec.decode(state)
		s.emit = func(e event, next *world) {
			if e.failure() {
				return
			}
			a := arc{from: uint32(at), to: s.table[s.slot(s.codec.encode(next))] - 1, stage: w.history[0]}
			if e.kind == evStep {
				a.step = e.a + 1
			}
			arcs = append(arcs, a)
		}
		s.expand(&w)
	}
	return arcs
}

func (s *search) atRest(w *world, wish uint8) bool {
	if w.history[0] != wish {
		return false
	}
	for _, in := range w.instances[:s.instances] {
		if in.life != valid || in.lag > 0 || in.owes > 0 {
			return false
		}
	}
	for k := range w.messages[:s.messages] {
		msg := &w.messages[k]
		if !msg.known || msg.js.pending() || s.exact && msg.js == unborn || slices.ContainsFunc(msg.mqtt[:], place.pending) {
			return false
		}
	}
	return true
}

// trail returns the way to a bad end, with the worlds that it leads through.
func (s *search) trail(end *badEnd) (events []event, worlds []world) {
	var chain []uint32
	for n := end.parent; ; n = s.parents[n] {
		chain = append(chain, n)
		if n < s.starts {
			break
		}
	}
	slices.Reverse(chain)
	w := s.codec.decode(s.states[chain[0]])
	events, worlds = []event{{kind: evStart}}, []world{w}
	for _, n := range chain[1:] {
		var e event
		var found world
		s.emit = func(candidate event, next *world) {
			if found == (world{}) && s.codec.encode(next) == s.states[n] {
				e, found = candidate, *next
			}
		}
		s.expand(&w)
		w = found // not decoded anew: instances keep their names
		events, worlds = append(events, e), append(worlds, w)
	}
	var last *world
	s.emit = func(candidate event, next *world) {
		if last == nil && next.broken != none {
			end := *next
			last = &end
			events = append(events, candidate)
		}
	}
	s.expand(&w)
	return events, append(worlds, *last)
}
