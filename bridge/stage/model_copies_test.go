package stage_test

import (
	"slices"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// publish makes the producer write, and the mirror copy.
func (m *model) publish(w *world, k int) {
	msg := &w.messages[k]
	if !w.published(k) && (k == 0 || w.published(k-1)) {
		for s := range m.instances {
			next := *w
			for t := range m.instances {
				if m.ownSessions || s == t {
					next.messages[k].mqtt[t] = waiting
				}
			}
			m.yield(event{evPublish, uint8(k), uint8(s)}, &next)
			if m.ownSessions {
				break
			}
		}
		if m.missing && m.bothWritten && msg.js != never {
			next := *w
			for t := range m.instances {
				if m.ownSessions || t == 0 {
					next.messages[k].mqtt[t] = never
				}
			}
			m.excuse(&next, k)
			m.yield(event{kind: evNeverMQTT, a: uint8(k)}, &next)
		}
	}
	if msg.js == unborn && (m.exact || !msg.known) && (m.bothWritten || w.published(k)) {
		next := *w
		next.messages[k].js = waiting
		next.messages[k].sole = !m.noMarks && (w.mirror.away || w.mirror.owes > 0)
		m.yield(event{kind: evCopy, a: uint8(k)}, &next)
		if m.missing && !slices.Contains(msg.mqtt[:], never) {
			next.messages[k].js = never
			m.excuse(&next, k)
			m.yield(event{kind: evNeverJS, a: uint8(k)}, &next)
		}
	}
}

// mirrorSession makes the tables lose sight of the mirror's session, and the mirror
// come back and prove it.
func (m *model) mirrorSession(w *world) {
	next := *w
	switch {
	case !m.mirrorAway:
	case w.mirror.away:
		next.mirror = mirrorLife{owes: w.publishedCount(m.messages)}
		m.yield(event{kind: evMirrorBack}, &next)
	default:
		next.mirror = mirrorLife{away: true}
		m.yield(event{kind: evMirrorAway}, &next)
		if w.mirror.owes > 0 && m.copied(w, w.mirror.owes) {
			next.mirror = mirrorLife{}
			m.yield(event{kind: evMirrorProved}, &next)
		}
	}
}

// copied: the mirror has nothing left of the messages before a sentinel.
func (m *model) copied(w *world, before uint8) bool {
	for k := range before {
		if msg := &w.messages[k]; msg.js == unborn && (m.exact || !msg.known) {
			return false
		}
	}
	return true
}

// action is what the real functions decide.
func (m *model) action(w *world, i uint8, path int, k int, known bool) stage.Action {
	if path == 1 && w.messages[k].sole {
		return map[bool]stage.Action{true: stage.Done, false: stage.Process}[known]
	}
	in := w.instances[i]
	drop := in.life == valid || m.noLease
	if path == 0 && in.owes > 0 {
		drop = false
	}
	return actions[w.history[in.lag]][path][index(drop)][index(known)]
}

// upon is where a copy is after a decision.
func upon(a stage.Action) place {
	switch a {
	case stage.Drop:
		return doomed
	case stage.Done:
		return gone
	}
	return held
}

// mqttCopies makes a message's copies on the sessions be delivered, handled,
// acknowledged, and delivered again.
func (m *model) mqttCopies(w *world, k int) {
	for s := range m.instances {
		next := *w
		msg := &next.messages[k]
		i := uint8(s)
		up := w.instances[s].life != down
		switch p := msg.mqtt[s]; {
		case p == waiting && up:
			m.decide(w, k, i, 0, evDeliverMQTT)
		case p == held:
			m.decide(w, k, i, 0, evRethinkMQTT)
			m.commit(w, k, event{evCommitMQTT, uint8(k), i})
		case p == doomed:
			msg.mqtt[s] = gone
			m.settled(&next, k)
			m.yield(event{evAckMQTT, uint8(k), i}, &next)
		case p == gone && !m.missing:
			msg.mqtt[s] = waiting
			m.yield(event{evAgainMQTT, uint8(k), i}, &next)
		}
	}
}

// jetstreamCopy does the same for the copy in the stream, which any instance may
// fetch.
func (m *model) jetstreamCopy(w *world, k int) {
	next := *w
	msg := &next.messages[k]
	switch msg.js {
	case waiting:
		for i := range m.instances {
			if w.instances[i].life != down {
				m.decide(w, k, uint8(i), 1, evDeliverJS)
			}
		}
	case held:
		m.decide(w, k, msg.hand, 1, evRethinkJS)
		m.commit(w, k, event{evCommitJS, uint8(k), msg.hand})
	case doomed:
		i := msg.hand
		msg.js, msg.hand = gone, 0
		m.settled(&next, k)
		m.yield(event{evAckJS, uint8(k), i}, &next)
	case gone:
		if m.missing {
			return
		}
		msg.js = waiting
		m.yield(event{kind: evAgainJS, a: uint8(k)}, &next)
	}
}

// decide has an instance look at a copy: on its arrival, or again while it is held.
// Where the ledger has the message, the instance may have seen that or not.
func (m *model) decide(w *world, k int, i uint8, path int, kind uint8) {
	for _, sees := range []bool{false, true} {
		if sees && !w.messages[k].known {
			continue
		}
		action := m.action(w, i, path, k, sees)
		to := upon(action)
		again := kind == evRethinkMQTT || kind == evRethinkJS
		if again && (to == held || to == doomed && m.noRethink) {
			continue
		}
		next := *w
		msg := &next.messages[k]
		e := &w.evidence
		covered := int(e.covered) > k
		if path == 0 {
			msg.mqtt[i] = to
		} else {
			msg.js, msg.hand = to, i
			if to == gone {
				msg.hand = 0
			}
			if m.bothWritten {
				covered = e.coveredJS>>k&1 != 0
			}
		}
		if to == doomed && covered && !msg.known {
			next.broken = uncovered
		}
		m.yield(event{kind, uint8(k), i}, &next)
	}
}

// commit writes effects and ledger row in one transaction. The copy is
// acknowledged later, when a look at the ledger shows the row.
func (m *model) commit(w *world, k int, e event) {
	next := *w
	msg := &next.messages[k]
	if msg.known && !m.noLedger {
		return // the row is there: no effects
	}
	if msg.known {
		next.broken = doubled
	}
	msg.known = true
	if m.noLedger && e.kind == evCommitMQTT { // without it there is nothing to look at
		msg.mqtt[e.b] = gone
	} else if m.noLedger {
		msg.js, msg.hand = gone, 0
	}
	m.yield(e, &next)
}

// settled looks whether the last copy of a message went without effect.
func (m *model) settled(w *world, k int) {
	msg := &w.messages[k]
	m.excuse(w, k)
	if msg.known || msg.js != gone || !w.published(k) {
		return
	}
	for s := range m.instances {
		if msg.mqtt[s].pending() {
			return
		}
	}
	w.broken = lost
}

// excuse ends the life of a message that had one copy, which was dropped.
func (m *model) excuse(w *world, k int) {
	msg := &w.messages[k]
	noMQTT := false
	for s := range m.instances {
		if msg.mqtt[s].pending() {
			return
		}
		noMQTT = noMQTT || msg.mqtt[s] == never
	}
	if noMQTT && msg.js == gone || msg.js == never && w.published(k) {
		msg.known = true
	}
}
