package downlink_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	ossignal "os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/downlink"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// childEnv makes this test program a sender of its own, to be killed or frozen.
const childEnv = "CROSSFADE_TEST_DOWNLINK"

type childSettings struct {
	Database, ClientID string
	MQTT               legacy_mqtt.Config
}

// runSenderChild runs a sender until SIGTERM, if this process is to be one.
func runSenderChild() {
	settings := os.Getenv(childEnv)
	if settings == "" {
		return
	}
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	var k childSettings
	fail(json.Unmarshal([]byte(settings), &k))
	ctx, stop := ossignal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pool, err := store.NewPool(ctx, storeConfig(k.Database), "crossfade")
	fail(err)
	o := downlink.DefaultOptions()
	o.Pool, o.MQTT, o.ClientID = pool, k.MQTT, k.ClientID
	o.Beat, o.Sweep, o.FirstRetry = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	o.Registry, o.Logger = prometheus.NewRegistry(), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := downlink.New(o)
	fail(err)
	s.Run(ctx)
	pool.Close()
	os.Exit(0)
}

// child is a sender in a process of its own.
type child struct {
	r     *rig
	cmd   *exec.Cmd
	ended bool
}

func (r *rig) spawn(clientID, broker string) *child {
	r.Helper()
	settings, err := json.Marshal(childSettings{r.url, clientID, r.config(broker)})
	must(r.T, err)
	k := &child{r: r, cmd: exec.Command(os.Args[0])}
	k.cmd.Env = append(os.Environ(), childEnv+"="+string(settings))
	k.cmd.Stderr = r.Output()
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(r.T, k.cmd.Start())
	r.Cleanup(k.kill)
	return k
}

func (k *child) send(s syscall.Signal) {
	k.r.Helper()
	must(k.r.T, k.cmd.Process.Signal(s))
}

// kill is SIGKILL; twice is fine.
func (k *child) kill() {
	if k.ended {
		return
	}
	k.ended = true
	_ = k.cmd.Process.Kill()
	_ = k.cmd.Wait()
}
