package jetstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Config says how to reach the NATS servers. Use at most one way to log in:
// CredentialsFile, NKeySeedFile, Token, or User with Password.
type Config struct {
	// URLs of the servers, such as nats://host:4222 or tls://host:4222; with
	// several, any that answers will do. A user name and password, or a token
	// alone, may stand in the URL instead of the fields below; logs and errors
	// show neither.
	URLs []string
	// Name is what the server shows for this connection (nats server report
	// connections).
	Name string

	// CredentialsFile is a .creds file with a user's JWT and seed. It is read
	// again at every connection, so new credentials count from the next one on;
	// the server ends a connection when its JWT expires.
	CredentialsFile string
	// NKeySeedFile holds an NKey seed. The user that it stands for is fixed at
	// the start: a seed of another user needs a restart.
	NKeySeedFile string
	Token        string
	User         string
	Password     string

	// TLS. Any of these makes TLS mandatory, whatever the URL's scheme. The
	// files are read again at every connection, so renewed certificates need no
	// restart.
	TLSCAFile     string // PEM; empty: the system's authorities
	TLSCertFile   string // PEM client certificate; needs TLSKeyFile
	TLSKeyFile    string
	TLSServerName string // empty: the host of the URL
}

// DefaultConfig returns the configuration for a server on this machine.
func DefaultConfig() Config {
	return Config{URLs: []string{nats.DefaultURL}, Name: "crossfade"}
}

// Validate checks the fields against each other, reading no files and opening
// no connection. Its error names every wrong field and what to do about it, and
// never holds a secret.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.URLs) == 0 {
		bad("URLs: no server given; name at least one, such as nats://127.0.0.1:4222")
	}
	for i, u := range c.URLs {
		if err := validateURL(u); err != nil {
			bad("URLs[%d]: %w", i, err)
		}
	}
	// A user in the URL silently wins over the fields, so it counts as one.
	if logins := c.logins(); len(logins) > 1 {
		bad("%s: these are different ways to log in; keep one", strings.Join(logins, ", "))
	}
	if c.Password != "" && c.User == "" {
		bad("Password: given without User; set User as well")
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		bad("TLSCertFile, TLSKeyFile: a client certificate needs both; set the missing one")
	}
	if len(errs) > 0 {
		return fmt.Errorf("NATS configuration: %w", errors.Join(errs...))
	}
	return nil
}

const loginUser = "User"

// logins names the ways to log in that are configured.
func (c Config) logins() []string {
	var logins []string
	for _, l := range []struct {
		name string
		set  bool
	}{
		{"CredentialsFile", c.CredentialsFile != ""}, {"NKeySeedFile", c.NKeySeedFile != ""},
		{"Token", c.Token != ""}, {loginUser, c.User != ""},
		{"the user in URLs", slices.ContainsFunc(c.URLs, func(u string) bool { return strings.Contains(u, "@") })},
	} {
		if l.set {
			logins = append(logins, l.name)
		}
	}
	return logins
}

// validateURL keeps url.Parse's error to itself, because that error quotes the
// URL with its password.
func validateURL(raw string) error {
	s := strings.TrimSpace(raw)
	if s == "" {
		return errors.New("empty; write it like nats://127.0.0.1:4222")
	}
	if !strings.Contains(s, "://") {
		s = "nats://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return fmt.Errorf("%s is not a URL; write it like nats://host:4222, with special characters in user and password percent-encoded", RedactURL(s))
	}
	switch u.Scheme {
	case "nats", "tls", "ws", "wss":
	default:
		return fmt.Errorf("%s: scheme %q is unknown; use nats, tls, ws or wss", RedactURL(s), u.Scheme)
	}
	if u.Hostname() == "" {
		return fmt.Errorf("%s has no host; write it like nats://host:4222", RedactURL(s))
	}
	if strings.Contains(u.Host, ",") {
		return fmt.Errorf("%s names several servers; give each an entry of its own", RedactURL(s))
	}
	return nil
}

// RedactURL returns the URL without user name and password, whether or not it
// can be parsed.
func RedactURL(raw string) string {
	scheme, rest, found := strings.Cut(raw, "://")
	if !found || strings.ContainsAny(scheme, ":@/") { // else "://" is part of a password
		found = false
		scheme, rest = "", raw
	}
	// The last @ ends the user's part even where the password holds an
	// unescaped @ or /: rather a host too few than a secret too many.
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = "***@" + rest[at+1:]
	}
	if !found {
		return rest
	}
	return scheme + "://" + rest
}

// Times of the connection. A ping every 10 s, two of which may go unanswered,
// finds a peer that vanished without a word in half a minute; nats.go's own
// default takes six.
const (
	dialTimeout   = 5 * time.Second
	pingInterval  = 10 * time.Second
	pingsOut      = 2
	writeTimeout  = 5 * time.Second
	flushTimeout  = 10 * time.Second
	reconnectBase = 100 * time.Millisecond
	backoffLimit  = 30 * time.Second
)

// options translates the configuration; it reads the files that it names.
func (c Config) options() ([]nats.Option, error) {
	opts := []nats.Option{
		nats.Name(c.Name),
		nats.Timeout(dialTimeout),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(pingsOut),
		nats.FlusherTimeout(writeTimeout),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		// A password that is being rotated refuses us for a while; without
		// this nats.go gives up for good after the second refusal.
		nats.IgnoreAuthErrorAbort(),
		// Nothing may be sent blindly after a reconnection (package comment),
		// so nothing is buffered during the gap.
		nats.ReconnectBufSize(-1),
		// Not as one string with commas: a password may hold one, and the
		// pieces would end up in nats.go's error.
		func(o *nats.Options) error {
			for _, u := range c.URLs {
				o.Servers = append(o.Servers, strings.TrimSpace(u))
			}
			return nil
		},
	}
	switch {
	case c.CredentialsFile != "":
		opt := nats.UserCredentials(c.CredentialsFile)
		if err := checkCredentials(opt); err != nil {
			return nil, fmt.Errorf("CredentialsFile: %s holds no usable credentials (%w); make them with: nsc generate creds", c.CredentialsFile, err)
		}
		opts = append(opts, opt)
	case c.NKeySeedFile != "":
		opt, err := nats.NkeyOptionFromSeed(c.NKeySeedFile)
		if err != nil {
			return nil, fmt.Errorf("NKeySeedFile: %s holds no usable NKey seed (%w); make one with: nk -gen user", c.NKeySeedFile, err)
		}
		opts = append(opts, opt)
	case c.Token != "":
		opts = append(opts, nats.Token(c.Token))
	case c.User != "":
		opts = append(opts, nats.UserInfo(c.User, c.Password))
	}
	if c.TLSCAFile != "" || c.TLSCertFile != "" || c.TLSServerName != "" {
		// Read once now, so that a wrong file is told at the start.
		if _, err := c.authorities(); err != nil {
			return nil, err
		}
		if _, err := c.certificate(); err != nil {
			return nil, err
		}
		opts = append(opts, c.tlsOption)
	}
	return opts, nil
}

// tlsOption has nats.go ask for the files at every connection.
func (c Config) tlsOption(o *nats.Options) error {
	o.Secure = true
	o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.TLSServerName}
	if c.TLSCAFile != "" {
		o.RootCAsCB = c.authorities
	}
	if c.TLSCertFile != "" {
		o.TLSCertCB = c.certificate
	}
	return nil
}

func (c Config) authorities() (*x509.CertPool, error) {
	if c.TLSCAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.TLSCAFile)
	if err != nil {
		return nil, fmt.Errorf("TLSCAFile: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("TLSCAFile: %s holds no certificate in PEM form", c.TLSCAFile)
	}
	return pool, nil
}

func (c Config) certificate() (tls.Certificate, error) {
	if c.TLSCertFile == "" {
		return tls.Certificate{}, nil
	}
	cert, err := tls.LoadX509KeyPair(c.TLSCertFile, c.TLSKeyFile)
	if err != nil {
		return cert, fmt.Errorf("TLSCertFile, TLSKeyFile: %w", err)
	}
	return cert, nil
}

// checkCredentials logs in for show. nats.go takes a file without the usual
// markers for a JWT as a whole and would send it to the server, whatever it is.
func checkCredentials(credentials nats.Option) error {
	var o nats.Options
	if err := credentials(&o); err != nil {
		return err
	}
	jwt, err := o.UserJWT()
	if err != nil {
		return err
	}
	if strings.Count(jwt, ".") != 2 || strings.ContainsAny(jwt, " \t\r\n") {
		return errors.New("no user JWT found")
	}
	_, err = o.SignatureCB([]byte("any nonce"))
	return err
}
