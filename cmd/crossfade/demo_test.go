package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/demo"
	"github.com/crossfade-io/crossfade/internal/devstack"
)

// onWord does something when a word is written, before the writer goes on.
type onWord struct {
	text bytes.Buffer
	word string
	do   func()
}

func (w *onWord) Write(p []byte) (int, error) {
	n, err := w.text.Write(p)
	if w.do != nil && bytes.Contains(w.text.Bytes(), []byte(w.word)) {
		w.do()
		w.do = nil
	}
	return n, err
}

// forDemo has the demo start this program as crossfade run, and make its database
// beside the one returned.
func forDemo(t *testing.T) (admin string) {
	t.Helper()
	admin = devstack.TestDatabase(t)
	t.Setenv("DATABASE_URL", admin)
	t.Setenv(beCrossfade, "1")
	return admin
}

// TestDemoInterrupted: a signal ends it early, with a verdict, and without waiting
// for another one though --keep is given. The verdict is JSON and alone on standard output.
func TestDemoInterrupted(t *testing.T) {
	forDemo(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var out bytes.Buffer
	story := &onWord{word: "Stage live", do: interrupt}
	code := run(ctx, []string{"demo", "--duration", "1h", "--rate", "300", "--devices", "4", "--tenants", "2", "--keep", "--output", "json"}, &out, story)
	if code != exitDone {
		t.Errorf("exit code %d\n%s", code, &story.text)
	}
	var report demo.Report
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if !report.OK || !report.Interrupted || report.Sent == 0 || report.Seconds > 1800 {
		t.Errorf("report: %+v", report)
	}
}

// TestDemoSaysNo: with a row doubled behind its back the exit code is 3, and the
// verdict in text says why.
func TestDemoSaysNo(t *testing.T) {
	admin := forDemo(t)
	var errs bytes.Buffer
	out := &onWord{word: "The devices stop", do: func() { doubleARow(t, admin) }}
	code := run(t.Context(), []string{"demo", "--duration", "5s", "--rate", "300", "--devices", "4"}, out, &errs)
	if code != exitNo || !strings.HasSuffix(out.text.String(), "lost 0  duplicated 1\n") {
		t.Errorf("exit code %d\n%s\n%s", code, &out.text, &errs)
	}
}

func doubleARow(t *testing.T, admin string) {
	ctx := t.Context()
	config, err := pgx.ParseConfig(admin)
	if err != nil {
		t.Error(err)
		return
	}
	look, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Error(err)
		return
	}
	defer look.Close(ctx)
	pattern := fmt.Sprintf("crossfade_demo_%d_%%", os.Getpid())
	if err := look.QueryRow(ctx, `SELECT datname FROM pg_database WHERE datname LIKE $1`, pattern).Scan(&config.Database); err != nil {
		t.Error(err)
		return
	}
	spoil, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Error(err)
		return
	}
	defer spoil.Close(ctx)
	if _, err := spoil.Exec(ctx, `INSERT INTO telemetry SELECT * FROM telemetry LIMIT 1`); err != nil {
		t.Error(err)
	}
}

func TestDemoRefusesBadFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--duration 4s", "--duration is 4s: choose 5s to 24h"},
		{"--duration 25h", "--duration is 25h0m0s: choose 5s to 24h"},
		{"--rate 0", "--rate is 0: choose 1 to 100000"},
		{"--devices 0", "--devices is 0"},
		{"--tenants 0", "--tenants is 0"},
		{"--tenants 7 --devices 6", "--tenants is 7: choose at most as many as devices (6)"},
		{"--output xml", "must be one of"},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), append([]string{"demo"}, strings.Fields(c.args)...), &out, &errs); code != exitUsage || !strings.Contains(errs.String(), c.want) {
			t.Errorf("demo %s: exit code %d, %s", c.args, code, &errs)
		}
	}
}

// TestConfigurationIsNotOfTheDemo: CROSSFADE_CONFIG in the user's environment is no
// reason to fail for commands that take no configuration.
func TestConfigurationIsNotOfTheDemo(t *testing.T) {
	t.Setenv("CROSSFADE_CONFIG", "/nonexistent/crossfade.yaml")
	if code, _, errs := call(t, "version"); code != exitDone {
		t.Errorf("version: exit code %d\n%s", code, errs)
	}
	if code, _, errs := call(t, "demo", "--rate", "0"); code != exitUsage || strings.Contains(errs, "CROSSFADE_CONFIG") || !strings.Contains(errs, "--rate") {
		t.Errorf("demo: exit code %d\n%s", code, errs)
	}
	if code, _, errs := call(t, "run"); code != exitUsage || !strings.Contains(errs, "CROSSFADE_CONFIG") {
		t.Errorf("run: exit code %d\n%s", code, errs)
	}
}
