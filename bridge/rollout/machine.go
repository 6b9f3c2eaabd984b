package rollout

import (
	"slices"
	"time"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/stage"
)

// State is what a rollout is about.
type State string

// The states. The last three are for ever.
const (
	Pending State = "pending" // started, no instance has taken it up
	Running State = "running"
	Paused  State = "paused" // waits for an operator
	Failed  State = "failed" // a gate failed and the wave was rolled back
	Aborted State = "aborted"
	Done    State = "done"
)

// Over reports whether nothing will happen any more.
func (s State) Over() bool { return s == Failed || s == Aborted || s == Done }

// transitions is the table of what may follow what.
var transitions = map[State][]State{
	Pending: {Running, Paused, Aborted},
	Running: {Paused, Failed, Aborted, Done},
	Paused:  {Running, Aborted, Done},
}

// May reports whether a state may follow another.
func (s State) May(next State) bool { return slices.Contains(transitions[s], next) }

// Phase is how far the present wave is.
type Phase string

// The phases, in order.
const (
	Choosing  Phase = "choosing"  // who belongs to the wave
	Flipping  Phase = "flipping"  // its tenants are wished into the inner stage
	Baking    Phase = "baking"    // all have arrived, and are looked at
	Judging   Phase = "judging"   // the bake time is over, a verdict is still open
	Finishing Phase = "finishing" // all have passed, and are wished on to the plan's stage
)

// Cause is why a rollout is paused.
type Cause string

// The causes.
const (
	ByOperator   Cause = "operator"
	ByGate       Cause = "gate"         // one has failed
	Inconclusive Cause = "inconclusive" // no verdict within wait_at_most
	Overdue      Cause = "overdue"      // a tenant has not arrived within wait_at_most
	Empty        Cause = "empty"        // nobody of the wave is left who could be judged
)

// Progress is how far a rollout is.
type Progress struct {
	State State `json:"state"`
	Phase Phase `json:"phase"`
	Wave  int   `json:"-"` // counted from 0
	// Since is when the phase began, or when it was resumed.
	Since time.Time `json:"since"`
	// WindowFrom is from when on measurements count for the wave; zero before.
	WindowFrom time.Time `json:"window_from,omitzero"`
	Cause      Cause     `json:"cause,omitempty"`
	Why        string    `json:"why,omitempty"`
}

// Rollout is a plan under way.
type Rollout struct {
	Plan Plan `json:"plan"`
	Progress
	Revision  int64      `json:"revision"`
	StartedBy string     `json:"started_by"`
	StartedAt time.Time  `json:"started_at"`
	EndedAt   *time.Time `json:"ended_at,omitempty"`
	// Tenants are those of this wave and the ones before, by name.
	Tenants []Tenant `json:"tenants"`
}

// TenantState is what a rollout is about with a tenant.
type TenantState string

// What becomes of a tenant.
const (
	Waiting    TenantState = "waiting"   // for its turn
	Moving     TenantState = "moving"    // wished into the inner stage, not there yet
	InBake     TenantState = "baking"    // there
	MovingOn   TenantState = "finishing" // wished into the plan's stage, not there yet
	Arrived    TenantState = "done"
	Skipped    TenantState = "skipped"  // held, or unknown
	Taken      TenantState = "taken"    // somebody else has written a wish since
	RolledBack TenantState = "returned" // wished back to where it was
)

// inTransition reports whether a tenant counts against max_in_transition.
func (s TenantState) inTransition() bool { return s == Moving || s == MovingOn }

// Tenant is one tenant in a rollout.
type Tenant struct {
	ID    string      `json:"tenant"`
	Wave  int         `json:"-"` // counted from 0
	State TenantState `json:"state"`
	// Wish is what the rollout has wished for it, and Before what it goes back to;
	// both empty before the first wish.
	Wish    stage.Stage    `json:"wish,omitempty"`
	Before  stage.Stage    `json:"before,omitempty"`
	Since   time.Time      `json:"since"`
	Verdict parity.Verdict `json:"verdict,omitempty"`
	Note    string         `json:"note,omitempty"`
}

// Observation is what is known at a moment.
type Observation struct {
	Now time.Time // PostgreSQL's
	// Known are all tenants; needed while a wave is chosen.
	Known []string
	Seen  map[string]Seen
	// HeldAll is who holds everybody and why; empty: nobody.
	HeldAll string
	// Measured: Seen has measurements. Without, nobody is judged.
	Measured bool
}

// Seen is what is known of one tenant.
type Seen struct {
	Stage    stage.Stage // in fact; empty: it has none yet
	Wanted   stage.Stage // what the flags wished last; empty: there is no answer
	WaitsFor string      // why it is not on its way
	Target   *Target     // its own wish; nil: none
	Held     string      // who holds it and why; empty: nobody
	Measured Measured
}

// Target is a tenant's own wish, whoever has written it.
type Target struct {
	Wish       stage.Stage
	By, Reason string
	At         time.Time
}

// Change is what is to be written, all of it or nothing. The zero value is no change.
type Change struct {
	Next    Progress
	Tenants []Tenant // those that change or are new
	Wishes  []Wish
	Events  []Event

	any bool
	err error
}

// Any reports whether there is something to write.
func (c *Change) Any() bool { return c.any }

// Wish is a wish to be written for a tenant.
type Wish struct {
	Tenant string
	Stage  stage.Stage
	Reason string
}

// Event is a line of a rollout's history.
type Event struct {
	At      time.Time      `json:"at"`
	Wave    int            `json:"wave"` // counted from 1
	Kind    string         `json:"kind"` // state, wave, tenant, gate
	Tenant  string         `json:"tenant,omitempty"`
	Verdict parity.Verdict `json:"verdict,omitempty"`
	Message string         `json:"message"`
	// Evidence are the gates' results, with their numbers.
	Evidence []Result `json:"evidence,omitempty"`
}

// By is under which name a rollout writes wishes. A wish by anybody else is somebody
// else's decision.
func By(name string) string { return "rollout " + name }

// theirs reports whether a tenant's own wish is somebody's decision of after the start.
// What was wished before is what the plan is about to change.
func (r *Rollout) theirs(seen Seen) bool {
	return seen.Target != nil && seen.Target.By != By(r.Plan.Name) && seen.Target.At.After(r.StartedAt)
}

// ours reports whether a tenant's own wish is still what the rollout has written.
func (r *Rollout) ours(t *Tenant, seen Seen) bool {
	return t.Wish != "" && seen.Target != nil && seen.Target.By == By(r.Plan.Name) && seen.Target.Wish == t.Wish
}
