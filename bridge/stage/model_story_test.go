package stage_test

import (
	"fmt"
	"strings"
)

// story tells a bad end from the beginning, one event a line.
func (s *search) story() string {
	events, worlds := s.trail(s.bad)
	var b strings.Builder
	for n, e := range events {
		before := &worlds[max(n-1, 0)]
		fmt.Fprintf(&b, "\n%3d. %s", n+1, s.line(e, before, &worlds[n]))
	}
	message := int(events[len(events)-1].a) + 1
	switch s.bad.world.broken {
	case lost:
		fmt.Fprintf(&b, "\n     Both copies of m%d are gone, and the ledger does not have it: lost.", message)
	case doubled:
		fmt.Fprintf(&b, "\n     m%d has taken effect twice.", message)
	case uncovered:
		fmt.Fprintf(&b, "\n     m%d was before the sentinel, and is dropped without having taken effect.", message)
	}
	return b.String()
}

func (s *search) line(e event, before, after *world) string {
	switch {
	case e.kind < evPublish:
		return s.instanceLine(e, before, after)
	case e.kind < evConfirmed:
		return s.copyLine(e, before, after)
	}
	return s.leaderLine(e, before, after)
}

func (w *world) view(i uint8) string {
	return string(stages[w.history[w.instances[i].lag]])
}

func (s *search) instanceLine(e event, before, after *world) string {
	name := string('A' + rune(e.a))
	switch e.kind {
	case evStart:
		return fmt.Sprintf("The tenant is in stage %s, and every instance knows.", stages[after.history[0]])
	case evApply:
		return fmt.Sprintf("%s reads the row: from now on it is in stage %s.", name, after.view(e.a))
	case evLapse:
		return fmt.Sprintf("%s's lease runs out, it is in stage %s; the leader counts it no longer.", name, before.view(e.a))
	case evRejoin:
		return fmt.Sprintf("%s has a lease again and is in stage %s.", name, after.view(e.a))
	case evCrash:
		return fmt.Sprintf("%s crashes; its MQTT session lives on at the broker, what it had in hand will come again.", name)
	case evRestart:
		return fmt.Sprintf("%s starts again and is in stage %s.", name, after.view(e.a))
	}
	return fmt.Sprintf("A sentinel that %s sent itself has come out of its session.", name)
}

func (s *search) copyLine(e event, before, after *world) string {
	message := fmt.Sprintf("m%d", e.a+1)
	name := string('A' + rune(e.b))
	switch e.kind {
	case evPublish:
		if s.ownSessions {
			return fmt.Sprintf("%s is published to MQTT; the broker queues it on every session.", message)
		}
		return fmt.Sprintf("%s is published to MQTT; the broker queues it on %s's session.", message, name)
	case evCopy:
		if s.bothWritten {
			return fmt.Sprintf("The producer publishes %s to JetStream.", message)
		}
		return fmt.Sprintf("The mirror copies %s to JetStream.", message)
	case evMirrorAway:
		return "The tables have lost sight of the mirror's session: the leader does not wait for it."
	case evMirrorBack:
		return "The mirror has a lease again, and the leader waits for its session."
	case evMirrorProved:
		return "A sentinel that the mirror's instance sent itself has come out of the mirror's session."
	case evNeverMQTT:
		return fmt.Sprintf("The producer fails to publish %s to MQTT.", message)
	case evNeverJS:
		return fmt.Sprintf("%s never gets to JetStream.", message)
	case evCommitMQTT, evCommitJS:
		return fmt.Sprintf("%s commits %s: it takes effect.", name, message)
	case evAckMQTT, evAckJS:
		return fmt.Sprintf("%s acknowledges the %s copy of %s.", name, pathOf(e.kind), message)
	case evAgainMQTT, evAgainJS:
		return fmt.Sprintf("The acknowledgement was lost: the %s copy of %s will come again.", pathOf(e.kind), message)
	}
	verb := "receives"
	if e.kind == evRethinkMQTT || e.kind == evRethinkJS {
		verb = "looks again at"
	}
	return fmt.Sprintf("%s, in stage %s, %s the %s copy of %s: %s.", name, before.view(e.b), verb, pathOf(e.kind), message, s.fate(e, before, after))
}

func pathOf(kind uint8) string {
	switch kind {
	case evDeliverMQTT, evRethinkMQTT, evAckMQTT, evAgainMQTT:
		return "MQTT"
	}
	return "JetStream"
}

// fate is what the instance decided.
func (s *search) fate(e event, before, after *world) string {
	path, p := 1, after.messages[e.a].js
	if pathOf(e.kind) == "MQTT" {
		path, p = 0, after.messages[e.a].mqtt[e.b]
	}
	return s.action(before, e.b, path, int(e.a), p == gone).String()
}

func (s *search) leaderLine(e event, before, after *world) string {
	now := stages[before.history[0]]
	switch e.kind {
	case evConfirmed:
		if s.noAdjacency {
			return "The leader waits for no confirmation."
		}
		return fmt.Sprintf("Every instance with a lease has confirmed stage %s.", now)
	case evDwelt:
		return "The dwell is over."
	case evSent:
		return "The leader publishes a sentinel."
	case evOutMQTT:
		switch life := before.instances[e.a].life; {
		case life != valid && !s.awaitDead:
			return fmt.Sprintf("The tables have lost sight of %c's session, for %c is dead: the leader does not wait for it.", 'A'+e.a, 'A'+e.a)
		default:
			return fmt.Sprintf("The sentinel comes out of %c's session.", 'A'+e.a)
		}
	case evOutJS:
		return "The sentinel comes out of JetStream."
	case evStep:
		return fmt.Sprintf("The leader moves the tenant from %s to %s.", now, stages[e.a])
	case evPlan:
		return fmt.Sprintf("The leader has all it needs to move the tenant to %s, and is paused before it writes; another takes over.", stages[e.a])
	case evWrite:
		return fmt.Sprintf("The old leader goes on and writes %s over %s.", stages[after.history[0]], now)
	case evLost:
		return fmt.Sprintf("PostgreSQL comes back without its last commits, and the tenant is in %s.", stages[e.a])
	}
	return "Another leader takes over and gathers evidence anew."
}
