package devstack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// startLimit bounds every start whose context has no deadline, and closeLimit
// every orderly stop within Close. Both are generous: they are reached only
// when a server hangs, and a machine that builds and tests is slow.
const (
	startLimit = 90 * time.Second
	closeLimit = 20 * time.Second
)

// daemon is what the three servers have in common when each is a process of
// its own: a directory, a port, and a process that comes and goes.
type daemon struct {
	name       string
	dir        string
	ownDir     *os.File // the lock of a directory made here, which Close removes
	port       int
	stopSignal syscall.Signal
	// launch starts the process on d.port and returns when it is usable. On an
	// error it has left nothing running.
	launch func(ctx context.Context) (*process, error)

	mu     sync.Mutex
	proc   *process // nil while the server is not running
	closed bool
}

func (d *daemon) logPath() string { return filepath.Join(d.dir, "log") }

// startFirst picks a port, unless the caller has asked for one, and starts the
// server on it; when another process takes the port in between, on another.
func (d *daemon) startFirst(ctx context.Context, wanted int) error {
	for attempt := 1; ; attempt++ {
		d.port = wanted
		if wanted == 0 {
			port, err := FreePort()
			if err != nil {
				return fmt.Errorf("start %s: %w", d.name, err)
			}
			d.port = port
		}
		err := d.start(ctx)
		if err == nil {
			return nil
		}
		if wanted != 0 || attempt == 5 || ctx.Err() != nil || !PortTaken(d.port) {
			return errors.Join(err, d.removeDir())
		}
	}
}

func (d *daemon) start(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("start %s: it has been closed, start a new one", d.name)
	}
	if d.proc != nil && !d.proc.exited() {
		return nil
	}
	ctx, cancel := withLimit(ctx, startLimit)
	defer cancel()
	proc, err := d.launch(ctx)
	if err != nil {
		return fmt.Errorf("start %s on port %d: %w", d.name, d.port, err)
	}
	d.proc = proc
	return nil
}

func (d *daemon) stop(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.proc == nil {
		return nil
	}
	proc := d.proc
	d.proc = nil
	return proc.stop(ctx, d.stopSignal)
}

func (d *daemon) kill() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.proc == nil {
		return nil
	}
	proc := d.proc
	d.proc = nil
	return proc.kill()
}

func (d *daemon) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	err := d.stop(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return errors.Join(err, d.removeDir())
}

func (d *daemon) removeDir() error {
	if d.ownDir == nil {
		return nil
	}
	err := errors.Join(os.RemoveAll(d.dir), d.ownDir.Close())
	d.ownDir = nil
	if err != nil {
		return fmt.Errorf("remove the data of %s: %w", d.name, err)
	}
	return nil
}

// processID is the PID of the running server, 0 when it is not running.
func (d *daemon) processID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.proc == nil || d.proc.exited() {
		return 0
	}
	return d.proc.pid()
}

// withLimit gives ctx a deadline where it has none.
func withLimit(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, limit)
}

// serverDir returns the directory to use as an absolute path, and its lock when
// it was made here.
func serverDir(server, dir string) (path string, lock *os.File, err error) {
	if dir == "" {
		return makeTempDir(server)
	}
	path, err = filepath.Abs(dir)
	if err != nil {
		return "", nil, fmt.Errorf("directory for %s: %w", server, err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", nil, fmt.Errorf("directory for %s: %w", server, err)
	}
	return path, nil, nil
}

// randomSecret is 26 letters and digits, safe in URLs and configuration files.
func randomSecret() string { return rand.Text() }
