package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Mosquitto is a private MQTT broker (MQTT 3.1.1 and 5) in a child process.
// Its methods may be called concurrently.
type Mosquitto struct {
	d        daemon
	user     string
	password string
}

// MosquittoOptions says how a broker is started; the zero value is good.
type MosquittoOptions struct {
	// Dir holds configuration, sessions and log. Empty: a new temporary
	// directory, which Close removes.
	Dir string
	// Port of 127.0.0.1. 0: a free one.
	Port int
	// Extra lines for the end of the configuration file, see mosquitto.conf(5).
	Extra []string
	// AllowAnonymous lets clients in that give no user name. A wrong password
	// is refused all the same.
	AllowAnonymous bool
}

// StartMosquitto starts a broker and returns when it accepts connections. ctx
// bounds the start only; the broker runs until Close, or until this process
// ends. Sessions and retained messages are kept on disk: on Stop always, and
// every 30 s meanwhile, so Kill returns to a state up to 30 s old
// (Extra: "autosave_interval 1" makes it 1 s). Queues have no limit.
func StartMosquitto(ctx context.Context, o MosquittoOptions) (*Mosquitto, error) {
	binary, err := findMosquitto("mosquitto")
	if err != nil {
		return nil, err
	}
	passwdTool, err := findMosquitto("mosquitto_passwd")
	if err != nil {
		return nil, err
	}
	dir, own, err := serverDir("mosquitto", o.Dir)
	if err != nil {
		return nil, err
	}
	m := &Mosquitto{user: "crossfade", password: randomSecret()}
	m.d = daemon{name: "mosquitto", dir: dir, ownDir: own, stopSignal: syscall.SIGTERM}
	if err := writePasswordFile(ctx, passwdTool, m.passwordFile(), m.user, m.password); err != nil {
		return nil, errors.Join(err, m.d.removeDir())
	}
	m.d.launch = func(ctx context.Context) (*process, error) { return m.launch(ctx, binary, o) }
	if err := m.d.startFirst(ctx, o.Port); err != nil {
		return nil, err
	}
	return m, nil
}

// URL is mqtt://127.0.0.1:port, without credentials.
func (m *Mosquitto) URL() string { return "mqtt://" + m.Address() }

// Address is 127.0.0.1:port.
func (m *Mosquitto) Address() string { return "127.0.0.1:" + strconv.Itoa(m.d.port) }

// User is the one user name that the broker knows; it may use all topics.
func (m *Mosquitto) User() string { return m.user }

// Password belongs to User. It is random and new for every StartMosquitto.
func (m *Mosquitto) Password() string { return m.password }

// Dir holds the broker's configuration, sessions and log.
func (m *Mosquitto) Dir() string { return m.d.dir }

// PID is the broker's process, 0 while it is not running.
func (m *Mosquitto) PID() int { return m.d.processID() }

// Stop ends the broker in order: persistent sessions, with their queues, and
// retained messages are written to disk. When ctx ends first the broker is
// killed and the error says so. Stopping a stopped broker does nothing.
func (m *Mosquitto) Stop(ctx context.Context) error { return m.d.stop(ctx) }

// Kill ends the broker with SIGKILL: it comes back with what it had last saved.
func (m *Mosquitto) Kill() error { return m.d.kill() }

// Start starts the broker again on the same port and data. Starting a running
// broker does nothing.
func (m *Mosquitto) Start(ctx context.Context) error { return m.d.start(ctx) }

// Close stops the broker for good and removes its data, unless the caller had
// named the directory.
func (m *Mosquitto) Close() error { return m.d.close() }

func (m *Mosquitto) passwordFile() string { return filepath.Join(m.d.dir, "passwords") }

func (m *Mosquitto) launch(ctx context.Context, binary string, o MosquittoOptions) (*process, error) {
	conf := filepath.Join(m.d.dir, "mosquitto.conf")
	if err := os.WriteFile(conf, m.config(o), 0o600); err != nil {
		return nil, fmt.Errorf("write the configuration: %w", err)
	}
	proc, err := startProcess("mosquitto", exec.Command(binary, "-c", conf), logFile(m.d.logPath()), syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	probe := func(ctx context.Context) error { return probeMQTT(ctx, m.Address(), m.user, m.password) }
	if err := proc.waitReady(ctx, probe); err != nil {
		return nil, errors.Join(err, proc.kill())
	}
	return proc, nil
}

func (m *Mosquitto) config(o MosquittoOptions) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "listener %d 127.0.0.1\n", m.d.port)
	fmt.Fprintf(&b, "allow_anonymous %t\n", o.AllowAnonymous)
	fmt.Fprintf(&b, "password_file %s\n", m.passwordFile())
	if os.Geteuid() == 0 {
		// Changing the user would take the parent's death signal away, and
		// with it the promise that the broker does not outlive its parent.
		b.WriteString("user root\n")
	}
	fmt.Fprintf(&b, "persistence true\npersistence_location %s/\nautosave_interval 30\n", m.d.dir)
	b.WriteString("max_queued_messages 0\nmax_inflight_messages 20000\n")
	b.WriteString("log_dest stderr\nlog_timestamp_format %Y-%m-%dT%H:%M:%S\n")
	for _, kind := range []string{"error", "warning", "notice", "information"} {
		fmt.Fprintf(&b, "log_type %s\n", kind)
	}
	for _, line := range o.Extra {
		b.WriteString(strings.TrimRight(line, "\n") + "\n")
	}
	return b.Bytes()
}

// writePasswordFile has mosquitto_passwd hash the password in place, so that
// it never stands on a command line, where every local user could read it.
func writePasswordFile(ctx context.Context, tool, path, user, password string) error {
	if err := os.WriteFile(path, []byte(user+":"+password+"\n"), 0o600); err != nil {
		return fmt.Errorf("write mosquitto's password file: %w", err)
	}
	if out, err := exec.CommandContext(ctx, tool, "-U", path).CombinedOutput(); err != nil {
		return fmt.Errorf("hash mosquitto's password file: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// findMosquitto also looks into /usr/sbin, where Debian puts the broker and
// which is not in an ordinary user's PATH.
func findMosquitto(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is neither in PATH nor in /usr/sbin: install it with `make deps` or `apt-get install mosquitto`", program)
}
