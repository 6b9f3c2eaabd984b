package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	ossignal "os/signal"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// childEnv makes this test program an instance of its own, to be killed or frozen.
const childEnv = "CROSSFADE_TEST_CONTROL"

type childSettings struct{ Database, Instance, Wish string }

// runChild runs an instance until it is killed, if this process is to be one. It says
// once a millisecond whether it may drop copies of tenant "t", by what stage.
func runChild() {
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
	ctx, stop := stopped()
	defer stop()
	pool, err := pgxpool.New(ctx, k.Database)
	fail(err)
	p := &courier{mute: map[pipeline.Path]bool{}}
	o := DefaultOptions()
	o.Pool, o.Instance, o.Wishes, o.Prober = pool, k.Instance, newOracle(stage.Stage(k.Wish)), p
	if k.Wish == "" {
		o.Wishes.(*oracle).err = errors.New("no wish")
	}
	o.Session = &Session{ClientID: "client-" + k.Instance, Expiry: time.Hour}
	o.Beat, o.Dwell, o.BeatEvery = time.Second, 10*time.Millisecond, 0
	o.LeaseTTL, o.Renew, o.Round = 2*time.Second, 200*time.Millisecond, 50*time.Millisecond
	o.Registry, o.Logger = prometheus.NewRegistry(), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c, err := New(o)
	fail(err)
	fail(c.SignOn(ctx))
	p.carriers = []*Control{c}
	var running sync.WaitGroup
	running.Go(func() { c.Run(ctx) })
	for ctx.Err() == nil {
		s, drop := c.Look("t")
		fmt.Println(s, drop, c.Leading(), time.Now().UnixNano())
		time.Sleep(time.Millisecond)
	}
	running.Wait()
	os.Exit(0)
}

// stopped ends with SIGTERM.
func stopped() (context.Context, context.CancelFunc) {
	return ossignal.NotifyContext(context.Background(), syscall.SIGTERM)
}

// saying is a line of a child's.
type saying struct {
	stage         stage.Stage
	drop, leading bool
	at            int64
}

type child struct {
	t   testing.TB
	cmd *exec.Cmd

	mu    sync.Mutex
	said  []saying
	ended chan struct{}
}

func spawn(t testing.TB, pool *pgxpool.Pool, instance string, wish stage.Stage) *child {
	t.Helper()
	settings, err := json.Marshal(childSettings{pool.Config().ConnString(), instance, string(wish)})
	if err != nil {
		t.Fatal(err)
	}
	k := &child{t: t, cmd: exec.Command(os.Args[0]), ended: make(chan struct{})}
	k.cmd.Env = append(os.Environ(), childEnv+"="+string(settings))
	k.cmd.Stderr = t.Output()
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(k.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var s saying
			if _, err := fmt.Sscan(lines.Text(), &s.stage, &s.drop, &s.leading, &s.at); err == nil {
				k.mu.Lock()
				k.said = append(k.said, s)
				k.mu.Unlock()
			}
		}
	}()
	t.Cleanup(k.kill)
	devstack.Await(t, "the process "+instance+" works", func() bool { return len(k.all()) > 0 })
	return k
}

func (k *child) kill() {
	_ = k.cmd.Process.Kill()
	<-k.ended
	_ = k.cmd.Wait()
}

func (k *child) send(s syscall.Signal) {
	k.t.Helper()
	if err := k.cmd.Process.Signal(s); err != nil {
		k.t.Fatal(err)
	}
}

func (k *child) all() []saying {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.said)
}

func (k *child) last() saying {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.said) == 0 {
		return saying{}
	}
	return k.said[len(k.said)-1]
}
