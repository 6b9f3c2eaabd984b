package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/crossfade-io/crossfade/internal/config"
)

// Every secret setting is given, and every way of printing the configuration is
// searched for it.
func TestSecretsAreNeverShown(t *testing.T) {
	cleanEnvironment(t)
	args := []string{"--mqtt-url=mqtt://user:hunter2@broker", "--nats-url=nats://hunter2@n,nats://a:hunter2@n,hunter2@:::", "--nats-url=%zz@hunter2", "--flags-provider=ofrep", "--flags-url=http://u:hunter2@flags"}
	secrets := 0
	for _, s := range config.Settings() {
		if s.Secret {
			secrets++
			args = append(args, "--"+s.Flag+"=hunter2 "+s.Flag)
		}
	}
	if secrets != 5 {
		t.Errorf("%d secret settings; are they all of type Secret?", secrets)
	}
	r, ctx := mustParse(t, args...)
	if !strings.HasPrefix(r.MQTT.Password.Reveal(), "hunter2") || !strings.Contains(string(r.MQTT.URL), "hunter2") {
		t.Fatal("the secrets did not arrive")
	}

	outputs := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		outputs[verb] = fmt.Sprintf(verb, *r)
		outputs[verb+" alone"] = fmt.Sprintf(verb, []any{r.MQTT.Password, &r.MQTT.Password, r.MQTT.URL, r.NATS.URLs})
	}
	var text, js bytes.Buffer
	for name, logger := range map[string]*slog.Logger{
		"slog text": slog.New(slog.NewTextHandler(&text, nil)), "slog json": slog.New(slog.NewJSONHandler(&js, nil)),
	} {
		logger.Info("m", "run", r, "value", *r, "mqtt", r.MQTT, "nats", &r.NATS, "password", r.MQTT.Password, "url", r.MQTT.URL, "redacted", r.Redacted())
		_ = name
	}
	outputs["slog text"], outputs["slog json"] = text.String(), js.String()
	check := config.NewCheck(ctx, r)
	var human, machine bytes.Buffer
	if err := check.WriteText(&human); err != nil {
		t.Fatal(err)
	}
	if err := check.WriteJSON(&machine); err != nil {
		t.Fatal(err)
	}
	outputs["check text"], outputs["check json"] = human.String(), machine.String()
	outputs["validate"], outputs["warnings"] = fmt.Sprint(r.Validate()), fmt.Sprint(r.Warnings())
	plain, err := json.Marshal(struct{ *config.Database }{&r.Database})
	if err != nil {
		t.Fatal(err)
	}
	outputs["json"] = string(plain)
	document, err := yaml.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	outputs["yaml"] = string(document)

	hex := fmt.Sprintf("%x", "hunter2")
	for name, output := range outputs {
		if output == "" {
			t.Errorf("%s: empty", name)
		}
		if strings.Contains(output, "hunter2") || strings.Contains(strings.ToLower(output), hex) {
			t.Errorf("%s shows a secret:\n%s", name, output)
		}
	}
	if !strings.Contains(human.String(), "[redacted]") {
		t.Errorf("set secrets should show that they are set:\n%s", human.String())
	}
}

func TestSecretThatLooksLikeAFlagIsNotRepeated(t *testing.T) {
	cleanEnvironment(t)
	_, _, err := parse(t, "--mqtt-password", "--hunter2")
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
	if r, _ := mustParse(t, "--mqtt-password=--hunter2"); r.MQTT.Password.Reveal() != "--hunter2" {
		t.Error("not taken")
	}
}

func TestUnsetSecretIsEmpty(t *testing.T) {
	if got := fmt.Sprintf("%v|%q|%s", config.Secret(""), config.Secret(""), config.Endpoint("nats://h:1")); got != `|""|nats://h:1` {
		t.Errorf("got %s", got)
	}
}

func TestCheckJSON(t *testing.T) {
	cleanEnvironment(t)
	r, ctx := mustParse(t, good...)
	var out bytes.Buffer
	if err := config.NewCheck(ctx, r).WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var decoded struct {
		OK       bool
		Settings []struct {
			Flag, Env, Key, Source string
			Value                  any
		}
		Problems []any
		Warnings []any
	}
	if err := json.Unmarshal(out.Bytes(), &decoded); err != nil {
		t.Fatal(err)
	}
	if !decoded.OK || len(decoded.Settings) != len(config.Settings()) || decoded.Problems == nil || decoded.Warnings == nil {
		t.Errorf("got %s", out.String())
	}
	for _, s := range decoded.Settings {
		if s.Flag == "pipeline-linger" && s.Value != "5ms" || s.Flag == "nats" && s.Value != true {
			t.Errorf("value of %s: %v", s.Flag, s.Value)
		}
	}
}
