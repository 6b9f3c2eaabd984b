package devstack_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// parentVariable makes this test program start the three servers and wait to
// be killed; its value is the directory under which they keep their data.
const parentVariable = "CROSSFADE_TEST_PARENT"

func testContextNoCancel() context.Context { return context.Background() }

// alive reports whether the process exists and is no zombie.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

func beParent() {
	if err := startAll(); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	select {}
}

func startAll() error {
	ctx := context.Background()
	m, err := devstack.StartMosquitto(ctx, devstack.MosquittoOptions{})
	if err != nil {
		return err
	}
	n, err := devstack.StartNATS(ctx, devstack.NATSOptions{})
	if err != nil {
		return err
	}
	p, err := devstack.StartPostgres(ctx, devstack.PostgresOptions{})
	if err != nil {
		return err
	}
	fmt.Println(m.PID(), n.PID(), p.PID())
	return nil
}

func TestChildrenDieWithAKilledParent(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("the promise holds on Linux only")
	}
	self, err := os.Executable()
	must(t, err)
	parent := osexec.Command(self)
	// What the killed parent cannot remove goes with the test's directory.
	tmp, err := os.MkdirTemp("", "crossfade-orphans-")
	must(t, err)
	must(t, os.Chmod(tmp, 0o755))
	t.Cleanup(func() { must(t, os.RemoveAll(tmp)) })
	parent.Env = append(os.Environ(), parentVariable+"=yes", "TMPDIR="+tmp)
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	must(t, err)
	must(t, parent.Start())

	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.HasPrefix(line, "error:") {
		_ = parent.Process.Kill()
		t.Fatalf("the parent said %q, %v (%v)", line, err, parent.Wait())
	}
	var pids []int
	for _, field := range strings.Fields(line) {
		pid, err := strconv.Atoi(field)
		must(t, err)
		if !alive(pid) {
			t.Errorf("process %d is not running before the parent is killed", pid)
		}
		pids = append(pids, pid)
	}
	must(t, parent.Process.Kill())
	_ = parent.Wait() // "signal: killed"
	for _, pid := range pids {
		devstack.Await(t, fmt.Sprintf("process %d is gone (of mosquitto, nats, postgres: %v)", pid, pids), func() bool { return !alive(pid) })
	}

	// The next server of each kind removes what the killed parent left, and
	// not what belongs to one that lives.
	t.Setenv("TMPDIR", tmp)
	if err := startTwice(t); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(tmp, "crossfade-*"))
	must(t, err)
	if len(left) != 2 {
		t.Errorf("want the directories of the two running brokers and nothing else, got %q", left)
	}
}

// startTwice starts and closes a server of each kind, and then two brokers that
// run until the test ends.
func startTwice(t *testing.T) error {
	ctx := testContext(t)
	n, err := devstack.StartNATS(ctx, devstack.NATSOptions{InProcess: true})
	if err != nil {
		return err
	}
	p, err := devstack.StartPostgres(ctx, devstack.PostgresOptions{})
	if err != nil {
		return errors.Join(err, n.Close())
	}
	devstack.TestMosquitto(t)
	devstack.TestMosquitto(t)
	return errors.Join(n.Close(), p.Close())
}
