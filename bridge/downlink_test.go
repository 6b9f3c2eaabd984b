package bridge_test

import (
	"bufio"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge/downlink"
)

// TestDownlinkWithoutSubscription: an instance that does not subscribe to MQTT sends
// to devices, as mosquitto_sub sees it, and says in readiness and metrics how it is.
func TestDownlinkWithoutSubscription(t *testing.T) {
	s := newStack(t)
	host, port, _ := strings.Cut(strings.TrimPrefix(s.broker.URL(), "mqtt://"), ":")
	device := exec.Command("stdbuf", "-oL", "mosquitto_sub", "-V", "5", "-h", host, "-p", port, "-u", s.broker.User(), "-P", s.broker.Password(),
		"-q", "1", "-t", "tenant/t1/device/d1/#", "-F", "%t %p %C %D", "-d")
	device.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := device.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := device.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = device.Process.Kill(); _ = device.Wait() }()
	lines := bufio.NewScanner(out)
	next := func(part string) string {
		t.Helper()
		for lines.Scan() {
			if line := lines.Text(); strings.Contains(line, part) {
				return line
			}
		}
		t.Fatalf("mosquitto_sub ended before %q", part)
		return ""
	}
	next("Subscribed")

	c := s.config("a")
	c.MQTT, c.Mirror = nil, nil
	o := downlink.DefaultOptions()
	o.MQTT, o.ClientID = *s.config("a").MQTT, "crossfade-downlink-a"
	c.Downlink = &o
	i := s.start(c)
	s.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t1', 'd1', '{"a": 1}')`)
	if got := next("shadow/desired "); !strings.HasPrefix(got, `tenant/t1/device/d1/shadow/desired {"desired":{"a":1},"version":1,"timestamp":"`) || !strings.Contains(got, "application/json") {
		t.Errorf("received %s", got)
	}
	s.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'reboot')`)
	if got, want := next("commands "), `tenant/t1/device/d1/commands {"command_id":"c1","type":"reboot","params":{},"expires_at":null} application/json c1`; got != want {
		t.Errorf("received %s, want %s", got, want)
	}
	if line := i.Ready().Checks["downlink"]; !line.OK || line.Required {
		t.Errorf("readiness: %+v", line)
	}
	devstack.Await(t, "the metrics", func() bool {
		m := i.metrics()
		return strings.Contains(m, `crossfade_downlink_published_total{kind="desired"} 1`) && strings.Contains(m, `crossfade_downlink_published_total{kind="command"} 1`) &&
			strings.Contains(m, "crossfade_downlink_lanes 64") && strings.Contains(m, "crossfade_downlink_rows")
	})
	// Without the broker the instance stays ready, and says so.
	if err := s.broker.Kill(); err != nil {
		t.Fatal(err)
	}
	s.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c2', 'd1', 'reboot')`)
	devstack.Await(t, "the broker's absence in readiness", func() bool { return !i.Ready().Checks["downlink"].OK })
	if r := i.Ready(); !r.Ready {
		t.Errorf("not ready: %+v", r)
	}
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
}
