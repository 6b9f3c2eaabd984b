package config_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/crossfade-io/crossfade/internal/config"
)

const root = "../.."

// loadCompose reads docker-compose.yml as docker does, on a host that sets nothing.
func loadCompose(t *testing.T) *types.Project {
	t.Helper()
	dir, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	project, err := loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  dir,
		ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(dir, "docker-compose.yml")}},
		Environment: types.Mapping{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// oneShot services end by themselves: nothing waits for their health.
var oneShot = []string{"migrate"}

func TestComposeServices(t *testing.T) {
	project := loadCompose(t)
	for _, name := range []string{"mosquitto", "nats", "postgres", "migrate", "bridge"} {
		if _, ok := project.Services[name]; !ok {
			t.Errorf("no service %s", name)
		}
	}
	for name, service := range project.Services {
		if !slices.Contains(oneShot, name) && (service.HealthCheck == nil || service.HealthCheck.Disable || len(service.HealthCheck.Test) < 2) {
			t.Errorf("%s has no health check", name)
		}
		if service.Build == nil {
			tag := service.Image[strings.LastIndex(service.Image, ":")+1:]
			if !strings.ContainsAny(tag, "0123456789") || strings.Count(tag, ".") < 1 {
				t.Errorf("%s: image %s is not pinned to a version", name, service.Image)
			}
		}
		for _, port := range service.Ports {
			if addr, err := netip.ParseAddr(port.HostIP); err != nil || !addr.IsLoopback() {
				t.Errorf("%s publishes %s on %q, not on loopback", name, port.Published, port.HostIP)
			}
		}
		for _, mount := range service.Volumes {
			if mount.Type != types.VolumeTypeVolume || mount.Source == "" {
				t.Errorf("%s: %s is not a named volume", name, mount.Target)
			}
		}
	}
}

// Whoever needs a service waits until it works, and whoever needs a one-shot
// until it succeeded.
func TestComposeDependencies(t *testing.T) {
	project := loadCompose(t)
	for name, service := range project.Services {
		for other, dependency := range service.DependsOn {
			want := types.ServiceConditionHealthy
			if slices.Contains(oneShot, other) {
				want = types.ServiceConditionCompletedSuccessfully
			}
			if dependency.Condition != want || !dependency.Required {
				t.Errorf("%s depends on %s with %q, want %q", name, other, dependency.Condition, want)
			}
		}
	}
	for _, other := range []string{"mosquitto", "nats", "postgres", "migrate"} {
		if _, ok := project.Services["bridge"].DependsOn[other]; !ok {
			t.Errorf("the bridge does not wait for %s", other)
		}
	}
	if _, ok := project.Services["migrate"].DependsOn["postgres"]; !ok {
		t.Error("migrate does not wait for postgres")
	}
}

// Every variable of ours that a service sets is one that the program reads.
func TestComposeEnvironmentIsKnown(t *testing.T) {
	seen := 0
	for name, service := range loadCompose(t).Services {
		for variable, value := range service.Environment {
			if value == nil {
				t.Errorf("%s takes %s from the host, where it may be missing", name, variable)
				continue
			}
			if strings.HasPrefix(variable, "CROSSFADE_") || variable == "DATABASE_URL" {
				seen++
			}
			for _, unknown := range config.UnknownEnvironment([]string{variable + "=" + *value}) {
				t.Errorf("%s: %s", name, unknown)
			}
		}
	}
	if seen < 10 {
		t.Errorf("saw only %d variables", seen)
	}
}

// The bridge's own environment and command line make a configuration that
// Validate accepts; every file that they name is one that compose provides.
func TestComposeBridgeConfiguration(t *testing.T) {
	cleanEnvironment(t)
	project := loadCompose(t)
	bridge := project.Services["bridge"]
	setEnvironment(t, bridge)
	r, ctx := mustParse(t, bridge.Command[1:]...)
	if bridge.Command[0] != "run" || !r.Mirror.Enabled {
		t.Errorf("command %q: not run with a mirror", bridge.Command)
	}
	check := config.NewCheck(ctx, r, config.SkipFiles)
	for _, p := range check.Problems {
		t.Error(p)
	}
	for _, e := range check.Settings {
		if path, ok := e.Value.(string); ok && strings.HasPrefix(path, "/run/") {
			secretProvided(t, project, bridge, path)
		}
	}
	if grace := time.Duration(*bridge.StopGracePeriod); grace <= r.Bridge.ShutdownTimeout {
		t.Errorf("stop_grace_period %s does not outlast the shutdown timeout %s", grace, r.Bridge.ShutdownTimeout)
	}
	for _, host := range []string{hostOf(string(r.MQTT.URL)), hostOf(string(r.NATS.URLs[0]))} {
		if _, ok := project.Services[host]; !ok {
			t.Errorf("no service is called %s", host)
		}
	}
	_, port, _ := strings.Cut(r.HTTP.Listen, ":")
	if bridge.Ports[0].Published != port {
		t.Errorf("published %s, listens on %s", bridge.Ports[0].Published, port)
	}
}

func TestComposeMigrateConfiguration(t *testing.T) {
	cleanEnvironment(t)
	project := loadCompose(t)
	migrate := project.Services["migrate"]
	setEnvironment(t, migrate)
	r, _ := mustParse(t)
	if err := r.Database.Validate(config.SkipFiles); err != nil {
		t.Error(err)
	}
	secretProvided(t, project, migrate, r.Database.URLFile)
}

func setEnvironment(t *testing.T, service types.ServiceConfig) {
	t.Helper()
	for variable, value := range service.Environment {
		t.Setenv(variable, *value)
	}
}

// secretProvided checks that a path in the container is a secret of the service,
// and that its development default is there to be read.
func secretProvided(t *testing.T, project *types.Project, service types.ServiceConfig, path string) {
	t.Helper()
	name := filepath.Base(path)
	if path != "/run/secrets/"+name || !slices.ContainsFunc(service.Secrets, func(s types.ServiceSecretConfig) bool { return s.Source == name }) {
		t.Errorf("%s: %s is no secret of the service", service.Name, path)
		return
	}
	content, err := os.ReadFile(project.Secrets[name].File)
	if err != nil || !strings.Contains(string(content), "development-only") {
		t.Errorf("the default of %s should say that it is for development only: %v", name, err)
	}
}

// No secret stands where `docker inspect` or a process list shows it.
func TestComposeKeepsSecretsInFiles(t *testing.T) {
	project := loadCompose(t)
	secretFlags := []string{}
	secretVariables := []string{"POSTGRES_PASSWORD"}
	for _, s := range config.Settings() {
		if s.Secret {
			secretFlags = append(secretFlags, "--"+s.Flag)
			secretVariables = append(secretVariables, s.Env...)
		}
	}
	for name, service := range project.Services {
		words := slices.Concat([]string(service.Command), []string(service.Entrypoint))
		if service.HealthCheck != nil {
			words = append(words, service.HealthCheck.Test...)
		}
		for _, word := range words {
			flag, _, _ := strings.Cut(word, "=")
			if slices.Contains(secretFlags, flag) || strings.Contains(word, "development-only") {
				t.Errorf("%s has a secret on a command line: %s", name, flag)
			}
		}
		for variable, value := range service.Environment {
			if slices.Contains(secretVariables, variable) || strings.Contains(*value, "development-only") {
				t.Errorf("%s has a secret in %s; use a secret file", name, variable)
			}
		}
	}
}

func hostOf(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	host, _, _ := strings.Cut(rest, ":")
	return host
}

func TestComposeNATSConfiguration(t *testing.T) {
	t.Setenv("NATS_PASSWORD", `"00123"`) // as the service's command quotes it
	options, err := server.ProcessConfigFile(filepath.Join(root, "docs/compose/nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if !options.JetStream || options.StoreDir != "/data" || options.Username != "crossfade" || options.Password != "00123" {
		t.Errorf("JetStream %v in %q, user %q", options.JetStream, options.StoreDir, options.Username)
	}
	if options.HTTPHost != "127.0.0.1" || options.HTTPPort != 8222 {
		t.Errorf("monitoring on %s:%d", options.HTTPHost, options.HTTPPort)
	}
}

// The image is built from named directories: a new one must be named there too.
func TestDockerfileCopiesEveryPackage(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IsDir() && holdsGo(t, filepath.Join(root, entry.Name())) &&
			!strings.Contains(string(content), "COPY "+entry.Name()+" "+entry.Name()+"\n") {
			t.Errorf("the Dockerfile does not copy %s", entry.Name())
		}
	}
	for _, line := range []string{"USER 65532:65532", "CGO_ENABLED=0", `ENTRYPOINT ["/crossfade"]`} {
		if !strings.Contains(string(content), line) {
			t.Errorf("the Dockerfile has no %s", line)
		}
	}
}

func holdsGo(t *testing.T, dir string) bool {
	t.Helper()
	if strings.HasPrefix(filepath.Base(dir), ".") {
		return false
	}
	found := errors.New("found")
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			return found
		}
		return nil // a file that another test has just removed is none of ours
	})
	return errors.Is(err, found)
}
