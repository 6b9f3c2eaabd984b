package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
)

// told writes what an instance tells of itself or of a stream.
func (t operatorTest) told(source, name string, figures any) {
	t.Helper()
	b, err := json.Marshal(figures)
	if err != nil {
		t.Fatal(err)
	}
	t.exec(`INSERT INTO crossfade_lag (source, name, measured_by, figures) VALUES ($1, $2, CASE WHEN $1 = 'instance' THEN $2 ELSE 'b1' END, $3::jsonb)
	ON CONFLICT (source, name) DO UPDATE SET figures = EXCLUDED.figures, measured_at = now()`, source, name, string(b))
}

func census(tenant string, messages int64, oldest float64) *control.Census {
	return &control.Census{Messages: messages, Oldest: oldest, Tenants: []control.Count{{Tenant: tenant, Messages: messages, Oldest: oldest}}}
}

func TestStatusTellsLag(tt *testing.T) {
	t := newOperatorTest(tt)
	t.instance("b1")
	t.fact("acme", "live", "live", "")
	t.fact("globex", "shadow", "shadow", "")
	t.fact("initech", "jetstream", "jetstream", "")

	// Nobody has told anything: nothing is known, and nothing is zero.
	a := t.status("acme")
	for path, l := range map[string]pathLag{"mqtt": a.Tenants[0].Lag.MQTT, "jetstream": a.Tenants[0].Lag.JetStream} {
		if l.Messages != nil || l.AtLeast != nil || l.AtMost != nil || l.Oldest != nil || l.Seconds != nil || l.Unknown == "" || l.SecondsUnknown == "" {
			t.Errorf("%s: %+v", path, l)
		}
	}
	t.want(exitDone, "status", "? ?", "no running instance has asked JetStream lately")

	t.told("instance", "b1", control.Hand{MQTT: census("acme", 3, 1.5), JetStream: census("acme", 2, 70), Retention: 86400})
	oldest := 70.0
	t.told("stream", "TELEMETRY", control.Stream{Stream: "TELEMETRY", Consumer: "ingest-workers", Undelivered: 5, InHand: 2, Oldest: &oldest, Tenants: census("acme", 5, 65)})
	// So long ago that it is shown in minutes, which a slow test does not change.
	t.exec(`INSERT INTO crossfade_path_latency (tenant_id, path, seconds, seen_at) VALUES
	('acme', 1, 0.25, now() - interval '3 hours 1 second'), ('globex', 2, 0.5, now() - interval '4 hours 1 second')`)
	t.exec(`INSERT INTO crossfade_sentinels (nonce, tenant_id, revision, purpose, created_at, published_at) VALUES ('n', 'globex', 7, 'beat', now() - interval '2 hours 2 seconds', now() - interval '2 hours 1 second')`)
	a = t.status("")
	acme, globex, initech := a.Tenants[0].Lag, a.Tenants[1].Lag, a.Tenants[2].Lag
	if m := acme.MQTT; m.Messages != nil || *m.AtLeast != 3 || m.AtMost != nil || *m.Seconds != 0.25 || m.SeenAt == nil || !strings.Contains(m.Unknown, "cannot be seen by a subscriber") {
		t.Errorf("acme by MQTT: %+v", m)
	}
	if j := acme.JetStream; j.Messages == nil || *j.Messages != 7 || *j.Oldest != 70 || j.Unknown != "" {
		t.Errorf("acme by JetStream: %+v", j)
	}
	if j := globex.JetStream; *j.Messages != 0 || j.WaitingSince == nil {
		t.Errorf("globex by JetStream: %+v", j)
	}
	if j := initech.JetStream; *j.Messages != 0 || j.Seconds != nil || !strings.Contains(j.SecondsUnknown, "shadow and live only") {
		t.Errorf("initech by JetStream: %+v", j)
	}
	if s := a.Lag.Streams; len(s) != 1 || s[0].Undelivered != 5 || s[0].Tenants == nil || len(s[0].Tenants.Tenants) != 0 || len(a.Lag.Instances) != 1 {
		t.Errorf("sources: %+v", a.Lag)
	}
	// 1.5s in hand is more than the sentinel took; a sentinel that is out, too.
	t.want(exitDone, "status", "3+ 1s+", "7 1m10s", "0 2h00m+", "0 0s", "TELEMETRY  5            2        1m10s")
	t.want(exitDone, "status acme", "3 or more messages wait, the oldest for 1s or longer (what waits in the broker's queue", "the last sentinel took 0.25s, 3h00m ago", "7 messages wait, the oldest for 1m10s")
	t.want(exitDone, "status globex", "no message waits; the last sentinel took 0.50s, 4h00m ago, and one has been out for 2h00m")

	t.told("stream", "TELEMETRY", control.Stream{Stream: "TELEMETRY", Failed: true, Unknown: "no answer\x1b[2J"})
	out := t.want(exitDone, "status", "2+ 1m10s+", `no answer\x1b[2J`)
	if strings.Contains(out, "\x1b") {
		t.Errorf("a server writes on the terminal: %q", out)
	}
}

func TestPlanNamesOldMessages(tt *testing.T) {
	t := newOperatorTest(tt)
	t.instance("b1")
	for _, tenant := range []string{"acme", "globex"} {
		t.fact(tenant, "live", "live", "")
	}
	t.told("instance", "b1", control.Hand{MQTT: &control.Census{}, JetStream: &control.Census{}, Retention: 3600})
	oldest := 7200.0
	t.told("stream", "TELEMETRY", control.Stream{Stream: "TELEMETRY", Undelivered: 1, Oldest: &oldest, Tenants: census("acme", 1, oldest)})
	const old = "undelivered messages: the oldest by JetStream is older than the ledger remembers (1h)"
	t.want(exitNo, "flip acme jetstream --dry-run", "would stop it: "+old)
	t.want(exitDone, "flip globex jetstream --dry-run")
	t.want(exitNo, "flip acme mqtt --dry-run", "would stop it: it goes back to shadow, and no further: "+old)
	t.want(exitDone, "flip acme shadow --dry-run")
}

// TestLagInAColumn: an unknown number is never shown as zero, nor a bound as a value.
func TestLagInAColumn(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) *time.Time { at := now.Add(-d); return &at }
	half := 500 * time.Millisecond
	for want, c := range map[string]struct {
		bounds           control.Bounds
		took             *time.Duration
		waiting, missing *time.Time
	}{
		"? ?":              {control.Bounds{Least: -1, Most: -1, Oldest: -1}, nil, nil, nil},
		"? 0.50s":          {control.Bounds{Least: -1, Most: -1, Oldest: -1}, &half, nil, nil},
		"0+ ?":             {control.Bounds{Most: -1}, nil, nil, nil},
		"0+ 3s+":           {control.Bounds{Most: -1}, &half, ago(3 * time.Second), nil},
		"0-9 0.50s":        {control.Bounds{Most: 9}, &half, nil, nil},
		"4+ 7s+":           {control.Bounds{Least: 4, Most: 9, Oldest: 7}, nil, nil, nil},
		"4 7s":             {control.Bounds{Least: 4, Most: 4, Oldest: 7}, &half, nil, nil},
		"0 0s":             {control.Bounds{}, nil, nil, nil},
		"0 none for 1m05s": {control.Bounds{}, &half, ago(time.Minute), ago(65 * time.Second)},
	} {
		l := pathLag{WaitingSince: c.waiting, MissingSince: c.missing}
		l.measured(c.took, stage.Live)
		l.counted(c.bounds)
		if got := l.text(now); got != want {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
	}
}
