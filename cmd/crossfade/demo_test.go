package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// demoPlace prepares the environment: no settings of the caller's, a PostgreSQL that
// the tests share, and a directory of its own for what the demo leaves behind. It
// returns that directory and the shared PostgreSQL.
func demoPlace(t *testing.T) (dir, admin string) {
	t.Helper()
	admin = devstack.TestDatabase(t)
	// Below /tmp, not below t.TempDir, whose parents are closed to the OS user
	// postgres.
	dir, err := os.MkdirTemp("", "demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	t.Setenv("DATABASE_URL", admin)
	t.Setenv(beCrossfade, "1")
	// Settings for another installation must not reach this one.
	t.Setenv("CROSSFADE_MQTT_URL", "mqtt://192.0.2.1:1883")
	t.Setenv("CROSSFADE_BRIDGE_DEFAULT_STAGE", "jetstream")
	return dir, admin
}

// nothingLeft fails the test if the demo left processes, files or a database.
func nothingLeft(t *testing.T, dir, admin string) {
	t.Helper()
	if left := processesBelow(t, dir); len(left) > 0 {
		t.Errorf("still running: %s", left)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Errorf("left behind: %s", f.Name())
	}
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var databases []string
	if err := conn.QueryRow(t.Context(), `SELECT array_agg(datname::text) FROM pg_database WHERE datname LIKE $1`,
		fmt.Sprintf("crossfade_demo_%d_%%", os.Getpid())).Scan(&databases); err != nil {
		t.Fatal(err)
	}
	if len(databases) > 0 {
		t.Errorf("databases left behind: %s", databases)
	}
}

// processesBelow lists the running processes that have TMPDIR=dir in their
// environment or dir on their command line, apart from this one.
func processesBelow(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Readlink("/proc/self")
	if err != nil {
		t.Skip("no /proc")
	}
	var found []string
	for _, p := range all {
		environ, err := os.ReadFile(p + "/environ")
		command, err2 := os.ReadFile(p + "/cmdline")
		if err != nil || err2 != nil || filepath.Base(p) == self {
			continue // gone, or another user's
		}
		if bytes.Contains(environ, []byte("TMPDIR="+dir)) || bytes.Contains(command, []byte(dir)) {
			found = append(found, filepath.Base(p)+" "+strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return found
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

func TestDemoEndsWithNothingLostOrDoubled(t *testing.T) {
	dir, admin := demoPlace(t)
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"demo", "--duration", "8s", "--rate", "300", "--devices", "12"}, &out, &errs)
	if code != exitDone {
		t.Fatalf("exit code %d\n%s\n%s", code, &errs, &out)
	}
	if line := lastLine(out.String()); !strings.HasSuffix(line, "  lost 0  duplicated 0") || strings.Contains(line, "sent 0 ") {
		t.Errorf("the last line is %q", line)
	}
	for _, want := range []string{"Flip acme to jetstream", "Flip globex to jetstream", "Flip initech to jetstream",
		"Stage live after", "Roll acme back to mqtt", "Stage shadow after", "written/s mqtt"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the story lacks %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "\x1b") || strings.Contains(out.String(), "\r") {
		t.Errorf("control characters, though this is no terminal: %q", &out)
	}
	nothingLeft(t, dir, admin)
}

func TestDemoSurvivesChaos(t *testing.T) {
	dir, admin := demoPlace(t)
	var out bytes.Buffer
	var report *demoReport
	d := newDemo(demoCommand{Duration: 8 * time.Second, Rate: 300, Devices: 12, Tenants: 3, Chaos: true}, newDemoScreen(&out, true))
	d.redelivery = 0 // a minute is too long for a test; bridge tests late copies
	d.show = func(r *demoReport) error { report = r; r.writeText(d.screen); return nil }
	if err := d.run(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if report.Kills != 3 || len(report.Flips) != 4 || !report.Flips[1].Killed || !report.Flips[3].Killed {
		t.Errorf("kills %d, flips %+v", report.Kills, report.Flips)
	}
	if !report.OK || report.Effective["mqtt"] == 0 || report.Effective["jetstream"] == 0 {
		t.Errorf("report: %+v", report)
	}
	if !strings.Contains(out.String(), "kill -9") || !strings.Contains(out.String(), "\r\x1b[K") {
		t.Errorf("the story of a terminal:\n%q", &out)
	}
	nothingLeft(t, dir, admin)
}

// TestDemoVerdictFails spoils the database behind the demo's back.
func TestDemoVerdictFails(t *testing.T) {
	for name, c := range map[string]struct {
		spoil            string
		lost, duplicated int64
	}{
		"a row deleted": {`DELETE FROM telemetry WHERE (tenant_id, device_id, seq) =
			(SELECT tenant_id, device_id, seq FROM telemetry LIMIT 1)`, 1, 0},
		"a row doubled": {`INSERT INTO telemetry SELECT * FROM telemetry LIMIT 1`, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir, admin := demoPlace(t)
			var out, errs, verdict bytes.Buffer
			d := newDemo(demoCommand{Duration: 2 * time.Second, Rate: 300, Devices: 5, Tenants: 1}, newDemoScreen(&out, false))
			d.patience = time.Second
			d.show = func(r *demoReport) error { return r.writeJSON(&verdict) }
			d.beforeVerdict = func(ctx context.Context, pool *pgxpool.Pool) error {
				tag, err := pool.Exec(ctx, c.spoil)
				if err == nil && tag.RowsAffected() != 1 {
					t.Errorf("%d rows were spoilt", tag.RowsAffected())
				}
				return err
			}
			if code := exitCode(d.run(t.Context()), &errs); code != exitNo {
				t.Errorf("exit code %d\n%s", code, &errs)
			}
			if errs.Len() > 0 {
				t.Errorf("the verdict says it all, but: %s", &errs)
			}
			var report demoReport
			if err := json.Unmarshal(verdict.Bytes(), &report); err != nil {
				t.Fatalf("%v\n%s", err, &verdict)
			}
			if report.OK || report.Lost != c.lost || report.Duplicated != c.duplicated {
				t.Errorf("lost %d duplicated %d ok %v", report.Lost, report.Duplicated, report.OK)
			}
			nothingLeft(t, dir, admin)
		})
	}
}

// TestDemoInterrupted: a signal ends it early, with a verdict and no remains. The
// verdict is JSON and alone on standard output.
func TestDemoInterrupted(t *testing.T) {
	dir, admin := demoPlace(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var out bytes.Buffer
	story := &interrupter{word: "Stage live", interrupt: interrupt}
	code := run(ctx, []string{"demo", "--duration", "20s", "--rate", "300", "--devices", "4", "--tenants", "2", "--keep", "--output", "json"}, &out, story)
	if code != exitDone {
		t.Errorf("exit code %d\n%s", code, &story.text)
	}
	var report demoReport
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if !report.OK || !report.Interrupted || report.Sent == 0 || report.Seconds > 19 {
		t.Errorf("report: %+v", report)
	}
	nothingLeft(t, dir, admin)
}

// interrupter interrupts when a word is written.
type interrupter struct {
	text      bytes.Buffer
	word      string
	interrupt func()
}

func (w *interrupter) Write(p []byte) (int, error) {
	n, err := w.text.Write(p)
	if bytes.Contains(w.text.Bytes(), []byte(w.word)) {
		w.interrupt()
	}
	return n, err
}

// TestDemoReportsADeadChild: crossfade run ending by itself is an error that shows
// the end of its log, and nothing stays behind.
func TestDemoReportsADeadChild(t *testing.T) {
	dir, admin := demoPlace(t)
	var out bytes.Buffer
	d := newDemo(demoCommand{Duration: time.Minute, Rate: 50, Devices: 2, Tenants: 1}, newDemoScreen(&out, false))
	d.show = func(*demoReport) error { return errors.New("there is no verdict to be shown") }
	d.begun = func(s *demoStack) {
		// As an operator's `kill` would: the demo does not expect it.
		if err := s.child.process().cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
	}
	err := d.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "ended by itself: signal: killed") || !strings.Contains(err.Error(), "end of its log") {
		t.Errorf("error: %v", err)
	}
	nothingLeft(t, dir, admin)
}

// TestDemoFailsHalfWay: what was started before the failure is stopped again.
func TestDemoFailsHalfWay(t *testing.T) {
	dir, admin := demoPlace(t)
	t.Setenv(beCrossfade, "broken")
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"demo", "--devices", "3"}, &out, &errs)
	if code != exitError || !strings.Contains(errs.String(), "crossfade run ended by itself: exit status 1") || !strings.Contains(errs.String(), "broken on purpose") {
		t.Errorf("exit code %d\n%s", code, &errs)
	}
	nothingLeft(t, dir, admin)
}

func TestDemoRefusesBadFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--duration 4s", "--duration is 4s: choose 5s to 24h"},
		{"--duration 25h", "--duration is 25h0m0s: choose 5s to 24h"},
		{"--rate 0", "--rate is 0: choose 1 to 100000"},
		{"--devices 0", "--devices is 0"},
		{"--tenants 0", "--tenants is 0"},
		{"--tenants 7 --devices 6", "--tenants is 7: choose at most as many as --devices (6)"},
		{"--output xml", "must be one of"},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), append([]string{"demo"}, strings.Fields(c.args)...), &out, &errs); code != exitUsage || !strings.Contains(errs.String(), c.want) {
			t.Errorf("demo %s: exit code %d, %s", c.args, code, &errs)
		}
	}
}
