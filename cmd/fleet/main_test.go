package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(m)) }

// noEnvironment keeps the caller's settings out of the tests.
func noEnvironment(t *testing.T) {
	t.Helper()
	for _, name := range []string{"FLEET_BROKER", "FLEET_USER", "FLEET_PASSWORD", "DATABASE_URL"} {
		if value, ok := os.LookupEnv(name); ok {
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.Setenv(name, value); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestUsage(t *testing.T) {
	noEnvironment(t)
	existing := filepath.Join(t.TempDir(), "record.jsonl")
	if err := fleet.NewRecord(nil).Save(existing); err != nil {
		t.Fatal(err)
	}
	broker := []string{"--broker", "mqtt://127.0.0.1:1"}
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"no broker":           {nil, "--broker"},
		"unknown flag":        {append(broker, "--nonsense"), "--nonsense"},
		"bad value":           {append(broker, "--devices", "0"), "Devices"},
		"no database":         {append(broker, "--reconcile"), "--database-url"},
		"resume what":         {append(broker, "--resume"), "--record"},
		"overwrites a record": {append(broker, "--record", existing), "--resume"},
		"missing record":      {[]string{"reconcile", existing + "x", "--database-url", "postgres://127.0.0.1:1/x"}, "no such file"},
	} {
		code, out, errs := call(t, c.args...)
		if code != exitUsage || !strings.Contains(errs, c.says) || out != "" {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q; want 2 and %q", name, code, out, errs, c.says)
		}
	}
	code, out, errs := call(t, "--help")
	if code != exitClean || !strings.Contains(out, "Examples:") || errs != "" {
		t.Errorf("--help: exit code %d, stdout %q, stderr %q", code, out, errs)
	}
	if code, _, errs := call(t, "run", "--broker", "mqtt://127.0.0.1:1", "--duration", "300ms"); code != exitError || !strings.Contains(errs, "never reached") {
		t.Errorf("no broker there: exit code %d, stderr %q", code, errs)
	}
}

// A whole run with nobody behind the broker: every message is lost, and the
// exit code says so, in the run and when its record is judged later; a
// database with all rows is judged clean.
func TestRunAndReconcile(t *testing.T) {
	m := devstack.TestMosquitto(t)
	database := devstack.TestDatabase(t) // by DATABASE_URL, where it is set
	noEnvironment(t)
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TABLE telemetry (tenant_id text, device_id text, seq bigint);
		CREATE TABLE quarantine_events (tenant_id text, reason text);
		CREATE TABLE device_state (tenant_id text, device_id text, reported_version bigint);
		CREATE TABLE subscriptions (subscription_id text PRIMARY KEY, tenant_id text, subscription_type text,
			status text, device_limit int, active_device_count int, created_at timestamptz);
		CREATE TABLE device_registry (tenant_id text, device_id text, site_id text, status text,
			provision_token_hash text, subscription_id text, PRIMARY KEY (tenant_id, device_id));`)
	record := filepath.Join(t.TempDir(), "record.jsonl")
	args := []string{
		"--broker", m.URL(), "--user", m.User(), "--password", m.Password(),
		"--devices", "4", "--tenants", "2", "--rate", "0", "--shadow", "0", "--record", record,
		"--database-url", database, "--register", "--reconcile", "--patience", "0s", "--output", "json",
	}
	code, out, errs := call(t, append(args, "--messages", "25")...)
	var o outcome
	if err := json.Unmarshal([]byte(out), &o); err != nil {
		t.Fatalf("stdout is not JSON: %v: %s %s", err, out, errs)
	}
	if code != exitNotReconciled || o.Reconciliation == nil || o.Reconciliation.Lost != 100 || o.Reconciliation.LostUnrouted != 100 || *o.OK {
		t.Errorf("exit code %d, %s %s: want 3 and 100 lost for want of a subscriber", code, out, errs)
	}

	exec(`INSERT INTO telemetry SELECT tenant_id, device_id, seq FROM device_registry, generate_series(1, 25) AS seq`)
	code, out, errs = call(t, "reconcile", record, "--database-url", database)
	if code != exitClean || !strings.Contains(out, "lost 0  duplicated 0") {
		t.Errorf("exit code %d, %s %s: want 0", code, out, errs)
	}

	// Going on with the same record: only the new ones are missing.
	code, out, _ = call(t, append(args, "--messages", "30", "--resume")...)
	if err := json.Unmarshal([]byte(out), &o); err != nil {
		t.Fatal(err)
	}
	if code != exitNotReconciled || o.Reconciliation.Lost != 20 || o.Reconciliation.Stored != 100 {
		t.Errorf("exit code %d, %s: want 20 lost, 100 stored", code, out)
	}
}

// A signal ends the run like the end of --duration: politely, with code 0.
func TestSignalEndsPolitely(t *testing.T) {
	noEnvironment(t)
	m := devstack.TestMosquitto(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	code := run(ctx, []string{"--broker", m.URL(), "--user", m.User(), "--password", m.Password()}, &out, &errs)
	if code != exitClean || !strings.Contains(out.String(), "uncertain 0") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, &out, &errs)
	}
}
