package rollout

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
)

const example = `
name: to-jetstream
waves:
  - tenants: [acme]
    bake: 30m
  - percent: 10
  - percent: 100
    bake: 1h
gates:
  parity: {min_messages: 50}
  lag: {max: 5s}
  rescues: {max: 20}
  quarantine: {max_share: 0.02}
`

func TestParse(t *testing.T) {
	p, err := Parse([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if p.Stage != stage.JetStream || p.BakeIn != stage.Live || p.OnFailure != RollBackOnFailure || p.MaxInTransition != 20 || p.WaitAtMost != Duration(time.Hour) {
		t.Errorf("defaults: %+v", p)
	}
	if p.Waves[0].bake() != 30*time.Minute || p.Waves[1].bake() != 15*time.Minute || *p.Gates.Parity != (ParityGate{50, 0.01, 0}) || p.Gates.Quarantine.MinMessages != 100 {
		t.Errorf("waves %+v, gates %+v", p.Waves, p.Gates)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var again Plan
	if err := json.Unmarshal(text, &again); err != nil || !reflect.DeepEqual(p, again) {
		t.Errorf("as JSON it is another: %v\n%s", err, text)
	}
	p, err = Parse([]byte("name: x\nwaves: [{percent: 5}]\n"))
	if err != nil || p.Gates.Parity == nil || p.Gates.Parity.MinMessages != 100 {
		t.Errorf("a plan without gates has %+v, %v", p.Gates, err)
	}
}

// TestParseRefuses: each with the field's name, and what to do.
func TestParseRefuses(t *testing.T) {
	base := "name: x\nwaves: [{percent: 5}]\n"
	for text, says := range map[string]string{
		"":                                 "the plan is empty",
		"a: b: c":                          "not YAML",
		base + "gate: {}\n":                `unknown field "gate": use one of bake_in, gates`,
		base + "gates: {parity: {min: 5}}": `unknown field "gates.parity.min": use one of max_mismatched`,
		base + "gates: {parity: }":         "gates.parity is empty: give it a value",
		base + "name: y\n":                 "already defined",
		base + "---\na: b\n":               "more than one document",
		base + "stage: nats\n":             `there is no stage "nats": choose one of`,
		base + "bake_in: mqtt\n":           "bake_in is \"mqtt\": on the way to jetstream, choose one of",
		base + "on_failure: cry\n":         "on_failure is \"cry\": choose hold or rollback",
		base + "max_in_transition: 0\n":    "max_in_transition is 0: choose 1",
		base + "wait_at_most: soon\n":      `"soon" is no duration: write 90s`,
		base + "gates: {lag: {max: 0s}}":   "gates.lag.max is 0s: choose more",
		base + "gates: {parity: {max_rescued_share: 5}}": "gates.parity.max_rescued_share is 5: choose 0 to 1",
		"name: X y\nwaves: [{percent: 5}]":               "name is \"X y\": choose",
		"name: x\nwaves: []":                             "waves has 0 entries: give 1",
		"name: x\nwaves: [{}]":                           "waves[1]: give either tenants or percent",
		"name: x\nwaves: [{percent: 5, tenants: [a]}]":   "waves[1]: give either tenants or percent",
		"name: x\nwaves: [{percent: 5}, {percent: 5}]":   "waves[2]: percent is 5 after 5",
		"name: x\nwaves: [{percent: 200}]":               "percent is 200: choose 0.01 to 100",
		"name: x\nwaves: [{tenants: [a, a]}]":            "tenant \"a\" is in waves[1] already",
		"name: x\nwaves: [{percent: 5, bake: -1s}]":      "bake is -1s: choose",
		"name: &n x\nwaves: [{percent: 5}]":              "anchors and aliases are not taken",
		"- name: x":                                      "cannot be read",
		strings.Repeat("#", MaxPlanBytes+1):              "longer than",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.60q: %v; want %q", text, err, says)
		}
	}
}

// TestDocumentedPlan: the example in the documentation is one that Parse takes.
func TestDocumentedPlan(t *testing.T) {
	page, err := os.ReadFile("../../docs/rollouts.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```yaml\n")
	text, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("docs/rollouts.md has no example")
	}
	if _, err := Parse([]byte(text)); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("name: x\nwaves: [{percent: 0.01, bake: 0s}]\ngates: {}\n"))
	f.Add([]byte("a: &a [*a, *a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			return
		}
		if err := p.Validate(); err != nil {
			t.Fatalf("Parse takes what Validate refuses: %v", err)
		}
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var again Plan
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatal(err)
		}
		if second, _ := json.Marshal(again); string(second) != string(text) {
			t.Fatalf("it changes when it is stored:\n%s\n%s", text, second)
		}
		p.Preview([]string{"a", "b"})
	})
}

// TestPreview: waves of percents add up to the same tenants as flip --percent, and a
// tenant that a list names is nobody else's.
func TestPreview(t *testing.T) {
	p := DefaultPlan()
	p.Waves = []Wave{{Percent: 20}, {Tenants: []string{"t7", "elsewhere"}}, {Percent: 100}}
	var known []string
	for i := range 500 {
		known = append(known, fmt.Sprintf("t%d", i))
	}
	waves := p.Preview(known)
	for _, tenant := range waves[0].Tenants {
		if flags.Bucket(flags.FlagKey, tenant) >= 2000 || tenant == "t7" {
			t.Errorf("%s is in the first 20 %%", tenant)
		}
	}
	if n := len(waves[0].Tenants); n < 60 || n > 140 || n+len(waves[2].Tenants) != 499 || len(waves[1].Tenants) != 2 {
		t.Errorf("waves of %d, %d and %d", n, len(waves[1].Tenants), len(waves[2].Tenants))
	}
	if problems := p.Check(known); len(problems) != 1 || !strings.Contains(problems[0], "waves[2]: no device is registered under elsewhere") {
		t.Errorf("problems %q", problems)
	}
	p.Waves = []Wave{{Percent: 0.01}}
	if problems := p.Check([]string{"t1"}); len(problems) != 1 || !strings.Contains(problems[0], "choose more percent") {
		t.Errorf("problems %q", problems)
	}
}

func TestGates(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	from, fast, slow := now.Add(-10*time.Minute), time.Second, time.Minute
	soon := now.Add(-time.Minute)
	old, since := from.Add(-time.Second), now.Add(-time.Hour)
	lag, rescues, quarantine := Gates{Lag: &LagGate{Duration(10 * time.Second)}}, Gates{Rescues: &RescueGate{5}}, Gates{Quarantine: &QuarantineGate{0.01, 100}}
	for name, c := range map[string]struct {
		gates Gates
		m     Measured
		want  parity.Verdict
	}{
		"no gate":               {Gates{}, good, parity.Inconclusive},
		"no sentinel":           {lag, Measured{}, parity.Inconclusive},
		"sentinel of before":    {lag, Measured{Latency: Latency{Took: &fast, SeenAt: &old}}, parity.Inconclusive},
		"fast":                  {lag, Measured{Latency: Latency{Took: &fast, SeenAt: &soon}}, parity.Pass},
		"slow":                  {lag, Measured{Latency: Latency{Took: &slow, SeenAt: &soon}}, parity.Fail},
		"missing":               {lag, Measured{Latency: Latency{Took: &fast, SeenAt: &soon, MissingSince: &since}}, parity.Fail},
		"missing for a moment":  {lag, Measured{Latency: Latency{MissingSince: &now}}, parity.Inconclusive},
		"no traffic to rescue":  {rescues, Measured{}, parity.Inconclusive},
		"few rescues":           {rescues, Measured{Parity: parity.Counts{Matched: 1, Rescued: 5}}, parity.Pass},
		"many rescues":          {rescues, Measured{Parity: parity.Counts{Rescued: 6}}, parity.Fail},
		"quarantine, silent":    {quarantine, Measured{}, parity.Inconclusive},
		"quarantine, few":       {quarantine, Measured{Parity: parity.Counts{Matched: 1000}, Quarantined: 10}, parity.Pass},
		"quarantine, many":      {quarantine, Measured{Parity: parity.Counts{Matched: 1000}, Quarantined: 11}, parity.Fail},
		"quarantine, all of it": {quarantine, Measured{Quarantined: 200}, parity.Fail},
		"one of two open":       {Gates{Rescues: &RescueGate{5}, Lag: &LagGate{Duration(time.Second)}}, good, parity.Inconclusive},
	} {
		if got := c.gates.Judge(&c.m, from, now); Overall(got) != c.want {
			t.Errorf("%s: %s, want %s: %+v", name, Overall(got), c.want, got)
		}
	}
}

// TestLagMayComeDown until the bake time is over, and not after.
func TestLagMayComeDown(t *testing.T) {
	p := threeWaves()
	p.Gates = Gates{Parity: p.Gates.Parity, Lag: &LagGate{Duration(time.Second)}}
	w := six(p)
	slow := time.Minute
	w.settle(t)
	w.expect(t, Running, Baking, 1)
	seen := w.now.Add(5 * time.Minute)
	w.measured["t1"] = Measured{Parity: good.Parity, Latency: Latency{Took: &slow, SeenAt: &seen}}
	w.pass(6 * time.Minute)
	w.settle(t)
	w.expect(t, Running, Baking, 1)
	w.pass(4 * time.Minute)
	w.settle(t)
	w.expect(t, Failed, Baking, 1)
}
