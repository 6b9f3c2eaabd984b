package bridge_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/downlink"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// heard is a line that a device's client tells.
type heard struct {
	Event, Device, Kind, Correlation string
	ContentType                      string `json:"content_type"`
	Session, Retain                  bool
	QoS                              int
	Expiry                           *int
	Payload                          *struct {
		Version   int64           `json:"version"`
		Desired   json.RawMessage `json:"desired"`
		CommandID string          `json:"command_id"`
		Status    string          `json:"status"`
		Reason    string          `json:"reason"`
	}
}

// devices plays a tenant's devices by a client that is not ours: paho for Python.
type devices struct {
	mu    sync.Mutex
	lines []heard
}

// python has paho's MQTT client: make deps installs it.
func python(t testing.TB) string {
	t.Helper()
	for _, p := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(p, "-c", "import paho.mqtt.client").Run() == nil {
			return p
		}
	}
	t.Fatal("Python's paho-mqtt is missing: run make deps, or apt-get install python3-paho-mqtt")
	return ""
}

func (s *stack) devices(tenant string) *devices {
	s.t.Helper()
	u, err := url.Parse(s.broker.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(python(s.t), "testdata/device.py", u.Hostname(), u.Port(), s.broker.User(), tenant, "devices-of-"+tenant)
	cmd.Env = append(os.Environ(), "MQTT_PASSWORD="+s.broker.Password())
	cmd.Stderr = s.t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	d := &devices{}
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var h heard
			if err := json.Unmarshal(lines.Bytes(), &h); err != nil {
				s.t.Errorf("a device tells %s: %v", lines.Bytes(), err)
			}
			d.mu.Lock()
			d.lines = append(d.lines, h)
			d.mu.Unlock()
		}
	})
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		reading.Wait()
		_ = cmd.Wait()
	})
	devstack.Await(s.t, "the devices have subscribed", func() bool { return d.count(func(h *heard) bool { return h.Event == "subscribed" }) > 0 })
	return d
}

func (d *devices) count(fits func(*heard) bool) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.lines {
		if fits(&d.lines[i]) {
			n++
		}
	}
	return n
}

// check goes through all that came down: versions never fall, every command came and
// was answered, and all bears what the contract says. It returns each device's last version.
func (d *devices) check(t *testing.T, tenant string, commands map[string]string) map[string]int64 {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	versions, came, answered := map[string]int64{}, map[string]int{}, map[string]int{}
	again, refused := 0, 0
	for i := range d.lines {
		h := &d.lines[i]
		if h.Event != "message" {
			continue
		}
		p := h.Payload
		if p == nil || h.QoS != 1 || h.ContentType != "application/json" {
			t.Errorf("%s: a message without a payload, a content type or QoS 1: %+v", tenant, h)
			continue
		}
		switch h.Kind {
		case "shadow/desired":
			if p.Version < versions[h.Device] {
				t.Errorf("%s/%s: version %d came after %d", tenant, h.Device, p.Version, versions[h.Device])
			}
			if p.Version == versions[h.Device] {
				again++
			}
			versions[h.Device] = p.Version
		case "commands":
			came[p.CommandID]++
			if commands[p.CommandID] != h.Device || h.Correlation != p.CommandID || h.Expiry == nil || h.Retain {
				t.Errorf("%s: not the command that was given to %q: %+v", tenant, commands[p.CommandID], h)
			}
		case "commands/response":
			switch {
			case commands[p.CommandID] != h.Device || h.Correlation != p.CommandID || h.Retain:
				t.Errorf("%s: an answer that nobody awaits: %+v", tenant, h)
			case p.Status == "accepted":
				answered[p.CommandID]++
			case p.Status == "rejected" && p.Reason == "already_acknowledged":
				refused++ // the device's client sent its ack again after a restart
			default:
				t.Errorf("%s: an answer of no known sort: %+v %+v", tenant, h, p)
			}
		}
	}
	twice := 0
	for id := range commands {
		if came[id] == 0 || answered[id] == 0 {
			t.Errorf("%s: command %s came %d times and its ack was accepted %d times", tenant, id, came[id], answered[id])
		}
		twice += max(0, came[id]-1)
	}
	t.Logf("%s: %d commands, %d of them sent again; %d versions heard again; %d acks found done", tenant, len(commands), twice, again, refused)
	return versions
}

// TestFleetHearsEverything: while desired states change and commands are given, three
// instances are killed and started again and the broker is restarted. Every device
// ends with its last desired version and never hears an older one after a newer one;
// every command arrives, is acknowledged once and answered.
func TestFleetHearsEverything(t *testing.T) {
	s := newStack(t)
	names := []string{"t1", "t2"}
	const perTenant = 20
	for _, tenant := range names {
		for n := range perTenant {
			s.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ($1, $2, 's1')`, tenant, fmt.Sprint("d", n))
		}
	}
	var configs []bridge.Config
	var running []*child
	for _, name := range []string{"a", "b", "c"} {
		c := s.config(name)
		c.MQTT.Group, c.Mirror.Group = "", "mirror"
		c.Downlink = s.downlink(name)
		configs = append(configs, c)
		running = append(running, s.spawn(c))
	}
	players := map[string]*devices{}
	for _, tenant := range names {
		players[tenant] = s.devices(tenant)
	}

	duration := 12 * time.Second
	if v := os.Getenv(soakEnv); v != "" {
		var err error
		if duration, err = time.ParseDuration(v); err != nil {
			t.Fatalf("%s: %v", soakEnv, err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	end := time.Now().Add(duration)
	given := map[string]map[string]string{"t1": {}, "t2": {}}
	var writing sync.WaitGroup
	writing.Go(func() {
		random := rand.New(rand.NewPCG(seed, 0))
		for n := 0; time.Now().Before(end); n++ {
			tenant, device := names[random.IntN(len(names))], fmt.Sprint("d", random.IntN(perTenant))
			if n%3 == 0 {
				id := fmt.Sprint("c", n)
				given[tenant][id] = device
				s.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, command_params, expires_at)
					VALUES ($1, $2, $3, 'blink', '{"times": 3}', now() + interval '1 hour')`, tenant, id, device)
				continue
			}
			s.exec(`INSERT INTO device_state AS s (tenant_id, device_id, desired_state) VALUES ($1, $2, jsonb_build_object('n', $3::int))
				ON CONFLICT (tenant_id, device_id) DO UPDATE SET desired_state = EXCLUDED.desired_state`, tenant, device, n)
			time.Sleep(time.Duration(random.Int64N(int64(10 * time.Millisecond))))
		}
	})
	random := rand.New(rand.NewPCG(seed, 1))
	kills, restarts := 0, 0
	for ; time.Now().Before(end); kills++ {
		time.Sleep(time.Second + time.Duration(random.Int64N(int64(time.Second))))
		i := random.IntN(len(running))
		running[i].kill()
		if kills%3 == 1 {
			restarts++
			if err := s.broker.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.broker.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		running[i] = s.spawn(configs[i])
	}
	writing.Wait()
	devstack.Await(t, "nothing waits to be sent", func() bool {
		return s.count(`SELECT (SELECT count(*) FROM crossfade_downlink) + (SELECT count(*) FROM crossfade_downlink_parked)`) == 0
	})
	left := 0
	defer func() {
		if t.Failed() {
			t.Logf("%d commands are left: %s", left, s.text(`SELECT string_agg(c::text, E'\n') FROM device_commands AS c WHERE status <> 'delivered' OR published_at IS NULL`))
		}
	}()
	devstack.Await(t, "every command is acknowledged", func() bool {
		left = s.count(`SELECT count(*) FROM device_commands WHERE status <> 'delivered' OR published_at IS NULL`)
		return left == 0
	})
	devstack.Await(t, "every device has reported what was desired of it", func() bool {
		return s.count(`SELECT count(*) FROM device_state WHERE desired_version > 0 AND (reported_version <> desired_version OR reported_state <> desired_state)`) == 0
	})
	for _, tenant := range names {
		devstack.Await(t, "every ack is answered", func() bool {
			seen := map[string]bool{}
			players[tenant].count(func(h *heard) bool {
				if h.Kind == "commands/response" && h.Payload != nil && h.Payload.Status == "accepted" {
					seen[h.Payload.CommandID] = true
				}
				return false
			})
			return len(seen) == len(given[tenant])
		})
		for device, version := range players[tenant].check(t, tenant, given[tenant]) {
			if n := s.count(`SELECT desired_version FROM device_state WHERE tenant_id = $1 AND device_id = $2`, tenant, device); int64(n) != version {
				t.Errorf("%s/%s: heard version %d last, %d is desired", tenant, device, version, n)
			}
		}
	}
	s.wantNoQuarantine()
	t.Logf("%d kills, %d restarts of the broker, %d changes of desired states", kills, restarts, s.count(`SELECT coalesce(sum(desired_version), 0) FROM device_state`))
}

// TestMosquittoSubHears: what mosquitto_sub prints of what is retained, while nothing
// subscribes for us at all.
func TestMosquittoSubHears(t *testing.T) {
	program, err := exec.LookPath("mosquitto_sub")
	if err != nil {
		t.Fatal("mosquitto_sub is missing: run make deps, or apt-get install mosquitto-clients")
	}
	s := newStack(t)
	c := s.config("a")
	c.MQTT, c.Mirror = nil, nil // the subscription is switched off altogether
	c.Downlink = s.downlink("a")
	s.start(c)
	s.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd1', 's1')`)
	s.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t1', 'd1', '{"mode": "eco"}')`)
	devstack.Await(t, "the desired state is published", func() bool { return s.count(`SELECT count(*) FROM crossfade_downlink`) == 0 })

	u, err := url.Parse(s.broker.URL())
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.Command(program, "-h", u.Hostname(), "-p", u.Port(), "-V", "5", "-u", s.broker.User(), "-P", s.broker.Password(),
		"-q", "1", "-C", "1", "-W", "30", "-t", "tenant/t1/device/d1/shadow/desired", "-F", "%t %q %r %C %p")
	cmd.Stdout, cmd.Stderr = &out, t.Output()
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.HasPrefix(got, "tenant/t1/device/d1/shadow/desired 1 1 application/json") ||
		!strings.Contains(got, `"mode"`) || !strings.Contains(got, `"version":1`) {
		t.Errorf("mosquitto_sub: %s", got)
	}
}

// downlink is what an instance of this installation sends to devices with.
func (s *stack) downlink(instance string) *downlink.Options {
	o := downlink.DefaultOptions()
	o.MQTT = legacy_mqtt.DefaultConfig()
	o.MQTT.URL, o.MQTT.Username, o.MQTT.Password = s.broker.URL(), s.broker.User(), s.broker.Password()
	o.MQTT.ClientID = "crossfade-" + instance
	return &o
}

func (s *stack) exec(sql string, args ...any) {
	s.t.Helper()
	if _, err := s.pool.Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Errorf("%s: %v", sql, err)
	}
}

func (s *stack) text(sql string) (v string) {
	s.t.Helper()
	if err := s.pool.QueryRow(s.t.Context(), sql).Scan(&v); err != nil {
		s.t.Errorf("%s: %v", sql, err)
	}
	return v
}

func (s *stack) wantNoQuarantine() {
	s.t.Helper()
	if n := s.count(`SELECT count(*) FROM quarantine_events`); n != 0 {
		s.t.Errorf("%d messages are in quarantine", n)
	}
}
