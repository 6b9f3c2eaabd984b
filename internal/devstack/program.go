package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Program is a program of ours that runs as a child, such as `crossfade run`.
// Its methods may be called concurrently.
type Program struct {
	proc *process
	// asked: Stop or Kill was called while it ran, so its end is no surprise.
	asked atomic.Bool
}

// ProgramOptions says what is run. Only Name is required.
type ProgramOptions struct {
	// Name stands in errors: "crossfade run".
	Name string
	// Path is the executable. Empty: this very program, even if its file has
	// been replaced since it started.
	Path string
	// Args are the arguments, without the program's own name.
	Args []string
	// Env is the whole environment. nil: that of this process.
	Env []string
	// Log is a file that takes standard output and standard error, at its end.
	// Empty: the last lines are kept in memory, for errors.
	Log string
	// Line is shown every line of the output, cut at 64 KiB, by one goroutine;
	// the program waits while Line does. Only without Log.
	Line func(line string)
	// Ready is asked every 20 ms until it returns nil; StartProgram returns
	// then. Its last error stands in that of a start that takes too long. nil:
	// a program that runs is ready.
	Ready func(context.Context) error
}

// Validate names the field that cannot be used.
func (o ProgramOptions) Validate() error {
	switch {
	case o.Name == "":
		return errors.New("ProgramOptions.Name is empty: say what errors shall call the program")
	case o.Log != "" && o.Line != nil:
		return errors.New("ProgramOptions.Line is set together with Log: the output goes to one of them, leave the other out")
	}
	return nil
}

// WithoutSettings is an environment without what the caller's says of Crossfade:
// CROSSFADE_… and DATABASE_URL are meant for other installations than a private one.
// With libpq, PG… goes too: that belongs to a PostgreSQL of the caller's.
func WithoutSettings(environ []string, libpq bool) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		return strings.HasPrefix(entry, "CROSSFADE_") || strings.HasPrefix(entry, "DATABASE_URL=") ||
			libpq && strings.HasPrefix(entry, "PG")
	})
}

// programWaitDelay bounds the wait for the rest of the output where the program
// is gone and something that it started still holds the other end.
const programWaitDelay = 5 * time.Second

// StartProgram starts a program and returns when it is ready. Like the servers
// it dies with this process, on Linux even when that is killed, and is out of
// reach of the terminal's Ctrl-C. ctx bounds the start only (without a deadline
// 90 s do); a program that is not ready by then is killed.
//
// Errors of a program that ended or did not get ready hold the end of its log.
func StartProgram(ctx context.Context, o ProgramOptions) (*Program, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", o.Name, context.Cause(ctx))
	}
	path, called := o.Path, o.Path
	if path == "" {
		self, err := selfExecutable()
		if err != nil {
			return nil, fmt.Errorf("start %s: find this program's own file: %w", o.Name, err)
		}
		path, called = self, os.Args[0]
	}
	cmd := exec.Command(path, o.Args...)
	cmd.Args[0] = filepath.Base(called)
	cmd.Env = o.Env
	cmd.WaitDelay = programWaitDelay
	var log childLog = &lastLines{each: o.Line}
	if o.Log != "" {
		log = logFile(o.Log)
	}
	proc, err := startProcess(o.Name, cmd, log, syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	if o.Ready != nil {
		ctx, cancel := withLimit(ctx, startLimit)
		defer cancel()
		if err := proc.waitReady(ctx, o.Ready); err != nil {
			return nil, errors.Join(err, proc.kill())
		}
	}
	return &Program{proc: proc}, nil
}

// PID is the program's process, also after its end.
func (p *Program) PID() int { return p.proc.pid() }

// Done is closed when the program has ended and all of its output was taken.
func (p *Program) Done() <-chan struct{} { return p.proc.done }

// Err says that the program ended by itself, and how. It is nil while the
// program runs, and where Stop or Kill ended it. An end with exit code 0 is an
// error too: nobody had asked for it.
func (p *Program) Err() error {
	if !p.proc.exited() || p.asked.Load() {
		return nil
	}
	return p.proc.exitError()
}

// Stop has the program end gracefully, by SIGTERM, and waits for it. Anything
// but exit code 0 is an error, also of a program that had ended by itself
// before. When ctx ends first (without a deadline: after 20 s), the program is
// killed and the error says so. Stopping twice, or after Kill, does nothing.
func (p *Program) Stop(ctx context.Context) error {
	if p.proc.exited() {
		return p.Err()
	}
	p.asked.Store(true)
	ctx, cancel := withLimit(ctx, closeLimit)
	defer cancel()
	return p.proc.stop(ctx, syscall.SIGTERM)
}

// Kill ends the program with SIGKILL and waits until it is gone. Killing one
// that has ended does nothing.
func (p *Program) Kill() error {
	if p.proc.exited() {
		return nil
	}
	p.asked.Store(true)
	return p.proc.kill()
}
