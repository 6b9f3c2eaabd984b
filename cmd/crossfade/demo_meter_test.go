package main

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const demoMetricsPage = `# TYPE crossfade_messages_total counter
crossfade_messages_total{outcome="written",path="mqtt"} 70
crossfade_messages_total{outcome="written",path="jetstream"} 30
crossfade_messages_total{outcome="duplicate",path="mqtt"} 4
crossfade_messages_total{outcome="duplicate",path="jetstream"} 1
crossfade_messages_total{outcome="ignored",path="mqtt"} 9
# TYPE crossfade_standby_total counter
crossfade_standby_total{end="matched",path="mqtt"} 20
crossfade_standby_total{end="rescued_wait",path="mqtt"} 2
crossfade_standby_total{end="rescued_full",path="jetstream"} 3
crossfade_standby_total{end="promoted",path="jetstream"} 8
# TYPE crossfade_source_received_total counter
crossfade_source_received_total{part="session",source="mqtt"} 100
# TYPE crossfade_source_in_hand gauge
crossfade_source_in_hand{part="session",source="mqtt"} 5
# TYPE crossfade_mirror_waiting gauge
crossfade_mirror_waiting 6
`

func TestDemoMeterCountsOverRestarts(t *testing.T) {
	m := newDemoMeter(nil)
	one, err := m.parse([]byte(demoMetricsPage))
	if err != nil {
		t.Fatal(err)
	}
	want := demoSample{at: one.at, WrittenMQTT: 70, WrittenJetStream: 30, Matched: 20, Rescued: 5, Known: 5, received: 100, busy: 11}
	if one != want {
		t.Errorf("read %+v, want %+v", one, want)
	}
	more := one
	more.WrittenMQTT, more.busy = 90, 0
	m.add(1, one)
	m.add(1, more) // 20 more
	m.add(2, more) // another process, which has done more than the one before
	m.add(2, one)  // a third, not known as such yet: its counters are lower
	if m.sum.WrittenMQTT != 90+90+70 || m.sum.busy != 11 {
		t.Errorf("sums: %+v", m.sum)
	}
}

func TestDemoStoryOfManyTenants(t *testing.T) {
	tenants := make([]string, 100)
	for _, duration := range []time.Duration{5 * time.Second, time.Minute, time.Hour} {
		for _, chaos := range []bool{false, true} {
			var last time.Duration
			acts := (&demoStory{}).acts(tenants, duration, chaos)
			for _, a := range acts {
				if a.at < last || a.at >= duration {
					t.Errorf("%v, chaos %v: an act at %v after one at %v", duration, chaos, a.at, last)
				}
				last = a.at
			}
			if !chaos && len(acts) != demoWaves+1 {
				t.Errorf("%v: %d acts", duration, len(acts))
			}
		}
	}
}

// TestDemoKilledLeavesNothingRunning kills the demo itself with SIGKILL.
func TestDemoKilledLeavesNothingRunning(t *testing.T) {
	dir, _ := demoPlace(t)
	t.Setenv("DATABASE_URL", "") // a private PostgreSQL has to go as well
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "demo", "--rate", "50", "--devices", "3")
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
