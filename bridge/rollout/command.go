package rollout

import (
	"errors"
	"fmt"
)

// ErrState is what commands return that a rollout's state does not allow.
var ErrState = errors.New("the rollout's state does not allow it")

func refuse(r *Rollout, what, remedy string) error {
	return fmt.Errorf("%s rollout %q, which is %s: %w: %s", what, r.Plan.Name, r.State, ErrState, remedy)
}

// Pause stops a rollout before its next step. Tenants on their way go on to the stage
// that is wished for them, and stay there.
func Pause(r *Rollout, o *Observation, by, reason string) (Change, error) {
	if r.State != Pending && r.State != Running {
		return Change{}, refuse(r, "pause", "only one that is pending or running can be paused")
	}
	w := newWork(r, o)
	w.pause(ByOperator, told("by "+orSomebody(by), reason))
	return w.change(), nil
}

// Resume lets a rollout go on. The clocks of its wave begin anew; a wave of which a
// gate has failed bakes and is measured from the beginning, and a wave of which nobody
// was left is tried again. skipWave goes on to the next wave instead and leaves
// tenants of this one where they are.
func Resume(r *Rollout, o *Observation, by string, skipWave bool) (Change, error) {
	if r.State != Paused {
		return Change{}, refuse(r, "resume", "only one that is paused can be resumed")
	}
	w := newWork(r, o)
	cause := r.Cause
	if skipWave {
		w.event("wave", "", "wave %d is skipped by %s", w.next.Wave+1, orSomebody(by))
		if w.next.Wave+1 < len(r.Plan.Waves) {
			w.to(Running, told("by "+orSomebody(by), ""))
		}
		w.nextWave()
		w.next.Cause = ""
		return w.change(), nil
	}
	w.to(Running, told("by "+orSomebody(by), ""))
	w.next.Since, w.next.Why = o.Now, ""
	switch cause {
	case ByGate:
		w.phase(Baking)
		w.next.WindowFrom = nextMinute(o.Now)
		w.wave(func(t *Tenant, _ Seen) {
			t.Verdict, t.Note = "", ""
			w.changed[t.ID] = true
		}, InBake)
	case Empty:
		w.phase(Choosing)
		w.wave(func(t *Tenant, _ Seen) {
			if t.Wish == "" {
				w.put(t, Waiting, "")
			}
		}, Skipped)
	}
	return w.change(), nil
}

// Abort ends a rollout. With rollBack all its tenants, of whichever wave, go back to
// where they were before; without, they stay where they are or are wished to be.
func Abort(r *Rollout, o *Observation, by, reason string, rollBack bool) (Change, error) {
	if r.State.Over() {
		return Change{}, refuse(r, "abort", "it is over already; crossfade rollback takes tenants back")
	}
	w := newWork(r, o)
	why := told("by "+orSomebody(by), reason)
	if rollBack {
		n := w.rollBack(true, func(*Tenant) bool { return true })
		why += fmt.Sprintf("; %d tenants go back to where they were", n)
	}
	w.to(Aborted, why)
	return w.change(), nil
}

func told(who, reason string) string {
	if reason == "" {
		return who
	}
	return who + ": " + reason
}
