// Package stage says what is done with a copy of a message, given how far its
// tenant has moved from MQTT to JetStream. It is pure: no I/O, no clock.
//
//	stage      MQTT copy   JetStream copy   authoritative
//	mqtt       process     drop             MQTT
//	shadow     process     stand by         MQTT
//	live       stand by    process          JetStream
//	jetstream  drop        process          JetStream
//
// Adjacent stages agree on every message, so the two inner stages are safe in
// any mixture of instances. Dropping is safe only with the proof that all the
// siblings of earlier dropped copies have arrived; the protocol that brings it is
// not built yet, and so [Decide] never drops and [Toward] ends at the inner stages.
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

// Action is what is done with a copy.
type Action uint8

// The actions.
const (
	// Process takes the copy through the pipeline.
	Process Action = iota
	// StandBy holds the copy unacknowledged until the ledger shows its message, or
	// the wait is over and it is processed after all.
	StandBy
)

// Decide says what to do with a copy that came by path, for a tenant in stage s.
func Decide(s Stage, path pipeline.Path) Action {
	if s.Authoritative() == path {
		return Process
	}
	return StandBy
}

// Toward returns the stage that a tenant may be in when wish is wanted: the inner
// stage with the same authority.
func Toward(wish Stage) Stage {
	if wish.Authoritative() == pipeline.PathJetStream {
		return Live
	}
	return Shadow
}
