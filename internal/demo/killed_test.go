package demo

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestKilledLeavesNothingRunning kills the demo itself with SIGKILL.
func TestKilledLeavesNothingRunning(t *testing.T) {
	dir, _ := place(t)
	t.Setenv("DATABASE_URL", "") // a private PostgreSQL has to go as well
	cmd := exec.Command(crossfade, "demo", "--rate", "50", "--devices", "3")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	began := false
	for lines := bufio.NewScanner(out); !began && lines.Scan(); {
		began = strings.Contains(lines.Text(), "The devices begin")
	}
	running := processesBelow(t, dir)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if !began || len(running) < 4 {
		t.Fatalf("the demo had not begun: %s", running)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		left := processesBelow(t, dir)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still running: %s", left)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
