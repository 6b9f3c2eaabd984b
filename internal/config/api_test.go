package config_test

import (
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/internal/devstack"
)

// TestAPIListener is off unless asked for, and takes no tokens over a network that
// somebody might listen to.
func TestAPIListener(t *testing.T) {
	cleanEnvironment(t)
	dir := t.TempDir()
	authority, err := devstack.NewAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := authority.Issue(devstack.Certificate{Name: "api", Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	pair := " --api-tls-cert=" + cert + " --api-tls-key=" + key
	for args, want := range map[string]string{
		"":                                 "",
		"--api-listen=127.0.0.1:8443":      "",
		"--api-listen=localhost:0":         "",
		"--api-listen=[::1]:8443":          "",
		"--api-listen=0.0.0.0:8443" + pair: "",
		"--api-listen=0.0.0.0:8443 --api-allow-plaintext": "",
		"--api-listen=8443":                                                            "is not HOST:PORT",
		"--api-listen=127.0.0.1:https":                                                 "the port is not a number",
		"--api-listen=:8443":                                                           "set --api-tls-cert and --api-tls-key, or --api-allow-plaintext",
		"--api-listen=example.org:8443":                                                "is not loopback",
		"--api-listen=:0" + pair:                                                       "port 0",
		"--api-listen=127.0.0.1:9464":                                                  "the same as --http-listen",
		"--api-listen=:8443 --api-tls-cert=" + cert:                                    "has no key",
		"--api-listen=:8443 --api-tls-key=" + key:                                      "has no certificate",
		"--api-listen=:8443 --api-tls-cert=" + cert + " --api-tls-key=" + cert:         "certificate and key cannot be used",
		"--api-listen=127.0.0.1:8443 --api-tls-cert=/nonexistent --api-tls-key=" + key: "certificate and key cannot be used",
		"--api-listen=127.0.0.1:8443 --api-device-rate=-1":                             "choose from 0 to 1000000",
		"--api-listen=127.0.0.1:8443 --api-database-conns=1":                           "choose from 2 to 100",
	} {
		r, _ := mustParse(t, append(append([]string{}, good...), strings.Fields(args)...)...)
		err := r.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--api-")) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
		if r.API.Enabled() != strings.Contains(args, "--api-listen") {
			t.Errorf("%s: enabled %v", args, r.API.Enabled())
		}
	}
	if r, _ := mustParse(t, append(append([]string{}, good...), "--api-listen=:8443", "--api-tls-cert=/elsewhere", "--api-tls-key=/elsewhere")...); r.Validate(config.SkipFiles) != nil {
		t.Errorf("files of another host: %v", r.Validate(config.SkipFiles))
	}
	for args, want := range map[string]string{
		"--api-listen=:8443 --api-allow-plaintext": "takes tokens unencrypted",
		"--api-allow-plaintext":                    "is empty, so the other settings",
		"--api-listen=127.0.0.1:8443 --no-nats":    "answers them 503",
		"--api-listen=127.0.0.1:8443":              "",
	} {
		r, _ := mustParse(t, append(append([]string{}, good...), strings.Fields(args)...)...)
		text := strings.Join(r.Warnings(), "\n")
		if got := strings.Contains(text, "--api-listen"); got != (want != "") || !strings.Contains(text, want) {
			t.Errorf("%s: warnings %q, want %q", args, text, want)
		}
	}
}
