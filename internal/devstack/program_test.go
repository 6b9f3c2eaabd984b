package devstack_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// shell is a program: what the script says, in a shell.
func shell(t *testing.T, script string) devstack.ProgramOptions {
	t.Helper()
	sh, err := osexec.LookPath("sh")
	must(t, err)
	return devstack.ProgramOptions{Name: "the script", Path: sh, Args: []string{"-c", script}}
}

// obedient says that it is ready, and ends on SIGTERM with the exit code.
func obedient(code int) string {
	return fmt.Sprintf("trap 'echo bye; exit %d' TERM; echo ready; while :; do sleep 0.05; done", code)
}

// deaf says that it is ready, and ignores SIGTERM.
const deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done"

// startReady starts a program and returns once it has said that it is ready.
func startReady(t *testing.T, o devstack.ProgramOptions) *devstack.Program {
	t.Helper()
	said := make(chan struct{})
	o.Line = func(line string) {
		if line == "ready" {
			close(said)
		}
	}
	o.Ready = func(context.Context) error {
		select {
		case <-said:
			return nil
		default:
			return errors.New("it has not said so")
		}
	}
	p, err := devstack.StartProgram(testContext(t), o)
	must(t, err)
	t.Cleanup(func() { must(t, p.Kill()) })
	return p
}

func ended(t *testing.T, p *devstack.Program) {
	t.Helper()
	select {
	case <-p.Done():
	case <-testContext(t).Done():
		t.Fatal("it does not end")
	}
}

func TestProgramStops(t *testing.T) {
	p := startReady(t, shell(t, obedient(0)))
	if !alive(p.PID()) || p.Err() != nil {
		t.Errorf("process %d does not run: %v", p.PID(), p.Err())
	}
	must(t, p.Stop(testContext(t)))
	ended(t, p)
	must(t, p.Err())
	must(t, p.Stop(testContext(t)))
	must(t, p.Kill())
}

func TestProgramKilled(t *testing.T) {
	p := startReady(t, shell(t, deaf))
	must(t, p.Kill())
	ended(t, p)
	must(t, p.Err())
	must(t, p.Kill())
	must(t, p.Stop(testContext(t)))
}

func TestProgramThatStopsBadly(t *testing.T) {
	p := startReady(t, shell(t, obedient(7)))
	wantError(t, p.Stop(testContext(t)), "stop the script: exit status 7\nend of its log:\n  ready\n  bye")
}

func TestProgramThatDoesNotStop(t *testing.T) {
	p := startReady(t, shell(t, deaf))
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("patience is over"))
	defer cancel()
	wantError(t, p.Stop(ctx), "was killed: patience is over")
	ended(t, p)
}

func TestProgramEndsByItself(t *testing.T) {
	for script, want := range map[string]string{
		"exit 0":                    "the script ended by itself: exit status 0 (its log is empty)",
		"echo oh dear >&2; exit 3":  "the script ended by itself: exit status 3\nend of its log:\n  oh dear",
		"printf unfinished; exit 3": "end of its log:\n  unfinished",
		"seq 100; exit 3":           "end of its log:\n  86\n",
	} {
		p, err := devstack.StartProgram(testContext(t), shell(t, script))
		must(t, err)
		ended(t, p)
		wantError(t, p.Err(), want)
		wantError(t, p.Stop(testContext(t)), want)
		wantError(t, p.Err(), want)
	}
}

func TestProgramThatIsNeverReady(t *testing.T) {
	o := shell(t, "echo trying; exit 4")
	o.Ready = func(context.Context) error { return errors.New("not yet") }
	_, err := devstack.StartProgram(testContext(t), o)
	wantError(t, err, "ended by itself: exit status 4\nend of its log:\n  trying")

	pidFile := filepath.Join(t.TempDir(), "pid")
	o = shell(t, "echo $$ > "+pidFile+"; "+deaf)
	ctx, cancel := context.WithCancelCause(testContext(t))
	o.Ready = func(context.Context) error {
		if text, err := os.ReadFile(pidFile); err == nil && strings.HasSuffix(string(text), "\n") {
			cancel(errors.New("enough"))
		}
		return errors.New("not yet")
	}
	_, err = devstack.StartProgram(ctx, o)
	wantError(t, err, "the script is not ready: enough (last attempt: not yet)")
	var pid int
	text, err := os.ReadFile(pidFile)
	must(t, err)
	_, err = fmt.Sscan(string(text), &pid)
	must(t, err)
	if alive(pid) {
		t.Errorf("process %d was left running", pid)
	}

	o.Path = "/nonexistent/program"
	_, err = devstack.StartProgram(ctx, o)
	wantError(t, err, "start the script: enough")
	_, err = devstack.StartProgram(testContext(t), o)
	wantError(t, err, "start the script: ")
}

func TestProgramLogsToItsFile(t *testing.T) {
	o := shell(t, "echo $GREETING; echo oh >&2; exit 5")
	o.Env = []string{"GREETING=hello", "PATH=" + os.Getenv("PATH")}
	o.Log = filepath.Join(t.TempDir(), "log")
	must(t, os.WriteFile(o.Log, []byte("before\n"), 0o600))
	p, err := devstack.StartProgram(testContext(t), o)
	must(t, err)
	ended(t, p)
	text, err := os.ReadFile(o.Log)
	must(t, err)
	if string(text) != "before\nhello\noh\n" {
		t.Errorf("the log: %q", text)
	}
	wantError(t, p.Err(), "exit status 5\nend of its log "+o.Log+":\n  before\n  hello\n  oh")
}

func TestProgramShowsItsLines(t *testing.T) {
	o := shell(t, `printf 'one\n\ntwo'; head -c 200000 /dev/zero | tr '\0' x; printf '\nlast\nrest'`)
	var lines []string
	o.Line = func(line string) { lines = append(lines, line) }
	p, err := devstack.StartProgram(testContext(t), o)
	must(t, err)
	ended(t, p)
	if len(lines) != 4 || lines[0] != "one" || lines[1] != "" || len(lines[2]) != 64<<10 || lines[3] != "last" {
		t.Errorf("%d lines: %.40q", len(lines), lines)
	}
}

func TestProgramIsThisOne(t *testing.T) {
	var lines []string
	p, err := devstack.StartProgram(testContext(t), devstack.ProgramOptions{Name: "itself", Args: []string{"-test.list", "TestProgramIsThis"},
		Line: func(line string) { lines = append(lines, line) }})
	must(t, err)
	ended(t, p)
	if len(lines) == 0 || lines[0] != "TestProgramIsThisOne" {
		t.Errorf("it said %q", lines)
	}
}

func TestProgramOptionsNameTheField(t *testing.T) {
	_, err := devstack.StartProgram(testContext(t), devstack.ProgramOptions{})
	wantError(t, err, "ProgramOptions.Name is empty")
	_, err = devstack.StartProgram(testContext(t), devstack.ProgramOptions{Name: "x", Log: "x", Line: func(string) {}})
	wantError(t, err, "ProgramOptions.Line is set together with Log")
}

func TestFreePortsDiffer(t *testing.T) {
	seen := map[int]bool{}
	for range 50 {
		port, err := devstack.FreePort()
		must(t, err)
		if seen[port] || devstack.PortTaken(port) {
			t.Errorf("port %d is not free", port)
		}
		seen[port] = true
	}
	if port := devstack.TestMosquitto(t).Address(); !devstack.PortTaken(portOf(t, port)) {
		t.Errorf("%s is taken", port)
	}
}

func portOf(t *testing.T, address string) (port int) {
	t.Helper()
	_, err := fmt.Sscanf(address, "127.0.0.1:%d", &port)
	must(t, err)
	return port
}
