package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// answer has the next prompt answered.
func (t operatorTest) answer(line string) {
	t.Helper()
	quarantineTest(t).answer(line)
}

func TestRollbackAll(tt *testing.T) {
	t := newOperatorTest(tt)
	t.fact("acme", "jetstream", "jetstream", "")
	t.fact("globex", "shadow", "shadow", "")
	t.instance("b1")
	t.exec(`UPDATE crossfade_instances SET lease_until = now(), details = '"not ours"'`) // no reason to fail
	long := strings.Repeat("x", 257)
	t.want(exitDone, "flip --percent 50 jetstream --no-wait")
	t.exec(`UPDATE crossfade_flag_rules SET default_variant = 'live'`)
	t.want(exitDone, "flip later jetstream --new --no-wait")
	t.want(exitUsage, "rollback", "name the tenants, or pass --all")
	t.want(exitUsage, "rollback acme --all", "name the tenants, or pass --all")
	t.want(exitUsage, "rollback amce --yes", "no device is registered under amce")
	t.answer("n\n")
	t.want(exitNo, "rollback --all", "Roll 4 tenants back to MQTT? JetStream has authority for 1 of them now.", "nothing was changed")
	t.answer("y\n")
	t.want(exitDone, "rollback --all --no-wait")
	if n := t.count(`SELECT count(*) FROM crossfade_flag_targets WHERE variant = 'mqtt' AND reason = 'rollback'`); n != 4 {
		t.Errorf("%d tenants are brought back, want 4", n)
	}
	if n := t.count(`SELECT count(*) FROM crossfade_flag_rules WHERE percent = 0 AND default_variant = 'mqtt'`); n != 1 {
		t.Error("tenants that are yet to come would still go to JetStream")
	}
	t.want(exitNo, "rollback acme --yes --timeout 100ms", "not yet", "instance running")
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) VALUES ($1, 'd')`, long)
	t.want(exitError, "rollback --all --yes --no-wait", "longer than 256 characters", "xxx…")
	if n := t.count(`SELECT count(*) FROM crossfade_flag_targets WHERE updated_at > now() - interval '10 seconds'`); n != 4 {
		t.Errorf("a name that cannot be wished for keeps others where they are: %d", n)
	}
}

func TestHoldAndRelease(tt *testing.T) {
	t := newOperatorTest(tt)
	t.want(exitUsage, "hold", "name the tenants")
	t.want(exitUsage, "hold amce", "no device is registered under amce")
	t.want(exitUsage, "release acme --all")
	t.want(exitDone, "hold acme globex --reason freeze --by ops", "held: tenant acme, since", "by ops: freeze")
	t.want(exitDone, "hold --all --by ops", "held: all tenants")
	t.want(exitDone, "release globex", "released: tenant globex", "held: all tenants", "held: tenant acme")
	t.want(exitNo, "release globex", "there was no hold of tenant globex")
	out := t.want(exitDone, "release --all --output json")
	var answer struct {
		Released []string
		Holds    []struct{ Tenant, By, Reason string }
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Released) != 1 || len(answer.Holds) != 1 || answer.Holds[0].Tenant != "acme" || answer.Holds[0].Reason != "freeze" {
		t.Errorf("%v\n%s", err, out)
	}
	if code, _, errs := call(t, "hold", ""); code != exitUsage || !strings.Contains(errs, "name is empty") {
		t.Errorf("hold of the empty name, which would hold all: exit %d, %s", code, errs)
	}
}

func TestForget(tt *testing.T) {
	t := newOperatorTest(tt)
	t.instance("b1")
	t.want(exitNo, "forget b1 --yes", "stop it first")
	t.want(exitNo, "forget b9 --yes", "no such instance")
	t.exec(`UPDATE crossfade_instances SET lease_until = now()`)
	t.answer("no\n")
	t.want(exitNo, "forget b1", "Is the MQTT session crossfade-b1 gone from the broker?", "nothing was changed")
	t.want(exitDone, "forget b1 --yes --output json", `"forgotten": "b1"`)
	t.instance("b2")
	t.exec(`UPDATE crossfade_instances SET lease_until = now(), mirror_session = 'mirror-b2', mirror_until = now() + interval '1 hour'`)
	t.answer("no\n")
	t.want(exitNo, "forget b2", "Are the MQTT sessions crossfade-b2 and mirror-b2 (of its mirror) gone from the broker?", "nothing was changed")
	t.exec(`UPDATE crossfade_instances SET state = 'stopped', mqtt_session = false, session = NULL, session_until = NULL`)
	t.want(exitDone, "status", "its mirror's MQTT session is awaited until")
	t.answer("no\n")
	t.want(exitNo, "forget b2", "Is the MQTT session mirror-b2 (of its mirror) gone from the broker?", "nothing was changed")
	t.answer("yes\n")
	t.want(exitDone, "forget b2", "b2 is forgotten; nothing waits for the MQTT session mirror-b2 (of its mirror) any more")
	if n := t.count(`SELECT count(*) FROM crossfade_instances`); n != 0 {
		t.Error("it is still there")
	}
}

func TestHistory(tt *testing.T) {
	t := newOperatorTest(tt)
	t.exec(`INSERT INTO crossfade_stage_history (tenant_id, revision, from_stage, to_stage, changed_by, reason, at, evidence)
	SELECT CASE WHEN n % 2 = 0 THEN 'acme' ELSE $1 END, n, 'live', 'jetstream', 'instance b1', 'follows the flag', now() - n * interval '1 hour',
	       CASE WHEN n % 2 = 0 THEN '{"instances": {"b1": 3}, "dwell_seconds": 30.04, "sentinel": "N", "attempt": 1, "sessions": {"mqtt": {"b1": "r"}}, "jetstream": ["a", "b", "c"]}'::jsonb END
	  FROM generate_series(1, 10) AS n`, hostile)
	out := t.want(exitDone, "history acme", "confirmed by 1; dwelt 30.0s; sentinel (attempt 1) out of 1 sessions, 0 mirrors and a, b, c")
	if strings.Count(out, "acme") != 5 {
		t.Errorf("history acme:\n%s", out)
	}
	if out := t.want(exitDone, "history --limit 3", "There are more", `ev\x1b[2Jil`); strings.Count(out, "instance b1") != 3 || strings.Contains(out, "\x1b") {
		t.Errorf("history --limit:\n%q", out)
	}
	out = t.want(exitDone, "history --since 150m --output json")
	var answer struct {
		Changes []struct{ Revision int64 }
		More    bool
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Changes) != 2 || answer.Changes[0].Revision != 1 || answer.More {
		t.Errorf("%v\n%s", err, out)
	}
	t.want(exitUsage, "history --limit 0", "choose 1 to 100000")
	t.want(exitUsage, "history --since soon", "--since")
}

// TestOperatorAgainstAnInstance goes there and back on real servers: every wait is
// for what it says.
func TestOperatorAgainstAnInstance(tt *testing.T) {
	t := newOperatorTest(tt)
	stop := t.run()
	t.want(exitDone, "flip acme globex jetstream --wait --timeout 2m", "jetstream  jetstream  after", " of 2 there")
	if a := t.status("acme").Tenants[0]; a.Stage != "jetstream" || a.WaitsFor != "" || a.Wanted != "jetstream" || a.WantedWhy != "TARGETING_MATCH" || a.Revision < 2 {
		t.Errorf("status: %+v", a)
	}
	t.want(exitDone, "hold acme --reason freeze")
	t.want(exitNo, "flip acme live --timeout 5s", "not yet", "release from the hold")
	t.want(exitDone, "rollback acme globex --yes --timeout 1m", "MQTT has authority for 2 of 2 tenants on every instance")
	t.want(exitDone, "flip globex mqtt --wait --timeout 2m", "mqtt")
	if a := t.status("acme").Tenants[0]; a.Stage != "shadow" || a.Hold == nil || !strings.Contains(a.Progress+a.Note, "hold") && a.Note != "moving" {
		t.Errorf("held, and rolled back: %+v", a)
	}
	t.want(exitDone, "release acme")
	t.want(exitDone, "flip acme mqtt --wait --timeout 2m")
	t.want(exitDone, "history acme", "jetstream  shadow", "out of 1 sessions, 1 mirrors and commands, ")
	if code := stop(); code != nil {
		t.Error(code)
	}
	t.want(exitDone, "status", "stopped; its MQTT session is awaited")
}

// run runs an instance on servers of its own, and returns how to stop it.
func (t operatorTest) run() (stop func() error) {
	t.Helper()
	broker, nats := devstack.TestMosquitto(t), devstack.TestNATS(t)
	c := bridge.DefaultConfig(os.Getenv("DATABASE_URL"))
	c.Instance, c.FlagBeat = "here", time.Second
	c.Control.Dwell = time.Second // the mirror makes the second copy: any will do
	m := legacy_mqtt.DefaultConfig()
	m.URL, m.ClientID, m.Username, m.Password = broker.URL(), "crossfade-here", broker.User(), broker.Password()
	mirror := m
	mirror.ClientID = "crossfade-mirror-here"
	c.MQTT, c.Mirror = &m, &mirror
	n, js := jetstream.DefaultConfig(), jetstream.DefaultSourceConfig()
	n.URLs = []string{nats.URL()}
	c.NATS, c.JetStream = &n, &js
	var log bytes.Buffer
	c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	b, err := bridge.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() {
		_ = stop()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	for deadline := time.Now().Add(time.Minute); !b.Ready().Ready; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the instance does not get ready: %+v", b.Ready())
		}
	}
	return stop
}
