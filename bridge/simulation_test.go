package bridge

// The simulation runs the real controls, gates, standbys, sentinels and pipelines of
// three instances in a testing/synctest bubble, with the real lengths of leases (5 s),
// dwell (30 s) and beats, of which minutes pass in a second.
//
//   - simulation_broker_test.go, simulation_stream_test.go: an MQTT broker with a session
//     for each instance, a mirror, and streams with shared consumers, all in memory.
//   - simulation_postgres_test.go, simulation_wire_test.go: PostgreSQL is real. Its clock is
//     the bubble's, and each instance reaches it by a network that can be slow, down, or gone.
//     While PostgreSQL works on a statement the bubble's time stands still.
//   - simulation_node_test.go: an instance. simulation_world_test.go: all of them.
//   - simulation_script_test.go: what happens. simulation_rules_test.go: what happens
//     without a rule.
//
// A seed fixes what happens and when; which goroutine runs first within an instant is the
// Go scheduler's affair, so a rare failure may take some runs of its seed to come again.
//
// The bubble's time goes on only while nobody waits for a mutex: code that holds one while
// it waits for PostgreSQL can stop it for ever when another goroutine wants that mutex. So
// does pgx during a COPY, whose connection the network therefore never delays.

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// The environment of a simulation: how long to go on with random seeds, e.g. 10m (make
// sim), or the one seed to be run.
const (
	simEnv     = "CROSSFADE_SIM"
	simSeedEnv = "CROSSFADE_SIM_SEED"
)

// simSeeds are those that are always run.
var simSeeds = []uint64{1, 2}

// simLength is for how long events happen, in the bubble's time.
const simLength = 3 * time.Minute

// TestSimulation: whatever happens to instances, brokers, mirror and PostgreSQL while
// tenants are flipped to and fro, every message takes effect once, no sentinel is
// written anywhere, and when nothing happens any more all comes to rest.
func TestSimulation(t *testing.T) {
	url := simDatabase(t)
	run := func(seed uint64) bool {
		return t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			o := simulate(t, url, seed, simRules{}, stage.Stage(""), func(w *simWorld) { w.play(simLength) })
			t.Log(o.summary)
			if len(o.faults) > 0 {
				t.Errorf("%s\nrun it again with %s=%d; this is what happened:\n%s",
					strings.Join(o.faults, "\n"), simSeedEnv, seed, strings.Join(o.story, "\n"))
			}
		})
	}
	if v := os.Getenv(simSeedEnv); v != "" {
		seed, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", simSeedEnv, err)
		}
		run(seed)
		return
	}
	for _, seed := range simSeeds {
		run(seed)
	}
	if v := os.Getenv(simEnv); v != "" {
		length, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("%s: %v", simEnv, err)
		}
		for end := time.Now().Add(length); time.Now().Before(end) && run(rand.Uint64()); {
		}
	}
}

// outcome is what a simulation has found.
type outcome struct {
	faults  []string
	lost    int
	story   []string
	summary string
}

// simulate plays a script, which begins with all tenants in a stage or on the way to
// some, and looks at what has come of it.
func simulate(t *testing.T, url string, seed uint64, rules simRules, from stage.Stage, script func(*simWorld)) (o outcome) {
	t.Helper()
	began := time.Now()
	url = simCopy(t, url)
	synctest.Test(t, func(t *testing.T) {
		w := newSimWorld(t, url, seed, rules)
		ctx, cancel := context.WithCancel(context.Background())
		w.dying.Go(func() { w.mirror.run(ctx) })
		if from != "" {
			w.wishAll(from)
		}
		for _, name := range w.names {
			w.restart(name)
		}
		time.Sleep(5 * time.Second)
		if from != "" && !w.reach(from, 5*time.Minute) {
			t.Errorf("not in %s after five minutes: %s", from, w.unfinished())
		}
		script(w)
		left := w.settle()
		for _, n := range w.nodes {
			n.stop()
		}
		cancel()
		w.dying.Wait()
		o = w.judge(left)
		w.eyes.Close()
		o.summary += fmt.Sprintf(", %.0fs simulated", time.Since(w.began).Seconds())
	})
	o.summary += fmt.Sprintf(" in %.1fs", time.Since(began).Seconds())
	return o
}

// judge compares the tables with what was published.
func (w *simWorld) judge(left string) (o outcome) {
	fault := func(format string, args ...any) { o.faults = append(o.faults, fmt.Sprintf(format, args...)) }
	if left != "" {
		fault("all is well for ten minutes, but %s", left)
	}
	history, err := control.History(w.t.Context(), w.eyes.Pool(), control.HistoryQuery{Limit: 10_000})
	if err != nil {
		w.t.Fatal(err)
	}
	rows := w.tally(`SELECT (metrics->>'n')::int, count(*)::int FROM telemetry GROUP BY 1`)
	ledger := w.tally(`SELECT 0, count(*)::int FROM crossfade_ledger`)[0]
	excused, outer := 0, 0
	for _, m := range w.messages {
		switch rows[m.n] {
		case 1:
			continue
		case 0:
			if w.excused(m, history) {
				excused++
				continue
			}
			o.lost++
			fault("message %d is lost:\n%s", m.n, strings.Join(w.trails[m.n], "\n"))
		default:
			fault("message %d has taken effect %d times:\n%s", m.n, rows[m.n], strings.Join(w.trails[m.n], "\n"))
		}
	}
	if n := len(w.messages) - excused - o.lost; ledger != n {
		fault("the ledger has %d rows, of %d messages", ledger, n)
	}
	for what, sql := range map[string]string{
		"telemetry has rows of sentinels":  `SELECT 0, count(*)::int FROM telemetry WHERE device_id <> 'd'`,
		"there are messages in quarantine": `SELECT 0, count(*)::int FROM quarantine_events`,
	} {
		if n := w.tally(sql)[0]; n > 0 {
			fault("%s: %d", what, n)
		}
	}
	for i := len(history) - 1; i >= 0; i-- {
		c := history[i]
		w.story = append(w.story, fmt.Sprintf("%9.3f %s from %s to %s by %s %s", c.At.Sub(w.began).Seconds(), c.Tenant, c.From, c.To, c.ChangedBy, c.Evidence))
		if c.To.Outer() {
			outer++
		}
	}
	o.story = w.story
	o.summary = fmt.Sprintf("%d messages, %d of them with one copy and dropped, %d moves, %d of them to outer stages", len(w.messages), excused, len(history), outer)
	return o
}

func (w *simWorld) tally(sql string) map[int]int {
	rows, err := w.eyes.Pool().Query(w.t.Context(), sql)
	if err != nil {
		w.t.Fatal(err)
	}
	tally := make(map[int]int)
	var key, n int
	if _, err := pgx.ForEachRow(rows, []any{&key, &n}, func() error { tally[key] = n; return nil }); err != nil {
		w.t.Fatal(err)
	}
	return tally
}

// excused: a message with one copy may be dropped if it was published after the sentinel
// that opened the stage which drops that path.
func (w *simWorld) excused(m *simMessage, history []control.Change) bool {
	path, ok := w.single[m.n]
	if !ok {
		return false
	}
	drops := stage.JetStream
	if path == pipeline.PathJetStream {
		drops = stage.MQTT
	}
	for _, c := range history {
		var proof struct {
			Nonce string `json:"sentinel"`
		}
		if c.Tenant != m.tenant || c.To != drops || json.Unmarshal(c.Evidence, &proof) != nil {
			continue
		}
		if at, ok := w.nonces[proof.Nonce]; ok && at.Before(w.at[m.n]) {
			return true
		}
	}
	return false
}
