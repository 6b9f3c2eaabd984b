package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/config"
)

func TestFlagProviderSettings(t *testing.T) {
	cleanEnvironment(t)
	secret := writeFile(t, "secret", "hunter2\n")
	for args, want := range map[string]string{
		"--flags-provider=flagd --flags-url=http://127.0.0.1:8013":                           "",
		"--flags-provider=ofrep --flags-url=https://flags/base --flags-token-file=" + secret: "",
		"--flags-provider=flagd-file --flags-file=" + secret:                                 "",
		"--flags-provider=flagd":                                                                          "no flag service is given",
		"--flags-provider=flagd --flags-url=grpc://f:8013":                                                "write http://host:port",
		"--flags-provider=flagd --flags-url=http://u:hunter2@f:8013":                                      "holds credentials",
		"--flags-provider=ofrep --flags-url=http://f/?token=hunter2":                                      "a query or a fragment",
		"--flags-provider=ofrep --flags-url=http://f --flags-tls-server-name=x":                           "would have no effect",
		"--flags-provider=ofrep --flags-url=https://f --flags-tls-ca=/nonexistent":                        "--flags-tls-ca",
		"--flags-provider=ofrep --flags-url=https://f --flags-token=hunter2 --flags-token-file=" + secret: "keep one of them",
		"--flags-provider=ofrep --flags-url=https://f --flags-token-file=/nonexistent":                    "cannot be read",
		"--flags-provider=flagd-file":                                                                     "name the file",
		"--flags-provider=flagd-file --flags-file=/nonexistent":                                           "cannot be read",
		"--flags-provider=flagd-file --flags-file=/dev/null":                                              "no regular file",
		"--flags-url=http://f":   "store uses no URL",
		"--flags-file=" + secret: "set --flags-provider flagd-file",
		"--flags-provider=flagd --flags-url=http://f --flags-rate=0": "out of range",
	} {
		r, _ := mustParse(t, append(append([]string{}, good...), strings.Fields(args)...)...)
		switch err := r.Validate(); {
		case want == "" && err != nil:
			t.Errorf("%s: %v", args, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2")):
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
	r, _ := mustParse(t, append(append([]string{}, good...), "--flags-provider=ofrep", "--flags-url=http://flags.example.org", "--flags-token=hunter2")...)
	if all := strings.Join(r.Warnings(), "\n"); !strings.Contains(all, "--flags-url") || strings.Contains(all, "hunter2") {
		t.Errorf("a token over the network in plain text: %s", all)
	}
}

// TestFlagSettingsFromFileAndEnvironment under the names that the others have.
func TestFlagSettingsFromFileAndEnvironment(t *testing.T) {
	cleanEnvironment(t)
	token := writeFile(t, "token", "hunter2\n")
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("flags: {provider: flagd, url: 'https://f:8013', token_file: "+token+", rate: 50, tls: {server_name: x}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CROSSFADE_FLAGS_PROVIDER", config.FlagsOFREP)
	t.Setenv("CROSSFADE_FLAGS_TLS_SERVER_NAME", "y")
	r, _ := mustParse(t, append(append([]string{}, good...), "--config="+file)...)
	f := r.Flags
	if f.Provider != "ofrep" || f.URL != "https://f:8013" || f.Rate != 50 || f.TLS.ServerName != "y" || f.TokenKind != "bearer" {
		t.Errorf("got %+v", f)
	}
	if got, err := f.ReadToken(); err != nil || got.Reveal() != "hunter2" {
		t.Errorf("token: %v", err)
	}
	if err := os.WriteFile(token, []byte("rotated\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := f.ReadToken(); err != nil || got.Reveal() != "rotated" {
		t.Errorf("the token is not read anew: %v", err)
	}
}
