package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/crossfade-io/crossfade/bridge"
)

const (
	demoChildStart = 60 * time.Second // until it is ready; PostgreSQL may have to recover
	demoChildStop  = 20 * time.Second // longer than the child's own ShutdownTimeout
)

// demoChild is `crossfade run` in a process of its own, which the demo starts, kills
// and starts again. start, kill and stop are called by one goroutine at a time; the
// rest may be called concurrently.
type demoChild struct {
	environ []string // all of the child's environment but CROSSFADE_HTTP_LISTEN
	log     string   // file that the child's log goes to
	// died is told when the child ends though nobody asked it to.
	died func(error)
	http *http.Client

	mu      sync.Mutex
	port    int
	started int // how often; tells counters of one process from another's
	proc    *demoProcess
}

type demoProcess struct {
	cmd      *exec.Cmd
	done     chan struct{} // closed when it is gone and reaped
	err      error         // its exit status; read it after done is closed
	mu       sync.Mutex
	expected bool // it is meant to end
}

func newDemoChild(environ []string, log string, died func(error)) *demoChild {
	// Without keep-alive no connection outlives its request.
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return &demoChild{environ: environ, log: log, died: died, http: client}
}

// start starts the process and returns when /readyz says that it and the mirror are
// ready: from then on the broker keeps for it what devices send.
func (c *demoChild) start(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := c.startOnce(ctx)
		if err == nil || ctx.Err() != nil || attempt == 5 || !demoPortTaken(c.address()) {
			return err
		}
		// Another process was faster to take the port.
		c.mu.Lock()
		c.port = 0
		c.mu.Unlock()
	}
}

func (c *demoChild) startOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, demoChildStart)
	defer cancel()
	proc, err := c.launch()
	if err != nil {
		return fmt.Errorf("start crossfade run: %w", err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := c.ready(ctx)
		select {
		case <-proc.done:
			return proc.failure(c.log)
		default:
		}
		if missing == nil {
			break
		}
		select {
		case <-proc.done:
		case <-tick.C:
		case <-ctx.Done():
			err := fmt.Errorf("crossfade run is not ready after %v (%w)%s", demoChildStart, missing, demoLogTail(c.log))
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				err = ctx.Err()
			}
			return errors.Join(err, c.kill())
		}
	}
	go func() {
		<-proc.done
		if !proc.isExpected() {
			c.died(proc.failure(c.log))
		}
	}()
	return nil
}

func (c *demoChild) launch() (*demoProcess, error) {
	self, err := demoExecutable()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.port == 0 {
		if c.port, err = demoFreePort(); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(self, "run")
	cmd.Args[0] = "crossfade"
	cmd.Env = append(c.environ[:len(c.environ):len(c.environ)], "CROSSFADE_HTTP_LISTEN=127.0.0.1:"+strconv.Itoa(c.port))
	cmd.Stdout, cmd.Stderr = log, log
	dieWithParent(cmd)
	proc := &demoProcess{cmd: cmd, done: make(chan struct{})}
	up := make(chan error, 1)
	go func() {
		// The kernel sends the death signal when the thread that forked is gone, so
		// this thread has to live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		up <- err
		if err == nil {
			proc.err = cmd.Wait()
			close(proc.done)
		}
	}()
	if err := <-up; err != nil {
		return nil, err
	}
	c.proc = proc
	c.started++
	return proc, nil
}

// ready is nil when /readyz says so, of the mirror too.
func (c *demoChild) ready(ctx context.Context) error {
	body, err := c.get(ctx, "/readyz")
	if err != nil {
		return err
	}
	var r bridge.Readiness
	if err := json.Unmarshal(body, &r); err != nil {
		return fmt.Errorf("/readyz: %w", err)
	}
	for name, check := range r.Checks {
		// The mirror is not required to be ready; here its session has to exist too.
		if !check.OK && (check.Required || strings.HasPrefix(name, "mirror")) {
			return fmt.Errorf("%s: %s", name, check.Error)
		}
	}
	if !r.Ready {
		return errors.New("/readyz says no")
	}
	return nil
}

// get reads a page of the child, whatever its status: /readyz says with 503 what
// is missing.
func (c *demoChild) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.address()+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return io.ReadAll(io.LimitReader(res.Body, 8<<20))
}

// kill ends the process with SIGKILL and waits until it is gone.
func (c *demoChild) kill() error {
	proc := c.process()
	if proc == nil {
		return nil
	}
	proc.expect()
	if err := proc.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill crossfade run: %w", err)
	}
	<-proc.done
	return nil
}

// stop has the process end gracefully. That it does, with exit code 0, is one of
// its promises: anything else is an error.
func (c *demoChild) stop() error {
	proc := c.process()
	if proc == nil || proc.isExpected() {
		return nil
	}
	select {
	case <-proc.done:
		return nil // it died: that has been reported
	default:
	}
	proc.expect()
	if err := proc.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errors.Join(fmt.Errorf("stop crossfade run: %w", err), c.kill())
	}
	late := time.NewTimer(demoChildStop)
	defer late.Stop()
	select {
	case <-proc.done:
	case <-late.C:
		return errors.Join(fmt.Errorf("crossfade run did not stop within %v and was killed%s", demoChildStop, demoLogTail(c.log)), c.kill())
	}
	if proc.err != nil {
		return fmt.Errorf("crossfade run did not stop cleanly: %w%s", proc.err, demoLogTail(c.log))
	}
	return nil
}

func (c *demoChild) process() *demoProcess {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proc
}

func (c *demoChild) pid() int { return c.process().cmd.Process.Pid }

// address is host:port of health and metrics.
func (c *demoChild) address() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return "127.0.0.1:" + strconv.Itoa(c.port)
}

// generation counts the processes so far.
func (c *demoChild) generation() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.started
}

func (p *demoProcess) expect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expected = true
}

func (p *demoProcess) isExpected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.expected
}

// failure describes a process that ended by itself.
func (p *demoProcess) failure(log string) error {
	status := "exit status 0"
	if p.err != nil {
		status = p.err.Error()
	}
	return fmt.Errorf("crossfade run ended by itself: %s%s", status, demoLogTail(log))
}

// demoLogTail is the end of the child's log, to be put behind an error: the file
// itself goes with the demo.
func demoLogTail(path string) string {
	const lines, most = 20, 16 << 10
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Sprintf(" (no log: %v)", err)
	}
	text = text[max(0, len(text)-most):]
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "\nend of its log:\n  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}

// demoFreePort is a port of 127.0.0.1 on which nothing listens. It comes from below
// the range of outgoing connections: while the child is dead, one of those must
// neither take its port nor, dialling it, connect to itself.
func demoFreePort() (int, error) {
	var err error
	for range 200 {
		port := 20000 + rand.IntN(12000)
		var l net.Listener
		if l, err = net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port on 127.0.0.1 after 200 attempts: %w", err)
}

func demoPortTaken(address string) bool {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return true
	}
	_ = l.Close() // it never served
	return false
}
