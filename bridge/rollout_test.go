package bridge_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/rollout"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

const twoWaves = `
name: canary
on_failure: rollback
wait_at_most: 2m
waves:
  - {tenants: [acme, globex], bake: 2s}
  - {tenants: [initech, tenant-04], bake: 1h} # its failure counts at once
gates:
  parity: {min_messages: 20, max_rescued_share: 1, max_mismatched: 0} # the kill makes rescues
  lag: {max: 1m}
  rescues: {max: 100000}
  quarantine: {max_share: 0.1, min_messages: 20}
`

// TestRolloutUnderLoad carries a plan out on three instances and real servers while
// devices publish. The instance that drives it is killed while the first wave bakes;
// another one goes on, and the wave passes. A device of the second wave sends nothing
// but what is refused: its gate fails, and exactly that wave goes back. Nothing is lost
// and nothing doubled.
func TestRolloutUnderLoad(t *testing.T) {
	s := newStack(t)
	configs := map[string]bridge.Config{}
	for _, name := range []string{"a", "b", "c"} {
		c := s.config(name)
		c.MQTT.Group, c.Mirror.Group = "ingest", "mirror"
		c.JetStream.Setup.AckWait = 5 * time.Second // what a killed instance had in hand comes again soon
		c.Control.BeatEvery = 500 * time.Millisecond
		configs[name] = c
	}
	driver := s.spawn(configs["a"])
	devstack.Await(t, "the first instance drives rollouts", func() bool { return s.driving() != 0 })
	s.spawn(configs["b"])
	s.spawn(configs["c"])

	fc := fleet.DefaultConfig()
	fc.Tenants, fc.Devices, fc.Rate = 4, 24, 200
	stop := s.playingOn(fc)
	devstack.Await(t, "rows arrive", func() bool { return s.count(`SELECT count(*) FROM telemetry`) > 0 })
	plan, err := rollout.Parse([]byte(twoWaves))
	if err != nil {
		t.Fatal(err)
	}
	if err := rollout.Start(t.Context(), s.pool, plan, "test"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.story)

	s.awaitRollout(1, rollout.Baking)
	before := s.driving()
	driver.kill()
	s.spawn(configs["a"])
	devstack.Await(t, "another instance drives", func() bool { now := s.driving(); return now != 0 && now != before })
	s.measureNow()
	s.awaitRollout(2, rollout.Baking)
	s.arrive(stage.JetStream, "acme", "globex")

	p := s.sender()
	s.measureNow()
	ghosts := 0
	devstack.Await(t, "the rollout is over", func() bool {
		for range 20 { // more than all of its tenant's others meanwhile
			ghosts++
			s.device(p, "tenant/initech/device/ghost/telemetry", fmt.Sprintf(`{"site_id":"s","provision_token":"none","metrics":{"v":%d}}`, ghosts))
		}
		return s.look().State.Over()
	})
	r := s.look()
	if r.State != rollout.Failed || !strings.Contains(r.Why, "initech: quarantine: ") || strings.Contains(r.Why, "tenant-04") {
		t.Fatalf("it is %s: %s", r.State, r.Why)
	}
	s.arrive(stage.MQTT, "initech", "tenant-04")
	s.arrive(stage.JetStream, "acme", "globex")
	s.judgedOnce(r)
	s.reconcile(stop())
}

// judgedOnce checks what is written down of the two waves: each began once though its
// driver was killed, everybody was judged once, and by all gates.
func (s *stack) judgedOnce(r *rollout.Report) {
	s.t.Helper()
	begun, verdicts := 0, map[string][]parity.Verdict{}
	for _, e := range r.Events {
		switch {
		case e.Kind == "wave" && strings.Contains(e.Message, "begins"):
			begun++
		case e.Kind == "gate":
			verdicts[e.Tenant] = append(verdicts[e.Tenant], e.Verdict)
			if e.Verdict == parity.Pass && e.Wave == 1 && len(e.Evidence) != 4 { // the second fails before lag counts
				s.t.Errorf("%s passed by %d gates, want 4: %+v", e.Tenant, len(e.Evidence), e.Evidence)
			}
		}
	}
	want := map[string]parity.Verdict{"acme": parity.Pass, "globex": parity.Pass, "initech": parity.Fail}
	for tenant, verdict := range want {
		if !slices.Equal(verdicts[tenant], []parity.Verdict{verdict}) {
			s.t.Errorf("%s was judged %v, want %s, once", tenant, verdicts[tenant], verdict)
		}
	}
	if begun != 2 {
		s.t.Errorf("%d waves have begun, want 2", begun)
	}
}

// story is what a failure leaves to be read.
func (s *stack) story() {
	r, err := rollout.Look(context.WithoutCancel(s.t.Context()), s.pool, "canary", 1000)
	if err != nil || !s.t.Failed() {
		return
	}
	for _, e := range r.Events {
		s.t.Logf("%v %d %s %s %s", e.At, e.Wave, e.Kind, e.Tenant, e.Message)
	}
	for _, x := range r.Rollout.Tenants {
		s.t.Logf("%+v, seen %+v", x, r.Seen[x.ID])
	}
	s.t.Logf("now, at %v: %+v", r.Now, r.Progress)
}

// playingOn runs a fleet until stop is called, which returns its record.
func (s *stack) playingOn(c fleet.Config) (stop func() *fleet.Record) {
	s.t.Helper()
	c.BrokerURL, c.User, c.Password = s.broker.URL(), s.broker.User(), s.broker.Password()
	f, err := fleet.New(c)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := fleet.Register(s.t.Context(), s.pool, f.Devices()); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	return func() *fleet.Record {
		cancel()
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
		return f.Record()
	}
}

// driving is the session that has the lock of rollouts, 0 without one.
func (s *stack) driving() int {
	return s.count(`SELECT coalesce(max(l.pid), 0) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
		WHERE l.locktype = 'advisory' AND l.granted AND a.application_name = 'crossfade rollout' AND a.datname = current_database()`)
}

func (s *stack) look() *rollout.Report {
	s.t.Helper()
	r, err := rollout.Look(s.t.Context(), s.pool, "canary", 1000)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// awaitRollout waits for a phase of a wave.
func (s *stack) awaitRollout(wave int, phase rollout.Phase) {
	s.t.Helper()
	devstack.Await(s.t, fmt.Sprintf("wave %d is %s", wave, phase), func() bool {
		r := s.look()
		if r.State != rollout.Pending && r.State != rollout.Running {
			s.t.Fatalf("the rollout is %s: %s", r.State, r.Why)
		}
		return r.Wave == wave-1 && r.Phase == phase
	})
}

// measureNow has the wave measured from the present minute on, not from the next full
// one: nobody here wants to wait for it.
func (s *stack) measureNow() {
	s.t.Helper()
	if _, err := s.pool.Exec(s.t.Context(), `UPDATE crossfade_rollouts SET window_from = date_trunc('minute', now())`); err != nil {
		s.t.Fatal(err)
	}
}
