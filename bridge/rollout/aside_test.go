package rollout

import (
	"slices"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
)

// rollBack does what `crossfade rollback` does; nil is --all.
func (g *rig) rollBack(tenants ...string) *Rollout {
	g.t.Helper()
	r, err := StandAside(g.t.Context(), g.pool, tenants, "ann", "incident", 5*time.Second)
	if err != nil {
		g.t.Fatal(err)
	}
	if tenants == nil {
		if tenants, err = Tenants(g.t.Context(), g.pool); err != nil {
			g.t.Fatal(err)
		}
	}
	if _, err := flags.OpenStore(g.pool).SetTargets(g.t.Context(), tenants, flags.MQTT, "ann", "incident"); err != nil {
		g.t.Fatal(err)
	}
	return r
}

// overruled counts wishes of the rollout's that came after an operator's.
func (g *rig) overruled() int {
	return g.number(`SELECT count(*) FROM written AS w WHERE by LIKE 'rollout %' AND EXISTS (SELECT FROM written AS o WHERE o.tenant = w.tenant AND o.by = 'ann' AND o.id < w.id)`)
}

// TestRollbackOfOneTenant of a wave pauses the rollout; once it is resumed it goes on
// with the others and never touches that one again, whatever becomes of it.
func TestRollbackOfOneTenant(t *testing.T) {
	tenants := names(6)
	g := newRig(t, tenants...)
	g.traffic(0, tenants[0], tenants[1])
	g.start(inWaves(tenants, 2))
	g.drive()
	g.reaches(Running, Judging, 2) // the second wave has no traffic
	if r := g.rollBack(tenants[5]); r != nil {
		t.Errorf("paused for a tenant of a wave to come: %+v", r.Progress)
	}
	if r := g.rollBack("nobody"); r != nil {
		t.Errorf("paused for a tenant of no wave: %+v", r.Progress)
	}
	r := g.rollBack(tenants[2])
	if r == nil || r.State != Paused || r.Cause != ByOperator || r.Why != "by ann: rollback of t03: incident" {
		t.Fatalf("after the rollback of a tenant of the wave: %+v", r)
	}
	g.in(stage.MQTT, tenants[2])
	if again := g.rollBack(tenants[0]); again == nil || again.Revision != r.Revision || again.Why != r.Why {
		t.Errorf("after the rollback of a tenant of the wave before: %+v, want it paused as it is", again)
	}
	g.in(stage.MQTT, tenants[0])
	g.traffic(0, tenants[2:]...)
	if _, err := ResumeNow(t.Context(), g.pool, "canary", "ann", false); err != nil {
		t.Fatal(err)
	}
	g.reaches(Done, Finishing, 3)
	g.in(stage.JetStream, tenants[1], tenants[3], tenants[4])
	g.in(stage.MQTT, tenants[0], tenants[2], tenants[5])
	if n := g.overruled(); n > 0 {
		t.Errorf("%d wishes were written over the rollback's\n%s", n, g.story())
	}
}

// TestRollbackOfEverybody: nobody whom the rollback has met moves again by this rollout, not
// even when it is resumed, skips waves, or is aborted with its own rollback. Whoever
// comes later is not among them.
func TestRollbackOfEverybody(t *testing.T) {
	tenants := names(6)
	g := newRig(t, tenants...)
	g.traffic(0, tenants...)
	p := inWaves(tenants[:4], 2)
	p.Waves[1].Bake = bake(maxDuration)
	p.Waves = append(p.Waves, Wave{Percent: 100, Bake: bake(0)})
	g.start(p)
	g.drive()
	g.reaches(Running, Baking, 2)
	r := g.rollBack()
	if r == nil || r.State != Paused || r.Why != "by ann: rollback of all tenants: incident" {
		t.Fatalf("after the rollback of all: %+v", r)
	}
	g.in(stage.MQTT, tenants...)
	g.exec(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('later', 'd')`)
	g.traffic(0, "later")
	if _, err := ResumeNow(t.Context(), g.pool, "canary", "bob", false); err != nil {
		t.Fatal(err)
	}
	if r := g.reaches(Paused, Baking, 2); r.Cause != Empty {
		t.Errorf("the wave of which nobody is left: %+v", r.Progress)
	}
	if _, err := ResumeNow(t.Context(), g.pool, "canary", "bob", true); err != nil {
		t.Fatal(err)
	}
	g.reaches(Done, Finishing, 3)
	g.in(stage.JetStream, "later")
	g.in(stage.MQTT, tenants...)
	if n := g.overruled(); n > 0 {
		t.Errorf("%d wishes were written over the rollback's\n%s", n, g.story())
	}
	if r := g.rollBack(); r != nil {
		t.Errorf("a rollout that is over is concerned: %+v", r.Progress)
	}
}

// TestAbortAfterRollback takes back the others, and leaves to the operator whom he has
// rolled back himself.
func TestAbortAfterRollback(t *testing.T) {
	tenants := names(4)
	g := newRig(t, tenants...)
	g.exec(`INSERT INTO crossfade_flag_targets (flag_key, tenant_id, variant) SELECT 'ingest-source', t, 'shadow' FROM unnest($1::text[]) AS t`, tenants)
	g.in(stage.Shadow, tenants...)
	g.start(inWaves(tenants, 4))
	g.drive()
	g.reaches(Running, Judging, 1)
	if r := g.rollBack(tenants[0]); r == nil || r.State != Paused {
		t.Fatalf("after the rollback: %+v", r)
	}
	if _, err := AbortNow(t.Context(), g.pool, "canary", "ann", "", true); err != nil {
		t.Fatal(err)
	}
	g.in(stage.MQTT, tenants[0])
	g.in(stage.Shadow, tenants[1:]...)
	if i := slices.IndexFunc(g.look().Rollout.Tenants, func(x Tenant) bool { return x.State == Taken }); i != 0 {
		t.Errorf("tenants %+v", g.look().Rollout.Tenants)
	}
}

// TestRollbackWithARetreat: a rollout that takes tenants to MQTT itself goes on.
func TestRollbackWithARetreat(t *testing.T) {
	tenants := names(2)
	g := newRig(t, tenants...)
	p := inWaves(tenants, 2)
	p.Stage, p.BakeIn = stage.MQTT, stage.Shadow
	g.start(p)
	if r := g.rollBack(); r != nil {
		t.Errorf("paused: %+v", r.Progress)
	}
	if r := g.look(); r.State != Pending {
		t.Errorf("it is %s", r.State)
	}
}
