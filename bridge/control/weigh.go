package control

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// This file is pure: what is to be done, given all that is known.

// known is what a leader decides by in one round.
type known struct {
	now    time.Time // PostgreSQL's
	facts  map[string]*Fact
	wishes map[string]answer
	holds  map[string]Held
	peers  peers
	proofs map[string][]proof // by tenant, for its present revision, newest first

	dwell             time.Duration
	resend, resendMax time.Duration
	lag               *Lag   // nil: nobody looks
	unable            string // why no sentinel can be sent, or why the last ones were not; empty: all is well
}

// peers is what instances say of themselves.
type peers struct {
	confirmed   int64            // every live instance has confirmed all epochs up to it
	unconfirmed map[string]int64 // live instances and what they have confirmed; for the reason shown
	blocked     string           // why nothing counts as confirmed
	sessions    sessions
	dead        map[string]bool // instances that do not run
}

// sessions are the MQTT sessions that may exist, with copies in them: instance → run.
type sessions struct {
	MQTT    map[string]string `json:"mqtt,omitempty"`
	Mirrors map[string]string `json:"mirrors,omitempty"`
}

func (s sessions) equal(o sessions) bool {
	return maps.Equal(s.MQTT, o.MQTT) && maps.Equal(s.Mirrors, o.Mirrors)
}

// proof is a sentinel that was sent for one, and where it has come out.
type proof struct {
	nonce     string
	attempt   int
	age       time.Duration
	published bool // the broker has it, or it has been seen
	sessions  sessions
	mqtt      []string // instances
	jetstream []string // kinds
	mirrors   []string // instances
}

// move is a change of one tenant's stage; revision is the one it starts from, 0 for a
// tenant that has no row yet.
type move struct {
	tenant   string
	from, to stage.Stage
	revision int64
	wish     Wish
	evidence json.RawMessage
}

// verdict is what becomes of one tenant in a round.
type verdict struct {
	move  *move
	waits string // for what; empty: for nothing
	send  bool   // a sentinel is to be sent
	tries int    // sentinels sent for this proof so far
}

// weigh decides about a tenant that has a row.
func (k *known) weigh(f *Fact) verdict {
	a, ok := k.wishes[f.Tenant]
	if !ok {
		a.err = errNotAsked
	}
	if a.err != nil {
		return verdict{waits: noAnswer}
	}
	step, more := stage.Next(f.Stage, a.wish.Stage)
	if !more {
		return verdict{}
	}
	if f.Undecided {
		return verdict{waits: "the lock on its row of crossfade_stages"}
	}
	if h, held := k.held(f.Tenant); held && !(a.wish.Operator && returns(step)) {
		return verdict{waits: heldBy(h)}
	}
	if k.lag != nil && !returns(step) {
		if overdue := k.lag.Overdue(f.Tenant); overdue != "" {
			return verdict{waits: overdue}
		}
	}
	e, best := k.evidence(f)
	await := step.Await(e)
	switch {
	case await == stage.AwaitNothing:
		m := &move{tenant: f.Tenant, from: step.From, to: step.To, revision: f.Revision, wish: a.wish, evidence: k.testimony(f, step, best)}
		return verdict{move: m}
	case await < stage.AwaitSending:
		return verdict{waits: k.waitsBefore(await, step, f)}
	}
	return verdict{waits: k.waitsOut(await, best), send: k.due(f.Tenant), tries: len(k.proofs[f.Tenant])}
}

// noAnswer is what a tenant waits for whose wish is not known.
const noAnswer = "clean answer from the flag service"

// returns reports whether a step gives MQTT its authority back.
func returns(s stage.Step) bool {
	return s.From.Authoritative() != s.To.Authoritative() && s.To.Authoritative() == stage.MQTT.Authoritative()
}

func (k *known) held(tenant string) (Held, bool) {
	if h, ok := k.holds[tenant]; ok {
		return h, true
	}
	h, ok := k.holds[Everybody]
	return h, ok
}

func heldBy(h Held) string {
	whom := ""
	if h.Tenant == Everybody {
		whom = " of all tenants"
	}
	return strings.TrimSuffix(fmt.Sprintf("release from the hold%s by %s: %s", whom, cmp.Or(h.By, "somebody"), h.Reason), ": ")
}

// evidence is what there is for the next step, and the sentinel that is furthest.
func (k *known) evidence(f *Fact) (stage.Evidence, *proof) {
	e := stage.Evidence{Confirmed: f.ConfirmedAt != nil || k.peers.blocked == "" && f.Epoch <= k.peers.confirmed}
	e.Dwelt = f.ConfirmedAt != nil && k.now.Sub(*f.ConfirmedAt) >= k.dwell
	var best *proof
	for i := range k.proofs[f.Tenant] {
		p := &k.proofs[f.Tenant][i]
		if !p.sessions.equal(k.peers.sessions) {
			continue // sessions have come or gone since: it proves nothing
		}
		mqtt, js := covers(p.mqtt, k.peers.sessions.MQTT), k.outOfJetStream(p)
		if best == nil || mqtt && js {
			best = p
			e.Sent, e.OutOfMQTT, e.OutOfJetStream = p.published, mqtt, js
		}
		if mqtt && js {
			break
		}
	}
	return e, best
}

// covers reports whether a sentinel has come out of all of some sessions.
func covers(seen []string, sessions map[string]string) bool {
	for instance := range sessions {
		if !slices.Contains(seen, instance) {
			return false
		}
	}
	return true
}

// outOfJetStream: of all streams, and what is in a mirror's session has yet to come
// into them.
func (k *known) outOfJetStream(p *proof) bool {
	for _, kind := range kinds {
		if !slices.Contains(p.jetstream, kind) {
			return false
		}
	}
	return covers(p.mirrors, k.peers.sessions.Mirrors)
}

// due reports whether another sentinel is to be sent for a tenant that waits for one.
func (k *known) due(tenant string) bool {
	proofs := k.proofs[tenant]
	if len(proofs) == 0 {
		return true
	}
	newest := proofs[0]
	if !newest.sessions.equal(k.peers.sessions) {
		return newest.age >= time.Second // sessions that come and go must not make a flood
	}
	if k.away(&newest) {
		return false
	}
	wait := k.resend
	for range newest.attempt - 1 {
		if wait = 2 * wait; wait >= k.resendMax {
			break
		}
	}
	return newest.age >= min(wait, k.resendMax)
}

// away reports whether a sentinel has come out of everything but sessions of instances
// that do not run. It waits there; more would pile up behind it. When one of them is
// back, or forgotten, the sessions are others and another one is sent.
func (k *known) away(p *proof) bool {
	for _, kind := range kinds {
		if !slices.Contains(p.jetstream, kind) {
			return false
		}
	}
	runs := func(seen []string, sessions map[string]string) bool {
		for instance := range sessions {
			if !slices.Contains(seen, instance) && !k.peers.dead[instance] {
				return true
			}
		}
		return false
	}
	return p.published && !runs(p.mqtt, k.peers.sessions.MQTT) && !runs(p.mirrors, k.peers.sessions.Mirrors)
}

// waitsBefore words what comes before a sentinel. The words change only when what is
// waited for does.
func (k *known) waitsBefore(a stage.Await, step stage.Step, f *Fact) string {
	if a == stage.AwaitDwell {
		return fmt.Sprintf("%s: %s after confirmation", a, k.dwell)
	}
	if k.peers.blocked != "" {
		return fmt.Sprintf("%s: %s", a, k.peers.blocked)
	}
	var behind []string
	for instance, epoch := range k.peers.unconfirmed {
		if epoch < f.Epoch {
			behind = append(behind, instance)
		}
	}
	return fmt.Sprintf("%s of stage %s by %s", a, step.From, some(behind))
}

// waitsOut words from where a sentinel has not come.
func (k *known) waitsOut(a stage.Await, p *proof) string {
	if p == nil || a == stage.AwaitSending {
		return strings.TrimSuffix(fmt.Sprintf("%s: %s", stage.AwaitSending, k.unable), ": ")
	}
	if a == stage.AwaitMQTT {
		return fmt.Sprintf("%s: not yet out of the session of %s", a, some(k.missing(p.mqtt, k.peers.sessions.MQTT)))
	}
	var missing []string
	for _, kind := range kinds {
		if !slices.Contains(p.jetstream, kind) {
			missing = append(missing, kind)
		}
	}
	switch mirrors := k.missing(p.mirrors, k.peers.sessions.Mirrors); {
	case len(missing) == 0:
		return fmt.Sprintf("%s: not yet out of the mirror's session of %s", a, some(mirrors))
	case len(missing) == len(kinds):
		return fmt.Sprintf("%s: not yet out of %s; is the mirror running?", a, some(missing))
	}
	return fmt.Sprintf("%s: not yet out of %s", a, some(missing))
}

// missing names the sessions out of which a sentinel has not come.
func (k *known) missing(seen []string, sessions map[string]string) (names []string) {
	for instance := range sessions {
		switch {
		case slices.Contains(seen, instance):
		case k.peers.dead[instance]:
			names = append(names, instance+" (not running: start it, or have its session forgotten)")
		default:
			names = append(names, instance)
		}
	}
	return names
}

// some names a few of many.
func some(names []string) string {
	slices.Sort(names)
	if n := len(names); n > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:4], ", "), n-4)
	}
	return strings.Join(names, ", ")
}

// testimony is the evidence of a step for the history; nil where none was needed.
func (k *known) testimony(f *Fact, step stage.Step, p *proof) json.RawMessage {
	if step.Needs == stage.NeedsNothing {
		return nil
	}
	t := struct {
		Epoch       int64            `json:"confirmed_epoch"`
		By          map[string]int64 `json:"instances"`
		ConfirmedAt *time.Time       `json:"confirmed_at,omitempty"`
		Dwell       float64          `json:"dwell_seconds,omitempty"`
		Nonce       string           `json:"sentinel,omitempty"`
		Attempt     int              `json:"attempt,omitempty"`
		Sessions    *sessions        `json:"sessions,omitempty"`
		JetStream   []string         `json:"jetstream,omitempty"`
	}{Epoch: f.Epoch, By: k.peers.unconfirmed, ConfirmedAt: f.ConfirmedAt}
	if step.Needs == stage.NeedsProof && p != nil {
		t.Dwell = k.now.Sub(*f.ConfirmedAt).Seconds()
		t.Nonce, t.Attempt, t.Sessions, t.JetStream = p.nonce, p.attempt, &p.sessions, p.jetstream
	}
	b, _ := json.Marshal(t) // nothing in it can fail
	return b
}
