package jetstream

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/nats-io/nats.go"
)

// explain adds to the reason for which there is no connection what an operator
// can do about it. The fields are those of Config.
func (c Config) explain(err error) error {
	var (
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		op        *net.OpError
	)
	remedy := "check URLs, and that the server runs"
	switch {
	case errors.Is(err, nats.ErrAuthExpired):
		remedy = "the login has expired; renew what " + c.login() + " holds"
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthRevoked), errors.Is(err, nats.ErrAccountAuthExpired):
		remedy = "the server refused the login; " + c.checkLogin()
	case errors.Is(err, nats.ErrNkeysNotSupported):
		remedy = "the server knows no NKeys; remove NKeySeedFile and use another way to log in"
	case errors.Is(err, nats.ErrSecureConnWanted):
		remedy = "the server offers no TLS; remove the TLS settings and tls:// from URLs, or have the server use TLS"
	case errors.As(err, &authority):
		remedy = "set TLSCAFile to the authority that signed the server's certificate"
	case errors.As(err, &name):
		remedy = "set TLSServerName to a name that the server's certificate holds"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		remedy = "renew the server's certificate, or set the clock right"
	case errors.As(err, &op) && op.Op == "remote error": // a TLS alert
		remedy = c.checkCertificate()
	case errors.Is(err, nats.ErrTLS):
		remedy = "check the TLS settings; " + c.checkCertificate()
	}
	return fmt.Errorf("%w; %s", err, remedy)
}

// login names the way to log in that is configured, or is empty.
func (c Config) login() string {
	return strings.Join(c.logins(), ", ")
}

func (c Config) checkLogin() string {
	switch way := c.login(); way {
	case "":
		return "set CredentialsFile, NKeySeedFile, Token, or User and Password"
	case loginUser:
		return "check User and Password"
	default:
		return "check " + way
	}
}

func (c Config) checkCertificate() string {
	if c.TLSCertFile == "" {
		return "the server seems to want a client certificate; set TLSCertFile, TLSKeyFile"
	}
	return "the server may not accept our client certificate; check TLSCertFile, that it has not expired and that the server trusts its authority"
}
