package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

// call runs a command as main would and returns its exit code and outputs.
func call(t testing.TB, args ...string) (code int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), args, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// database is a migrated one with a registered fleet, chosen by DATABASE_URL.
func database(t *testing.T) string {
	t.Helper()
	url := devstack.TestOwnedDatabase(t)
	t.Setenv("DATABASE_URL", url)
	if code, out, errs := call(t, "migrate"); code != exitDone || !strings.Contains(out, "applied 00001") {
		t.Fatalf("migrate: exit %d\n%s%s", code, out, errs)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := fleet.Register(t.Context(), pool, fleet.Devices(fleet.DefaultConfig())); err != nil {
		t.Fatal(err)
	}
	return url
}

func TestMigrateTwice(t *testing.T) {
	database(t)
	code, out, _ := call(t, "migrate")
	if code != exitDone || !strings.Contains(out, "up to date") {
		t.Errorf("second migrate: exit %d\n%s", code, out)
	}
	code, out, _ = call(t, "migrate", "--output", "json")
	var answer struct {
		From, To int64
		Applied  []string
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || code != exitDone || answer.From != answer.To || answer.To < 3 {
		t.Errorf("migrate --output json: exit %d, %v\n%s", code, err, out)
	}
}

func TestFlipWithoutAnInstance(t *testing.T) {
	database(t)
	code, out, errs := call(t, "flip", "acme", "jetstream", "--timeout", "200ms")
	if code != exitNo || !strings.Contains(out, "not yet") || !strings.Contains(errs, "instance running") {
		t.Errorf("flip that nobody follows: exit %d\n%s%s", code, out, errs)
	}
	code, out, _ = call(t, "status", "--output", "json")
	var answer statusAnswer
	if err := json.Unmarshal([]byte(out), &answer); err != nil || code != exitDone {
		t.Fatalf("status: exit %d, %v\n%s", code, err, out)
	}
	at := slices.IndexFunc(answer.Tenants, func(s tenantStatus) bool { return s.Tenant == "acme" })
	if at < 0 || answer.Tenants[at].Wanted != "jetstream" || answer.Tenants[at].Note != "no instance is running" {
		t.Errorf("the wish must show, and why nothing moves: %+v", answer.Tenants)
	}
	if len(answer.Tenants) != 3 {
		t.Errorf("status lists %d tenants, want all 3 with devices", len(answer.Tenants))
	}
	if code, out, _ := call(t, "flip", "acme", "mqtt", "--no-wait", "--output", "json"); code != exitDone || !strings.Contains(out, `"wished_before": "jetstream"`) {
		t.Errorf("flip --no-wait: exit %d\n%s", code, out)
	}
}

func TestFlipRefuses(t *testing.T) {
	database(t)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"flip", "acme"}, "name at least one tenant"},
		{[]string{"flip", "acme", "nats"}, "choose one of mqtt, shadow, live, jetstream"},
		{[]string{"flip", "acme", "amce", "jetstream"}, "no device is registered under amce"},
		{[]string{"flip"}, "expected"},
	} {
		code, out, errs := call(t, c.args...)
		if code != exitUsage || !strings.Contains(errs, c.says) || out != "" {
			t.Errorf("%v: exit %d, want %d and %q\n%s%s", c.args, code, exitUsage, c.says, out, errs)
		}
	}
	if code, out, errs := call(t, "flip", "amce", "mqtt", "--new", "--no-wait"); code != exitDone {
		t.Errorf("flip --new: exit %d\n%s%s", code, out, errs)
	}
}

func TestConfigCheck(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://u:hunter2@127.0.0.1/db")
	good := filepath.Join(t.TempDir(), "good.yaml")
	write(t, good, "mqtt: {url: 'mqtt://127.0.0.1:1883', password: hunter2, user: u}\nnats: {url: ['nats://127.0.0.1:4222']}\n")
	code, out, errs := call(t, "config", "check", "--config", good)
	if code != exitDone {
		t.Errorf("good configuration: exit %d\n%s%s", code, out, errs)
	}
	code, asJSON, errs2 := call(t, "config", "check", "--config", good, "--output", "json")
	if code != exitDone || !json.Valid([]byte(asJSON)) {
		t.Errorf("good configuration as JSON: exit %d\n%s", code, asJSON)
	}
	if strings.Contains(out+errs+asJSON+errs2, "hunter2") {
		t.Error("a password is shown")
	}
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	write(t, bad, "mqtt: {urll: x}\n")
	for _, command := range [][]string{{"config", "check"}, {"run"}} {
		code, out, errs := call(t, append(command, "--config", bad)...)
		if code != exitUsage || !strings.Contains(out+errs, "urll") {
			t.Errorf("%v with an unknown key: exit %d\n%s%s", command, code, out, errs)
		}
	}
	if code, out, errs := call(t, "config", "check"); code != exitUsage || errs != "" || !strings.Contains(out, "--mqtt-url") {
		t.Errorf("config check without a broker must answer once, on standard output: exit %d\n%s\nstderr: %s", code, out, errs)
	}
	if code, out, errs := call(t, "run", "--no-mqtt", "--no-nats"); code != exitUsage {
		t.Errorf("run without a source: exit %d\n%s%s", code, out, errs)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRunFlipAndHealth runs an instance on real servers and uses the other
// commands against it, as an operator would.
func TestRunFlipAndHealth(t *testing.T) {
	database(t)
	broker, nats := devstack.TestMosquitto(t), devstack.TestNATS(t)
	address := freeAddress(t)
	t.Setenv("CROSSFADE_HTTP_LISTEN", address)
	if code, _, errs := call(t, "health"); code != exitNo || !strings.Contains(errs, "no instance answers") {
		t.Errorf("health without an instance: exit %d\n%s", code, errs)
	}
	for name, value := range map[string]string{
		"CROSSFADE_MQTT_URL": broker.URL(), "CROSSFADE_MQTT_USER": broker.User(), "CROSSFADE_MQTT_PASSWORD": broker.Password(),
		"CROSSFADE_NATS_URL": "nats://" + nats.Address(), "CROSSFADE_NATS_USER": nats.User(), "CROSSFADE_NATS_PASSWORD": nats.Password(),
		"CROSSFADE_BRIDGE_INSTANCE": "here", "CROSSFADE_BRIDGE_FLAG_BEAT": "1s",
	} {
		t.Setenv(name, value)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan int, 1)
	var log bytes.Buffer
	go func() { ended <- run(ctx, []string{"run", "--mirror", "--log-level", "debug"}, &log, &log) }()
	ready := func() bool { code, _, _ := call(t, "health"); return code == exitDone }
	for deadline := time.Now().Add(time.Minute); !ready(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the instance does not get ready")
		}
	}
	if code, out, errs := call(t, "flip", "acme", "globex", "jetstream", "--reason", "wave 1"); code != exitDone || strings.Count(out, "live") != 2 {
		t.Errorf("flip: exit %d\n%s%s", code, out, errs)
	}
	_, out, _ := call(t, "status")
	for _, want := range []string{"acme", "live", "initech", "shadow", "here"} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not show %s:\n%s", want, out)
		}
	}
	if code, out, errs := call(t, "flip", "acme", "mqtt"); code != exitDone || !strings.Contains(out, "shadow") {
		t.Errorf("flip back: exit %d\n%s%s", code, out, errs)
	}
	stop()
	if code := <-ended; code != exitDone {
		t.Errorf("run exits with %d\n%s", code, log.String())
	}
	for _, secret := range []string{broker.Password(), nats.Password()} {
		if strings.Contains(log.String(), secret) {
			t.Error("the log holds a password")
		}
	}
}

func TestHelpHasExamples(t *testing.T) {
	for _, command := range []string{"run", "demo", "migrate", "status", "flip", "rollback", "hold", "release", "history", "forget", "distrust",
		"config check", "quarantine list", "quarantine show", "quarantine replay", "quarantine purge", "health", "bench"} {
		code, out, errs := call(t, append(strings.Fields(command), "--help")...)
		if code != exitDone || !strings.Contains(out, "crossfade "+command) || !strings.Contains(out, "Examples:") {
			t.Errorf("%s --help: exit %d, wants examples\n%s%s", command, code, out, errs)
		}
	}
}
