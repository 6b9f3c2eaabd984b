package devstack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/nats-io/nats-server/v2/server"
)

// NATS is a private NATS server with JetStream on disk, either within this
// process or in one of its own. Its methods may be called concurrently.
type NATS struct {
	d              daemon
	user, password string

	inProcess bool
	mu        sync.Mutex     // guards embedded
	embedded  *server.Server // nil unless inProcess and running
}

// NATSOptions says how a NATS server is started; the zero value is good.
type NATSOptions struct {
	// Dir holds the streams and the log. Empty: a new temporary directory,
	// which Close removes.
	Dir string
	// Port of 127.0.0.1. 0: a free one.
	Port int
	// InProcess embeds the server here, which is light but cannot be killed.
	// Otherwise this program starts itself again as the server: main or
	// TestMain must then call RunChild first.
	InProcess bool
	// User and Password that clients must give. Empty: "crossfade" and a
	// random password.
	User, Password string
}

// StartNATS starts a server and returns when it accepts connections. ctx bounds
// the start of a server in its own process; an embedded one starts without
// waiting for anything.
//
// Messages survive Kill, since the kernel holds what the server had written.
// Acknowledgements need not: a consumer may come back with an older floor.
func StartNATS(ctx context.Context, o NATSOptions) (*NATS, error) {
	dir, own, err := serverDir("nats", o.Dir)
	if err != nil {
		return nil, err
	}
	n := &NATS{user: o.User, password: o.Password, inProcess: o.InProcess}
	if n.user == "" {
		n.user = "crossfade"
	}
	if n.password == "" {
		n.password = randomSecret()
	}
	n.d = daemon{name: "nats-server", dir: dir, ownDir: own, stopSignal: syscall.SIGTERM, launch: n.launchChild}
	if n.inProcess {
		n.d.launch = n.launchEmbedded
	}
	if err := n.d.startFirst(ctx, o.Port); err != nil {
		return nil, err
	}
	return n, nil
}

// URL is nats://user:password@127.0.0.1:port; it holds the password.
func (n *NATS) URL() string {
	return "nats://" + n.user + ":" + n.password + "@" + n.Address()
}

// Address is 127.0.0.1:port.
func (n *NATS) Address() string { return "127.0.0.1:" + strconv.Itoa(n.d.port) }

// User is the user name that clients must give.
func (n *NATS) User() string { return n.user }

// Password belongs to User.
func (n *NATS) Password() string { return n.password }

// Dir holds the server's streams and log.
func (n *NATS) Dir() string { return n.d.dir }

// PID is the server's own process, 0 while it is not running or InProcess.
func (n *NATS) PID() int { return n.d.processID() }

// Stop ends the server in order. When ctx ends first, a server in its own
// process is killed and the error says so. Stopping twice does nothing.
func (n *NATS) Stop(ctx context.Context) error {
	if n.inProcess {
		n.stopEmbedded()
		return nil
	}
	return n.d.stop(ctx)
}

// Kill ends the server with SIGKILL. An embedded server cannot be killed, the
// error says so.
func (n *NATS) Kill() error {
	if n.inProcess {
		return errors.New("kill nats-server: it runs within this process; start it with InProcess false, or use Stop")
	}
	return n.d.kill()
}

// Start starts the server again on the same port and data. Starting a running
// server does nothing.
func (n *NATS) Start(ctx context.Context) error { return n.d.start(ctx) }

// Close stops the server for good and removes its data, unless the caller had
// named the directory.
func (n *NATS) Close() error {
	n.stopEmbedded()
	return n.d.close()
}

func (n *NATS) config() natsConfig {
	return natsConfig{Dir: n.d.dir, Port: n.d.port, User: n.user, Password: n.password}
}

// launchEmbedded has no process to return: the daemon then sees a server that
// is not running, and asks here every time.
func (n *NATS) launchEmbedded(context.Context) (*process, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.embedded != nil {
		return nil, nil
	}
	s, err := n.config().serve()
	if err != nil {
		return nil, err
	}
	n.embedded = s
	return nil, nil
}

func (n *NATS) stopEmbedded() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.embedded == nil {
		return
	}
	n.embedded.Shutdown()
	n.embedded.WaitForShutdown()
	n.embedded = nil
}

// launchChild starts this program again, gives it the configuration on its
// standard input, and waits for its word on standard output. The child ends
// when its standard input does, so also when this process is killed.
func (n *NATS) launchChild(ctx context.Context) (*process, error) {
	if !runChildCalled.Load() {
		return nil, errors.New("nats-server in a process of its own is this program started again: call devstack.RunChild first in main or TestMain")
	}
	self, err := selfExecutable()
	if err != nil {
		return nil, err
	}
	configText, err := json.Marshal(n.config())
	if err != nil {
		return nil, err
	}
	childIn, toChild, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childIn.Close()
	fromChild, childOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, toChild.Close())
	}
	defer fromChild.Close()

	cmd := exec.Command(self)
	cmd.Args = []string{"crossfade-devstack-nats"}
	cmd.Env = append(os.Environ(), childVariable+"="+childNATS)
	cmd.Stdin, cmd.Stdout = childIn, childOut
	proc, err := startProcess("nats-server", cmd, logFile(n.d.logPath()), syscall.SIGKILL, toChild)
	childOut.Close() // the child's copy is the only one now: its end is our EOF
	if err != nil {
		return nil, err
	}
	stopWatching := context.AfterFunc(ctx, func() { _ = proc.cmd.Process.Kill() })
	defer stopWatching()
	if _, err := toChild.Write(append(configText, '\n')); err != nil {
		return nil, errors.Join(fmt.Errorf("configure the child: %w", err), proc.kill())
	}
	line, readErr := bufio.NewReader(fromChild).ReadString('\n')
	if line == childReady {
		return proc, nil
	}
	killErr := proc.kill()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("nats-server is not ready: %w%s", context.Cause(ctx), logFile(n.d.logPath()).tail())
	}
	return nil, errors.Join(fmt.Errorf("nats-server is not ready: it said %q%s", strings.TrimSpace(line), logFile(n.d.logPath()).tail()), readErr, killErr)
}

// natsConfig is what the server needs to know, in either process.
type natsConfig struct {
	Dir      string
	Port     int
	User     string
	Password string
}

// serve starts a server in this process and returns when it listens.
func (c natsConfig) serve() (*server.Server, error) {
	log, err := openNATSLog(filepath.Join(c.Dir, "log"))
	if err != nil {
		return nil, err
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "crossfade-" + strconv.Itoa(c.Port),
		Host:       "127.0.0.1",
		Port:       c.Port,
		Username:   c.User,
		Password:   c.Password,
		JetStream:  true,
		StoreDir:   filepath.Join(c.Dir, "jetstream"),
		NoSigs:     true,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("configure nats-server: %w", err), log.Close())
	}
	s.SetLogger(log, false, false)
	s.Start()
	// Start returns once the server listens, or has given up: it has no error
	// to return, it writes one to its log.
	if s.Addr() == nil || !s.JetStreamEnabled() {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, errors.Join(fmt.Errorf("nats-server gave up: %s", log.fatal()), log.Close())
	}
	go func() {
		s.WaitForShutdown()
		_ = log.Close() // the server is gone, there is nobody to tell
	}()
	return s, nil
}
