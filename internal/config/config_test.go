package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cleanEnvironment takes away what the developer's shell may have set.
func cleanEnvironment(t *testing.T) {
	t.Helper()
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, "CROSSFADE_") || strings.HasPrefix(name, "PG") || name == "DATABASE_URL" {
			t.Setenv(name, "") // restores it afterwards
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

type program struct {
	Run struct {
		Config config.Run `embed:""`
	} `cmd:""`
	Status struct {
		Common   config.Common   `embed:""`
		Database config.Database `embed:""`
	} `cmd:""`
	Bare struct{} `cmd:""` // takes no configuration
}

// parse runs the command line of a program like cmd/crossfade.
func parse(t *testing.T, args ...string) (*config.Run, *kong.Context, error) {
	t.Helper()
	var cli program
	parser, err := kong.New(&cli, append(config.Options(), kong.Exit(func(int) { t.Fatal("exit") }))...)
	if err != nil {
		t.Fatal(err)
	}
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		args = append([]string{"run"}, args...)
	}
	ctx, err := parser.Parse(args)
	return &cli.Run.Config, ctx, err
}

func mustParse(t *testing.T, args ...string) (*config.Run, *kong.Context) {
	t.Helper()
	r, ctx, err := parse(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return r, ctx
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// good is a command line that Validate accepts.
var good = []string{
	"--database-url=postgres://u:p@db/x", "--mqtt-url=mqtts://broker:8883",
	"--nats-url=tls://nats:4222", "--bridge-instance=a",
}

func TestPrecedence(t *testing.T) {
	cleanEnvironment(t)
	file := writeFile(t, "c.yaml", "pipeline:\n  workers: 5\n  batch_size: 50\n  linger: 50ms\nmqtt:\n  enabled: false\n  filters: ['a/#', 'b,c']\nnats:\n  url: [nats://f:1]\nlog: {level: warn}\n")
	t.Setenv("CROSSFADE_CONFIG", file)
	t.Setenv("CROSSFADE_PIPELINE_WORKERS", "6")
	t.Setenv("CROSSFADE_PIPELINE_BATCH_SIZE", "60")
	t.Setenv("CROSSFADE_NATS_URL", "nats://e:1,nats://e:2")
	t.Setenv("DATABASE_URL", "postgres://second")
	r, ctx := mustParse(t, "--pipeline-workers=7")

	for name, pair := range map[string][2]any{
		"flag over env and file":       {r.Pipeline.Workers, 7},
		"env over file":                {r.Pipeline.BatchSize, 60},
		"file over default":            {r.Pipeline.Linger, 50 * time.Millisecond},
		"a bool of the file":           {r.MQTT.Enabled, false},
		"an enum of the file":          {r.Common.LogLevel, "warn"},
		"default":                      {r.Bridge.StandbyBuffer, 8000},
		"second name in the env":       {r.Database.URL.Reveal(), "postgres://second"},
		"a list of the file, verbatim": {fmt.Sprint(r.MQTT.Filters), "[a/# b,c]"},
		"a list of the env":            {fmt.Sprint(r.NATS.URLs), "[nats://e:1 nats://e:2]"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %v, want %v", name, pair[0], pair[1])
		}
	}

	sources := map[string]string{}
	for _, e := range config.NewCheck(ctx, r).Settings {
		sources[e.Flag] = string(e.Source) + " " + e.Origin
	}
	for flag, want := range map[string]string{
		"pipeline-workers":    "flag ",
		"pipeline-batch-size": "env CROSSFADE_PIPELINE_BATCH_SIZE",
		"pipeline-linger":     "file " + file + ":4",
		"nats-window":         "default ",
		"database-url":        "env DATABASE_URL",
	} {
		if sources[flag] != want {
			t.Errorf("source of --%s: got %q, want %q", flag, sources[flag], want)
		}
	}
}

func TestFirstDatabaseVariableWins(t *testing.T) {
	cleanEnvironment(t)
	t.Setenv("CROSSFADE_DATABASE_URL", "postgres://first")
	t.Setenv("DATABASE_URL", "postgres://second")
	if r, _ := mustParse(t); r.Database.URL.Reveal() != "postgres://first" {
		t.Errorf("got %s", r.Database.URL.Reveal())
	}
}

func TestDefaultsAreGood(t *testing.T) {
	cleanEnvironment(t)
	r, ctx := mustParse(t, good...)
	if err := r.Validate(); err != nil {
		t.Error(err)
	}
	if w := r.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	check := config.NewCheck(ctx, r)
	if !check.OK || check.Err() != nil {
		t.Errorf("check: %+v", check.Problems)
	}
	if r.MQTT.ClientID != "crossfade-a" || r.Mirror.ClientID != "crossfade-mirror-a" {
		t.Errorf("client IDs %q, %q", r.MQTT.ClientID, r.Mirror.ClientID)
	}
}

func TestInstanceDefaultsToHostname(t *testing.T) {
	cleanEnvironment(t)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := mustParse(t); r.Bridge.Instance != host || r.MQTT.ClientID != "crossfade-"+host {
		t.Errorf("instance %q, client ID %q", r.Bridge.Instance, r.MQTT.ClientID)
	}
}

func TestEmptyVariableOfAPathIsNoPath(t *testing.T) {
	cleanEnvironment(t)
	t.Setenv("CROSSFADE_MQTT_PASSWORD_FILE", "")
	t.Setenv("CROSSFADE_CONFIG", "")
	if r, _ := mustParse(t); r.MQTT.PasswordFile != "" {
		t.Errorf("password file %q", r.MQTT.PasswordFile)
	}
}

func TestNegatedFlag(t *testing.T) {
	cleanEnvironment(t)
	t.Setenv("CROSSFADE_MIRROR_ENABLED", "true")
	if r, _ := mustParse(t, "--no-mqtt", "--no-mirror"); r.MQTT.Enabled || r.Mirror.Enabled || !r.NATS.Enabled {
		t.Errorf("mqtt %v, mirror %v, nats %v", r.MQTT.Enabled, r.Mirror.Enabled, r.NATS.Enabled)
	}
}

// One file serves every command: keys that this command does not have are fine,
// and as closely looked at.
func TestFileOfAnotherCommand(t *testing.T) {
	cleanEnvironment(t)
	file := writeFile(t, "c.yaml", "mqtt: {url: mqtt://x}\ndatabase: {max_conns: 7}\n")
	_, ctx := mustParse(t, "status", "--config", file)
	if got := ctx.Selected().Target.FieldByName("Database").Interface().(config.Database).MaxConns; got != 7 {
		t.Errorf("max conns %d", got)
	}
	_, _, err := parse(t, "status", "--config", writeFile(t, "d.yaml", "mqtt: {keepalive: 5}\n"))
	if err == nil || !strings.Contains(err.Error(), "mqtt.keepalive") {
		t.Errorf("got %v", err)
	}
}

func TestFileRefused(t *testing.T) {
	cleanEnvironment(t)
	for name, c := range map[string]struct {
		content string
		want    []string
	}{
		"unknown key":               {"mqtt:\n  clientid: x\n", []string{`c.yaml:2: "mqtt.clientid"`, "unknown key", "did you mean mqtt.client_id?"}},
		"unknown section":           {"pipelines: {workers: 1}\n", []string{`c.yaml:1: "pipelines"`, "did you mean pipeline?"}},
		"unknown, like nothing":     {"zzzzzzzzzzzzzzzzzz: 1\n", []string{`"zzzzzzzzzzzzzzzzzz"`, "docs/configuration.md"}},
		"key of nested section":     {"nats: {tls: {sa: x}}\n", []string{`"nats.tls.sa"`, "did you mean nats.tls.ca?"}},
		"hyphen for underscore":     {"pipeline: {batch-size: 1}\n", []string{"did you mean pipeline.batch_size?"}},
		"config in the file":        {"config: x\n", []string{`"config"`, "unknown key"}},
		"merge key":                 {"log: &l {level: warn}\nmqtt:\n  <<: *l\n", []string{`"mqtt.<<"`}},
		"text for number":           {"pipeline: {workers: two}\n", []string{"pipeline.workers", "whole number", "such as 2"}},
		"quoted number":             {"pipeline: {workers: '2'}\n", []string{"without quotes"}},
		"fraction":                  {"pipeline: {workers: 1.5}\n", []string{"whole number"}},
		"octal":                     {"pipeline: {workers: 010}\n", []string{"plain decimal digits"}},
		"huge number":               {"pipeline: {workers: 99999999999999999999}\n", []string{"pipeline.workers"}},
		"number for duration":       {"mqtt: {keepalive: 30}\n", []string{"mqtt.keepalive", "number and a unit", "such as 30s"}},
		"word for bool":             {"mirror: {enabled: yes please}\n", []string{"mirror.enabled", "true or false"}},
		"number for text":           {"mqtt: {password: 424242}\n", []string{"mqtt.password", "put the value in quotes"}},
		"text for list":             {"nats: {url: nats://x}\n", []string{"nats.url", "list"}},
		"number in list":            {"mqtt: {filters: [1]}\n", []string{"mqtt.filters", "list"}},
		"list for text":             {"mqtt: {url: [a]}\n", []string{"mqtt.url", "text"}},
		"mapping for duration":      {"mqtt: {keepalive: {a: b}}\n", []string{"mqtt.keepalive"}},
		"word not in the enum":      {"log: {level: loud}\n", []string{"log.level", "debug, info, warn, error"}},
		"no value":                  {"mqtt: {url: }\n", []string{"mqtt.url", "has no value"}},
		"section is a scalar":       {"mqtt: true\n", []string{"mqtt", "must be a mapping"}},
		"root is a list":            {"- a\n", []string{"file", "must be a mapping"}},
		"twice":                     {"log:\n  level: warn\n  level: info\n", []string{"c.yaml:3: log.level", "given twice"}},
		"two documents":             {"log: {level: warn}\n---\nlog: {level: info}\n", []string{"more than one YAML document"}},
		"no YAML":                   {"a: b: c\n", []string{"c.yaml:1", "not valid YAML"}},
		"several at once":           {"x: 1\npipeline: {workers: a, linger: 3}\n", []string{"(3 to mend)", `"x"`, "pipeline.workers", "pipeline.linger"}},
		"larger than any config":    {strings.Repeat("#", 1<<20+1), []string{"larger than 1 MiB"}},
		"password that is an alias": {"mqtt: {password: *hunter2}\n", []string{"not valid YAML", "single quotes"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := parse(t, "--config", writeFile(t, "c.yaml", c.content))
			var bad *config.Error
			if !errors.As(err, &bad) {
				t.Fatalf("got %v, want *config.Error", err)
			}
			if bad.ExitCode() != 2 {
				t.Errorf("exit code %d", bad.ExitCode())
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in:\n%v", want, err)
				}
			}
			for _, secret := range []string{"hunter2", "424242"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error repeats the secret: %v", err)
				}
			}
			check := config.FailedCheck(err)
			if check.OK || len(check.Problems) != len(bad.Problems) {
				t.Errorf("check: %+v", check)
			}
		})
	}
}

func TestFileAccepted(t *testing.T) {
	cleanEnvironment(t)
	for name, content := range map[string]string{
		"empty":            "",
		"comments":         "# nothing\n",
		"empty section":    "mqtt:\n  # url: x\n",
		"alias of section": "mqtt:\n  tls: &t {ca: /x}\nnats:\n  tls: *t\n",
	} {
		if _, _, err := parse(t, "--config", writeFile(t, "c.yaml", content)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMissingFile(t *testing.T) {
	cleanEnvironment(t)
	_, _, err := parse(t, "--config", "/nonexistent/c.yaml")
	if err == nil || !strings.Contains(err.Error(), "--config, CROSSFADE_CONFIG") || !strings.Contains(err.Error(), "/nonexistent/c.yaml") {
		t.Errorf("got %v", err)
	}
}

func TestBadVariableNamesItself(t *testing.T) {
	cleanEnvironment(t)
	t.Setenv("CROSSFADE_PIPELINE_WORKERS", "many")
	for _, args := range [][]string{nil, {"--config", writeFile(t, "c.yaml", "pipeline: {workers: 3}\n")}} {
		_, _, err := parse(t, args...)
		if err == nil || !strings.Contains(err.Error(), "CROSSFADE_PIPELINE_WORKERS") || !strings.Contains(err.Error(), "--pipeline-workers") {
			t.Errorf("%q: got %v", args, err)
		}
	}
}

func FuzzLoadFile(f *testing.F) {
	f.Add("mqtt: {url: a}\n")
	f.Add("a: &a [*a]\n")
	f.Add("mqtt: &m {tls: *m}\n")
	f.Fuzz(func(t *testing.T, content string) {
		path := writeFile(t, "c.yaml", content)
		if _, err := config.LoadFile(path); err != nil {
			var bad *config.Error
			if !errors.As(err, &bad) || len(bad.Problems) == 0 {
				t.Errorf("got %v", err)
			}
		}
	})
}

// kong visits the flags of all commands that have a value from the environment. A
// file that cannot be read concerns only commands that have --config.
func TestFileIsReadOnlyForCommandsThatTakeIt(t *testing.T) {
	cleanEnvironment(t)
	t.Setenv("CROSSFADE_CONFIG", "/nonexistent/c.yaml")
	t.Setenv("DATABASE_URL", "postgres://x")
	if _, _, err := parse(t, "bare"); err != nil {
		t.Errorf("a command without --config: %v", err)
	}
	for _, command := range []string{"status", "run"} {
		if _, _, err := parse(t, command); err == nil || !strings.Contains(err.Error(), "CROSSFADE_CONFIG") {
			t.Errorf("%s: got %v", command, err)
		}
	}
}
