package flags

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"
)

// RemoteOptions configures a FlagdProvider or an OFREPProvider. Begin with
// DefaultRemoteOptions and set URL.
type RemoteOptions struct {
	// URL is where the service is: http:// or https://, host, and for a service
	// behind a prefix its path; required. Without user, query and fragment.
	URL string
	// Token, where set, returns the credential; it is called for every request, so
	// that it can be rotated, and must not block. TokenHeader is the header that
	// carries it: Authorization (as "Bearer …") or another, such as X-API-Key (bare).
	Token       func() (string, error)
	TokenHeader string
	// CAFile holds the certificate authorities to trust instead of the system's,
	// CertFile and KeyFile the client certificate; PEM. ServerName is the name that
	// the server's certificate must carry, where it is not the URL's host.
	CAFile, CertFile, KeyFile, ServerName string
	// Timeout bounds one request, from dialling to the last byte of the answer.
	Timeout time.Duration
	// MaxBody is the most bytes of an answer, or of one event.
	MaxBody int64
	// GiveUpAfter is how many requests in a row the service may fail until it is
	// taken for down: no tenant has an answer then, at once and without asking.
	GiveUpAfter int
	// RetryMin and RetryMax bound the wait between two attempts to find it up again.
	// It doubles from one to the other, spread at random; a longer Retry-After is
	// honoured, up to ten times RetryMax.
	RetryMin, RetryMax time.Duration
	// StreamIdle is how long flagd's event stream may be silent before it is opened
	// anew; flagd itself sends something every 20 s.
	StreamIdle time.Duration
	// Logger may be nil.
	Logger *slog.Logger
}

// DefaultRemoteOptions returns the defaults: 2 s and 64 KiB for a request, down
// after 5 failures in a row, retries every 250 ms to 30 s.
func DefaultRemoteOptions() RemoteOptions {
	return RemoteOptions{
		TokenHeader: "Authorization",
		Timeout:     2 * time.Second,
		MaxBody:     64 << 10,
		GiveUpAfter: 5,
		RetryMin:    250 * time.Millisecond,
		RetryMax:    30 * time.Second,
		StreamIdle:  90 * time.Second,
	}
}

// Validate names the first field that cannot work, and the remedy. It reads no file.
func (o RemoteOptions) Validate() error {
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return errors.New("RemoteOptions.URL is not the URL of a flag service: use http://host:port or https://host:port")
	case u.User != nil:
		return errors.New("RemoteOptions.URL holds credentials, and URLs end up in logs: use Token")
	case u.RawQuery != "" || u.Fragment != "":
		return errors.New("RemoteOptions.URL holds a query or a fragment: leave it out")
	case o.Token != nil && (o.TokenHeader == "" || strings.ContainsAny(o.TokenHeader, " :\r\n")):
		return errors.New("RemoteOptions.TokenHeader is no header's name: use Authorization or, for example, X-API-Key")
	case (o.CertFile == "") != (o.KeyFile == ""):
		return errors.New("RemoteOptions.CertFile and KeyFile belong together: set both or neither")
	case o.Timeout <= 0:
		return fmt.Errorf("RemoteOptions.Timeout is %s: use more than 0 (default 2s)", o.Timeout)
	case o.MaxBody < 1024:
		return fmt.Errorf("RemoteOptions.MaxBody is %d: use at least 1024 (default 65536)", o.MaxBody)
	case o.GiveUpAfter < 1:
		return fmt.Errorf("RemoteOptions.GiveUpAfter is %d: use at least 1 (default 5)", o.GiveUpAfter)
	case o.RetryMin <= 0 || o.RetryMax < o.RetryMin:
		return fmt.Errorf("RemoteOptions.RetryMin is %s and RetryMax %s: use 0 < RetryMin ≤ RetryMax (defaults 250ms, 30s)", o.RetryMin, o.RetryMax)
	case o.StreamIdle <= 0:
		return fmt.Errorf("RemoteOptions.StreamIdle is %s: use more than 0 (default 90s)", o.StreamIdle)
	}
	return nil
}

// tls reads the files.
func (o RemoteOptions) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.ServerName}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CAFile: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CAFile %s holds no certificate in PEM form", o.CAFile)
		}
	}
	if o.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile); err != nil {
			return nil, fmt.Errorf("load CertFile and KeyFile: %w", err)
		}
		// Anew for every connection: client certificates are rotated.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
			return &cert, err
		}
	}
	return conf, nil
}
