package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

func TestQuarantineReplay(tt *testing.T) {
	t := newQuarantineTest(tt)
	t.fill(1000)
	t.register()
	type answer struct {
		DryRun   bool `json:"dry_run"`
		Messages int
		Outcomes []outcomeJSON
	}
	replay := func(code int, args ...string) (a answer) {
		got, out, errs := call(t, append([]string{"quarantine", "replay", "--output", "json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &a); err != nil || got != code {
			t.Errorf("%v: exit %d, want %d (%v)\n%s%s", args, got, code, err, out, errs)
		}
		return a
	}
	want := []outcomeJSON{{"written", "", 900}, {"quarantined", pipeline.UnregisteredDevice, 100}}
	if a := replay(exitNo, "--dry-run"); !a.DryRun || a.Messages != 1000 || !slices.Equal(a.Outcomes, want) {
		t.Errorf("dry run: %+v", a)
	}
	for _, only := range [][]string{{"--tenant", "t0", "--device", "d2"}, {"--reason", "TOKEN_INVALID"}} {
		if a := replay(exitDone, append(only, "--dry-run")...); !slices.Equal(a.Outcomes, []outcomeJSON{{"written", "", 100}}) {
			t.Errorf("%v: %+v", only, a)
		}
	}
	t.wantCount(1000, `SELECT count(*) FROM quarantine_events`)
	if a := replay(exitNo, "--yes"); a.DryRun || a.Messages != 1000 || !slices.Equal(a.Outcomes, want) {
		t.Errorf("replay: %+v", a)
	}
	t.wantCount(900, `SELECT count(*) FROM telemetry`)
	t.exec(`INSERT INTO app_settings VALUES ('MAX_PAYLOAD_BYTES', '64')`)
	if a := replay(exitNo, "--yes"); !slices.Equal(a.Outcomes, []outcomeJSON{{"quarantined", pipeline.PayloadTooLarge, 100}}) {
		t.Errorf("with app_settings: %+v", a)
	}
	t.exec(`UPDATE app_settings SET value = 'rubbish'; INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd4', 's1')`)
	_, out, _ := call(t, "quarantine", "replay", "--yes", "--each", "--output", "json", "--tenant", "t1", "--id", "9", "--id", "8")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 2 || !strings.Contains(lines[0], `"id":9`) ||
		!strings.Contains(lines[0], `"outcome":"written"`) || !strings.Contains(lines[0], `"reason_before":"PAYLOAD_TOO_LARGE"`) || !json.Valid([]byte(lines[1])) {
		t.Errorf("each:\n%s", out)
	}
	if out := t.ok("replay", "--yes", "19", "29"); !strings.Contains(out, "19: written\n29: written\n") {
		t.Errorf("by IDs:\n%s", out)
	}
	if a := replay(exitDone, "--yes"); !slices.Equal(a.Outcomes, []outcomeJSON{{"written", "", 97}}) {
		t.Errorf("the rest: %+v", a)
	}
	t.wantCount(1000, `SELECT count(DISTINCT seq) FROM telemetry`)
}

// TestQuarantineReplayKilled: a replay that is killed, at any point and in the middle of
// the effects and of the quarantine's change, loses and doubles nothing; nor do two at once.
func TestQuarantineReplayKilled(tt *testing.T) {
	t := newQuarantineTest(tt)
	const n = 6000
	t.fill(n)
	t.register()
	t.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd4', 's1')`)
	t.exec(`CREATE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN OLD; END';
	 CREATE TRIGGER halt BEFORE DELETE ON quarantine_events FOR EACH ROW EXECUTE FUNCTION halt()`)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, halt := range []string{``, `LOCK TABLE device_state IN EXCLUSIVE MODE`, `SELECT pg_advisory_xact_lock(1)`} {
		block, err := t.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := block.Exec(t.Context(), halt); err != nil {
			t.Fatal(err)
		}
		child := exec.Command(program, "quarantine", "replay", "--yes")
		child.Env = append(os.Environ(), beCrossfade+"=1")
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		there := `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`
		if halt == "" {
			there = `SELECT count(*) / 1000 FROM telemetry`
		}
		for deadline := time.Now().Add(time.Minute); t.count(there) == 0 && time.Now().Before(deadline); {
			continue
		}
		_ = child.Process.Kill()
		_ = child.Wait()
		_ = block.Rollback(t.Context())
		if ws, ok := child.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
			t.Errorf("the replay ended before it was killed: %v", child.ProcessState)
		}
	}
	other := exec.Command(program, "quarantine", "replay", "--yes")
	other.Env = append(os.Environ(), beCrossfade+"=1")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.ok("replay", "--yes")
	if err := other.Wait(); err != nil {
		t.Errorf("the other replay: %v", err)
	}
	t.wantCount(0, `SELECT count(*) FROM quarantine_events`)
	t.wantCount(n, `SELECT count(*) FROM telemetry`)
	t.wantCount(n, `SELECT count(DISTINCT seq) FROM telemetry`)
}

// TestQuarantineReplayInterrupted: ^C ends a replay, even while it waits for another's
// lock; it says how far it came, and the next one does the rest.
func TestQuarantineReplayInterrupted(tt *testing.T) {
	t := newQuarantineTest(tt)
	t.fill(1000)
	t.register()
	t.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd4', 's1')`)
	tx, err := t.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM quarantine_events WHERE id = 900 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), program, "quarantine", "replay", "--yes", "--output", "json")
	child.Env = append(os.Environ(), beCrossfade+"=1")
	var out, errs bytes.Buffer
	child.Stdout, child.Stderr = &out, &errs
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for t.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 0 && time.Now().Before(deadline) {
		continue
	}
	_ = child.Process.Signal(os.Interrupt)
	_ = child.Wait()
	if code := child.ProcessState.ExitCode(); code != exitError || !strings.Contains(errs.String(), "stopped after 500 of 1000 messages; run it again") {
		t.Errorf("interrupted: exit %d\n%s", code, &errs)
	}
	var answer struct{ Messages int }
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil || answer.Messages != 500 {
		t.Errorf("interrupted: %v\n%s", err, &out)
	}
	t.wantCount(500, `SELECT count(*) FROM telemetry`)
	t.wantCount(500, `SELECT count(*) FROM quarantine_events`)
	_ = tx.Rollback(t.Context())
	t.ok("replay", "--yes")
	t.wantCount(1000, `SELECT count(DISTINCT seq) FROM telemetry`)
}
