package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is a running child.
type process struct {
	name string
	cmd  *exec.Cmd
	log  childLog
	done chan struct{} // closed when the child is gone and reaped
	err  error         // the exit status; read it after done is closed
}

// startProcess starts cmd in a process group of its own. deathSignal is what
// the kernel sends to the child when this process dies. The closers are closed
// once the child is gone, or at once when it does not start.
func startProcess(name string, cmd *exec.Cmd, log childLog, deathSignal syscall.Signal, closers ...io.Closer) (*process, error) {
	closeAll := func() {
		for _, c := range closers {
			c.Close()
		}
	}
	out, err := log.open()
	if err != nil {
		closeAll()
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer out.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	tieToParent(cmd, deathSignal)

	p := &process{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The kernel sends the death signal when the thread that forked is
		// gone, so this thread has to live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer closeAll()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// exitError describes a child that ended by itself, with the end of its log.
func (p *process) exitError() error {
	status := "exit status 0"
	if p.err != nil {
		status = p.err.Error()
	}
	return fmt.Errorf("%s ended by itself: %s%s", p.name, status, p.log.tail())
}

// stop sends sig and waits until the child is gone. When ctx ends first, the
// child is killed and the error says so.
func (p *process) stop(ctx context.Context, sig syscall.Signal) error {
	if p.exited() {
		return p.exitError()
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errors.Join(fmt.Errorf("stop %s: %w", p.name, err), p.kill())
	}
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("stop %s: %w%s", p.name, p.err, p.log.tail())
		}
		return nil
	case <-ctx.Done():
		err := fmt.Errorf("stop %s: it did not stop in time and was killed: %w%s", p.name, context.Cause(ctx), p.log.tail())
		return errors.Join(err, p.kill())
	}
}

// kill sends SIGKILL and waits until the child is gone.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.done
	return nil
}

// waitReady calls probe until it succeeds, the child exits or ctx ends.
func (p *process) waitReady(ctx context.Context, probe func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := probe(ctx)
		if p.exited() {
			return p.exitError()
		}
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.exitError()
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w (last attempt: %w)%s", p.name, context.Cause(ctx), err, p.log.tail())
		case <-tick.C:
		}
	}
}
