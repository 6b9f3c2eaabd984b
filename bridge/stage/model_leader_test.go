package stage_test

import "github.com/crossfade-io/crossfade/bridge/stage"

// lead makes the leader take every step for which there is enough evidence,
// whatever is wished, and gather what the others wait for.
func (m *model) lead(w *world) {
	gathered := [stage.AwaitJetStream + 1]bool{}
	for to := range uint8(4) {
		step, more := stage.Next(stages[w.history[0]], stages[to])
		if !more || step.To != stages[to] {
			continue
		}
		if await := step.Await(m.claimed(w, step, true)); !gathered[await] {
			gathered[await] = true
			m.gather(w, await)
		}
		if step.Await(m.claimed(w, step, false)) == stage.AwaitNothing {
			m.take(w, to)
		}
	}
	m.blindly(w)
	m.lose(w)
	if w.evidence.sent {
		m.come(w)
	}
	if e := &w.evidence; e.confirmed || e.dwelt || e.sent {
		next := *w
		next.evidence = evidence{covered: e.covered, coveredJS: e.coveredJS}
		m.yield(event{kind: evLeader}, &next)
	}
}

// gather adds the piece of evidence that is next, if it can be had.
func (m *model) gather(w *world, await stage.Await) {
	next := *w
	e := &next.evidence
	switch {
	case await == stage.AwaitConfirmation && m.allConfirmed(w):
		e.confirmed, e.half = true, m.halfWritten(w)
		m.yield(event{kind: evConfirmed}, &next)
	case await == stage.AwaitDwell && e.half&m.halfWritten(w) == 0,
		m.dwellBeside && e.sent && !e.dwelt && e.half&m.halfWritten(w) == 0:
		e.dwelt = true
		m.yield(event{kind: evDwelt}, &next)
	case await == stage.AwaitSending:
		e.sent, e.before, e.beforeJS = true, w.publishedCount(m.messages), m.writtenToJetStream(w)
		m.yield(event{kind: evSent}, &next)
	}
}

// come lets the sentinel come out where nothing before it is left.
func (m *model) come(w *world) {
	e := &w.evidence
	for s := range m.instances {
		dead := w.instances[s].life != valid && !m.awaitDead
		if !e.out[s] && (dead || w.instances[s].life != down && m.passed(w, s, e.before, m.unsettled)) {
			next := *w
			next.evidence.out[s] = true
			m.yield(event{kind: evOutMQTT, a: uint8(s)}, &next)
		}
	}
	if !e.outJS && m.passedJetStream(w) {
		next := *w
		next.evidence.outJS = true
		m.yield(event{kind: evOutJS}, &next)
	}
}

// allConfirmed: every instance with a lease follows the present revision.
func (m *model) allConfirmed(w *world) bool {
	for _, in := range w.instances[:m.instances] {
		if in.life == valid && in.lag > 0 {
			return false
		}
	}
	return true
}

// halfWritten is the set of messages that a producer has written to one transport
// and not yet to the other.
func (m *model) halfWritten(w *world) (set uint8) {
	for k := range m.messages {
		if msg := &w.messages[k]; m.bothWritten && !msg.known && w.published(k) != (msg.js != unborn) {
			set |= 1 << k
		}
	}
	return set
}

func (m *model) writtenToJetStream(w *world) (set uint8) {
	for k := range m.messages {
		if m.bothWritten && w.messages[k].js != unborn {
			set |= 1 << k
		}
	}
	return set
}

// passed: of the messages before a sentinel nothing is left on a session.
func (m *model) passed(w *world, s int, before uint8, unsettled bool) bool {
	for k := range before {
		p := w.messages[k].mqtt[s]
		if p == waiting || p.pending() && !unsettled {
			return false
		}
	}
	return true
}

// passedJetStream: the sentinel has come through the mirror, and of the messages
// before it nothing is left in the stream.
func (m *model) passedJetStream(w *world) bool {
	for k := range m.messages {
		msg := &w.messages[k]
		before := k < int(w.evidence.before)
		if m.bothWritten {
			before = w.evidence.beforeJS>>k&1 != 0
		}
		if !before || msg.known && !m.exact {
			continue
		}
		if msg.js == waiting || msg.js.pending() && !m.unsettled || msg.js == unborn && !m.overtaking && !w.mirror.away {
			return false
		}
	}
	return true
}

// take moves the tenant.
func (m *model) take(w *world, to uint8) {
	next := *w
	if m.write(&next, to) {
		m.yield(event{kind: evStep, a: to}, &next)
	}
	if m.blindWrite && w.planned == 0 {
		next = *w
		next.planned = to + 1
		m.yield(event{kind: evPlan, a: to}, &next)
	}
}

// blindly writes what a replaced leader had planned.
func (m *model) blindly(w *world) {
	if w.planned == 0 || w.planned-1 == w.history[0] {
		return
	}
	next := *w
	next.planned = 0
	if m.write(&next, w.planned-1) {
		m.yield(event{kind: evWrite, a: w.planned - 1}, &next)
	}
}

// lose lets PostgreSQL come back without its last commits: with any stage, since the
// tenant may have been in any. Whoever leads then takes the tenant inside.
func (m *model) lose(w *world) {
	for to := range uint8(4) {
		if !m.losses || stages[to].Outer() && !m.trustLost {
			continue
		}
		next := *w
		if m.write(&next, to) {
			m.yield(event{kind: evLost, a: to}, &next)
		}
	}
}

// claimed is the evidence as the leader sees it under the rules in force, when it
// gathers more or is about to step.
func (m *model) claimed(w *world, step stage.Step, gathering bool) stage.Evidence {
	e := &w.evidence
	all := stage.Evidence{Confirmed: e.confirmed, Dwelt: e.dwelt, Sent: e.sent, OutOfMQTT: true, OutOfJetStream: e.outJS}
	for s := range m.instances {
		all.OutOfMQTT = all.OutOfMQTT && e.out[s]
	}
	drained, kept := &all.OutOfMQTT, &all.OutOfJetStream
	if step.To == stage.MQTT {
		drained, kept = kept, drained
	}
	*kept = *kept || m.halfProof || m.noSentinel
	*drained = *drained || m.wrongHalf || m.noSentinel
	all.Sent = all.Sent || m.noSentinel
	all.Confirmed = all.Confirmed || m.noAdjacency || m.freeInner && step.Needs == stage.NeedsConfirmation
	all.Dwelt = all.Dwelt || m.noDwell || m.dwellBeside && gathering
	return all
}

// write is a new revision of the row, unless an instance would fall further behind
// than a state can tell.
func (m *model) write(w *world, to uint8) bool {
	for i := range m.instances {
		in := &w.instances[i]
		if !m.indifferent(in.life) {
			if in.lag == maxLag {
				m.refused = true
				return false
			}
			in.lag++
		}
	}
	copy(w.history[1:], w.history[:maxLag])
	w.history[0] = to
	was := w.evidence
	inside := !stages[to].Outer() && !stages[w.history[1]].Outer()
	if !m.oldEvidence && !(m.carryInner && inside) {
		w.evidence = evidence{covered: was.covered, coveredJS: was.coveredJS}
	}
	if stages[to].Outer() && m.missing {
		w.evidence.covered, w.evidence.coveredJS = was.before, was.beforeJS
	}
	return true
}

// leads reports whether a step is the one toward a wish.
func leads(from, to, wish uint8) bool {
	step, more := stage.Next(stages[from], stages[wish])
	return more && step.To == stages[to]
}
