package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// work is a change in the making.
type work struct {
	r       *Rollout
	o       *Observation
	next    Progress
	tenants []Tenant // as they will be
	changed map[string]bool
	wishes  []Wish
	events  []Event
	err     error
}

func newWork(r *Rollout, o *Observation) *work {
	return &work{r: r, o: o, next: r.Progress, tenants: slices.Clone(r.Tenants), changed: make(map[string]bool)}
}

// change is what came of it.
func (w *work) change() Change {
	c := Change{Next: w.next, Wishes: w.wishes, Events: w.events, err: w.err}
	for _, t := range w.tenants {
		if w.changed[t.ID] {
			c.Tenants = append(c.Tenants, t)
		}
	}
	c.any = w.next != w.r.Progress || len(c.Tenants)+len(c.Wishes)+len(c.Events) > 0
	return c
}

// wave calls f for the tenants of the present wave that are in one of the states; all
// without any.
func (w *work) wave(f func(t *Tenant, seen Seen), in ...TenantState) {
	for i := range w.tenants {
		t := &w.tenants[i]
		if t.Wave == w.next.Wave && (len(in) == 0 || slices.Contains(in, t.State)) {
			f(t, w.o.Seen[t.ID])
		}
	}
}

func (w *work) count(in ...TenantState) (n int) {
	w.wave(func(*Tenant, Seen) { n++ }, in...)
	return n
}

// free is how many tenants may still be set on their way.
func (w *work) free() int {
	n := w.r.Plan.MaxInTransition
	for i := range w.tenants {
		if w.tenants[i].State.inTransition() {
			n--
		}
	}
	return n
}

// put moves a tenant to a state.
func (w *work) put(t *Tenant, s TenantState, note string) {
	t.State, t.Since, t.Note = s, w.o.Now, note
	w.changed[t.ID] = true
}

// wish writes a wish for a tenant, and remembers what was wished before the first one.
func (w *work) wish(t *Tenant, s stage.Stage, seen Seen, how string) {
	if t.Wish == "" {
		t.Before = cmp.Or(seen.Wanted, seen.Stage, stage.MQTT)
		if seen.Target != nil {
			t.Before = seen.Target.Wish
		}
	}
	t.Wish = s
	w.changed[t.ID] = true
	w.wishes = append(w.wishes, Wish{t.ID, s, strings.TrimSpace(fmt.Sprintf("rollout %s wave %d %s", w.r.Plan.Name, t.Wave+1, how))})
}

func (w *work) event(kind, tenant, format string, args ...any) *Event {
	w.events = append(w.events, Event{At: w.o.Now, Wave: w.next.Wave + 1, Kind: kind, Tenant: tenant, Message: fmt.Sprintf(format, args...)})
	return &w.events[len(w.events)-1]
}

func (w *work) phase(p Phase) { w.next.Phase, w.next.Since, w.next.Why = p, w.o.Now, "" }

// to changes the state, which the table must allow.
func (w *work) to(s State, why string) {
	if !w.next.State.May(s) { // a mistake of this package's, never of input
		w.err = fmt.Errorf("rollout %s: state %s does not follow %s", w.r.Plan.Name, s, w.next.State)
	}
	w.next.State, w.next.Why, w.next.Cause = s, why, ""
	message := string(s)
	if why != "" {
		message += ": " + why
	}
	w.event("state", "", "%s", message)
}

func (w *work) pause(c Cause, why string) {
	w.to(Paused, why)
	w.next.Cause = c
}

// nextWave goes on, or ends the rollout.
func (w *work) nextWave() {
	if w.next.Wave+1 == len(w.r.Plan.Waves) {
		w.phase(Finishing)
		w.to(Done, "")
		return
	}
	w.next.Wave++
	w.next.WindowFrom = time.Time{}
	w.phase(Choosing)
}

// rollBack wishes tenants back that are still the rollout's, and returns how many. An
// operator who asks for it goes past holds, as with a wish of his own.
func (w *work) rollBack(operator bool, among func(*Tenant) bool) (n int) {
	for i := range w.tenants {
		t := &w.tenants[i]
		seen := w.o.Seen[t.ID]
		switch {
		case !among(t) || t.State == RolledBack || t.Wish == "":
		case !w.r.ours(t, seen):
			if t.State != Taken {
				w.take(t, seen)
			}
		case seen.Held != "" && !operator:
			w.put(t, t.State, "not rolled back: held by "+seen.Held)
			w.event("tenant", t.ID, "%s", t.Note)
		default:
			w.wish(t, t.Before, seen, "rolled back")
			w.put(t, RolledBack, "back to "+string(t.Before))
			n++
		}
	}
	return n
}

// take leaves a tenant to whoever has written another wish for it.
func (w *work) take(t *Tenant, seen Seen) {
	note := "its own wish was taken back by somebody"
	if g := seen.Target; g != nil {
		note = fmt.Sprintf("%s was wished by %s", g.Wish, orSomebody(g.By))
		if g.Reason != "" {
			note += " (" + g.Reason + ")"
		}
	}
	w.put(t, Taken, note)
	w.event("tenant", t.ID, "left alone: %s", note)
}

func orSomebody(by string) string {
	if by == "" {
		return "somebody"
	}
	return by
}

// some names a few of many.
func some(list []string) string {
	if n := len(list); n > 4 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:3], "; "), n-3)
	}
	return strings.Join(list, "; ")
}

// nextMinute is the first full minute after a moment: measurements are kept by minute,
// and the one in which tenants arrived has what was before as well.
func nextMinute(t time.Time) time.Time { return t.Truncate(time.Minute).Add(time.Minute) }
