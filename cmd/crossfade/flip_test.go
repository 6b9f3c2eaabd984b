package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
)

func TestFlipDryRun(tt *testing.T) {
	t := newOperatorTest(tt)
	t.want(exitNo, "flip acme jetstream --dry-run", "1. first stage: live: at once", "2. live to jetstream", "would stop it: no instance is running")
	t.instance("b1")
	t.instance("b2")
	t.fact("acme", "mqtt", "mqtt", "")
	t.fact("globex", "mqtt", "mqtt", "")
	t.fact("initech", "jetstream", "jetstream", "")
	t.want(exitDone, "flip acme globex jetstream --dry-run", "2 tenants: acme, globex\n", "1. mqtt to shadow: at once",
		"2. shadow to live: waits for confirmation of shadow by b1, b2\n",
		"3. live to jetstream: waits for confirmation of live by b1, b2, then the dwell after it, then a sentinel out of the MQTT session of b1, b2, then the sentinel through every mirror and out of the streams")
	t.want(exitDone, "flip initech jetstream --dry-run", "is in jetstream already")
	t.exec(`INSERT INTO crossfade_holds VALUES ('', 'ops', 'freeze')`)
	t.want(exitNo, "flip acme jetstream --dry-run", "would stop it: all are held by ops: freeze", "1 of 1 tenants would not get there")
	t.want(exitNo, "flip initech mqtt --dry-run", "1. jetstream to shadow: at once", "goes back to shadow in spite of the hold, and no further")
	t.want(exitDone, "flip initech shadow --dry-run")
	t.exec(`DELETE FROM crossfade_holds`)
	t.exec(`UPDATE crossfade_instances SET lease_until = now(), state = 'stopped' WHERE instance_id = 'b2'`)
	t.want(exitNo, "flip acme jetstream --dry-run", "b2 does not run and its MQTT session may hold copies")
	t.want(exitDone, "flip acme live --dry-run") // needs no proof
	t.exec(`UPDATE crossfade_instances SET prober = false, session_until = now(), details = '{"checks": {"mirror": {"ok": false, "error": "refused"}}}'`)
	t.exec(`INSERT INTO crossfade_path_latency (tenant_id, path, missing_since) VALUES ('acme', 2, now() - interval '1 minute')`)
	out := t.want(exitNo, "flip acme jetstream --dry-run --output json", "no running instance can send sentinels", "b1 is not well: mirror: refused", "out of JetStream for 1m0")
	var answer struct{ Tenants []plan }
	if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Tenants) != 1 || len(answer.Tenants[0].Steps) != 3 || answer.Tenants[0].Steps[2].Needs != "proof" {
		t.Errorf("%v\n%s", err, out)
	}
	if n := t.count(`SELECT count(*) FROM crossfade_flag_targets`); n != 0 {
		t.Errorf("a dry run has set %d wishes", n)
	}
}

func TestFlipPercent(tt *testing.T) {
	t := newOperatorTest(tt)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) SELECT 't' || n, 'd' FROM generate_series(1, 400) AS n`)
	t.exec(`INSERT INTO crossfade_flag_targets (flag_key, tenant_id, variant) VALUES ($1, 't1', 'shadow')`, flags.FlagKey)
	moved := func(args string) map[string]string {
		t.Helper()
		var answer struct{ Tenants []flipped }
		if err := json.Unmarshal([]byte(t.want(exitDone, "flip --output json --no-wait --percent "+args)), &answer); err != nil {
			t.Fatal(err)
		}
		to := make(map[string]string)
		for _, a := range answer.Tenants {
			to[a.Tenant] = a.Before + ">" + string(a.Wished)
		}
		return to
	}
	first := moved("25 live")
	if n := len(first); n < 60 || n > 140 || first["t1"] != "" {
		t.Errorf("25 percent of 403 are %d; t1, which has a wish of its own, %q", n, first["t1"])
	}
	for tenant, how := range moved("12.5 live") {
		if first[tenant] == "" || how != "live>mqtt" && how != "live>live" {
			t.Errorf("lowered: %s %s", tenant, how)
		}
	}
	if again := moved("12.5 live"); len(again) == 0 || len(again) >= len(first) {
		t.Errorf("the same percentage again is about %d tenants", len(again))
	}
	if w, err := flags.OpenStore(t.pool).List(t.Context()); err != nil || w.Rule.Percent != 12.5 || w.Rule.PercentVariant != flags.Live {
		t.Errorf("rule: %+v, %v", w.Rule, err)
	}
	for _, args := range []string{"--percent 10 acme live", "--percent 101 live", "--percent 0.001 live", "--percent 10 --reason x live", "--percent 10"} {
		if code, _, errs := call(t, append([]string{"flip"}, strings.Fields(args)...)...); code == exitDone || errs == "" {
			t.Errorf("flip %s: exit %d", args, code)
		}
	}
}

func TestExpectRevision(tt *testing.T) {
	t := newOperatorTest(tt)
	t.fact("acme", "live", "live", "")
	t.want(exitStale, "flip acme mqtt --no-wait --expect-revision 6", "tenant acme is at revision 7, not 6; nothing was changed")
	t.want(exitStale, "flip acme globex mqtt --no-wait --expect-revision acme=7 --expect-revision globex=1", "globex is at revision 0, not 1")
	t.want(exitStale, "flip acme mqtt --dry-run --expect-revision 6")
	t.want(exitStale, "flip acme --clear --expect-revision 6")
	if n := t.count(`SELECT count(*) FROM crossfade_flag_targets`); n != 0 {
		t.Errorf("%d wishes were set all the same", n)
	}
	for _, args := range []string{"acme globex mqtt --expect-revision 7", "acme mqtt --expect-revision x", "acme mqtt --expect-revision -1",
		"acme mqtt --expect-revision globex=7", "acme mqtt --expect-revision 7 --expect-revision acme=7", "--percent 5 mqtt --expect-revision 7"} {
		t.want(exitUsage, "flip --no-wait "+args)
	}
	t.want(exitDone, "flip acme globex mqtt --no-wait --expect-revision acme=7 --expect-revision globex=0")
	t.want(exitDone, "flip acme --clear --expect-revision 7", "acme: mqtt was wished")
}

// TestGuardHoldsTheRevision: between the comparison and the wish nobody moves the
// tenant, and a guard that gets stuck lets go by itself.
func TestGuardHoldsTheRevision(tt *testing.T) {
	t := newOperatorTest(tt)
	t.fact("acme", "live", "live", "")
	move := func(ctx context.Context) error {
		_, err := t.pool.Exec(ctx, `UPDATE crossfade_stages SET stage = 'shadow', revision = 8 WHERE tenant_id = 'acme'`)
		return err
	}
	err := guarded(t.Context(), t.pool, map[string]int64{"acme": 7}, func() error {
		_, err := t.pool.Exec(t.Context(), `SET lock_timeout = '50ms'; UPDATE crossfade_stages SET stage = 'shadow', revision = 8 WHERE tenant_id = 'acme'`)
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != "55P03" {
			t.Errorf("the tenant was moved on meanwhile: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = guarded(t.Context(), t.pool, map[string]int64{"acme": 7}, func() error { return move(t.Context()) }) // waits until the guard lets go
	if err == nil || !strings.Contains(err.Error(), "the guard was lost") {
		t.Errorf("a guard that was lost: %v", err)
	}
	if err := guarded(t.Context(), t.pool, map[string]int64{"acme": 7}, func() error { t.Error("called"); return nil }); !errors.Is(err, errStale) {
		t.Errorf("the next one: %v", err)
	}
}

// TestGuardWaitsItsTurn: rows that are locked just now are tried again.
func TestGuardWaitsItsTurn(tt *testing.T) {
	t := newOperatorTest(tt)
	t.fact("acme", "live", "live", "")
	tx, err := t.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `UPDATE crossfade_stages SET waits_for = 'x'`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- guarded(t.Context(), t.pool, map[string]int64{"acme": 7}, func() error { return nil }) }()
	time.AfterFunc(50*time.Millisecond, func() { _ = tx.Commit(context.WithoutCancel(t.Context())) })
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestUntilStage(t *testing.T) {
	now := time.Now()
	confirmed := now.Add(-18 * time.Second)
	fact := func(s stage.Stage, confirmedAt *time.Time, waits string) control.Fact {
		return control.Fact{Stage: s, ConfirmedAt: confirmedAt, WaitsFor: waits}
	}
	for _, c := range []struct {
		fact  control.Fact
		wish  stage.Stage
		dwell time.Duration
		want  string
	}{
		{fact(stage.Live, &confirmed, "dwell: 30s after confirmation"), stage.JetStream, 30 * time.Second, "13s true"},
		{fact(stage.Live, nil, "confirmation of stage live by b"), stage.JetStream, 30 * time.Second, "31s false"},
		{fact(stage.MQTT, &confirmed, ""), stage.JetStream, 30 * time.Second, "33s true"},
		{fact(stage.MQTT, &confirmed, ""), stage.JetStream, 0, "3s false"},
		{fact(stage.MQTT, &confirmed, ""), stage.Live, 0, "2s true"},
		{fact(stage.JetStream, &confirmed, ""), stage.MQTT, 30 * time.Second, "32s true"},
		{fact(stage.Live, &confirmed, ""), stage.Live, 0, "0s true"},
	} {
		left, known := untilStage(c.fact, c.wish, c.dwell, now)
		if got := fmt.Sprintf("%v %v", left, known); got != c.want {
			t.Errorf("%s to %s: %s, want %s", c.fact.Stage, c.wish, got, c.want)
		}
	}
}

func TestGoals(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		at, wish stage.Stage
		want     string // authority, stage, back
	}{
		{stage.MQTT, stage.JetStream, "false false true"}, {stage.Shadow, stage.JetStream, "false false true"},
		{stage.Live, stage.JetStream, "true false false"}, {stage.JetStream, stage.JetStream, "true true false"},
		{stage.JetStream, stage.MQTT, "false false false"}, {stage.Shadow, stage.MQTT, "true false true"},
		{stage.MQTT, stage.MQTT, "true true true"}, {stage.MQTT, stage.Shadow, "false false true"},
		{stage.JetStream, stage.Live, "false false false"}, {stage.Live, stage.Live, "true true false"},
	} {
		f := control.Fact{Stage: c.at, ConfirmedAt: &now}
		if got := fmt.Sprint(goalAuthority(f, c.wish), goalStage(f, c.wish), goalBack(f, c.wish)); got != c.want {
			t.Errorf("%s, wished %s: %s, want %s", c.at, c.wish, got, c.want)
		}
		f.ConfirmedAt = nil
		if goalBack(f, c.wish) {
			t.Errorf("%s counts as back though not every instance has confirmed it", c.at)
		}
	}
}

func TestWaitLine(t *testing.T) {
	at := time.Now()
	confirmed := at.Add(-18 * time.Second)
	o := &overview{at: at, facts: map[string]control.Fact{
		"a": {Tenant: "a", Stage: stage.Live, ConfirmedAt: &confirmed, WaitsFor: "dwell: 30s after confirmation"},
		"b": {Tenant: "b", Stage: stage.JetStream},
	}}
	answers := []flipped{{Tenant: "a", Wished: stage.JetStream}, {Tenant: "b", Wished: stage.JetStream, Reached: true}}
	w := waiter{}
	if got, want := w.line(o, answers, 1), "1 of 2 there, about 14s left; a is in live, waits for dwell: 12s of 30s left"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
