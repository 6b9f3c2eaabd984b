package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// simRules are rules that are switched off.
type simRules struct {
	noLease    bool // an instance drops by what it knows, whatever its lease and its session
	noDwell    bool // the sentinel is sent at once
	noSentinel bool // sentinels count as seen when they are sent
	noSessions bool // nobody waits for the sessions of the dead, nor proves its own anew
	overtaking bool // the mirror sends sentinels ahead of what it has yet to send
}

func (r simRules) bend(o *control.Options) {
	if r.noDwell {
		o.Dwell = 0
	}
	if r.noSessions {
		o.Session = nil
	}
}

// simWorld is everything in a bubble.
type simWorld struct {
	t     *testing.T
	url   string
	rules simRules
	began time.Time

	broker  *simBroker
	streams *simStreams
	mirror  *simMirror
	flags   *simFlags
	notices *notices
	eyes    *store.Store // with which the test looks
	tenants []string
	names   []string
	nodes   map[string]*simNode // those that run, or are about to
	dying   sync.WaitGroup

	script *rand.Rand // what is to happen
	agenda []appointment

	mu       sync.Mutex
	chance   *rand.Rand // how long everything takes
	story    []string
	trails   map[int][]string
	messages []*simMessage
	single   map[int]pipeline.Path // messages of which only one copy exists
	at       map[int]time.Time     // when they were published
	nonces   map[string]time.Time  // when sentinels were sent
}

// appointment is something that is due at some time.
type appointment struct {
	at time.Time
	do func()
}

func newSimWorld(t *testing.T, url string, seed uint64, rules simRules) *simWorld {
	w := &simWorld{
		t: t, url: url, rules: rules, began: time.Now(),
		notices: &notices{wake: make(chan struct{})},
		tenants: []string{"t1", "t2", "t3", "t4", "t5", "t6"}, names: []string{"a", "b", "c"}, nodes: make(map[string]*simNode),
		script: rand.New(rand.NewPCG(seed, 1)), chance: rand.New(rand.NewPCG(seed, 2)),
		trails: make(map[int][]string), single: make(map[int]pipeline.Path), at: make(map[int]time.Time), nonces: make(map[string]time.Time),
		flags: &simFlags{wishes: make(map[string]stage.Stage), joined: make(map[*simNode]chan struct{})},
	}
	w.broker, w.streams = newSimBroker(w), newSimStreams(w)
	w.mirror = &simMirror{w: w, wake: make(chan struct{}, 1), delay: 50 * time.Millisecond}
	c := store.DefaultConfig(url)
	c.Dial = newLink(w.notices, w.draw).dial
	var err error
	if w.eyes, err = store.Open(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, tenant := range w.tenants {
		w.flags.wishes[tenant] = stage.All()[w.script.IntN(4)]
		w.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ($1, 'd', 's')`, tenant)
	}
	for _, name := range w.names {
		w.broker.open(name)
	}
	return w
}

// writesBoth: the tenant's devices write to both transports themselves, and the mirror
// leaves them alone.
func (w *simWorld) writesBoth(tenant string) bool { return tenant >= "t4" }

func (w *simWorld) exec(sql string, args ...any) {
	if _, err := w.eyes.Pool().Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Errorf("%s: %v", sql, err)
	}
}

// draw returns something from 0 to less than most.
func (w *simWorld) draw(most time.Duration) time.Duration {
	if most <= 0 {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.chance.Int64N(int64(most)))
}

func (w *simWorld) clock() string { return fmt.Sprintf("%9.3f", time.Since(w.began).Seconds()) }

// tell adds a line to the story.
func (w *simWorld) tell(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.story = append(w.story, w.clock()+" "+fmt.Sprintf(format, args...))
}

// trail adds a line to the story of one message.
func (w *simWorld) trail(m *simMessage, format string, args ...any) {
	if m.n == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trails[m.n] = append(w.trails[m.n], w.clock()+"   "+fmt.Sprintf(format, args...))
}

func (w *simWorld) only(m *simMessage, p pipeline.Path) {
	w.trail(m, "has no other copy than that by %s", p)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.single[m.n] = p
}

func (w *simWorld) sent(s control.Sentinel) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nonces[s.Nonce] = time.Now()
}

// pretend has sentinels count as seen everywhere.
func (w *simWorld) pretend(ctx context.Context, list []control.Sentinel) {
	var seen []control.Sighting
	for _, s := range list {
		seen = append(seen, control.Sighting{Nonce: s.Nonce, Path: pipeline.PathMQTT, Kind: control.KindTelemetry, At: time.Now()})
		for _, kind := range []string{control.KindTelemetry, control.KindShadow, control.KindCommands} {
			seen = append(seen, control.Sighting{Nonce: s.Nonce, Path: pipeline.PathJetStream, Kind: kind, At: time.Now()})
		}
	}
	w.flags.mu.Lock()
	var all []*simNode
	for n := range w.flags.joined {
		all = append(all, n)
	}
	w.flags.mu.Unlock()
	for _, n := range all {
		_ = n.control.Saw(ctx, seen)
	}
	for _, s := range list { // those of instances that are away
		w.exec(`INSERT INTO crossfade_sightings (nonce, path, instance_id, kind, seen_at)
SELECT $1, 1, instance_id, 'telemetry', now() FROM crossfade_instances ON CONFLICT DO NOTHING`, s.Nonce)
	}
}

// later has something done after a while, by the goroutine of the script.
func (w *simWorld) later(d time.Duration, do func()) {
	w.agenda = append(w.agenda, appointment{time.Now().Add(d), do})
}

// pass lets time go by until a moment, and does what is due meanwhile.
func (w *simWorld) pass(until time.Time) {
	for {
		i := -1
		for k, a := range w.agenda {
			if !a.at.After(until) && (i < 0 || a.at.Before(w.agenda[i].at)) {
				i = k
			}
		}
		if i < 0 {
			time.Sleep(time.Until(until))
			return
		}
		a := w.agenda[i]
		w.agenda = slices.Delete(w.agenda, i, i+1)
		time.Sleep(time.Until(a.at))
		a.do()
	}
}

// publish has a device send a message, twice at times.
func (w *simWorld) publish(tenant string) {
	m := &simMessage{n: len(w.messages) + 1, tenant: tenant, topic: "tenant/" + tenant + "/device/d/telemetry"}
	switch w.script.IntN(3) {
	case 0:
		m.body = fmt.Appendf(nil, `{"message_id":"m-%d","site_id":"s","metrics":{"n":%d}}`, m.n, m.n)
	default:
		m.body = fmt.Appendf(nil, `{"seq":%d,"site_id":"s","metrics":{"n":%d}}`, m.n, m.n)
	}
	w.mu.Lock()
	w.messages, w.at[m.n] = append(w.messages, m), time.Now()
	w.mu.Unlock()
	w.trail(m, "is published for %s", tenant)
	byMQTT, byStream := func() { w.broker.publish(m) }, func() { w.streams.store(m) }
	copies := []func(){byMQTT}
	if w.writesBoth(tenant) {
		copies = append(copies, byStream)
		if w.script.IntN(2) == 0 {
			slices.Reverse(copies)
		}
		if w.script.IntN(30) == 0 { // the producer dies between the two
			if path := pipeline.PathMQTT; len(copies) == 2 && w.script.IntN(2) == 0 {
				copies = []func(){byMQTT}
				w.only(m, path)
			} else {
				copies = []func(){byStream}
				w.only(m, pipeline.PathJetStream)
			}
		}
	}
	copies[0]()
	for _, do := range copies[1:] {
		gap := time.Duration(w.script.Int64N(int64(time.Second)))
		if w.script.IntN(3) == 0 {
			gap = time.Duration(w.script.Int64N(int64(25 * time.Second))) // less than the dwell
		}
		w.later(gap, do)
	}
	if w.script.IntN(10) == 0 { // and says it again
		w.later(time.Duration(w.script.Int64N(int64(5*time.Second))), copies[0])
	}
}

// leader is the instance that moves the stages, or "".
func (w *simWorld) leader() string {
	for _, name := range w.names {
		if n := w.nodes[name]; n != nil && n.control.Leading() {
			return name
		}
	}
	return ""
}

// facts are the stages as PostgreSQL has them.
func (w *simWorld) facts() map[string]control.Fact {
	list, err := control.Facts(w.t.Context(), w.eyes.Pool())
	if err != nil {
		w.t.Fatal(err)
	}
	facts := make(map[string]control.Fact)
	for _, f := range list {
		facts[f.Tenant] = f
	}
	return facts
}

// unfinished says what has yet to come to rest; "" when nothing has.
func (w *simWorld) unfinished() string {
	var left []string
	note := func(done bool, what string) {
		if !done {
			left = append(left, what)
		}
	}
	note(w.broker.empty(), "copies wait at the broker")
	note(w.streams.empty(), "copies wait in the streams")
	note(w.mirror.empty(), "the mirror is behind")
	for tenant, f := range w.facts() {
		note(f.Stage == w.flags.wish(tenant), fmt.Sprintf("%s is in %s and not in %s, and waits for %q", tenant, f.Stage, w.flags.wish(tenant), f.WaitsFor))
	}
	return strings.Join(left, "; ")
}

// wishAll sends all tenants to a stage.
func (w *simWorld) wishAll(to stage.Stage) {
	for _, tenant := range w.tenants {
		w.wish(tenant, to)
	}
}

// reach waits until all tenants are in a stage.
func (w *simWorld) reach(s stage.Stage, most time.Duration) bool {
	for end := time.Now().Add(most); time.Now().Before(end); w.pass(time.Now().Add(time.Second)) {
		there := 0
		for _, f := range w.facts() {
			if f.Stage == s {
				there++
			}
		}
		if there == len(w.tenants) {
			return true
		}
	}
	return false
}
