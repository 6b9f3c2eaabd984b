package fleet

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"time"
)

// Config says who plays and how. Start from DefaultConfig.
type Config struct {
	// BrokerURL is mqtt://host:port, or mqtts://host:port for TLS. The ports
	// default to 1883 and 8883.
	BrokerURL string
	// User and Password log every connection in; they may be empty.
	User, Password string
	// TLSCA is a PEM file with the authorities to trust for mqtts; empty means
	// the system's.
	TLSCA string

	// Tenants is the number of tenants: acme, globex, initech, tenant-04, …
	Tenants int
	// Devices is the number of devices of all tenants together, spread evenly.
	Devices int
	// Seed decides tokens, sites, layouts and values. Two fleets with the same
	// seed are the same devices.
	Seed uint64
	// Shares says which part of the messages is of which kind.
	Shares Shares

	// Rate is in messages per second over the whole fleet; 0 publishes as fast
	// as the broker acknowledges.
	Rate float64
	// PerDevice ends the run when every device has sent this many messages;
	// 0 means no limit. Shadow reports come on top.
	PerDevice int64
	// Connections is the number of MQTT connections; 0 gives each device its
	// own up to 100, beyond which devices share.
	Connections int
	// MaxInflight bounds the unacknowledged messages of one connection, 1 to
	// 65535. The broker's Receive Maximum lowers it further.
	MaxInflight int
	// DrainTimeout bounds the wait for outstanding PUBACKs after the end of a
	// run; what has none by then stays uncertain.
	DrainTimeout time.Duration

	// Record continues an earlier run: devices go on after the last seq it
	// holds. nil starts a new one. Without it a second run with the same seed
	// against the same database repeats the first run's seqs, which Reconcile
	// then reports as duplicates.
	Record *Record
	// Logger hears of lost and restored connections; nil is silent.
	Logger *slog.Logger
}

// Shares are the parts of all messages, each 0 to 1, together at most 1; what
// remains is telemetry with a ts.
type Shares struct {
	// Timeless is telemetry with a seq but no ts.
	Timeless float64
	// Heartbeat has ts and seq, and no metrics.
	Heartbeat float64
	// Bad messages belong in quarantine; ExpectedReason says why.
	Bad float64
	// Shadow is how often a message is followed by a shadow report, which has
	// no seq: its version is the seq of the message it follows.
	Shadow float64
}

// DefaultConfig is the demo's fleet: 60 devices of 3 tenants, 600 messages/s.
// It has no broker yet.
func DefaultConfig() Config {
	return Config{
		Tenants: 3, Devices: 60, Seed: 1, Rate: 600,
		Shares:      Shares{Timeless: 0.10, Heartbeat: 0.10, Shadow: 0.01},
		MaxInflight: 100, DrainTimeout: 10 * time.Second,
	}
}

// maxDevices keeps a slip of the finger from exhausting memory.
const maxDevices = 1_000_000

// Validate reports every field that cannot work, each with its remedy.
func (c Config) Validate() error {
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("fleet: "+format, args...))
		}
	}
	if _, _, err := c.address(); err != nil {
		errs = append(errs, err)
	}
	bad(c.Tenants >= 1 && c.Tenants <= c.Devices, "Tenants is %d: set it from 1 to the number of devices (%d)", c.Tenants, c.Devices)
	bad(c.Devices >= 1 && c.Devices <= maxDevices, "Devices is %d: set it from 1 to %d", c.Devices, maxDevices)
	bad(c.Rate >= 0 && c.Rate <= 1e9, "Rate is %v: set it to messages per second, or to 0 for no limit", c.Rate)
	bad(c.PerDevice >= 0, "PerDevice is %d: set it to the messages of one device, or to 0 for no limit", c.PerDevice)
	bad(c.Connections >= 0, "Connections is %d: set it to 1 or more, or to 0 for one per device up to %d", c.Connections, maxOwnConnections)
	bad(c.MaxInflight >= 1 && c.MaxInflight <= 65535, "MaxInflight is %d: set it from 1 to 65535", c.MaxInflight)
	bad(c.DrainTimeout > 0, "DrainTimeout is %v: set it to a positive duration", c.DrainTimeout)
	errs = append(errs, c.Shares.validate())
	return errors.Join(errs...)
}

func (s Shares) validate() error {
	for _, f := range []struct {
		name  string
		value float64
	}{{"Timeless", s.Timeless}, {"Heartbeat", s.Heartbeat}, {"Bad", s.Bad}, {"Shadow", s.Shadow}} {
		if !(f.value >= 0 && f.value <= 1) { // also catches NaN
			return fmt.Errorf("fleet: Shares.%s is %v: set it from 0 to 1", f.name, f.value)
		}
	}
	if sum := s.Timeless + s.Heartbeat + s.Bad; sum > 1 {
		return fmt.Errorf("fleet: Shares.Timeless, Heartbeat and Bad sum to %v: lower them to 1 at most", sum)
	}
	return nil
}

const maxOwnConnections = 100

func (c Config) connections() int {
	n := c.Connections
	if n == 0 {
		n = maxOwnConnections
	}
	return min(n, c.Devices)
}

// address returns the broker's host:port and whether it is to be spoken to by TLS.
func (c Config) address() (addr string, secure bool, err error) {
	u, err := url.Parse(c.BrokerURL)
	if err != nil || u.Host == "" || u.Hostname() == "" {
		// The URL itself is not repeated: it may hold a password.
		return "", false, errors.New("fleet: BrokerURL is not a URL with a host: set it like mqtt://127.0.0.1:1883")
	}
	port := "1883"
	switch u.Scheme {
	case "mqtt", "tcp":
	case "mqtts", "ssl", "tls":
		secure, port = true, "8883"
	default:
		return "", false, fmt.Errorf("fleet: BrokerURL has the scheme %q: use mqtt or mqtts", u.Scheme)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	return net.JoinHostPort(u.Hostname(), port), secure, nil
}

// login returns user and password, from the URL where the fields are empty.
func (c Config) login() (user, password string) {
	if u, err := url.Parse(c.BrokerURL); err == nil && c.User == "" && u.User != nil {
		password, _ = u.User.Password()
		return u.User.Username(), password
	}
	return c.User, c.Password
}

// tlsConfig returns nil for a broker that is reached without TLS.
func (c Config) tlsConfig() (*tls.Config, error) {
	addr, secure, err := c.address()
	if err != nil || !secure {
		return nil, err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("fleet: BrokerURL's host: %w", err)
	}
	t := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if c.TLSCA == "" {
		return t, nil
	}
	pem, err := os.ReadFile(c.TLSCA)
	if err != nil {
		return nil, fmt.Errorf("fleet: read TLSCA: %w", err)
	}
	t.RootCAs = x509.NewCertPool()
	if !t.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("fleet: TLSCA %s holds no PEM certificate: name the authority's certificate file", c.TLSCA)
	}
	return t, nil
}
