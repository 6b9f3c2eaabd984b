package legacy_mqtt

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"github.com/eclipse/paho.golang/autopaho"
)

// codeTakenOver is the reason with which a broker ends a connection because
// another client has connected with the same client ID.
const codeTakenOver = 0x8E

// codeNotAuthorized: the access rules do not allow it.
const codeNotAuthorized = 0x87

// reason puts an MQTT 5 reason code (section 2.4) into an operator's words.
func reason(code byte) string {
	text, ok := map[byte]string{
		0x80: "unspecified error",
		0x81: "malformed packet",
		0x82: "protocol error",
		0x83: "refused for a reason of the broker's own; see its log",
		0x84: "the broker does not speak MQTT 5",
		0x85: "client ID not valid; change ClientID",
		0x86: "bad user name or password; check Username, Password",
		0x87: "not authorized; check Username, Password and the broker's access rules",
		0x88: "server unavailable",
		0x89: "server busy",
		0x8A: "client is banned",
		0x8B: "server is shutting down",
		0x8D: "keep-alive timed out",
		0x8E: "another client uses the same client ID; give each instance a ClientID of its own",
		0x8F: "topic filter not valid; check Filters",
		0x90: "topic name not valid",
		0x93: "receive maximum exceeded",
		0x95: "packet too large for the broker",
		0x97: "quota exceeded; raise the broker's limits for this user",
		0x99: "payload not in the format that it is said to have",
		0x9A: "the broker does not retain messages",
		0x98: "ended by the broker's administrator",
		0x9C: "use another server",
		0x9D: "server has moved",
		0x9E: "the broker does not support shared subscriptions; remove Group",
		0x9F: "connection rate exceeded",
		0xA2: "the broker does not support wildcard subscriptions",
	}[code]
	if !ok {
		return fmt.Sprintf("reason code 0x%02X", code)
	}
	return fmt.Sprintf("%s (0x%02X)", text, code)
}

// guardError is what a publisher's guard says against a connection.
type guardError struct{ why error }

func (e *guardError) Error() string { return "not allowed to publish now: " + e.why.Error() }
func (e *guardError) Unwrap() error { return e.why }

// connectError translates why an attempt to connect failed.
func connectError(err error) error {
	// paho reports it as if the broker had refused.
	if guard, ok := errors.AsType[*guardError](err); ok {
		return guard
	}
	var refused *autopaho.ConnackError
	if errors.As(err, &refused) {
		return fmt.Errorf("the broker refused: %s", reason(refused.ReasonCode))
	}
	if remedy := tlsRemedy(err); remedy != "" {
		return fmt.Errorf("%w; %s", err, remedy)
	}
	return err
}

// tlsRemedy says what to do about a TLS handshake that failed; empty if that is
// not what err is about.
func tlsRemedy(err error) string {
	var (
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		op        *net.OpError
	)
	switch {
	case errors.As(err, &authority):
		return "set TLS.CAFile to the authority that signed the broker's certificate"
	case errors.As(err, &name):
		return "set TLS.ServerName to a name that the broker's certificate holds"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "renew the broker's certificate, or set the clock right"
	case errors.As(err, &op) && op.Op == "remote error": // a TLS alert
		return "the broker does not accept our client certificate; check TLS.CertFile, TLS.KeyFile, that it has not expired and that the broker trusts its authority"
	}
	return ""
}

// subscribeError names the filters that a SUBACK refused, if it refused any.
func subscribeError(topics []string, codes []byte) error {
	var errs []error
	for i, code := range codes {
		if code >= 0x80 && i < len(topics) {
			errs = append(errs, fmt.Errorf("%s: %s", topics[i], reason(code)))
		}
	}
	return errors.Join(errs...)
}
