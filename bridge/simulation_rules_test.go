package bridge

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// plot is a story in which a rule is all that saves a message.
type plot struct {
	name  string
	off   simRules
	from  stage.Stage
	story func(*simWorld)
}

var plots = []plot{
	// One has copies that it has not been given yet, and whose siblings are dropped.
	{"sentinel", simRules{noSentinel: true}, stage.MQTT, func(w *simWorld) {
		w.cutOff(w.follower(), false, true, 65*time.Second)
		w.everybody(5)
		w.wishAll(stage.JetStream)
		w.reach(stage.JetStream, 60*time.Second)
	}},
	// The same, and that one is gone.
	{"sessions", simRules{noSessions: true}, stage.MQTT, func(w *simWorld) {
		name := w.follower()
		w.nodes[name].port.set(func(p *simPort) { p.down = true })
		w.everybody(5)
		w.kill(name, 65*time.Second)
		w.wishAll(stage.JetStream)
		w.reach(stage.JetStream, 60*time.Second)
	}},
	// Producers have written one copy, which is dropped, and write the other one later.
	{"dwell", simRules{noDwell: true}, stage.MQTT, func(w *simWorld) {
		w.everybody(16)
		w.wishAll(stage.JetStream)
		w.reach(stage.JetStream, 20*time.Second)
	}},
	// The mirror has yet to copy what was dropped by MQTT.
	{"order in the mirror", simRules{overtaking: true}, stage.JetStream, func(w *simWorld) {
		w.mirror.set(func(m *simMirror) { m.stopped = true })
		w.everybody(4)
		w.wishAll(stage.MQTT)
		w.pass(time.Now().Add(35 * time.Second))
		w.mirror.set(func(m *simMirror) { m.stopped, m.delay = false, 2*time.Second })
	}},
	// One is cut off from PostgreSQL. Afterwards it can write, and so has a lease again and
	// says what has come out of its session, long before it can read what has happened.
	{"lease", simRules{noLease: true}, stage.MQTT, func(w *simWorld) {
		n := w.nodes[w.follower()]
		w.cutOff(n.name, true, false, 45*time.Second)
		n.link.set(func(l *link) { l.deaf = true })
		w.later(80*time.Second, func() { n.link.set(func(l *link) { l.deaf = false }) })
		w.wishAll(stage.JetStream)
		w.reach(stage.JetStream, 75*time.Second)
		for range 5 {
			w.everybody(2)
		}
	}},
}

// follower is an instance that does not lead.
func (w *simWorld) follower() string {
	return w.names[slices.IndexFunc(w.names, func(name string) bool { return name != w.leader() })]
}

// everybody publishes n messages for each tenant.
func (w *simWorld) everybody(n int) {
	for range n {
		for _, tenant := range w.tenants {
			w.publish(tenant)
		}
		w.pass(time.Now().Add(100 * time.Millisecond))
	}
}

// TestSimulationNeedsEveryRule: what the simulation forces is harmless, and costs
// messages once a rule is switched off.
func TestSimulationNeedsEveryRule(t *testing.T) {
	url := simDatabase(t)
	for _, p := range plots {
		t.Run(p.name, func(t *testing.T) {
			o := simulate(t, url, 1, simRules{}, p.from, p.story)
			t.Log(o.summary)
			if len(o.faults) > 0 {
				t.Errorf("with all rules:\n%s\n%s", strings.Join(o.faults, "\n"), strings.Join(o.story, "\n"))
			}
			if o = simulate(t, url, 1, p.off, p.from, p.story); o.lost == 0 {
				t.Errorf("without the rule nothing is lost, %s:\n%s", o.summary, strings.Join(o.story, "\n"))
			}
			t.Logf("without the rule %d are lost", o.lost)
		})
	}
}
