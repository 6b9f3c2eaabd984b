package bridge_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/downlink"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// childEnv makes this test program a bridge of its own, to be killed: it holds
// the configuration.
const childEnv = "CROSSFADE_TEST_BRIDGE"

// childSettings is what differs between the bridges that tests start.
type childSettings struct {
	Instance     string
	Database     string
	MQTT, Mirror *legacy_mqtt.Config
	Downlink     *downlink.Options // of which Pool, Registry and Logger are the child's
	NATS         *jetstream.Config
	JetStream    *jetstream.SourceConfig
	BeatEvery    time.Duration
}

// runBridgeChild runs a bridge until SIGTERM if this process is to be one.
func runBridgeChild() {
	settings := os.Getenv(childEnv)
	if settings == "" {
		return
	}
	var k childSettings
	if err := json.Unmarshal([]byte(settings), &k); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	c := bridge.DefaultConfig(k.Database)
	c.Instance, c.MQTT, c.Mirror, c.NATS, c.JetStream = k.Instance, k.MQTT, k.Mirror, k.NATS, k.JetStream
	c.FlagBeat, c.StandbyWait, c.Control.Dwell = time.Second, 2*time.Second, 100*time.Millisecond
	c.Control.BeatEvery, c.Downlink = k.BeatEvery, k.Downlink
	c.Pipeline.Settings.RateLimit = 0 // fleets play in fast motion
	c.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	b, err := bridge.New(ctx, c)
	if err == nil {
		go func() {
			for b.Address() == "" && ctx.Err() == nil {
				continue
			}
			fmt.Println(b.Address())
		}()
		err = b.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child is a bridge in a process of its own.
type child struct {
	t       testing.TB
	cmd     *exec.Cmd
	address string
	waited  bool
}

// spawn starts a bridge process and waits until it is ready.
func (s *stack) spawn(c bridge.Config) *child {
	s.t.Helper()
	settings, err := json.Marshal(childSettings{
		Instance: c.Instance, Database: c.Store.URL, MQTT: c.MQTT, Mirror: c.Mirror, Downlink: c.Downlink,
		NATS: c.NATS, JetStream: c.JetStream, BeatEvery: c.Control.BeatEvery})
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(settings))
	cmd.Stderr = s.t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	k := &child{t: s.t, cmd: cmd}
	s.t.Cleanup(k.kill)
	buf := make([]byte, 64)
	n, err := out.Read(buf)
	if err != nil {
		s.t.Fatalf("the bridge process ended before it listened: %v", err)
	}
	k.address = strings.TrimSpace(string(buf[:n]))
	devstack.Await(s.t, "the bridge process is ready", func() bool {
		code, _ := k.get("/readyz")
		return code == http.StatusOK
	})
	return k
}

func (k *child) get(path string) (int, string) {
	res, err := http.Get("http://" + k.address + path)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	body, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(body)
}

// kill is SIGKILL; twice is fine.
func (k *child) kill() {
	if k.waited {
		return
	}
	k.waited = true
	_ = k.cmd.Process.Kill()
	_ = k.cmd.Wait()
}

// terminate is SIGTERM, and returns the exit code.
func (k *child) terminate() int {
	k.waited = true
	_ = k.cmd.Process.Signal(syscall.SIGTERM)
	_ = k.cmd.Wait()
	return k.cmd.ProcessState.ExitCode()
}

// wire is a path to a server that can be muted: what is sent towards the server
// then vanishes, while its answers still arrive and the connection stays up.
type wire struct {
	t     testing.TB
	proxy *toxiproxy.Proxy
}

// through opens a wire to a server and returns its URL by that way.
func through(t testing.TB, server string) (*wire, string) {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	api := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	w := &wire{t, toxiproxy.NewProxy(api, t.Name(), "127.0.0.1:0", u.Host)}
	if err := w.proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.proxy.Stop)
	u.Host = w.proxy.Listen
	return w, u.String()
}

func (w *wire) mute() {
	w.t.Helper()
	toxic := `{"name":"mute","type":"timeout","stream":"upstream","attributes":{"timeout":0}}`
	if _, err := w.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) unmute() {
	w.t.Helper()
	if err := w.proxy.Toxics.RemoveToxic(w.t.Context(), "mute"); err != nil {
		w.t.Fatal(err)
	}
}
