package rollout

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/stage"
)

// world is all that a rollout sees, in memory: tenants that follow their wishes when a
// test says so, operators, holds and measurements.
type world struct {
	now      time.Time
	known    []string
	stages   map[string]stage.Stage
	wanted   map[string]stage.Stage
	targets  map[string]Target
	holds    map[string]string
	heldAll  string
	measured map[string]Measured
	r        *Rollout
	foreign  map[string]bool // somebody else has decided since the start
}

func newWorld(p Plan, tenants ...string) *world {
	p.complete()
	w := &world{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), known: tenants, stages: map[string]stage.Stage{}, wanted: map[string]stage.Stage{}, targets: map[string]Target{},
		holds: map[string]string{}, measured: map[string]Measured{}, foreign: map[string]bool{}}
	for _, t := range tenants {
		w.stages[t] = stage.MQTT
	}
	w.r = &Rollout{Plan: p, Progress: Progress{State: Pending, Phase: Choosing, Since: w.now}, Revision: 1, StartedAt: w.now.Add(-time.Second)}
	return w
}

func (w *world) observe() *Observation {
	o := &Observation{Now: w.now, Known: w.known, Seen: map[string]Seen{}, HeldAll: w.heldAll, Measured: true}
	for _, t := range w.known {
		s := Seen{Stage: w.stages[t], Wanted: w.wanted[t], Held: w.holds[t], Measured: w.measured[t]}
		if g, ok := w.targets[t]; ok {
			s.Target = &g
		}
		o.Seen[t] = s
	}
	return o
}

func (w *world) apply(c Change) {
	if !c.Any() {
		return
	}
	w.r = w.r.after(&c)
	for _, wish := range c.Wishes {
		w.targets[wish.Tenant] = Target{wish.Stage, By(w.r.Plan.Name), wish.Reason, w.now}
	}
}

// follow moves a tenant one step towards its wish, as control does.
func (w *world) follow(t string) bool {
	g, ok := w.targets[t]
	if !ok || w.holds[t] != "" || w.heldAll != "" {
		return false
	}
	step, more := stage.Next(w.stages[t], g.Wish)
	if more {
		w.stages[t] = step.To
	}
	return more
}

// flip is an operator's own wish; none takes it back.
func (w *world) flip(t string, s stage.Stage) {
	if s == "" {
		delete(w.targets, t)
		w.foreign[t] = w.tenant(t).Wish != ""
		return
	}
	w.targets[t] = Target{s, "ann", "incident", w.now}
	w.foreign[t] = true
}

func (w *world) tenant(t string) Tenant {
	i := slices.IndexFunc(w.r.Tenants, func(x Tenant) bool { return x.ID == t })
	if i < 0 {
		return Tenant{}
	}
	return w.r.Tenants[i]
}

// good and bad are measurements that pass and fail the parity gate.
var (
	good = Measured{Parity: parity.Counts{Matched: 1000}}
	bad  = Measured{Parity: parity.Counts{Matched: 1000, Mismatched: 3}}
)

func bake(d time.Duration) *Duration { b := Duration(d); return &b }

func threeWaves() Plan {
	p := DefaultPlan()
	p.Name, p.MaxInTransition = "canary", 2
	p.Waves = []Wave{{Tenants: []string{"t1"}, Bake: bake(10 * time.Minute)}, {Tenants: []string{"t2", "t3", "t4"}, Bake: bake(10 * time.Minute)}, {Percent: 100, Bake: bake(0)}}
	return p
}

// settle lets everybody follow and steps, without letting time pass, until nothing
// changes any more.
func (w *world) settle(t testing.TB) {
	t.Helper()
	for range 1000 {
		c := Step(w.r, w.observe())
		if c.err != nil {
			t.Fatal(c.err)
		}
		moved := false
		for _, tenant := range w.known {
			moved = w.follow(tenant) || moved
		}
		w.apply(c)
		if !c.Any() && !moved {
			return
		}
	}
	t.Fatalf("it never comes to rest: %+v", w.r.Progress)
}

// TestInvariants lets everything happen at random, and looks at every change.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(randomPlan(t), "t1", "t2", "t3", "t4", "t5", "t6")
		for _, tenant := range w.known {
			w.stages[tenant] = rapid.SampledFrom([]stage.Stage{"", stage.MQTT, stage.MQTT, stage.Shadow, stage.Live, stage.JetStream}).Draw(t, "begins")
			w.measured[tenant] = rapid.SampledFrom([]Measured{good, good, good, {}, bad}).Draw(t, "measured")
		}
		for range rapid.IntRange(20, 150).Draw(t, "length") {
			w.happen(t)
		}
	})
}

func randomPlan(t *rapid.T) Plan {
	p := threeWaves()
	p.MaxInTransition = rapid.IntRange(1, 3).Draw(t, "max")
	p.OnFailure = rapid.SampledFrom([]OnFailure{HoldOnFailure, RollBackOnFailure}).Draw(t, "on failure")
	p.Stage = rapid.SampledFrom(stage.All()).Draw(t, "stage")
	p.BakeIn = stage.Toward(p.Stage)
	if rapid.Bool().Draw(t, "in shadow") && p.BakeIn == stage.Live {
		p.BakeIn = stage.Shadow
	}
	return p
}

func (w *world) happen(t *rapid.T) {
	tenant := rapid.SampledFrom(w.known).Draw(t, "tenant")
	switch rapid.IntRange(0, 29).Draw(t, "what") {
	case 0:
		w.flip(tenant, rapid.SampledFrom(append(stage.All(), "")).Draw(t, "flip"))
	case 1:
		w.holds[tenant] = "bob"
	case 2, 3:
		delete(w.holds, tenant)
	case 4:
		w.heldAll = rapid.SampledFrom([]string{"", "", "", "ann"}).Draw(t, "held")
	case 5, 19, 20:
		w.measured[tenant] = rapid.SampledFrom([]Measured{good, good, good, {}, bad}).Draw(t, "measured")
	case 6, 7, 8:
		w.now = w.now.Add(rapid.SampledFrom([]time.Duration{time.Second, time.Minute, 11 * time.Minute, 61 * time.Minute}).Draw(t, "time"))
	case 9:
		w.order(t)
	case 10, 11, 12, 13, 14:
		w.follow(tenant)
	case 15, 16, 17, 18: // quiet times, without which little is ever reached
		w.now = w.now.Add(11 * time.Minute)
		for range 20 {
			for _, x := range w.known {
				w.follow(x)
			}
			w.step(t, false)
		}
	default:
		w.step(t, rapid.IntRange(0, 3).Draw(t, "crash") == 0)
	}
}

// step takes one, of which nothing is left after a crash.
func (w *world) step(t *rapid.T, crash bool) {
	c := Step(w.r, w.observe())
	w.examine(t, &c)
	if !crash {
		w.apply(c)
		w.limited(t)
	}
}

// order is an operator's command.
func (w *world) order(t *rapid.T) {
	var c Change
	var err error
	o := w.observe()
	switch rapid.IntRange(0, 9).Draw(t, "command") {
	case 0:
		if rapid.IntRange(0, 2).Draw(t, "sure") == 0 {
			c, err = Abort(w.r, o, "ann", "", rapid.Bool().Draw(t, "roll back"))
		}
	case 1:
		c, err = Resume(w.r, o, "ann", true)
	case 2, 3:
		c, err = Pause(w.r, o, "ann", "lunch")
	default:
		c, err = Resume(w.r, o, "ann", false)
	}
	if err == nil {
		if c.err != nil {
			t.Fatal(c.err)
		}
		for _, wish := range c.Wishes {
			if w.foreign[wish.Tenant] {
				t.Fatalf("a command wishes %s for %s, whom an operator has taken", wish.Stage, wish.Tenant)
			}
		}
		w.apply(c)
	}
}

// examine holds a change of Step's against what is promised.
func (w *world) examine(t *rapid.T, c *Change) {
	if c.err != nil {
		t.Fatal(c.err)
	}
	if !c.Any() {
		return
	}
	if w.r.State != Pending && w.r.State != Running {
		t.Fatalf("a rollout that is %s goes on: %+v", w.r.State, c)
	}
	after := w.r.after(c)
	want := w.expectedBack()
	for _, wish := range c.Wishes {
		switch {
		case w.foreign[wish.Tenant]:
			t.Fatalf("%s is wished for %s, whom an operator has taken", wish.Stage, wish.Tenant)
		case w.holds[wish.Tenant] != "" || w.heldAll != "":
			t.Fatalf("%s is wished for %s, who is held", wish.Stage, wish.Tenant)
		case c.Next.State == Failed:
			if want[wish.Tenant] != wish.Stage {
				t.Fatalf("%s goes back to %s, want %s", wish.Tenant, wish.Stage, want[wish.Tenant])
			}
			delete(want, wish.Tenant)
		case wish.Stage.Outer():
			i := slices.IndexFunc(after.Tenants, func(x Tenant) bool { return x.ID == wish.Tenant })
			if w.r.Phase != Finishing || after.Tenants[i].Verdict != parity.Pass {
				t.Fatalf("%s is wished into %s in phase %s with verdict %q", wish.Tenant, wish.Stage, w.r.Phase, after.Tenants[i].Verdict)
			}
		}
	}
	if c.Next.State == Failed && len(want) > 0 {
		t.Fatalf("a failed wave leaves %v where they are", want)
	}
	if c.Next.Wave != w.r.Wave || c.Next.State == Done {
		w.leftBehind(t, after)
	}
}

// expectedBack is what a failing wave has to take back: exactly what is the rollout's
// own in it.
func (w *world) expectedBack() map[string]stage.Stage {
	back := map[string]stage.Stage{}
	for _, x := range w.r.Tenants {
		g, ok := w.targets[x.ID]
		if x.Wave == w.r.Wave && x.Wish != "" && ok && g.By == By(w.r.Plan.Name) && w.holds[x.ID] == "" {
			back[x.ID] = x.Before
		}
	}
	return back
}

// leftBehind: no wave is left of which somebody is under way, nor one that nobody has
// passed.
func (w *world) leftBehind(t *rapid.T, after *Rollout) {
	passed, there, lost := 0, 0, 0
	for _, x := range after.Tenants {
		switch {
		case x.Wave != w.r.Wave:
		case x.State == Waiting || x.State == InBake || x.State.inTransition():
			t.Fatalf("wave %d is left while %s is %s", x.Wave+1, x.ID, x.State)
		case x.Verdict == parity.Pass:
			passed++
		case x.State == Arrived:
			there++
		default:
			lost++
		}
	}
	if passed == 0 && (there == 0 || lost > 0) {
		t.Fatalf("wave %d is left though nobody has passed: %+v", w.r.Wave+1, after.Tenants)
	}
}

// limited: never more are in transition than may be, but for those that go back.
func (w *world) limited(t *rapid.T) {
	n := 0
	for _, x := range w.r.Tenants {
		if x.State.inTransition() {
			n++
		}
	}
	if n > w.r.Plan.MaxInTransition {
		t.Fatalf("%d are in transition, at most %d may be", n, w.r.Plan.MaxInTransition)
	}
}
