package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/rollout"
)

const canaryPlan = `
name: canary
waves:
  - tenants: [acme]
    bake: 0s
  - percent: 100
`

func TestRolloutHelp(t *testing.T) {
	for _, command := range []string{"rollout start", "rollout status", "rollout pause", "rollout resume", "rollout abort"} {
		code, out, errs := call(t, append(strings.Fields(command), "--help")...)
		if code != exitDone || !strings.Contains(out, "crossfade "+command) || !strings.Contains(out, "Examples:") {
			t.Errorf("%s --help: exit %d, wants examples\n%s%s", command, code, out, errs)
		}
	}
}

// TestRolloutCommands gives all orders to a rollout that a driver carries out, without
// an instance that moves tenants.
func TestRolloutCommands(t *testing.T) {
	url := database(t)
	dir := t.TempDir()
	plan := filepath.Join(dir, "plan.yaml")
	write(t, plan, canaryPlan)

	code, out, errs := call(t, "rollout", "start", plan, "--dry-run")
	if code != exitDone || !strings.Contains(out, "Nothing was changed") || !strings.Contains(out, "acme") || !strings.Contains(out, "globex, initech") {
		t.Errorf("dry run: exit %d\n%s%s", code, out, errs)
	}
	if code, out, _ := call(t, "rollout", "status"); code != exitDone || !strings.Contains(out, "none") {
		t.Errorf("the dry run has left something: exit %d\n%s", code, out)
	}
	call(t, "hold", "acme", "--by", "ann", "--reason", "Friday")
	if code, out, _ := call(t, "rollout", "start", plan, "--dry-run", "--output", "json"); code != exitNo || !strings.Contains(out, "the hold of acme by ann: Friday: wave 1 would skip it") {
		t.Errorf("dry run with a hold: exit %d\n%s", code, out)
	}
	call(t, "release", "acme")

	for text, says := range map[string]string{
		"name: x\nwavez: []\n":                            `unknown field "wavez": use one of`,
		"name: x\nwaves: [{tenants: [acme, amce]}]\n":     "no device is registered under amce",
		"name: x\nwaves: [{percent: 0.01}]\n":             "choose more percent",
		"name: x\nwaves: [{tenants: [acme]}]\nstage: x\n": "choose one of mqtt",
	} {
		bad := filepath.Join(dir, "bad.yaml")
		write(t, bad, text)
		if code, _, errs := call(t, "rollout", "start", bad); code != exitUsage || !strings.Contains(errs, says) {
			t.Errorf("%q: exit %d, want %q\n%s", text, code, says, errs)
		}
	}

	code, out, errs = call(t, "rollout", "start", plan, "--by", "ann")
	if code != exitDone || !strings.Contains(out, "canary: pending") || !strings.Contains(out, "rollout status canary --watch") {
		t.Errorf("start: exit %d\n%s%s", code, out, errs)
	}
	if code, _, errs := call(t, "rollout", "start", plan); code != exitUsage || !strings.Contains(errs, "only one may be under way") && !strings.Contains(errs, "choose another name") {
		t.Errorf("start it twice: exit %d\n%s", code, errs)
	}
	drive(t, url)
	await := func(phase string) {
		t.Helper()
		var last string
		for deadline := time.Now().Add(time.Minute); !strings.Contains(last, phase); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the rollout does not get to %s:\n%s", phase, last)
			}
			_, last, _ = call(t, "rollout", "status", "canary")
		}
	}
	await("flipping in wave 1")
	if code, out, errs := call(t, "rollout", "pause", "canary", "--by", "ann", "--reason", "lunch"); code != exitDone || !strings.Contains(out, "paused") || !strings.Contains(out, "why: by ann: lunch") {
		t.Errorf("pause: exit %d\n%s%s", code, out, errs)
	}
	if code, _, errs := call(t, "rollout", "pause", "canary"); code != exitUsage || !strings.Contains(errs, "which is paused") {
		t.Errorf("pause twice: exit %d\n%s", code, errs)
	}
	if code, out, errs := call(t, "rollout", "status", "--watch"); code != exitNo || !strings.Contains(out, "acme") || !strings.Contains(errs, "paused") {
		t.Errorf("watch: exit %d\n%s%s", code, out, errs)
	}
	if code, out, errs := call(t, "rollout", "resume", "canary"); code != exitDone || !strings.Contains(out, "running") {
		t.Errorf("resume: exit %d\n%s%s", code, out, errs)
	}
	code, out, errs = call(t, "rollout", "abort", "canary", "--rollback", "--yes", "--output", "json")
	var answer struct {
		Rollout, State, Why string
		Wave                int
		Tenants             []struct{ Tenant, State, Wish string }
		Events              []struct{ Message string }
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || code != exitDone || answer.State != "aborted" || answer.Wave != 1 || len(answer.Tenants) != 1 ||
		answer.Tenants[0].State != "returned" || answer.Tenants[0].Wish != "mqtt" {
		t.Errorf("abort: exit %d, %v\n%s%s", code, err, out, errs)
	}
	if code, out, _ := call(t, "rollout", "status"); code != exitDone || !strings.Contains(out, "canary") || !strings.Contains(out, "aborted") {
		t.Errorf("status: exit %d\n%s", code, out)
	}
	for _, args := range [][]string{{"rollout", "status", "nobody"}, {"rollout", "resume", "nobody"}, {"rollout", "status", "--watch"}, {"rollout", "status", "--interval", "1ms", "-w"}} {
		if code, _, errs := call(t, args...); code != exitUsage || errs == "" {
			t.Errorf("%v: exit %d\n%s", args, code, errs)
		}
	}
}

// drive carries rollouts out until the test ends.
func drive(t *testing.T, url string) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	o := rollout.DefaultOptions()
	o.Pool, o.Logger, o.Round = pool, slog.New(slog.DiscardHandler), 10*time.Millisecond
	go func() { ended <- rollout.Drive(ctx, o) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		pool.Close()
	})
}

// TestRollbackPausesARollout, tells so in both forms, and leaves alone a rollout that
// has not chosen the tenant.
func TestRollbackPausesARollout(tt *testing.T) {
	t := newOperatorTest(tt)
	plan := filepath.Join(t.TempDir(), "plan.yaml")
	write(tt, plan, canaryPlan)
	t.want(exitDone, "rollout start "+plan)
	t.exec(`INSERT INTO crossfade_rollout_tenants (rollout, tenant_id, wave, state, wish, before) VALUES ('canary', 'acme', 0, 'baking', 'live', 'mqtt')`)
	if code, _, errs := call(tt, "rollback", "globex", "--yes", "--no-wait"); code != exitDone || strings.Contains(errs, "rollout") {
		t.Errorf("the rollback of a tenant that is not chosen: exit %d\n%s", code, errs)
	}
	if code, out, errs := call(tt, "rollback", "acme", "--yes", "--no-wait", "--by", "ann", "--reason", "incident 7"); code != exitDone ||
		!strings.Contains(errs, "rollout canary is paused in wave 1 of 2 (by ann: rollback of acme: incident 7); once resumed it leaves these tenants alone") {
		t.Errorf("the rollback of a tenant that is: exit %d\n%s%s", code, out, errs)
	}
	t.want(exitDone, "rollout status canary", "canary: paused", "why: by ann: rollback of acme: incident 7")
	t.want(exitDone, "rollout resume canary")
	var answer struct {
		Tenants []flipped
		Rollout struct{ Rollout, State, Why string }
	}
	out := t.want(exitDone, "rollback --all --yes --no-wait --by ann --output json", "rollout canary is paused")
	if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Tenants) != 3 || answer.Rollout.Rollout != "canary" || answer.Rollout.State != "paused" || answer.Rollout.Why != "by ann: rollback of all tenants: rollback" {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestRollbackGoesAhead of a rollout whose row somebody holds: the wishes are written,
// and that the rollout goes on is an error.
func TestRollbackGoesAhead(tt *testing.T) {
	t := newOperatorTest(tt)
	plan := filepath.Join(t.TempDir(), "plan.yaml")
	write(tt, plan, canaryPlan)
	t.want(exitDone, "rollout start "+plan)
	tx, err := t.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM crossfade_rollouts FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	t.want(exitError, "rollback --all --yes --no-wait", "could not be paused", "crossfade rollout pause")
	if n := t.count(`SELECT count(*) FROM crossfade_flag_targets WHERE variant = 'mqtt'`); n != 3 {
		t.Errorf("%d tenants are brought back, want 3", n)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	t.want(exitDone, "rollback --all --yes --no-wait", "rollout canary is paused")
}

// TestRolloutAgainstAnInstance gives all orders while an instance moves the tenants, on
// real servers; without traffic no wave passes.
func TestRolloutAgainstAnInstance(tt *testing.T) {
	t := newOperatorTest(tt)
	t.run()
	plan := filepath.Join(tt.TempDir(), "plan.yaml")
	write(tt, plan, canaryPlan)
	reaches := func(says ...string) {
		t.Helper()
		var last string
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			_, last, _ = call(tt, "rollout", "status", "canary")
			if !slices.ContainsFunc(says, func(s string) bool { return !strings.Contains(last, s) }) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the rollout does not get to %q:\n%s", says, last)
			}
		}
	}
	t.want(exitDone, "rollout start "+plan)
	reaches("canary: running, judging in wave 1 of 2", "baking  live")
	t.want(exitDone, "rollout pause canary --reason lunch", "canary: paused")
	t.want(exitDone, "rollout resume canary", "canary: running")
	t.want(exitDone, "rollback acme --yes --timeout 1m", "rollout canary is paused in wave 1 of 2", "MQTT has authority for 1 of 1 tenant")
	t.want(exitDone, "rollout resume canary")
	reaches("canary: paused", "nobody is left of wave 1", "acme taken: mqtt was wished by")
	t.want(exitDone, "rollout resume canary --skip-wave")
	reaches("canary: running, baking in wave 2 of 2", "globex   2     baking  live", "initech  2     baking  live")
	t.want(exitDone, "rollout abort canary --rollback --yes", "canary: aborted", "2 tenants go back")
	reaches("globex   2     returned  mqtt", "initech  2     returned  mqtt")
	t.want(exitDone, "rollout status canary --all", "acme     1     taken     mqtt")
}
