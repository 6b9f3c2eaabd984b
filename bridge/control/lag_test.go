package control

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

func counts(n map[string]int, age time.Duration) *Census {
	var t Tally
	for tenant, messages := range n {
		for range messages {
			t.Add(tenant, age)
		}
	}
	c := t.Census()
	return &c
}

// lagOf is what instances b1, b2, … and streams tell together.
func lagOf(hands []*Census, streams ...Stream) *Lag {
	l := &Lag{Retention: time.Hour, Stuck: map[string]pipeline.Path{}}
	for i, c := range hands {
		l.Hands = append(l.Hands, Hand{Instance: fmt.Sprint("b", i+1), MQTT: &Census{}, JetStream: c})
	}
	l.Streams = streams
	l.prepare()
	return l
}

func stream(undelivered, inHand int64, oldest float64, tenants *Census) Stream {
	return Stream{Stream: "TELEMETRY", Undelivered: undelivered, InHand: inHand, Oldest: &oldest, Tenants: tenants}
}

func TestLagAddsUpHandsAndStreams(t *testing.T) {
	l := lagOf([]*Census{counts(map[string]int{"acme": 2, "globex": 1}, time.Second), counts(map[string]int{"acme": 3}, 2*time.Second)},
		stream(5, 6, 2, counts(map[string]int{"acme": 4, "initech": 1}, 500*time.Millisecond)))
	for tenant, want := range map[string]Bounds{
		"acme":     {Least: 9, Most: 9, Oldest: 2, OldestMost: 2},
		"globex":   {Least: 1, Most: 1, Oldest: 1, OldestMost: 1},
		"initech":  {Least: 1, Most: 1, Oldest: 0.5, OldestMost: 0.5},
		"umbrella": {},
	} {
		if got := l.Of(tenant, pipeline.PathJetStream); got != want {
			t.Errorf("%s: %+v, want %+v", tenant, got, want)
		}
		if got := l.Of(tenant, pipeline.PathMQTT); got.Most != -1 || got.OldestMost != -1 || got.Unknown != queueUnseen {
			t.Errorf("%s by MQTT: %+v: a queue that nobody sees is not empty", tenant, got)
		}
	}
}

// TestLagUnknownIsNotZero: whatever source is missing, there is no upper bound, and a reason.
func TestLagUnknownIsNotZero(t *testing.T) {
	hand := counts(map[string]int{"acme": 2}, time.Second)
	lost := stream(0, 3, 60, &Census{})
	untold := stream(7, 0, 1, nil)
	untold.Unknown = "its retention is WorkQueue"
	for name, c := range map[string]struct {
		l    *Lag
		most int64
		says string
	}{
		"nobody asks":     {lagOf([]*Census{hand}), -1, nobodyAsked},
		"asking failed":   {lagOf([]*Census{hand}, Stream{Stream: "SHADOW", Failed: true, Unknown: "no answer"}), -1, "SHADOW: no answer"},
		"no census":       {lagOf([]*Census{hand}, untold), -1, "its retention is WorkQueue"},
		"given to a gone": {lagOf([]*Census{hand}, lost), 3, "1 messages were given to an instance that is gone"},
	} {
		if got := c.l.Of("acme", pipeline.PathJetStream); got.Least != 2 || got.Most != c.most || !strings.Contains(got.Unknown, c.says) {
			t.Errorf("%s: %+v, want 2 to %d since %q", name, got, c.most, c.says)
		}
	}
	l := &Lag{Silent: []string{"b9"}, Away: []string{"b8"}, Streams: []Stream{stream(0, 0, 0, &Census{})}}
	l.prepare()
	for path, says := range map[pipeline.Path]string{pipeline.PathMQTT: "session of b8", pipeline.PathJetStream: "what b9 has in hand"} {
		if got := l.Of("acme", path); got.Most != -1 || !strings.Contains(got.Unknown, says) {
			t.Errorf("silent, %s: %+v", path, got)
		}
	}
}

// TestCensusKeepsTheLargestAndTheOldest: what is left out is told, and bounds the rest.
func TestCensusKeepsTheLargestAndTheOldest(t *testing.T) {
	var tally Tally
	for i := range 1000 {
		for range 1 + i%100 {
			tally.Add(fmt.Sprintf("t%03d", i), time.Duration(i)*time.Second)
		}
	}
	tally.Add("ancient", time.Hour)
	c := tally.Census()
	if len(c.Tenants) != censusLargest+censusOldest || c.Others.Tenants != 1001-len(c.Tenants) || c.Oldest != 3600 {
		t.Fatalf("%d listed, %+v, oldest %g", len(c.Tenants), c.Others, c.Oldest)
	}
	l := lagOf([]*Census{&c}, stream(0, c.Messages, 3600, &Census{}))
	if got := l.Of("ancient", pipeline.PathJetStream); got != (Bounds{1, 1, 3600, 3600, ""}) {
		t.Errorf("the oldest: %+v", got)
	}
	if got := l.Of("t099", pipeline.PathJetStream); got.Least != 100 || got.Unknown != "" {
		t.Errorf("a large one: %+v", got)
	}
	got := l.Of("t001", pipeline.PathJetStream)
	if got.Least != 0 || got.Most != c.Others.Most || got.Most > 81 || got.OldestMost != c.Others.Oldest || got.Unknown == "" {
		t.Errorf("one that is left out: %+v, others %+v", got, c.Others)
	}
}

// TestUnseenMessagesMayBeAnybodys: but those of tenants that were counted in full.
func TestUnseenMessagesMayBeAnybodys(t *testing.T) {
	var tally Tally
	tally.Add("acme", time.Minute)
	tally.Add("globex", time.Minute)
	if more := tally.Set("acme", 500); more != 499 {
		t.Errorf("%d more", more)
	}
	c := tally.Census()
	c.Unseen, c.UnseenOldest = 99, 30
	l := lagOf([]*Census{{}}, stream(600, 0, 60, &c))
	for tenant, want := range map[string][2]int64{"acme": {500, 500}, "globex": {1, 100}, "initech": {0, 99}} {
		if got := l.Of(tenant, pipeline.PathJetStream); got.Least != want[0] || got.Most != want[1] || (got.Unknown == "") != (tenant == "acme") {
			t.Errorf("%s: %+v, want %v", tenant, got, want)
		}
	}
	if got := l.Of("initech", pipeline.PathJetStream); got.Oldest != 0 || got.OldestMost != 30 {
		t.Errorf("initech: %+v", got)
	}
}

// TestOverdueIsTheTenantsOwn: one's old message keeps nobody else from moving, unless
// nobody knows whose it is.
func TestOverdueIsTheTenantsOwn(t *testing.T) {
	old := counts(map[string]int{"acme": 1}, 2*time.Hour)
	l := lagOf([]*Census{counts(map[string]int{"globex": 1}, time.Minute)}, stream(1, 1, 7200, old))
	if s := l.Overdue("acme"); !strings.Contains(s, "the oldest by JetStream is older than the ledger remembers (1h)") {
		t.Errorf("acme: %q", s)
	}
	if s := l.Overdue("globex"); s != "" {
		t.Errorf("globex: %q", s)
	}
	l = lagOf([]*Census{{}}, stream(0, 1, 7200, &Census{}))
	if s := l.Overdue("globex"); !strings.Contains(s, "given to an instance which is gone") {
		t.Errorf("nobody's: %q", s)
	}
	unseen := *old
	unseen.Unseen, unseen.UnseenOldest = 9, 3700
	if s := lagOf(nil, stream(10, 0, 7200, &unseen)).Overdue("globex"); !strings.Contains(s, "it is not known whose") {
		t.Errorf("unseen: %q", s)
	}
	l = lagOf(nil, Stream{Stream: "TELEMETRY", Failed: true})
	l.Stuck["acme"] = pipeline.PathMQTT
	if s := l.Overdue("globex"); s != "" {
		t.Errorf("what is not known is not too old: %q", s)
	}
	if s := l.Overdue("acme"); !strings.Contains(s, "no sentinel has come out of mqtt for longer") {
		t.Errorf("stuck: %q", s)
	}
	if l.Retention = 0; l.Overdue("acme") != "" {
		t.Error("without a retention nothing is too old")
	}
}

// TestOverdueHoldsATenantButNotBack: nobody waits on the way back to MQTT.
func TestOverdueHoldsATenantButNotBack(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "acme", "globex")
	wishes, p := newOracle(stage.JetStream), &courier{mute: map[pipeline.Path]bool{}}
	o := brisk(t, pool, "a", wishes, p)
	o.Retention = time.Hour
	teller, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	told := func(age time.Duration) {
		t.Helper()
		if err := teller.TellLag(t.Context(), Hand{JetStream: &Census{}}, []Stream{stream(1, 0, age.Seconds(), counts(map[string]int{"acme": 1}, age))}); err != nil {
			t.Fatal(err)
		}
	}
	told(2 * time.Hour)
	n := start(t, o)
	p.set(func(p *courier) { p.carriers = []*Control{n.Control} })
	devstack.Await(t, "the other is through", n.in(stage.JetStream, "globex"))
	waitsFor(t, pool, "acme", "undelivered messages: the oldest by JetStream")
	if s := n.StageOf("acme"); s != stage.Live {
		t.Fatalf("acme is in %s", s)
	}
	told(2 * time.Hour)
	wishes.wish(stage.MQTT, "acme")
	devstack.Await(t, "acme is back", n.in(stage.Shadow, "acme"))
	waitsFor(t, pool, "acme", "undelivered messages")
	devstack.Await(t, "acme goes on", func() bool { told(time.Minute); return n.StageOf("acme") == stage.MQTT })
}

// TestLagIsReadAsItIsTold: with the hands of those that live, and the silent by name.
func TestLagIsReadAsItIsTold(t *testing.T) {
	pool := migrated(t)
	n, _ := alone(t, pool, newOracle(stage.MQTT))
	read := func() *Lag {
		t.Helper()
		l, err := ReadLag(t.Context(), pool, 0)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l := read(); len(l.Silent) != 1 || l.Of("acme", pipeline.PathJetStream).Most != -1 {
		t.Errorf("before anything is told: %+v", l)
	}
	hand := Hand{MQTT: counts(map[string]int{"acme": 2}, time.Second), JetStream: counts(map[string]int{"acme": 1}, time.Second), Retention: 7200}
	if err := n.TellLag(t.Context(), hand, []Stream{stream(0, 1, 1, &Census{})}); err != nil {
		t.Fatal(err)
	}
	l := read()
	if js, mqtt := l.Of("acme", pipeline.PathJetStream), l.Of("acme", pipeline.PathMQTT); js.Least != 1 || js.Most != 1 || mqtt.Least != 2 || mqtt.Most != -1 {
		t.Errorf("told: %+v, %+v", js, mqtt)
	}
	if len(l.Silent) != 0 || l.Retention != 2*time.Hour || l.Streams[0].MeasuredBy != "a" {
		t.Errorf("told: %+v", l)
	}
	for i, want := range []bool{true, false} {
		if mine, err := n.TakeLagTurn(t.Context(), time.Minute); err != nil || mine != want {
			t.Errorf("turn %d: %v, %v", i, mine, err)
		}
	}
	execute(t, pool, `UPDATE crossfade_lag SET measured_at = now() - interval '1 minute'`)
	if l := read(); len(l.Silent) != 1 || len(l.Streams) != 0 {
		t.Errorf("figures that are old count as none: %+v", l)
	}
	if err := n.TellLag(t.Context(), hand, nil); err != nil {
		t.Fatal(err)
	}
	n.halt()
	if err := n.SignOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l := read(); len(l.Hands) != 0 || len(l.Away) != 1 {
		t.Errorf("what one had that is gone comes again: %+v", l)
	}
	execute(t, pool, `INSERT INTO crossfade_path_latency (tenant_id, path, missing_since) VALUES ('acme', 2, now() - interval '3 hours')`)
	if l, err := ReadLag(t.Context(), pool, 2*time.Hour); err != nil || l.Stuck["acme"] != pipeline.PathJetStream {
		t.Errorf("%+v, %v", l, err)
	}
}
