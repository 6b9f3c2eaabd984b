package jetstream_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/jetstream"
)

// A user in the URL silently wins over the fields, so both together are refused.
func TestOneLoginOnly(t *testing.T) {
	for _, change := range []func(*jetstream.Config){
		func(c *jetstream.Config) { c.Token = goodPassword },
		func(c *jetstream.Config) { c.User, c.Password = "u", goodPassword },
		func(c *jetstream.Config) { c.NKeySeedFile = "seed" },
		func(c *jetstream.Config) { c.CredentialsFile = "creds" },
	} {
		cfg := jetstream.DefaultConfig()
		cfg.URLs = []string{"nats://u:" + wrongPassword + "@host"}
		change(&cfg)
		err := cfg.Validate()
		if err == nil || !strings.Contains(err.Error(), "the user in URLs") {
			t.Errorf("Validate = %v, want an error about two logins", err)
		} else if strings.Contains(err.Error(), wrongPassword) || strings.Contains(err.Error(), goodPassword) {
			t.Errorf("Validate shows a secret: %v", err)
		}
	}
}

// nats.go takes a comma for the end of a URL, and quotes the pieces in its error.
func TestCommaInThePassword(t *testing.T) {
	cfg := jetstream.DefaultConfig()
	cfg.URLs = []string{"nats://u:s3cr3t,rest@127.0.0.1:1"}
	conn, err := jetstream.Connect(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("Connect = %v", err)
	}
	if err := conn.Close(testContext(t)); err != nil {
		t.Errorf("Close = %v", err)
	}
}

func TestRedactURL(t *testing.T) {
	for raw, want := range map[string]string{
		"nats://h:1":          "nats://h:1",
		"h:1":                 "h:1",
		"nats://u:p@h:1":      "nats://***@h:1",
		"u:p@h:1":             "***@h:1",
		"nats://token@h":      "nats://***@h",
		"nats://u:p@/x@h":     "nats://***@h",
		"u:s3cr3t://x@h:4222": "***@h:4222",
	} {
		if got := jetstream.RedactURL(raw); got != want {
			t.Errorf("RedactURL(%q) = %q, want %q", raw, got, want)
		}
	}
}

// A file that holds something else must not be sent to the server as a JWT.
func TestJunkCredentials(t *testing.T) {
	_, _, seed := seedFile(t)
	for name, content := range map[string]string{"junk": "s3cr3t", "seed only": seed + "\n", "empty": ""} {
		cfg := jetstream.DefaultConfig()
		cfg.CredentialsFile = filepath.Join(t.TempDir(), "user.creds")
		must(t, os.WriteFile(cfg.CredentialsFile, []byte(content), 0o600))
		conn, err := jetstream.Connect(cfg, slog.New(slog.DiscardHandler))
		if err == nil {
			t.Errorf("%s: no error", name)
			_ = conn.Close(testContext(t))
			continue
		}
		if !strings.Contains(err.Error(), "CredentialsFile") || strings.Contains(err.Error(), "s3cr3t") || strings.Contains(err.Error(), seed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
