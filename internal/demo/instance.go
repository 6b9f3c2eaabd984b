package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/internal/devstack"
)

const (
	readyPatience = 60 * time.Second // until it is ready; PostgreSQL may have to recover
	stopPatience  = 20 * time.Second // longer than its own ShutdownTimeout
)

// instance is `crossfade run` in a process of its own, which the demo starts, kills
// and starts again. start, kill and stop are called by one goroutine at a time; the
// rest may be called concurrently.
type instance struct {
	path    string   // of crossfade; "" for this program
	environ []string // all of its environment but CROSSFADE_HTTP_LISTEN
	log     string   // file that its log goes to
	// died is told when it ends though nobody asked it to.
	died func(error)
	http *http.Client

	mu      sync.Mutex
	port    int // the same over restarts, so that what people look at stays there
	started int // how often; tells counters of one process from another's
	program *devstack.Program
}

func newInstance(path string, environ []string, log string, died func(error)) *instance {
	// Without keep-alive no connection outlives its request.
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return &instance{path: path, environ: environ, log: log, died: died, http: client}
}

// start starts the process and returns when /readyz says that it and the mirror are
// ready: from then on the broker keeps for it what devices send.
func (c *instance) start(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		port, err := c.choosePort()
		if err != nil {
			return err
		}
		if err = c.startOn(ctx, port); err == nil || ctx.Err() != nil || attempt == 5 || !devstack.PortTaken(port) {
			return err
		}
		// Another process was faster to take the port.
		c.mu.Lock()
		c.port = 0
		c.mu.Unlock()
	}
}

func (c *instance) choosePort() (port int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.port == 0 {
		c.port, err = devstack.FreePort()
	}
	return c.port, err
}

func (c *instance) startOn(ctx context.Context, port int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyPatience, fmt.Errorf("not within %v", readyPatience))
	defer cancel()
	program, err := devstack.StartProgram(ctx, devstack.ProgramOptions{
		Name:  "crossfade run",
		Path:  c.path,
		Args:  []string{"run"},
		Env:   append(c.environ[:len(c.environ):len(c.environ)], "CROSSFADE_HTTP_LISTEN=127.0.0.1:"+strconv.Itoa(port)),
		Log:   c.log,
		Ready: c.ready,
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.program = program
	c.started++
	c.mu.Unlock()
	go func() {
		<-program.Done()
		if err := program.Err(); err != nil {
			c.died(err)
		}
	}()
	return nil
}

// ready is nil when /readyz says so, of the mirror too.
func (c *instance) ready(ctx context.Context) error {
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
func (c *instance) get(ctx context.Context, path string) ([]byte, error) {
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

// kill kills the process and waits until it is gone.
func (c *instance) kill() error { return c.current().Kill() }

// stop has the process end gracefully. That it does, with exit code 0, is one of
// its promises: anything else is an error.
func (c *instance) stop() error {
	program := c.current()
	if program == nil || program.Err() != nil {
		return nil // never started; or it died, which has been reported
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), stopPatience, fmt.Errorf("it had %v", stopPatience))
	defer cancel()
	return program.Stop(ctx)
}

func (c *instance) current() *devstack.Program {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.program
}

func (c *instance) pid() int { return c.current().PID() }

// address is host:port of health and metrics.
func (c *instance) address() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return "127.0.0.1:" + strconv.Itoa(c.port)
}

// generation counts the processes so far.
func (c *instance) generation() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.started
}
