package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/config"
)

// TestNumbers may have a fraction, in the file without quotes.
func TestNumbers(t *testing.T) {
	cleanEnvironment(t)
	for text, want := range map[string]float64{"0.5": 0.5, "7": 7, "0": 0} {
		file := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(file, []byte("pipeline: {rate_limit_rps: "+text+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, _ := mustParse(t, append(append([]string{}, good...), "--config="+file)...); r.Pipeline.RateLimitRPS != want {
			t.Errorf("%s: got %v", text, r.Pipeline.RateLimitRPS)
		}
	}
	for _, text := range []string{"'5'", "five", ".5", "1e3", "0x10", "1_000", ".nan", "[5]"} {
		file := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(file, []byte("pipeline: {rate_limit_rps: "+text+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := config.LoadFile(file); err == nil || !strings.Contains(err.Error(), "pipeline.rate_limit_rps") || !strings.Contains(err.Error(), "such as 5") {
			t.Errorf("%s: %v", text, err)
		}
	}
	r, _ := mustParse(t, append(append([]string{}, good...), "--pipeline-rate-limit-rps=NaN")...)
	if err := r.Validate(); err == nil || !strings.Contains(err.Error(), "out of range") {
		t.Errorf("NaN: %v", err)
	}
}

// TestWarningsOfTheRegistry: what lets messages in that should not come in, or parts
// the copies of one message.
func TestWarningsOfTheRegistry(t *testing.T) {
	cleanEnvironment(t)
	for flags, want := range map[string]string{
		"--pipeline-cert-auth-enabled":                               "--pipeline-cert-auth-enabled",
		"--pipeline-cert-auth-enabled --pipeline-cert-trust-topic":   "",
		"--pipeline-cert-auth-enabled --mqtt-username-property=user": "",
		"--pipeline-cert-auth-enabled --no-mqtt":                     "",
		"--pipeline-cert-trust-topic":                                "--pipeline-cert-trust-topic",
		"--pipeline-auto-provision":                                  "",
		"--pipeline-auto-provision --no-pipeline-require-token":      "--pipeline-auto-provision",
	} {
		r, _ := mustParse(t, append(append([]string{}, good...), strings.Fields(flags)...)...)
		var found []string
		for _, w := range r.Warnings() {
			if strings.HasPrefix(w, "--pipeline-cert") || strings.HasPrefix(w, "--pipeline-auto") {
				found = append(found, w)
			}
		}
		if want == "" && len(found) > 0 || want != "" && (len(found) != 1 || !strings.HasPrefix(found[0], want)) {
			t.Errorf("%s: warnings %q, want one of %q", flags, found, want)
		}
	}
}
