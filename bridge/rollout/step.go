package rollout

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/bridge/parity"
)

// Step says what is to be done next with a rollout that runs, given what is known. It
// is pure. Nothing happens to one that is paused or over.
//
// A step is small: the caller writes it and steps again until there is no change.
func Step(r *Rollout, o *Observation) Change {
	w := newWork(r, o)
	if r.State != Pending && r.State != Running {
		return Change{}
	}
	w.wave(func(t *Tenant, seen Seen) {
		if !r.ours(t, seen) {
			w.take(t, seen)
		}
	}, Moving, InBake, MovingOn)
	switch r.Phase {
	case Choosing:
		w.choose()
	case Flipping:
		w.flip()
	case Baking, Judging:
		w.judge()
	case Finishing:
		w.finish()
	}
	return w.change()
}

// choose finds the wave's tenants. Who is in it already waits for his turn.
func (w *work) choose() {
	if w.next.State == Pending {
		w.to(Running, "")
	}
	in := make(map[string]bool, len(w.tenants))
	for _, t := range w.tenants {
		in[t.ID] = true
	}
	known := make(map[string]bool, len(w.o.Known))
	for _, t := range w.o.Known {
		known[t] = true
	}
	for _, tenant := range w.r.Plan.Members(w.next.Wave, w.o.Known, func(t string) bool { return in[t] }) {
		w.tenants = append(w.tenants, Tenant{ID: tenant, Wave: w.next.Wave, State: Waiting, Since: w.o.Now})
		t := &w.tenants[len(w.tenants)-1]
		w.changed[tenant] = true
		if !known[tenant] {
			w.put(t, Skipped, "no device is registered under it")
			w.event("tenant", tenant, "skipped: %s", t.Note)
		}
	}
	if n := w.count(Waiting); n > 0 {
		w.phase(Flipping)
		w.event("wave", "", "wave %d of %d begins, with %d tenants", w.next.Wave+1, len(w.r.Plan.Waves), n)
		return
	}
	w.nobody()
}

// nobody pauses: a wave that nobody has gone through says nothing to the next.
func (w *work) nobody() {
	why := "it has no tenants"
	var left []string
	w.wave(func(t *Tenant, _ Seen) { left = append(left, fmt.Sprintf("%s %s: %s", t.ID, t.State, t.Note)) }, Skipped, Taken)
	if len(left) > 0 {
		why = some(left)
	}
	w.pause(Empty, fmt.Sprintf("nobody is left of wave %d (%s); resume to try it again, or resume --skip-wave", w.next.Wave+1, why))
}

// flip wishes tenants into the inner stage, as many as may be on their way, and notes
// those that have arrived.
func (w *work) flip() {
	var late []string
	w.wave(func(t *Tenant, seen Seen) {
		switch {
		case seen.Stage == t.Wish:
			w.put(t, InBake, "")
		case seen.Held != "":
			w.put(t, Skipped, "held on its way, by "+seen.Held)
			w.event("tenant", t.ID, "skipped: %s; its wish stays", t.Note)
		case w.overdue(t):
			late = append(late, t.ID+" waits for "+orNothing(seen.WaitsFor))
		}
	}, Moving)
	free := w.free()
	w.wave(func(t *Tenant, seen Seen) {
		switch {
		case seen.Held != "":
			w.put(t, Skipped, "held by "+seen.Held)
			w.event("tenant", t.ID, "skipped: %s", t.Note)
		case w.r.theirs(seen):
			w.take(t, seen)
		case seen.Stage == w.r.Plan.Stage && w.settled(seen):
			w.put(t, Arrived, "it was there already")
		case w.o.HeldAll == "" && free > 0:
			free--
			w.wish(t, w.r.Plan.bakeStage(seen.Stage), seen, "")
			w.put(t, Moving, "")
		}
	}, Waiting)
	w.next.Why = w.waitsForAll()
	switch {
	case len(late) > 0:
		w.pause(Overdue, fmt.Sprintf("not arrived within %v: %s", w.r.Plan.WaitAtMost, some(late)))
	case w.count(Waiting, Moving) > 0:
	case w.count(InBake) > 0:
		w.phase(Baking)
		w.next.WindowFrom = nextMinute(w.o.Now)
		w.event("wave", "", "wave %d: %d tenants have arrived and bake for %v", w.next.Wave+1, w.count(InBake), w.bake())
	case w.count(Arrived) > 0 && w.count(Skipped, Taken) == 0:
		w.event("wave", "", "wave %d: all tenants were in %s already", w.next.Wave+1, w.r.Plan.Stage)
		w.nextWave()
	default:
		w.nobody()
	}
}

// settled reports whether a tenant that is in the plan's stage is also wished there,
// as far as its own wish says.
func (w *work) settled(seen Seen) bool {
	return seen.Target == nil || seen.Target.Wish == w.r.Plan.Stage
}

func (w *work) bake() time.Duration { return w.r.Plan.Waves[w.next.Wave].bake() }

func (w *work) overdue(t *Tenant) bool {
	since := t.Since
	if w.next.Since.After(since) { // resumed since
		since = w.next.Since
	}
	return w.o.Now.Sub(since) >= time.Duration(w.r.Plan.WaitAtMost)
}

func (w *work) waitsForAll() string {
	if w.o.HeldAll == "" {
		return ""
	}
	return "waits for release from the hold of all tenants by " + w.o.HeldAll
}

func orNothing(s string) string {
	if s == "" {
		return "nothing that is known; does an instance lead (crossfade status)?"
	}
	return s
}

// judge looks at the wave. What fails counts at once, but for the lag, which may come
// down until the bake time is over. What passes counts when that is over.
func (w *work) judge() {
	if w.count(InBake) == 0 {
		w.nobody()
		return
	}
	if !w.o.Measured {
		return
	}
	over := w.next.Phase == Judging || w.o.Now.Sub(w.next.Since) >= w.bake()
	results := make(map[string][]Result)
	var failed, open []string
	w.wave(func(t *Tenant, seen Seen) {
		all := w.r.Plan.Gates.Judge(&seen.Measured, w.next.WindowFrom, w.o.Now)
		if seen.Stage != t.Wish {
			all = append(all, Result{Gate: "stage", Verdict: parity.Inconclusive, Reason: fmt.Sprintf("it is in %q, not in %s", seen.Stage, t.Wish)})
		}
		if !over {
			all = slices.DeleteFunc(all, func(r Result) bool { return r.Gate == "lag" })
		}
		results[t.ID] = all
		verdict := Overall(all)
		if verdict != t.Verdict {
			t.Verdict, t.Note = verdict, Reasons(all, verdict)
			w.changed[t.ID] = true
		}
		switch verdict {
		case parity.Fail:
			failed = append(failed, t.ID+": "+Reasons(all, verdict))
		case parity.Inconclusive:
			open = append(open, t.ID+": "+Reasons(all, verdict))
		}
	}, InBake)
	switch {
	case len(failed) > 0:
		w.testify(results)
		w.fail(failed)
	case !over:
	case len(open) == 0:
		w.testify(results)
		w.pass()
	case w.next.Phase == Baking:
		w.phase(Judging)
		w.event("wave", "", "wave %d has baked; no verdict yet on %d tenants", w.next.Wave+1, len(open))
	case w.o.Now.Sub(w.next.Since) >= time.Duration(w.r.Plan.WaitAtMost):
		w.testify(results)
		w.pause(Inconclusive, fmt.Sprintf("no verdict within %v: %s", w.r.Plan.WaitAtMost, some(open)))
	}
}

// Reasons words why a tenant has its verdict.
func Reasons(results []Result, v parity.Verdict) string {
	var parts []string
	for _, r := range results {
		if r.Verdict == v {
			parts = append(parts, r.Gate+": "+r.Reason)
		}
	}
	return strings.Join(parts, ", ")
}

// testify keeps the numbers that decide.
func (w *work) testify(results map[string][]Result) {
	w.wave(func(t *Tenant, _ Seen) {
		all := results[t.ID]
		t.Note = Reasons(all, t.Verdict)
		w.changed[t.ID] = true
		e := w.event("gate", t.ID, "%s", t.Note)
		e.Verdict, e.Evidence = t.Verdict, all
	}, InBake)
}

func (w *work) fail(failed []string) {
	why := fmt.Sprintf("wave %d failed: %s", w.next.Wave+1, some(failed))
	switch {
	case w.r.Plan.OnFailure == HoldOnFailure:
		w.pause(ByGate, why+"; tenants stay where they are")
	case w.o.HeldAll != "":
		w.pause(ByGate, fmt.Sprintf("%s; not rolled back, since all tenants are held by %s", why, w.o.HeldAll))
	default:
		n := w.rollBack(false, func(t *Tenant) bool { return t.Wave == w.next.Wave })
		w.to(Failed, fmt.Sprintf("%s; %d tenants go back to where they were", why, n))
	}
}

func (w *work) pass() {
	w.event("wave", "", "wave %d has passed, with %d tenants", w.next.Wave+1, w.count(InBake))
	w.phase(Finishing)
}

// finish wishes tenants on that have passed.
func (w *work) finish() {
	var late []string
	w.wave(func(t *Tenant, seen Seen) {
		switch {
		case seen.Stage == t.Wish:
			w.put(t, Arrived, t.Note)
		case seen.Held != "":
			w.put(t, Skipped, "passed, and held on its way, by "+seen.Held)
			w.event("tenant", t.ID, "%s; its wish stays", t.Note)
		case w.overdue(t):
			late = append(late, t.ID+" waits for "+orNothing(seen.WaitsFor))
		}
	}, MovingOn)
	free := w.free()
	w.wave(func(t *Tenant, seen Seen) {
		switch {
		case t.Wish == w.r.Plan.Stage:
			w.put(t, Arrived, t.Note)
		case seen.Held != "":
			w.put(t, Skipped, fmt.Sprintf("passed; stays in %s, held by %s", t.Wish, seen.Held))
			w.event("tenant", t.ID, "%s", t.Note)
		case w.o.HeldAll == "" && free > 0:
			free--
			w.wish(t, w.r.Plan.Stage, seen, "passed")
			w.put(t, MovingOn, t.Note)
		}
	}, InBake)
	w.next.Why = w.waitsForAll()
	switch {
	case len(late) > 0:
		w.pause(Overdue, fmt.Sprintf("not arrived within %v: %s", w.r.Plan.WaitAtMost, some(late)))
	case w.count(InBake, MovingOn) == 0:
		w.nextWave()
	}
}
