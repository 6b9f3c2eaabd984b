package devstack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
)

// Ports come from below the range that the kernel gives to outgoing
// connections. From within it, a client that keeps dialling a stopped server
// would sooner or later be given the server's own port as its source, connect
// to itself, and keep the server from coming back.
const (
	lowestPort         = 20000
	lowestEphemeralStd = 32768
)

var handedOut = struct {
	sync.Mutex
	ports map[int]bool
}{ports: map[int]bool{}}

// FreePort returns a port of 127.0.0.1 on which nothing listens and that this
// process has not been given before. Another process may still take it before
// it is used; PortTaken then tells.
func FreePort() (int, error) {
	handedOut.Lock()
	defer handedOut.Unlock()
	end := min(lowestEphemeral(), lowestEphemeralStd)
	var last error
	for range 200 {
		port := 0
		if end-lowestPort >= 1000 {
			port = lowestPort + rand.IntN(end-lowestPort)
		}
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		port = listener.Addr().(*net.TCPAddr).Port
		if err := listener.Close(); err != nil {
			return 0, fmt.Errorf("look for a free port: %w", err)
		}
		if !handedOut.ports[port] {
			handedOut.ports[port] = true
			return port, nil
		}
	}
	return 0, errors.Join(errors.New("no free port on 127.0.0.1 after 200 attempts"), last)
}

// PortTaken reports whether something listens on a port of 127.0.0.1, or keeps
// it from being listened on. It tells a server that lost the race for its
// port from one that failed for another reason, without reading its messages.
func PortTaken(port int) bool {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return true
	}
	listener.Close()
	return false
}

func lowestEphemeral() int {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return lowestEphemeralStd // not Linux, or /proc is hidden
	}
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return lowestEphemeralStd
	}
	low, err := strconv.Atoi(fields[0])
	if err != nil {
		return lowestEphemeralStd
	}
	return low
}
