package rollout

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/stage"
)

func six(p Plan) *world {
	w := newWorld(p, "t1", "t2", "t3", "t4", "t5", "t6")
	for _, t := range w.known {
		w.measured[t] = good
	}
	return w
}

func (w *world) expect(t testing.TB, s State, p Phase, wave int) {
	t.Helper()
	if w.r.State != s || w.r.Phase != p || w.r.Wave != wave-1 {
		t.Fatalf("%s, %s in wave %d (%s); want %s, %s in wave %d", w.r.State, w.r.Phase, w.r.Wave+1, w.r.Why, s, p, wave)
	}
}

func (w *world) pass(d time.Duration) { w.now = w.now.Add(d) }

// TestToTheEnd: wave after wave bakes in the inner stage and goes on to the last one.
func TestToTheEnd(t *testing.T) {
	w := six(threeWaves())
	w.settle(t)
	w.expect(t, Running, Baking, 1)
	if w.stages["t1"] != stage.Live || w.stages["t2"] != stage.MQTT {
		t.Fatalf("stages %v", w.stages)
	}
	w.pass(9 * time.Minute)
	w.settle(t)
	w.expect(t, Running, Baking, 1)
	w.pass(time.Minute)
	w.settle(t)
	w.expect(t, Running, Baking, 2)
	if w.stages["t1"] != stage.JetStream {
		t.Fatalf("stages %v", w.stages)
	}
	w.pass(10 * time.Minute)
	w.settle(t)
	w.expect(t, Done, Finishing, 3)
	for _, tenant := range w.known {
		if w.stages[tenant] != stage.JetStream || w.tenant(tenant).Verdict != parity.Pass || w.tenant(tenant).State != Arrived {
			t.Errorf("%s is in %s: %+v", tenant, w.stages[tenant], w.tenant(tenant))
		}
	}
}

// TestFailingGateRollsBackItsWave, and no other.
func TestFailingGateRollsBackItsWave(t *testing.T) {
	w := six(threeWaves())
	w.settle(t)
	w.stages["t3"] = stage.Shadow
	w.targets["t3"] = Target{stage.Shadow, "ann", "", w.now.Add(-time.Hour)}
	w.pass(10 * time.Minute)
	w.settle(t)
	w.expect(t, Running, Baking, 2)
	w.measured["t2"] = bad
	w.settle(t) // at once: no bake time makes it good
	w.expect(t, Failed, Baking, 2)
	for tenant, want := range map[string]stage.Stage{"t1": stage.JetStream, "t2": stage.MQTT, "t3": stage.Shadow, "t4": stage.MQTT, "t5": stage.MQTT} {
		if w.stages[tenant] != want {
			t.Errorf("%s is in %s, want %s", tenant, w.stages[tenant], want)
		}
	}
	if !strings.Contains(w.r.Why, "t2: parity: 3 of 1003") {
		t.Errorf("why: %s", w.r.Why)
	}
	if w.tenant("t3").State != RolledBack || w.tenant("t1").State != Arrived {
		t.Errorf("tenants %+v", w.r.Tenants)
	}
}

func TestFailingGateHolds(t *testing.T) {
	p := threeWaves()
	p.OnFailure = HoldOnFailure
	w := six(p)
	w.measured["t1"] = bad
	w.settle(t)
	w.expect(t, Paused, Baking, 1)
	if w.r.Cause != ByGate || w.stages["t1"] != stage.Live {
		t.Fatalf("%+v, t1 in %s", w.r.Progress, w.stages["t1"])
	}
	w.measured["t1"] = good
	w.pass(time.Hour)
	w.settle(t)
	w.expect(t, Paused, Baking, 1)
	c, err := Resume(w.r, w.observe(), "ann", false)
	if err != nil {
		t.Fatal(err)
	}
	w.apply(c)
	w.settle(t)
	w.expect(t, Running, Baking, 1) // from the beginning
	if !w.r.WindowFrom.After(w.now) {
		t.Errorf("the window begins at %v, now is %v", w.r.WindowFrom, w.now)
	}
	w.pass(10 * time.Minute)
	w.settle(t)
	w.expect(t, Running, Baking, 2)
}

// TestSilenceNeverPasses: without traffic a wave waits, and then the rollout pauses.
func TestSilenceNeverPasses(t *testing.T) {
	w := six(threeWaves())
	w.measured["t1"] = Measured{}
	w.settle(t)
	w.pass(10 * time.Minute)
	w.settle(t)
	w.expect(t, Running, Judging, 1)
	w.pass(59 * time.Minute)
	w.settle(t)
	w.expect(t, Running, Judging, 1)
	w.pass(time.Minute)
	w.settle(t)
	w.expect(t, Paused, Judging, 1)
	if w.r.Cause != Inconclusive || !strings.Contains(w.r.Why, "no traffic") {
		t.Errorf("%+v", w.r.Progress)
	}
	w.measured["t1"] = good
	c, err := Resume(w.r, w.observe(), "ann", false)
	if err != nil {
		t.Fatal(err)
	}
	w.apply(c)
	w.settle(t)
	w.expect(t, Running, Baking, 2)
}

// TestNobodyLeft: a wave whose tenants are all held or taken says nothing about the next.
func TestNobodyLeft(t *testing.T) {
	for name, happen := range map[string]func(*world){
		"held":          func(w *world) { w.holds["t1"] = "ann: Friday" },
		"taken in bake": func(w *world) { w.settle(t); w.flip("t1", stage.MQTT) },
		"taken back":    func(w *world) { w.settle(t); w.flip("t1", "") },
		"held on its way": func(w *world) {
			w.apply(Step(w.r, w.observe()))
			w.apply(Step(w.r, w.observe()))
			w.holds["t1"] = "ann"
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := six(threeWaves())
			happen(w)
			w.settle(t)
			if w.r.State != Paused || w.r.Cause != Empty || w.r.Wave != 0 {
				t.Fatalf("%+v", w.r.Progress)
			}
			c, err := Resume(w.r, w.observe(), "ann", true)
			if err != nil {
				t.Fatal(err)
			}
			w.apply(c)
			w.settle(t)
			w.expect(t, Running, Baking, 2)
		})
	}
}

// TestRollbackOfAll: an operator who takes everybody back ends what was still to come.
func TestRollbackOfAll(t *testing.T) {
	w := six(threeWaves())
	w.settle(t)
	for _, tenant := range w.known {
		w.flip(tenant, stage.MQTT)
	}
	w.pass(10 * time.Minute)
	w.settle(t)
	w.expect(t, Paused, Baking, 1)
	c, err := Resume(w.r, w.observe(), "ann", true)
	if err != nil {
		t.Fatal(err)
	}
	w.apply(c)
	w.settle(t)
	w.expect(t, Paused, Flipping, 2)
	for _, tenant := range w.known {
		if w.stages[tenant] != stage.MQTT {
			t.Errorf("%s is in %s", tenant, w.stages[tenant])
		}
	}
}

// TestHoldSkips: the others of a wave go on, and a resume tries those again that were
// never wished for, once nobody is left.
func TestHoldSkips(t *testing.T) {
	w := six(threeWaves())
	w.holds["t1"], w.holds["t3"] = "ann", "bob: incident"
	w.settle(t)
	w.expect(t, Paused, Choosing.orFlipping(w), 1)
	delete(w.holds, "t1")
	c, err := Resume(w.r, w.observe(), "ann", false)
	if err != nil {
		t.Fatal(err)
	}
	w.apply(c)
	w.settle(t)
	w.expect(t, Running, Baking, 1)
	w.pass(10 * time.Minute)
	w.settle(t)
	w.expect(t, Running, Baking, 2)
	if x := w.tenant("t3"); x.State != Skipped || !strings.Contains(x.Note, "bob: incident") || w.stages["t3"] != stage.MQTT {
		t.Errorf("t3 is in %s: %+v", w.stages["t3"], x)
	}
	if w.stages["t2"] != stage.Live || w.stages["t4"] != stage.Live {
		t.Errorf("stages %v", w.stages)
	}
}

func (p Phase) orFlipping(w *world) Phase {
	if w.r.Phase == Flipping {
		return Flipping
	}
	return p
}

// TestHoldOfAllWaits, and goes on by itself.
func TestHoldOfAllWaits(t *testing.T) {
	w := six(threeWaves())
	w.heldAll = "ann: no changes on Friday"
	w.settle(t)
	w.expect(t, Running, Flipping, 1)
	if !strings.Contains(w.r.Why, "no changes on Friday") || len(w.targets) > 0 {
		t.Fatalf("%+v, wishes %v", w.r.Progress, w.targets)
	}
	w.heldAll = ""
	w.settle(t)
	w.expect(t, Running, Baking, 1)
	w.heldAll, w.measured["t1"] = "ann", bad
	w.settle(t)
	if w.r.State != Paused || w.r.Cause != ByGate || w.targets["t1"].Wish != stage.Live {
		t.Fatalf("%+v, t1 is wished %v", w.r.Progress, w.targets["t1"])
	}
}

// TestOverdue: a tenant that does not arrive pauses the rollout, and says what it waits for.
func TestOverdue(t *testing.T) {
	w := six(threeWaves())
	for range 3 {
		w.apply(Step(w.r, w.observe()))
	}
	w.pass(time.Hour)
	w.apply(Step(w.r, w.observe()))
	w.expect(t, Paused, Flipping, 1)
	if w.r.Cause != Overdue || !strings.Contains(w.r.Why, "t1 waits for") {
		t.Errorf("%+v", w.r.Progress)
	}
	c, err := Resume(w.r, w.observe(), "ann", false)
	if err != nil {
		t.Fatal(err)
	}
	w.apply(c)
	w.apply(Step(w.r, w.observe()))
	w.expect(t, Running, Flipping, 1) // the clock begins anew
	w.settle(t)
	w.expect(t, Running, Baking, 1)
}

// TestAlreadyThere: nobody is moved out of the plan's stage to be looked at.
func TestAlreadyThere(t *testing.T) {
	w := six(threeWaves())
	w.stages["t1"], w.stages["t2"] = stage.JetStream, stage.JetStream
	w.settle(t)
	w.expect(t, Running, Baking, 2)
	if len(w.targets) != 2 || w.stages["t1"] != stage.JetStream || w.stages["t2"] != stage.JetStream {
		t.Errorf("stages %v, wishes %v", w.stages, w.targets)
	}
}

func TestBakeStages(t *testing.T) {
	for _, c := range []struct{ goal, bake, from, want stage.Stage }{
		{stage.JetStream, stage.Live, stage.MQTT, stage.Live},
		{stage.JetStream, stage.Shadow, stage.MQTT, stage.Shadow},
		{stage.JetStream, stage.Shadow, stage.Live, stage.Live}, // past it: never back
		{stage.JetStream, stage.Live, stage.JetStream, stage.Live},
		{stage.JetStream, stage.Live, "", stage.Live},
		{stage.MQTT, stage.Shadow, stage.JetStream, stage.Shadow},
		{stage.MQTT, stage.Shadow, stage.Live, stage.Shadow},
		{stage.Live, stage.Shadow, stage.JetStream, stage.Live},
		{stage.Shadow, stage.Shadow, stage.MQTT, stage.Shadow},
	} {
		p := Plan{Stage: c.goal, BakeIn: c.bake}
		if got := p.bakeStage(c.from); got != c.want {
			t.Errorf("to %s by %s from %q: %s, want %s", c.goal, c.bake, c.from, got, c.want)
		}
	}
}

func TestAbort(t *testing.T) {
	for _, back := range []bool{false, true} {
		w := six(threeWaves())
		w.settle(t)
		w.pass(10 * time.Minute)
		w.settle(t)
		w.flip("t2", stage.Shadow)
		c, err := Abort(w.r, w.observe(), "ann", "incident 7", back)
		if err != nil {
			t.Fatal(err)
		}
		w.apply(c)
		w.settle(t)
		w.expect(t, Aborted, Baking, 2)
		want := map[string]stage.Stage{"t1": stage.JetStream, "t2": stage.Shadow, "t3": stage.Live, "t5": stage.MQTT}
		if back {
			want["t1"], want["t3"] = stage.MQTT, stage.MQTT
		}
		for tenant, s := range want {
			if w.stages[tenant] != s {
				t.Errorf("rolled back %v: %s is in %s, want %s", back, tenant, w.stages[tenant], s)
			}
		}
	}
}

// TestCommandsByState: what is allowed is what the table allows.
func TestCommandsByState(t *testing.T) {
	for _, s := range []State{Pending, Running, Paused, Failed, Aborted, Done} {
		w := six(threeWaves())
		w.r.State = s
		o := w.observe()
		_, pause := Pause(w.r, o, "", "")
		_, resume := Resume(w.r, o, "", false)
		_, abort := Abort(w.r, o, "", "", false)
		for name, c := range map[string]struct {
			err  error
			want bool
		}{"pause": {pause, s == Pending || s == Running}, "resume": {resume, s == Paused}, "abort": {abort, !s.Over()}} {
			if (c.err == nil) != c.want || c.err != nil && !errors.Is(c.err, ErrState) {
				t.Errorf("%s while %s: %v", name, s, c.err)
			}
		}
		for next := range transitions {
			if s.Over() && s.May(next) {
				t.Errorf("%s follows %s", next, s)
			}
		}
	}
	if slices.Contains(transitions[Running], Pending) {
		t.Error("nothing begins twice")
	}
}
