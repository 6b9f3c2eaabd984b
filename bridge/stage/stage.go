// Package stage is the protocol by which a tenant moves between the MQTT path and
// the JetStream path: what is done with a copy of a message, which step comes
// next, and what has to be proved before it. It is pure: no I/O, no clock.
//
//	stage      MQTT copy   JetStream copy   authoritative
//	mqtt       process     drop             MQTT
//	shadow     process     stand by         MQTT
//	live       stand by    process          JetStream
//	jetstream  drop        process          JetStream
//
// A copy that is processed or stands by is acknowledged only once the ledger has
// its message. Only the two outer stages acknowledge copies unseen, and a message
// is lost when both of its copies meet with that. So two things must never happen,
// and [Next] and [Step.Await] see to it: that both outer stages are in force at the
// same time, on whichever instances; and that an outer stage is entered while a
// copy is still under way whose sibling the opposite one has dropped.
//
//	mqtt ──nothing──▶ shadow ──confirmation──▶ live ──proof──▶ jetstream
//	mqtt ◀──proof──── shadow ◀───nothing────── live ◀─nothing─ jetstream
//	                  shadow ◀───────────────nothing────────── jetstream
//
// The way back from jetstream leads to shadow in one step. docs/stages.md tells
// the protocol to readers; model_test.go searches everything that can happen under
// it, through the functions of this package.
package stage

import (
	"fmt"
	"strings"

	"github.com/crossfade-io/crossfade/pipeline"
)

// Stage is where a tenant is between the two paths.
type Stage string

// The stages, in order from MQTT to JetStream.
const (
	MQTT      Stage = "mqtt"
	Shadow    Stage = "shadow"
	Live      Stage = "live"
	JetStream Stage = "jetstream"
)

// All lists the stages in order.
func All() []Stage { return []Stage{MQTT, Shadow, Live, JetStream} }

// Parse returns the stage of that name.
func Parse(s string) (Stage, error) {
	names := make([]string, 0, 4)
	for _, st := range All() {
		if string(st) == s {
			return st, nil
		}
		names = append(names, string(st))
	}
	return "", fmt.Errorf("there is no stage %q: choose one of %s", s, strings.Join(names, ", "))
}

// Authoritative returns the path whose copies are processed in this stage.
func (s Stage) Authoritative() pipeline.Path {
	if s == Live || s == JetStream {
		return pipeline.PathJetStream
	}
	return pipeline.PathMQTT
}

// Outer reports whether one path's copies may be dropped in this stage. A tenant
// may stay in a stage that is not outer for ever.
func (s Stage) Outer() bool { return s == MQTT || s == JetStream }

// Action is what is done with a copy.
type Action uint8

// The actions.
const (
	// Process takes the copy through the pipeline.
	Process Action = iota
	// StandBy holds the copy unacknowledged until the ledger shows its message, or
	// the wait is over and it is processed after all.
	StandBy
	// Drop acknowledges the copy without looking at it: its path is not
	// authoritative, and the other one has it or will.
	Drop
	// Done acknowledges the copy: its message has taken effect.
	Done
)

// String returns the action's name for logs.
func (a Action) String() string {
	switch a {
	case Process:
		return "process"
	case StandBy:
		return "stand by"
	case Drop:
		return "drop"
	case Done:
		return "done"
	}
	return "unknown"
}

// Decide says what to do with a copy that came by path, for a tenant that this
// instance believes to be in stage s.
//
// mayDrop is whether the instance's lease is valid, by its own clock and counted
// from before the renewal was sent. Without it nothing is dropped: whoever moves the
// stages no longer waits for this instance. For MQTT copies it is, besides, whether a
// sentinel that was sent since the lease began has come out of the instance's session. known is whether the ledger is seen to
// have the message; false is right where nobody has looked.
func Decide(s Stage, path pipeline.Path, mayDrop, known bool) Action {
	switch {
	case known:
		return Done
	case s.Authoritative() == path:
		return Process
	case s.Outer() && mayDrop:
		return Drop
	}
	return StandBy
}

// Toward returns the inner stage with the same authority as wish: where a tenant
// is held for whom nobody gathers proofs.
func Toward(wish Stage) Stage {
	if wish.Authoritative() == pipeline.PathJetStream {
		return Live
	}
	return Shadow
}
