package api

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// Sizes that no setting changes.
const (
	// MaxBody bounds the body of a single desired state, command or message, in bytes.
	MaxBody = 64 << 10
	// MaxBatch bounds the body of any request.
	MaxBatch  = 1 << 20
	maxHeader = 16 << 10
	// maxDepth is how deep the objects and arrays of a body may be nested.
	maxDepth = 64
	// maxStored bounds a JSON value as PostgreSQL writes it out, where 1e300 is 301
	// digits: it has to go to a device again.
	maxStored = 128 << 10
)

// Config is what the operator sets. DefaultConfig has a value for all but the address.
type Config struct {
	// Listen is the address, HOST:PORT; port 0 takes a free one.
	Listen string
	// CertFile and KeyFile are PEM files of the server's certificate, with its chain,
	// and of its key. Without them the API is plain HTTP, which only loopback may be
	// unless AllowPlaintext says that a proxy in front of it encrypts. Files that are
	// replaced are read again within a minute.
	CertFile, KeyFile string
	AllowPlaintext    bool
	// MaxConns is how many database connections the API may have, 2 to 100, besides
	// those of ingest. The owner of Parts.Pool sees to it.
	MaxConns int
	// DeviceRate and TokenRate are how many requests a second a device and a back
	// end's token may make in the long run, with four seconds' worth at once; 0 is no
	// limit. Each message of a batch counts as a request. Each instance counts for itself.
	DeviceRate, TokenRate float64
	// MaxRequests is how many requests are worked at at the same time; what is more is
	// turned away with 503. MaxConnections bounds open connections; what is more waits.
	MaxRequests, MaxConnections int
	// RequestTimeout bounds one request's work, once its header is read.
	RequestTimeout time.Duration
	// AuthTTL is how long a token or a device's secret is believed without looking: a
	// revoked one works for so long at most.
	AuthTTL time.Duration
	// Version is shown in the OpenAPI document.
	Version string
}

// DefaultConfig listens nowhere yet.
func DefaultConfig() Config {
	return Config{
		MaxConns: 4, DeviceRate: 10, TokenRate: 100,
		MaxRequests: 256, MaxConnections: 2048,
		RequestTimeout: 15 * time.Second, AuthTTL: 5 * time.Second,
		Version: "dev",
	}
}

// Validate names every field that cannot work, and the remedy. It reads the
// certificate's files.
func (c *Config) Validate() error {
	var errs []error
	need := func(ok bool, field, remedy string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("field "+field+": "+remedy, args...))
		}
	}
	host, _, err := net.SplitHostPort(c.Listen)
	need(err == nil, "Listen", "%q is not HOST:PORT; write for example 127.0.0.1:8443", c.Listen)
	need((c.CertFile == "") == (c.KeyFile == ""), "KeyFile", "a certificate needs its key, and the other way round; set both or neither")
	if c.CertFile != "" && c.KeyFile != "" {
		_, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile) // whose errors never hold key material
		need(err == nil, "CertFile", "certificate and key cannot be used (%v); name readable PEM files that belong together", err)
	} else if err == nil {
		need(loopback(host) || c.AllowPlaintext, "Listen",
			"%q is not loopback, and tokens would cross the network unencrypted; set CertFile and KeyFile, or AllowPlaintext where a proxy in front encrypts", c.Listen)
	}
	need(c.MaxConns >= 2 && c.MaxConns <= 100, "MaxConns", "%d is out of range; use 2 to 100", c.MaxConns)
	need(c.DeviceRate >= 0 && c.DeviceRate <= 1e6, "DeviceRate", "%v is out of range; use 0 to 1000000", c.DeviceRate)
	need(c.TokenRate >= 0 && c.TokenRate <= 1e6, "TokenRate", "%v is out of range; use 0 to 1000000", c.TokenRate)
	need(c.MaxRequests >= 1, "MaxRequests", "%d is out of range; use 1 or more", c.MaxRequests)
	need(c.MaxConnections >= 1, "MaxConnections", "%d is out of range; use 1 or more", c.MaxConnections)
	need(c.RequestTimeout >= time.Second, "RequestTimeout", "%s is too short; use 1s or more", c.RequestTimeout)
	need(c.AuthTTL > 0 && c.AuthTTL <= time.Minute, "AuthTTL", "%s is out of range; use up to 1m", c.AuthTTL)
	return errors.Join(errs...)
}

// loopback reports whether a host is this one for sure. A name other than localhost
// is not: what it resolves to can change.
func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// Parts are what a Server works with; all but Publisher and Mount must be set. It
// closes none of them.
type Parts struct {
	// Pool is for the API alone: what it holds up must not be ingest's.
	Pool *pgxpool.Pool
	// Publisher takes what devices say; nil answers them 503.
	Publisher Publisher
	// Mount adds operations of others to the same listener and document. They see to
	// their own authentication, with the Auth they are given.
	Mount    []func(huma.API, *Auth) error
	Registry prometheus.Registerer
	Logger   *slog.Logger
}
