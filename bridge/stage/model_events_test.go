package stage_test

// event is something that happens; a and b say to whom, by kind.
type event struct{ kind, a, b uint8 }

const (
	evStart uint8 = iota
	evApply
	evLapse
	evRejoin
	evCrash
	evRestart
	evProved
	evPublish
	evCopy
	evNeverMQTT
	evNeverJS
	evDeliverMQTT
	evDeliverJS
	evRethinkMQTT
	evRethinkJS
	evCommitMQTT
	evCommitJS
	evAckMQTT
	evAckJS
	evAgainMQTT
	evAgainJS
	evMirrorAway
	evMirrorBack
	evMirrorProved
	evConfirmed
	evDwelt
	evSent
	evOutMQTT
	evOutJS
	evStep
	evPlan
	evWrite
	evLeader
	evLost
)

// failure reports whether an event is one that does not happen when all is well.
func (e event) failure() bool {
	switch e.kind {
	case evLapse, evCrash, evNeverMQTT, evNeverJS, evAgainMQTT, evAgainJS, evMirrorAway, evPlan, evWrite, evLeader, evLost:
		return true
	}
	return false
}

// model makes everything happen that can happen.
//
// The simulation of the real controller and gate (bridge/simulation_test.go) forces
// the stories of TestEveryRuleIsNeeded too.
type model struct {
	rules
	codec   codec
	emit    func(event, *world)
	refused bool // a step was left out since a state could not tell how far behind an instance would be
}

// expand emits all successors of w.
func (m *model) expand(w *world) {
	for i := range m.instances {
		m.instance(w, uint8(i))
	}
	for i := range m.messages {
		m.publish(w, i)
		m.mqttCopies(w, i)
		m.jetstreamCopy(w, i)
	}
	m.mirrorSession(w)
	m.lead(w)
}

// yield emits one successor.
func (m *model) yield(e event, next *world) {
	m.tidy(next)
	m.emit(e, next)
}

// tidy removes differences that make none.
func (m *model) tidy(w *world) {
	deepest := uint8(0)
	for i := range m.instances {
		in := &w.instances[i]
		if m.indifferent(in.life) {
			in.lag = 0
		}
		if in.life != valid && !m.earlyAnew {
			in.owes = 0
		}
		deepest = max(deepest, in.lag)
	}
	for k := deepest + 1; k <= maxLag; k++ {
		w.history[k] = 0
	}
	if m.exact {
		return
	}
	for i := range m.messages {
		if w.messages[i].known { // it cannot be lost any more: followed no longer, and nobody waits for its copies
			w.messages[i] = message{known: true}
			w.evidence.half &^= 1 << i
			w.evidence.beforeJS &^= 1 << i
			w.evidence.coveredJS &^= 1 << i
		}
	}
}

// indifferent: what an instance believes does not matter, for it drops nothing, and
// reads the row before it may again.
func (m *model) indifferent(l life) bool {
	return l == down || l == lapsed && !m.noLease && !m.staleReturn && !dropsWithoutLease
}

// instance makes an instance learn, lose its lease, crash and come back.
func (m *model) instance(w *world, i uint8) {
	next := *w
	in := &next.instances[i]
	switch w.instances[i].life {
	case valid:
		for lag := range w.instances[i].lag {
			in.lag = lag // it may read an older revision late
			m.yield(event{evApply, i, lag}, &next)
			next = *w
		}
		if !m.noLapses && m.mayFail(w) {
			in.life = lapsed
			if m.earlyAnew {
				in.owes = w.publishedCount(m.messages)
			}
			m.yield(event{kind: evLapse, a: i}, &next)
		}
		m.crash(w, i)
	case lapsed:
		m.begin(&next, i, !m.staleReturn)
		m.yield(event{kind: evRejoin, a: i}, &next)
		m.crash(w, i)
	case down:
		m.begin(&next, i, true)
		m.yield(event{kind: evRestart, a: i}, &next)
	}
	if in := w.instances[i]; in.life == valid && in.owes > 0 && m.passed(w, int(i), in.owes, false) {
		next = *w
		next.instances[i].owes = 0
		m.yield(event{kind: evProved, a: i}, &next)
	}
}

// begin gives an instance a lease.
func (m *model) begin(w *world, i uint8, fresh bool) {
	in := &w.instances[i]
	in.life = valid
	if fresh {
		in.lag = 0
	}
	if m.anew() && !m.earlyAnew {
		in.owes = w.publishedCount(m.messages)
	}
}

// crash gives back to the brokers what the instance had in hand.
func (m *model) crash(w *world, i uint8) {
	if m.noCrashes || w.instances[i].life == valid && !m.mayFail(w) {
		return
	}
	next := *w
	next.instances[i] = instance{life: down}
	for k := range m.messages {
		msg := &next.messages[k]
		if msg.mqtt[i] == held || msg.mqtt[i] == doomed {
			msg.mqtt[i] = waiting
		}
		if (msg.js == held || msg.js == doomed) && msg.hand == i {
			msg.js, msg.hand = waiting, 0
		}
	}
	m.yield(event{kind: evCrash, a: i}, &next)
}

// mayFail reports whether an instance may lose its lease or crash.
func (m *model) mayFail(w *world) bool {
	for _, in := range w.instances[:m.instances] {
		if m.alone && in.life != valid {
			return false
		}
	}
	return true
}
