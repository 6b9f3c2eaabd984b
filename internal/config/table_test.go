package config_test

import (
	"os"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/config"
)

func TestDocumentationIsUpToDate(t *testing.T) {
	content, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(content) != config.Table() {
		t.Error("docs/configuration.md is out of date: run go generate ./internal/config")
	}
}

// The three names of a setting follow from one another, so that who knows one
// knows all.
func TestNamesFollowFromOneAnother(t *testing.T) {
	for _, s := range config.Settings() {
		if s.Help == "" || !strings.HasSuffix(s.Help, ".") && !strings.HasSuffix(s.Help, "…") {
			t.Errorf("--%s: help %q is no sentence", s.Flag, s.Help)
		}
		if s.Group == "" {
			t.Errorf("--%s has no group", s.Flag)
		}
		if s.Flag == "config" {
			continue
		}
		env := "CROSSFADE_" + strings.ToUpper(strings.ReplaceAll(s.Key, ".", "_"))
		if s.Key == "" || s.Env[0] != env {
			t.Errorf("--%s: key %q, environment %q, want %q", s.Flag, s.Key, s.Env, env)
		}
		flag := strings.NewReplacer(".", "-", "_", "-").Replace(strings.TrimSuffix(s.Key, ".enabled"))
		if flag != s.Flag {
			t.Errorf("--%s: key %q", s.Flag, s.Key)
		}
	}
}
