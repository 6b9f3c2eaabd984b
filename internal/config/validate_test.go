package config_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/config"
)

// TestValidateLines shows every line that Validate can say: good settings with
// one thing changed give that line, with all names of the setting, and no other.
func TestValidateLines(t *testing.T) {
	cleanEnvironment(t)
	secret := writeFile(t, "secret", "hunter2\n")
	empty := writeFile(t, "empty", "\n")
	large := writeFile(t, "large", strings.Repeat("x", 64<<10+1))
	badURL := writeFile(t, "url", "mysql://hunter2\n")
	for _, c := range []struct {
		args       string // added to the good ones; the last of a flag counts
		flag, want string
	}{
		{"--no-mqtt --no-nats", "mqtt", "neither MQTT nor NATS is enabled"},
		{"--mirror --no-nats", "mirror", "NATS is not enabled"},
		{"--mirror --mirror-client-id=c --mqtt-client-id=c", "mirror-client-id", "the same as --mqtt-client-id"},
		{"--mirror --mirror-group=g --mqtt-group=g", "mirror-group", "the same as --mqtt-group"},
		{"--mirror --mirror-group=a/b", "mirror-group", "leave out /, + and #"},
		{"--pipeline-ledger-retention=2h", "pipeline-ledger-retention", "2h0m0s is shorter than --mqtt-session-expiry (24h0m0s)"},
		{"--pipeline-telemetry-retention=30s", "pipeline-telemetry-retention", "set 1h or more"},
		{"--pipeline-telemetry-retention=-1h", "pipeline-telemetry-retention", "choose from 0s to 876000h"},
		{"--pipeline-quarantine-retention=59m", "pipeline-quarantine-retention", "set 1h or more"},
		{"--pipeline-quarantine-retention=876001h", "pipeline-quarantine-retention", "out of range"},
		{"--bridge-instance=a/b", "bridge-instance", "does not fit"},
		{"--database-url=", "database-url", "no database is given"},
		{"--database-url=mysql://hunter2", "database-url", "neither a URL nor"},
		{"--database-url-file=" + secret, "database-url-file", "set together with --database-url"},
		{"--database-url= --database-url-file=/nonexistent", "database-url-file", "cannot be read"},
		{"--database-url= --database-url-file=" + badURL, "database-url-file", "neither a URL nor"},
		{"--database-lock-timeout=30s", "database-lock-timeout", "30s is not below --database-statement-timeout (30s)"},
		{"--database-statement-timeout=4s", "database-lock-timeout", "5s is not below --database-statement-timeout (4s)"},
		{"--stages-dwell=-1s", "stages-dwell", "choose from 0s to 24h"},
		{"--stages-lease-ttl=900ms", "stages-lease-ttl", "choose from 1s to 5m"},
		{"--stages-beat-every=99ms", "stages-beat-every", "set 100ms or more"},
		{"--stages-beat-rate=0", "stages-beat-rate", "choose from 1 to 10000"},
		{"--stages-missing=0s", "stages-missing", "choose from 1s to 1h"},
		{"--http-listen=9464", "http-listen", "is not HOST:PORT"},
		{"--http-listen=127.0.0.1:http", "http-listen", "the port is not a number"},
		{"--http-listen=:9464", "http-listen", "is not loopback"},
		{"--http-listen=0.0.0.0:9464", "http-listen", "--http-allow-remote"},
		{"--http-listen=example.org:9464", "http-listen", "is not loopback"},
		{"--http-listen=0.0.0.0:0 --http-allow-remote", "http-listen", "port 0"},
		{"--mqtt-url=", "mqtt-url", "no broker is given"},
		{"--mqtt-url=broker:1883", "mqtt-url", "is not a URL with a host"},
		{"--mqtt-url=mqtt://:1883", "mqtt-url", "names no host"},
		{"--mqtt-url=http://broker", "mqtt-url", `scheme "http" is not supported`},
		{"--mqtt-url=mqtts://u:hunter2@broker", "mqtt-url", "holds credentials"},
		{"--mqtt-url=mqtts://broker/path", "mqtt-url", "more than scheme, host and port"},
		{"--mqtt-url=mqtt://broker --mqtt-tls-server-name=x", "mqtt-url", "would have no effect"},
		{"--mqtt-client-id=\x00", "mqtt-client-id", "not an ID that MQTT can carry"},
		{"--mqtt-group=a+", "mqtt-group", "leave out /, + and #"},
		{"--mqtt-password=hunter2", "mqtt-user", "is empty, but a password is given"},
		{"--mqtt-user=u --mqtt-password=hunter2 --mqtt-password-file=" + secret, "mqtt-password-file", "together with --mqtt-password"},
		{"--mqtt-user=u --mqtt-password-file=" + empty, "mqtt-password-file", "is empty"},
		{"--mqtt-user=u --mqtt-password-file=" + large, "mqtt-password-file", "larger than 64 KiB"},
		{"--mqtt-session-expiry=1500ms", "mqtt-session-expiry", ""}, // out of range as well
		{"--mqtt-session-expiry=90500ms", "mqtt-session-expiry", "not whole seconds"},
		{"--mqtt-keepalive=5500ms", "mqtt-keepalive", "not whole seconds"},
		{"--mqtt-filters=", "mqtt-filters", "nothing would be received"},
		{"--mqtt-filters=a/#/b", "mqtt-filters", "not the whole last level"},
		{"--mqtt-filters=a#", "mqtt-filters", "not the whole last level"},
		{"--mqtt-filters=a+/b", "mqtt-filters", "not a whole level"},
		{"--mqtt-filters=$share/g/a", "mqtt-filters", "the group belongs in --mqtt-group"},
		{"--mqtt-filters=a,a", "mqtt-filters", "is given twice"},
		{"--mqtt-filters=a\x00", "mqtt-filters", "not text that MQTT can carry"},
		{"--mqtt-username-property=\x00", "mqtt-username-property", "not a name that MQTT can carry"},
		{"--mqtt-tls-cert=/c", "mqtt-tls-cert", "has no key"},
		{"--mqtt-tls-key=/k", "mqtt-tls-key", "has no certificate"},
		{"--mqtt-tls-cert=/c --mqtt-tls-key=/k", "mqtt-tls-cert", "cannot be used"},
		{"--mqtt-tls-ca=/nonexistent", "mqtt-tls-ca", "cannot be read"},
		{"--mqtt-tls-ca=" + secret, "mqtt-tls-ca", "no certificate in PEM form"},
		{"--nats-tls-cert=/c", "nats-tls-cert", "--nats-tls-key"},
		{"--nats-url=", "nats-url", "no server is given"},
		{"--nats-url=nats://hunter2@n", "nats-url", "holds credentials"},
		{"--nats-token=hunter2 --nats-user=u --nats-password=hunter2", "nats-token", "together with --nats-user"},
		{"--nats-token=hunter2 --nats-token-file=" + secret, "nats-token-file", "together with --nats-token"},
		{"--nats-user=u", "nats-user", "has no password"},
		{"--nats-password=hunter2", "nats-user", "is empty, but a password is given"},
		{"--nats-credentials-file=/nonexistent", "nats-credentials-file", "cannot be read"},
		{"--nats-nkey-seed-file=/nonexistent", "nats-nkey-seed-file", "cannot be read"},
		{"--nats-token-file=/nonexistent", "nats-token-file", "cannot be read"},
	} {
		t.Run(c.args, func(t *testing.T) {
			args := append([]string{}, good...)
			for _, arg := range strings.Fields(c.args) {
				name, _, _ := strings.Cut(arg, "=")
				for i, g := range args { // lists add up otherwise
					if strings.HasPrefix(g, name+"=") {
						args = append(args[:i], args[i+1:]...)
						break
					}
				}
				args = append(args, arg)
			}
			r, ctx := mustParse(t, args...)
			problems := config.NewCheck(ctx, r).Problems
			if len(problems) == 0 || (len(problems) > 1 && c.want != "") {
				t.Fatalf("want one problem, got %v", problems)
			}
			line := problems[0].String()
			if !strings.Contains(line, c.want) {
				t.Errorf("no %q in %q", c.want, line)
			}
			for _, s := range config.Settings() {
				if s.Flag == c.flag && !strings.HasPrefix(line, fmt.Sprintf("--%s, %s, %s: ", s.Flag, s.Env[0], s.Key)) {
					t.Errorf("not named in full: %q", line)
				}
			}
			if problems[0].Remedy == "" || strings.Contains(line, "hunter2") {
				t.Errorf("no remedy, or a secret: %q", line)
			}
		})
	}
}

// Each end of each range is allowed, and what lies beyond is not.
func TestRanges(t *testing.T) {
	cleanEnvironment(t)
	checked := 0
	for _, s := range config.Settings() {
		numeric := s.Kind == config.KindInt || s.Kind == config.KindNumber || s.Kind == config.KindDuration
		if numeric != (s.Range != "") {
			t.Errorf("--%s is a %s with range %q", s.Flag, s.Kind, s.Range)
		}
		low, high, ok := strings.Cut(s.Range, "..")
		if !ok {
			continue
		}
		checked++
		beyond := map[string]bool{low: true, high: true, s.Default: true, "-1": false, "999999999": false}
		if s.Kind == config.KindDuration {
			beyond = map[string]bool{low: true, high: true, s.Default: true, "-1ns": false, "2500000h": false}
		}
		for value, allowed := range beyond {
			r, _ := mustParse(t, append(append([]string{}, good...), "--"+s.Flag+"="+value)...)
			refused := false
			var bad *config.Error
			if errors.As(r.Validate(), &bad) {
				for _, p := range bad.Problems {
					refused = refused || strings.HasPrefix(p.Setting, "--"+s.Flag+",") && strings.Contains(p.Wrong, "out of range")
				}
			}
			if refused == allowed {
				t.Errorf("--%s=%s: refused %v", s.Flag, value, refused)
			}
		}
	}
	if checked < 15 {
		t.Errorf("only %d ranges", checked)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	cleanEnvironment(t)
	r, _ := mustParse(t, "--mqtt-group=a/b", "--pipeline-workers=0", "--http-listen=x")
	err := r.Validate()
	for _, want := range []string{"--database-url", "--mqtt-url", "--nats-url", "--mqtt-group", "--pipeline-workers", "--http-listen", "(6 to mend)"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}

func TestWordsAreHeldAgainstTheirEnum(t *testing.T) {
	cleanEnvironment(t)
	r, _ := mustParse(t, good...)
	r.Bridge.DefaultStage = "both"
	if err := r.Validate(); err == nil || !strings.Contains(err.Error(), "mqtt, shadow, live, jetstream") {
		t.Errorf("got %v", err)
	}
	if _, _, err := parse(t, "--bridge-default-stage=both"); err == nil {
		t.Error("kong took it")
	}
}

func TestUnusedSourceIsNotChecked(t *testing.T) {
	cleanEnvironment(t)
	for _, args := range [][]string{
		{"--no-mqtt", "--nats-url=nats://x", "--database-url=host=x", "--bridge-instance=a"},
		{"--no-nats", "--mqtt-url=mqtt://x", "--database-url=postgresql://x,y/z", "--bridge-instance=a"},
	} {
		r, _ := mustParse(t, args...)
		if err := r.Validate(); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
	r, _ := mustParse(t, "--no-mqtt", "--mirror", "--nats-url=nats://x", "--database-url=host=x", "--bridge-instance=a")
	if err := r.Validate(); err == nil || !strings.Contains(err.Error(), "--mqtt-url") {
		t.Errorf("the mirror needs a broker: %v", err)
	}
}

func TestLibpqVariablesAreADatabase(t *testing.T) {
	cleanEnvironment(t)
	t.Setenv("PGHOST", "db")
	d := config.Database{}
	r, _ := mustParse(t)
	d = r.Database
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	if s, err := d.ConnString(); err != nil || s != "" {
		t.Errorf("%v, %v", s, err)
	}
}

func TestSkipFiles(t *testing.T) {
	cleanEnvironment(t)
	r, _ := mustParse(t, "--database-url-file=/run/secrets/u", "--mqtt-url=mqtts://b", "--mqtt-user=u", "--bridge-instance=a",
		"--mqtt-password-file=/run/secrets/p", "--mqtt-tls-ca=/run/ca", "--nats-url=nats://n", "--nats-credentials-file=/run/creds")
	if err := r.Validate(config.SkipFiles); err != nil {
		t.Error(err)
	}
	if r.Validate() == nil {
		t.Error("missing files not noticed")
	}
}

func TestSecretFiles(t *testing.T) {
	path := writeFile(t, "s", "pass word \r\n")
	m := config.MQTT{Password: "ignored", PasswordFile: path}
	if s, err := m.ReadPassword(); err != nil || s.Reveal() != "pass word " {
		t.Errorf("%q, %v", s.Reveal(), err)
	}
	if err := os.WriteFile(path, []byte("rotated\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := m.ReadPassword(); err != nil || s.Reveal() != "rotated\n" {
		t.Errorf("%q, %v", s.Reveal(), err)
	}
	n := config.NATS{Token: "t", PasswordFile: "/nonexistent/x"}
	if s, err := n.ReadToken(); err != nil || s.Reveal() != "t" {
		t.Errorf("%q, %v", s.Reveal(), err)
	}
	if _, err := n.ReadPassword(); err == nil || !strings.Contains(err.Error(), "--nats-password-file") {
		t.Errorf("got %v", err)
	}
}

func TestWarnings(t *testing.T) {
	cleanEnvironment(t)
	for args, want := range map[string]string{
		"--mqtt-url=mqtt://broker --mqtt-user=u --mqtt-password=hunter2":    "unencrypted to broker",
		"--mqtt-url=mqtt://127.0.0.1 --mqtt-user=u --mqtt-password=hunter2": "command line", // but no word on encryption
		"--nats-url=nats://n --nats-user=u --nats-password=hunter2":         "unencrypted to n",
		"--nats-replicas=2":                       "even",
		"--nats-window=7999":                      "less than batch size × workers (8000)",
		"--mqtt-receive-maximum=7999":             "less than batch size × workers (8000)",
		"--database-max-conns=3":                  "use at least 4",
		"--mirror --mqtt-group=g":                 "every one mirrors every message",
		"--http-listen=:9464 --http-allow-remote": "without a password",
		"--no-pipeline-require-token":             "whoever may publish",
		"--stages-dwell=0s":                       "may come after the sentinel and be dropped",
	} {
		var base []string
		for _, g := range good {
			name, _, _ := strings.Cut(g, "=")
			if !strings.Contains(args, name+"=") {
				base = append(base, g)
			}
		}
		r, ctx := mustParse(t, append(base, strings.Fields(args)...)...)
		check := config.NewCheck(ctx, r)
		text := strings.Join(check.Warnings, "\n")
		if !check.OK || !strings.Contains(text, want) || strings.Contains(text, "hunter2") {
			t.Errorf("%s: ok %v, warnings:\n%s\n%v", args, check.OK, text, check.Problems)
		}
		if strings.Contains(args, "127.0.0.1") && strings.Contains(text, "unencrypted") {
			t.Errorf("warned of loopback: %s", text)
		}
	}
}

func TestUnknownEnvironment(t *testing.T) {
	got := config.UnknownEnvironment([]string{"CROSSFADE_MQTT_PASWORD=hunter2", "CROSSFADE_MQTT_URL=x", "PATH=/", "CROSSFADE_TLS_MQTT_XYZZY_PLUGH=1"})
	if len(got) != 2 || !strings.Contains(got[0], "did you mean CROSSFADE_MQTT_PASSWORD?") || strings.Contains(fmt.Sprint(got), "hunter2") {
		t.Errorf("got %q", got)
	}
}

func TestLocalURL(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.1:9464": "http://127.0.0.1:9464/readyz",
		"0.0.0.0:9464":   "http://127.0.0.1:9464/readyz",
		":9464":          "http://127.0.0.1:9464/readyz",
		"[::]:9464":      "http://[::1]:9464/readyz",
		"localhost:1":    "http://localhost:1/readyz",
	} {
		if got := (config.HTTP{Listen: listen}).LocalURL("/readyz"); got != want {
			t.Errorf("%s: %s, want %s", listen, got, want)
		}
	}
}
