package stage_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// The searches under the protocol as it is, and under others that are as safe.
// The large ones, which take some minutes, run with CROSSFADE_MODEL=full.
var safe = []struct {
	name    string
	rules   rules
	bounded bool // no more than maxLag unconfirmed revisions, since nothing keeps an instance closer
	large   bool
}{
	{name: "one message, to the end", rules: rules{instances: 2, messages: 1, exact: true}},
	{name: "one message, to the end, producers write both", rules: rules{instances: 2, messages: 1, exact: true, bothWritten: true}},
	{name: "one message, to the end, a session each", rules: rules{instances: 2, messages: 1, exact: true, ownSessions: true}},
	{name: "one message, to the end, three instances", rules: rules{instances: 3, messages: 1, exact: true}},
	{name: "two messages", rules: rules{instances: 2, messages: 2}},
	{name: "one message, PostgreSQL loses commits", rules: rules{instances: 2, messages: 1, exact: true, losses: true}, bounded: true},
	{name: "one message, the mirror is lost sight of", rules: rules{instances: 2, messages: 1, exact: true, mirrorAway: true}},
	{name: "one message, producers fail to write one copy", rules: rules{instances: 2, messages: 1, missing: true, bothWritten: true}},

	{name: "variant: half the proof", rules: rules{instances: 2, messages: 1, exact: true, halfProof: true}},
	{name: "variant: half the proof, producers write both", rules: rules{instances: 2, messages: 1, halfProof: true, bothWritten: true}},
	{name: "variant: sessions of the dead awaited", rules: rules{instances: 2, messages: 1, exact: true, awaitDead: true}},
	{name: "variant: sessions of the dead awaited, two messages", rules: rules{instances: 2, messages: 2, awaitDead: true}},
	{name: "variant: shadow to live unconfirmed", rules: rules{instances: 2, messages: 1, exact: true, freeInner: true}, bounded: true},
	{name: "variant: evidence carried inside", rules: rules{instances: 2, messages: 1, carryInner: true, bothWritten: true}, bounded: true},

	{name: "variant: sessions of the dead awaited, producers write both", rules: rules{instances: 2, messages: 2, awaitDead: true, bothWritten: true}},
	{name: "variant: sessions of the dead awaited, the mirror loses some", rules: rules{instances: 2, messages: 2, awaitDead: true, missing: true}},

	{name: "two messages, producers write both", rules: rules{instances: 2, messages: 2, bothWritten: true}, large: true},
	{name: "two messages, a session each", rules: rules{instances: 2, messages: 2, ownSessions: true}, large: true},
	{name: "two messages, the mirror loses some", rules: rules{instances: 2, messages: 2, missing: true}, large: true},
	{name: "two messages, producers fail to write one copy", rules: rules{instances: 2, messages: 2, missing: true, bothWritten: true}, large: true},
	{name: "two messages, three instances", rules: rules{instances: 3, messages: 2}, large: true},
	{name: "two messages, the mirror is lost sight of", rules: rules{instances: 2, messages: 2, mirrorAway: true}, large: true},
	{name: "two messages, to the end", rules: rules{instances: 2, messages: 2, exact: true}, large: true},
	{name: "variant: sessions of the dead awaited, three messages", rules: rules{instances: 2, messages: 3, awaitDead: true}, large: true},
}

// TestNoReachableStateLosesAMessage visits every state that the protocol and all
// that can happen to it lead to. In none a message is lost or takes effect twice,
// in none both outer stages are in force, and none is a dead end.
func TestNoReachableStateLosesAMessage(t *testing.T) {
	for _, c := range safe {
		t.Run(c.name, func(t *testing.T) {
			if c.large && os.Getenv("CROSSFADE_MODEL") != "full" {
				t.Skip("large: set CROSSFADE_MODEL=full")
			}
			s := newSearch(c.rules).run()
			t.Logf("%d states, %d transitions", len(s.states), s.visited)
			if s.bad != nil {
				t.Fatal(s.story())
			}
			if s.refused && !c.bounded {
				t.Error("an instance falls further behind than a state can tell: raise maxLag")
			}
			if s.opposed > 0 {
				t.Errorf("in %d states both outer stages are in force", s.opposed)
			}
			name := c.name
			if c.large {
				name += " (large)"
			}
			documented(t, name, thousands(len(s.states)), thousands(s.visited))
			if c.rules.messages > 1 || c.rules.missing {
				return
			}
			arcs := s.arcsWithoutFailure()
			for wish := range stages {
				if n, example := s.deadEnds(uint8(wish), arcs); n > 0 {
					t.Errorf("from %d states the tenant cannot come to rest in %s, as from %s", n, stages[wish], example)
				}
			}
		})
	}
}

// The searches with one rule switched off.
var unsafe = []struct {
	name   string
	rules  rules
	ending violation
}{
	{"without adjacency", rules{noAdjacency: true, noLapses: true, noCrashes: true}, lost},
	{"without the lease rule", rules{noLease: true, noCrashes: true, alone: true}, lost},
	{"without reading the row before the lease returns", rules{staleReturn: true, noCrashes: true, alone: true}, lost},
	{"without the sentinel", rules{noSentinel: true, noLapses: true, noCrashes: true}, lost},
	{"without the sentinel on the path to be dropped", rules{wrongHalf: true, noLapses: true, noCrashes: true}, lost},
	{"without settling what is before the sentinel", rules{unsettled: true, noLapses: true, noRethink: true, alone: true}, lost},
	{"without proving sessions anew", rules{noAnew: true, noLapses: true, alone: true}, lost},
	{"without proving sessions anew, and nobody crashes", rules{noAnew: true, noCrashes: true, alone: true}, lost},
	{"without proving the mirror's session anew", rules{mirrorAway: true, noMarks: true, noLapses: true, noCrashes: true}, lost},
	{"with a session proved before the lease is back", rules{earlyAnew: true, noCrashes: true, alone: true}, lost},
	{"without the dwell", rules{bothWritten: true, noDwell: true, noLapses: true, noCrashes: true}, lost},
	{"with the dwell beside the sentinel", rules{bothWritten: true, dwellBeside: true, noLapses: true, noCrashes: true}, lost},
	{"without order in the mirror", rules{overtaking: true, noLapses: true, noCrashes: true}, lost},
	{"with evidence from another revision", rules{oldEvidence: true, noLapses: true, noCrashes: true}, lost},
	{"with an outer stage that PostgreSQL comes back with", rules{losses: true, trustLost: true, noLapses: true, noCrashes: true}, lost},
	{"without compare-and-set", rules{blindWrite: true, noLapses: true, noCrashes: true}, lost},
	{"one copy missing, without the sentinel on its path", rules{missing: true, wrongHalf: true, noLapses: true, noCrashes: true}, uncovered},
	{"without the ledger", rules{exact: true, noLedger: true, noLapses: true, noCrashes: true}, doubled},
}

// TestEveryRuleIsNeeded switches one rule off at a time, for a tenant that begins
// at either end: each time a message must be lost, or take effect twice, and the
// shortest story of how is told.
func TestEveryRuleIsNeeded(t *testing.T) {
	for _, c := range unsafe {
		var states []string
		for _, from := range []stage.Stage{stage.MQTT, stage.JetStream} {
			t.Run(c.name+"/from "+string(from), func(t *testing.T) {
				c.rules.instances, c.rules.messages, c.rules.from = 2, 1, from
				s := newSearch(c.rules).run()
				if s.bad == nil {
					t.Fatalf("%d states, and nothing goes wrong in any: either the rule is not needed or the search is blind", len(s.states))
				}
				t.Logf("found after %d states:%s", len(s.states), s.story())
				if s.bad.world.broken != c.ending {
					t.Errorf("ends with %d, want %d", s.bad.world.broken, c.ending)
				}
				states = append(states, thousands(len(s.states)))
			})
		}
		documented(t, c.name, states...)
	}
}

// documented holds numbers of states against docs/stages.md.
func documented(t *testing.T, name string, states ...string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/stages.md")
	if err != nil {
		t.Fatal(err)
	}
	if row := "| " + name + " | " + strings.Join(states, " | ") + " |"; !strings.Contains(string(page), row) {
		t.Errorf("docs/stages.md does not have this row:\n%s", row)
	}
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}
