package jetstream_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
)

func TestConfigValidate(t *testing.T) {
	if err := jetstream.DefaultConfig().Validate(); err != nil {
		t.Errorf("default: %v", err)
	}
	const secret = "s3cr3t"
	for _, c := range []struct {
		field  string // named by the error; "" if valid
		change func(*jetstream.Config)
	}{
		{"", func(c *jetstream.Config) { c.URLs = []string{"host:4222", "tls://u:" + secret + "@h:1"} }},
		{"", func(c *jetstream.Config) { c.User, c.Password = "u", secret }},
		{"URLs", func(c *jetstream.Config) { c.URLs = nil }},
		{"URLs[1]", func(c *jetstream.Config) { c.URLs = append(c.URLs, "") }},
		{"URLs[0]", func(c *jetstream.Config) { c.URLs = []string{"http://u:" + secret + "@h"} }},
		{"URLs[0]", func(c *jetstream.Config) { c.URLs = []string{"nats://u:" + secret + "%zz@h:4222"} }},
		{"URLs[0]", func(c *jetstream.Config) { c.URLs = []string{"nats://u:" + secret + "/x@h:4222"} }},
		{"URLs[0]", func(c *jetstream.Config) { c.URLs = []string{"nats://u:" + secret + "@:4222"} }},
		{"Token", func(c *jetstream.Config) { c.Token, c.User = secret, "u" }},
		{"NKeySeedFile", func(c *jetstream.Config) { c.CredentialsFile, c.NKeySeedFile = "a", "b" }},
		{"Password", func(c *jetstream.Config) { c.Password = secret }},
		{"TLSKeyFile", func(c *jetstream.Config) { c.TLSCertFile = "cert.pem" }},
		{"TLSCertFile", func(c *jetstream.Config) { c.TLSKeyFile = "key.pem" }},
	} {
		cfg := jetstream.DefaultConfig()
		c.change(&cfg)
		err := cfg.Validate()
		if c.field == "" {
			if err != nil {
				t.Errorf("valid configuration: %v", err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.field) {
			t.Errorf("error %v does not name %s", err, c.field)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("error shows the secret: %v", err)
		}
	}
}

func TestConnectNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk")
	if err := os.WriteFile(junk, []byte("no key s3cr3t"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	for field, change := range map[string]func(*jetstream.Config){
		"CredentialsFile": func(c *jetstream.Config) { c.CredentialsFile = missing },
		"NKeySeedFile":    func(c *jetstream.Config) { c.NKeySeedFile = junk },
		"TLSCAFile":       func(c *jetstream.Config) { c.TLSCAFile = junk },
		"TLSCertFile":     func(c *jetstream.Config) { c.TLSCertFile, c.TLSKeyFile = junk, junk },
	} {
		cfg := jetstream.DefaultConfig()
		change(&cfg)
		conn, err := jetstream.Connect(cfg, slog.New(slog.DiscardHandler))
		if err == nil {
			t.Errorf("%s: no error", field)
			_ = conn.Close(context.Background())
			continue
		}
		if !strings.Contains(err.Error(), field) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// A refused password is retried for ever, and neither Health nor the log shows it.
func TestWrongPasswordIsRetriedAndNotShown(t *testing.T) {
	server := devstack.TestNATS(t)
	cfg := jetstream.DefaultConfig()
	cfg.URLs = []string{"nats://crossfade:wr0ng@" + server.Address()}
	logged := &devstack.Log{}
	conn, err := jetstream.Connect(cfg, slog.New(slog.NewTextHandler(logged, nil)))
	if err != nil {
		t.Fatalf("Connect = %v, want retries", err)
	}
	devstack.Await(t, "the refusal", func() bool {
		err := conn.Health()
		return err != nil && strings.Contains(err.Error(), "uthorization")
	})
	if err := conn.Health(); strings.Contains(err.Error(), "wr0ng") || !strings.Contains(err.Error(), server.Address()) {
		t.Errorf("Health = %v", err)
	}
	if err := conn.Close(testContext(t)); err != nil {
		t.Errorf("Close = %v", err)
	}
	if text := logged.String(); strings.Contains(text, "wr0ng") {
		t.Errorf("log shows the password: %s", text)
	}
}
