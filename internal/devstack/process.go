package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// process is a running child. Its output goes straight to a log file, without
// a copying goroutine, so nothing of it is lost when either side is killed.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the child is gone and reaped
	err  error         // the exit status; read it after done is closed
}

// startProcess starts cmd in a process group of its own. deathSignal is what
// the kernel sends to the child when this process dies. The closers are closed
// once the child is gone, or at once when it does not start.
func startProcess(name string, cmd *exec.Cmd, log string, deathSignal syscall.Signal, closers ...io.Closer) (*process, error) {
	closeAll := func() {
		for _, c := range closers {
			c.Close()
		}
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
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
	return fmt.Errorf("%s exited by itself: %s%s", p.name, status, logTail(p.log))
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
			return fmt.Errorf("stop %s: %w%s", p.name, p.err, logTail(p.log))
		}
		return nil
	case <-ctx.Done():
		err := fmt.Errorf("stop %s: it did not stop in time and was killed: %w%s", p.name, context.Cause(ctx), logTail(p.log))
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
			return fmt.Errorf("%s does not accept connections: %w (last attempt: %w)%s", p.name, context.Cause(ctx), err, logTail(p.log))
		case <-tick.C:
		}
	}
}

// logTail is the end of a log file, ready to be put behind an error message.
func logTail(path string) string {
	const lines, most = 15, 8 << 10
	f, err := os.Open(path)
	if err != nil {
		return fmt.Sprintf(" (no log: %v)", err)
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		if _, err := f.Seek(max(0, end-most), io.SeekStart); err != nil {
			return fmt.Sprintf(" (no log: %v)", err)
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return fmt.Sprintf(" (no log: %v)", err)
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(all) == 1 && all[0] == "" {
		return " (its log " + path + " is empty)"
	}
	all = all[max(0, len(all)-lines):]
	return "\nend of its log " + path + ":\n  " + strings.Join(all, "\n  ")
}
