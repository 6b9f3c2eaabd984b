package stage

import "slices"

// Needs is what has to hold before a step is taken.
type Needs uint8

// What steps need. Each includes those before it.
const (
	// NeedsNothing: the step is safe at any moment, whatever instances believe.
	NeedsNothing Needs = iota
	// NeedsConfirmation: every instance with a lease has confirmed the revision
	// that the step starts from.
	NeedsConfirmation
	// NeedsProof: besides, nothing is under way any more that an earlier stage
	// counted on; see [Evidence].
	NeedsProof
)

// String returns nothing, confirmation or proof.
func (n Needs) String() string {
	switch n {
	case NeedsNothing:
		return "nothing"
	case NeedsConfirmation:
		return "confirmation"
	case NeedsProof:
		return "proof"
	}
	return "unknown"
}

// Step is one change of a tenant's stage, and one revision of its row.
type Step struct {
	From, To Stage
	Needs    Needs
}

// steps is the transition table. Entering an outer stage needs proof, and nothing
// else does. That shadow → live waits for confirmation is not for safety: an
// instance that still dropped JetStream copies would leave every message to a
// rescue, after the full wait.
var steps = []Step{
	{MQTT, Shadow, NeedsNothing},
	{Shadow, Live, NeedsConfirmation},
	{Live, JetStream, NeedsProof},

	{JetStream, Live, NeedsNothing},
	{JetStream, Shadow, NeedsNothing},
	{Live, Shadow, NeedsNothing},
	{Shadow, MQTT, NeedsProof},
}

// Next returns the next step from a stage toward the wished one; false where the
// wish is fulfilled, or where either of the two is no stage. The step that gives
// MQTT its authority back needs nothing.
func Next(from, wish Stage) (Step, bool) {
	at, goal := slices.Index(All(), from), slices.Index(All(), wish)
	if at < 0 || goal < 0 || at == goal {
		return Step{}, false
	}
	to := All()[max(at-1, 0)]
	switch {
	case goal > at:
		to = All()[at+1]
	case from == JetStream && goal <= slices.Index(All(), Shadow):
		to = Shadow
	}
	i := slices.IndexFunc(steps, func(s Step) bool { return s.From == from && s.To == to })
	return steps[i], true
}

// Walk returns all steps from a stage to the wished one, in order.
func Walk(from, wish Stage) []Step {
	var walk []Step
	for step, more := Next(from, wish); more; step, more = Next(step.To, wish) {
		walk = append(walk, step)
	}
	return walk
}

// Evidence is what has been gathered for a step since the tenant's row took on its
// present revision; it is worthless for any other revision. What is true once
// stays true until the revision changes, so evidence may be gathered piece by piece
// and used later, provided that the write names the revision.
//
// The order is part of the proof: dwell begins with confirmation, and the sentinel
// is sent when the dwell is over. A sentinel that is sent sooner does not cover the
// second copies of producers that write to both transports themselves.
type Evidence struct {
	// Confirmed: at some moment every instance with a lease had confirmed the
	// revision. An instance that comes later, or comes back, reads the row before
	// it may drop anything.
	Confirmed bool
	// Dwelt: the minimum dwell has passed since then.
	Dwelt bool
	// Sent: a sentinel with a nonce of its own has been published since then.
	Sent bool
	// OutOfMQTT: that sentinel has come out of every MQTT session that is known to
	// exist at the broker, those of dead instances included, and on each of them
	// everything before it is settled. A session that nobody knows of is proved by
	// whoever takes it up, before it drops anything; see [Decide].
	OutOfMQTT bool
	// OutOfJetStream: that sentinel has come out of every stream, and every
	// message before it is settled (the consumer's ack floor has reached it).
	OutOfJetStream bool
}

// Await is what a step still waits for.
type Await uint8

// What a step waits for, in the order in which it is gathered.
const (
	// AwaitNothing: the step may be taken.
	AwaitNothing Await = iota
	// AwaitConfirmation: an instance with a lease has not confirmed the revision.
	AwaitConfirmation
	// AwaitDwell: the minimum dwell is not over.
	AwaitDwell
	// AwaitSending: it is time to send the sentinel.
	AwaitSending
	// AwaitMQTT: the sentinel, or something before it, is still on an MQTT session.
	AwaitMQTT
	// AwaitJetStream: the sentinel, or something before it, is still on its way
	// through the mirror and the streams.
	AwaitJetStream
)

// String returns the name that status shows.
func (a Await) String() string {
	switch a {
	case AwaitNothing:
		return "nothing"
	case AwaitConfirmation:
		return "confirmation"
	case AwaitDwell:
		return "dwell"
	case AwaitSending:
		return "sentinel to be sent"
	case AwaitMQTT:
		return "sentinel by MQTT"
	case AwaitJetStream:
		return "sentinel by JetStream"
	}
	return "unknown"
}

// Await returns the first thing that the step still waits for.
func (s Step) Await(e Evidence) Await {
	switch {
	case s.Needs == NeedsNothing:
		return AwaitNothing
	case !e.Confirmed:
		return AwaitConfirmation
	case s.Needs == NeedsConfirmation:
		return AwaitNothing
	case !e.Dwelt:
		return AwaitDwell
	case !e.Sent:
		return AwaitSending
	case !e.OutOfMQTT:
		return AwaitMQTT
	case !e.OutOfJetStream:
		return AwaitJetStream
	}
	return AwaitNothing
}
