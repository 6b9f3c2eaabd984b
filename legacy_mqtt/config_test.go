package legacy_mqtt

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

func goodConfig() Config {
	c := DefaultConfig()
	c.URL = "mqtt://localhost:1883"
	c.ClientID = "crossfade-1"
	return c
}

func TestValidate(t *testing.T) {
	if err := goodConfig().Validate(); err != nil {
		t.Fatalf("the default with URL and ClientID: %v", err)
	}
	cases := []struct {
		name  string
		spoil func(*Config)
		want  []string // in the error; none: valid
	}{
		{"no URL", func(c *Config) { c.URL = "" }, []string{"URL", "mqtt://"}},
		{"unreadable URL", func(c *Config) { c.URL = "mqtt://u:secret@h:port" }, []string{"URL"}},
		{"scheme", func(c *Config) { c.URL = "http://h" }, []string{"URL", "mqtts"}},
		{"no scheme", func(c *Config) { c.URL = "//h" }, []string{"URL", "mqtts"}},
		{"no host", func(c *Config) { c.URL = "mqtt://:1883" }, []string{"URL", "host"}},
		{"credentials in URL", func(c *Config) { c.URL = "mqtt://u:secret@h" }, []string{"URL", "Password"}},
		{"WebSocket", func(c *Config) { c.URL = "wss://h/mqtt" }, nil},
		{"no client ID", func(c *Config) { c.ClientID = "" }, []string{"ClientID"}},
		{"password alone", func(c *Config) { c.Password = "secret" }, []string{"Password", "Username"}},
		{"TLS on a plain URL", func(c *Config) { c.TLS.ServerName = "h" }, []string{"TLS", "mqtts"}},
		{"CA file missing", func(c *Config) { c.URL = "mqtts://h"; c.TLS.CAFile = "/nowhere" }, []string{"TLS", "CAFile", "/nowhere"}},
		{"certificate without key", func(c *Config) { c.URL = "mqtts://h"; c.TLS.CertFile = "c.pem" }, []string{"TLS", "KeyFile"}},
		{"group", func(c *Config) { c.Group = "a/b" }, []string{"Group"}},
		{"good group", func(c *Config) { c.Group = "ingest" }, nil},
		{"no filters", func(c *Config) { c.Filters = nil }, []string{"Filters"}},
		{"empty filter", func(c *Config) { c.Filters = []string{""} }, []string{"Filters", "empty"}},
		{"share in filter", func(c *Config) { c.Filters = []string{"$share/g/a"} }, []string{"Filters", "Group"}},
		{"# in the middle", func(c *Config) { c.Filters = []string{"a/#/b"} }, []string{"Filters", "#"}},
		{"half a level of #", func(c *Config) { c.Filters = []string{"a#"} }, []string{"Filters", "#"}},
		{"half a level of +", func(c *Config) { c.Filters = []string{"a+/b"} }, []string{"Filters", "+"}},
		{"# alone", func(c *Config) { c.Filters = []string{"#"} }, nil},
		{"window 0", func(c *Config) { c.Window = 0 }, []string{"Window", "65535"}},
		{"window 65536", func(c *Config) { c.Window = 65536 }, []string{"Window", "65535"}},
		{"window 65535", func(c *Config) { c.Window = 65535 }, nil},
		{"hard limit below window", func(c *Config) { c.HardLimit = 100 }, []string{"HardLimit", "Window"}},
		{"hard limit at window", func(c *Config) { c.HardLimit = c.Window }, nil},
		{"no session", func(c *Config) { c.SessionExpiry = 0 }, []string{"SessionExpiry"}},
		{"session of split seconds", func(c *Config) { c.SessionExpiry = 1500 * time.Millisecond }, []string{"SessionExpiry", "whole seconds"}},
		{"session of 200 years", func(c *Config) { c.SessionExpiry = 200 * 365 * 24 * time.Hour }, []string{"SessionExpiry"}},
		{"keep-alive off", func(c *Config) { c.KeepAlive = 0 }, []string{"KeepAlive"}},
		{"keep-alive of a day", func(c *Config) { c.KeepAlive = 24 * time.Hour }, []string{"KeepAlive"}},
		{"connect time-out", func(c *Config) { c.ConnectTimeout = 0 }, []string{"ConnectTimeout"}},
		{"backoff above the ceiling", func(c *Config) { c.MaxBackoff = time.Minute }, []string{"MaxBackoff", "30s"}},
		{"backoff upside down", func(c *Config) { c.MinBackoff = 31 * time.Second }, []string{"MinBackoff"}},
		{"release delay", func(c *Config) { c.ReleaseDelay = -1 }, []string{"ReleaseDelay"}},
		{"several", func(c *Config) { c.URL = ""; c.Window = 0 }, []string{"URL", "Window"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c := goodConfig()
			tc.spoil(&c)
			err := c.Validate()
			if len(tc.want) == 0 {
				if err != nil {
					t.Fatalf("Validate = %v, want nil", err)
				}
				return
			}
			if err == nil {
				t.Fatal("Validate = nil")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not mention %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("%q holds a password", err)
			}
			if _, err := New(c); err == nil {
				t.Error("New takes what Validate refuses")
			}
		})
	}
}

func TestTopics(t *testing.T) {
	c := goodConfig()
	if got := c.topics()[0]; got != "tenant/+/device/+/+" {
		t.Errorf("without a group: %s", got)
	}
	c.Group = "ingest"
	if got := c.topics()[0]; got != "$share/ingest/tenant/+/device/+/+" {
		t.Errorf("with a group: %s", got)
	}
}

// TestEverySessionTakesSentinels: by its filters, or by a subscription of its own
// that is not shared.
func TestEverySessionTakesSentinels(t *testing.T) {
	narrow := []string{"tenant/t1/device/+/telemetry"}
	for _, c := range []struct {
		group   string
		filters []string
		own     bool
	}{
		{"", defaultFilters, false},
		{"", append(slices.Clone(narrow), defaultFilters...), false},
		{"", narrow, true},
		{"ingest", defaultFilters, true},
	} {
		cfg := goodConfig()
		cfg.Group, cfg.Filters = c.group, c.filters
		topics := cfg.topics()
		if own := slices.Contains(topics, pipeline.SentinelFilter); own != c.own || len(topics) < len(c.filters) {
			t.Errorf("group %q, filters %q: subscribed to %q", c.group, c.filters, topics)
		}
	}
}

func TestExposesPassword(t *testing.T) {
	for raw, want := range map[string]bool{
		"mqtt://localhost": false, "mqtt://127.0.0.1:1883": false, "mqtt://[::1]": false,
		"mqtts://broker.example": false, "wss://broker.example/mqtt": false,
		"mqtt://broker.example": true, "ws://10.0.0.7/mqtt": true,
	} {
		c := goodConfig()
		c.URL, c.Username, c.Password = raw, "u", "p"
		s, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.exposesPassword(s.link.broker); got != want {
			t.Errorf("%s: %v, want %v", raw, got, want)
		}
		c.Password = ""
		if c.exposesPassword(s.link.broker) {
			t.Errorf("%s: no password to expose", raw)
		}
	}
}
