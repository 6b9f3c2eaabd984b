package legacy_mqtt

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

// Config says which broker to subscribe to, as whom, and how. Start from
// [DefaultConfig].
type Config struct {
	// URL is the broker: mqtt://host:1883, mqtts://host:8883, ws://host/path or
	// wss://host/path. It holds no user name or password.
	URL string
	// ClientID names the session at the broker. It has to stay the same across
	// restarts, or what the old session holds is never delivered, and no two
	// clients may share it, or each throws the other out.
	ClientID string
	// Username and Password log in to the broker; both may be empty.
	Username, Password string
	TLS                TLSConfig

	// Group makes the subscription a shared one ($share/{Group}/…): members of
	// a group divide the messages among them. Empty: this session gets all.
	Group string
	// Filters are the topic filters to subscribe to, without $share. What they may
	// leave out of [pipeline.SentinelFilter] every session subscribes to besides.
	Filters []string
	// UsernameProperty is the name of the MQTT user property in which the broker
	// passes on the sender's user name. Empty if it does not.
	UsernameProperty string

	// Window is the Receive Maximum: how many messages the broker may have sent
	// that are not acknowledged. 1 to 65535.
	Window int
	// MaxPacket is the largest PUBLISH in bytes that the broker may send us, 1024
	// and up. It bounds what one hostile device can make us hold; the broker drops
	// what is larger, for us alone, as if it had been delivered (MQTT-3.1.2-24).
	// It has to be well above the largest payload that the pipeline accepts.
	MaxPacket uint32
	// HardLimit bounds what is in hand when the broker sends more than Window
	// (Mosquitto does, QoS 0 always may), or after a reconnect, when copies of
	// the old connection are still held. At the limit reading stops, and with it
	// the answers to keep-alives, so this is the last resort. 0: four times
	// Window; otherwise at least Window.
	HardLimit int
	// WindowBytes bounds the memory of messages that were read and are not settled, in
	// bytes, 1 and up; one message is always taken, and one more may be read. So devices
	// with large messages cannot make us hold any amount while PostgreSQL is slow or
	// away. At the limit it is as at HardLimit.
	WindowBytes int64
	// SessionExpiry is how long the broker keeps the session while no
	// connection is up. Whole seconds, at least 1 s.
	SessionExpiry time.Duration
	// KeepAlive is the interval after which a silent connection is probed.
	// Whole seconds, 1 s to 65535 s. A dead connection is noticed within two.
	KeepAlive time.Duration
	// ConnectTimeout bounds one attempt to connect, from dialling to CONNACK.
	ConnectTimeout time.Duration
	// MinBackoff and MaxBackoff bound the pause between attempts to connect,
	// which doubles with every failure. A random half of it is taken off, so
	// that instances do not return together.
	MinBackoff, MaxBackoff time.Duration
	// ReleaseDelay is how long a released copy may keep back the PUBACKs behind
	// it before the connection is renewed, which makes the broker send it again.
	ReleaseDelay time.Duration

	// Logger receives what happens to the connection. Nil: nothing is logged.
	Logger *slog.Logger
}

// TLSConfig is used for mqtts and wss. The files are read again at every
// connection, so renewed certificates need no restart.
type TLSConfig struct {
	// CAFile holds the PEM certificates that the broker's is checked against.
	// Empty: the system's.
	CAFile string
	// CertFile and KeyFile hold the client certificate and its key in PEM.
	CertFile, KeyFile string
	// ServerName is the name expected in the broker's certificate. Empty: the
	// URL's host.
	ServerName string
}

// defaultFilters are the topics that devices publish to.
var defaultFilters = []string{
	"tenant/+/device/+/+",
	"tenant/+/device/+/shadow/reported",
	"tenant/+/device/+/commands/ack",
}

// DefaultConfig returns the settings that fit most brokers. URL and ClientID
// have no default.
func DefaultConfig() Config {
	return Config{
		Filters:        slices.Clone(defaultFilters),
		Window:         8000,
		WindowBytes:    128 << 20,
		MaxPacket:      4 << 20,
		SessionExpiry:  24 * time.Hour,
		KeepAlive:      30 * time.Second,
		ConnectTimeout: 10 * time.Second,
		MinBackoff:     250 * time.Millisecond,
		MaxBackoff:     30 * time.Second,
		ReleaseDelay:   5 * time.Second,
	}
}

// maxBackoff is the ceiling for Config.MaxBackoff: a broker that is back must
// not wait longer for us.
const maxBackoff = 30 * time.Second

// Validate reports every setting that cannot work, by name and with the remedy.
// It reads the TLS files but does not connect.
func (c Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("mqtt: %s: %s", field, fmt.Sprintf(format, args...)))
	}
	c.validateBroker(bad)
	c.validateFilters(bad)
	c.validateLimits(bad)
	return errors.Join(errs...)
}

type complaint func(field, format string, args ...any)

func (c Config) validateBroker(bad complaint) {
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
		bad("URL", "is empty; set the broker's address, such as mqtt://localhost:1883")
	case err != nil:
		bad("URL", "cannot be read as a URL; write it as mqtt://host:1883") // err would repeat a password
	case u.User != nil:
		bad("URL", "must not hold a user name or password; use Username and Password")
	case !slices.Contains([]string{"mqtt", "mqtts", "ws", "wss"}, u.Scheme):
		bad("URL", "scheme %q is not supported; use mqtt, mqtts, ws or wss", u.Scheme)
	case u.Hostname() == "":
		bad("URL", "has no host; write it as %s://host:port", u.Scheme)
	}
	if c.ClientID == "" {
		bad("ClientID", "is empty; choose a name that is unique to this instance and stays the same across restarts")
	}
	if c.Password != "" && c.Username == "" {
		bad("Password", "is set without Username; set both or neither")
	}
	if u != nil && !secure(u) && c.TLS != (TLSConfig{}) {
		bad("TLS", "is set although URL is not encrypted; use mqtts or wss, or remove it")
	}
	if _, err := c.TLS.load(""); err != nil {
		bad("TLS", "%v", err)
	}
}

func (c Config) validateFilters(bad complaint) {
	if strings.ContainsAny(c.Group, "/+#") {
		bad("Group", "%q must not contain /, + or #", c.Group)
	}
	if len(c.Filters) == 0 {
		bad("Filters", "is empty; name at least one topic filter, such as %s", defaultFilters[0])
	}
	for _, f := range c.Filters {
		if err := checkFilter(f); err != nil {
			bad("Filters", "%q %v", f, err)
		}
	}
}

func (c Config) validateLimits(bad complaint) {
	if c.Window < 1 || c.Window > math.MaxUint16 {
		bad("Window", "%d is out of range; choose 1 to 65535", c.Window)
	}
	if c.MaxPacket < 1024 {
		bad("MaxPacket", "%d is out of range; choose 1024 bytes or more", c.MaxPacket)
	}
	if c.HardLimit != 0 && c.HardLimit < c.Window {
		bad("HardLimit", "%d is below Window (%d); raise it, or set 0 for four times Window", c.HardLimit, c.Window)
	}
	if c.WindowBytes < 1 {
		bad("WindowBytes", "%d is out of range; choose 1 or more, best some hundred times the largest payload that is accepted", c.WindowBytes)
	}
	seconds := func(field string, d, most time.Duration) {
		if d < time.Second || d > most || d%time.Second != 0 {
			bad(field, "%s is out of range; choose whole seconds from 1s to %s", d, most)
		}
	}
	seconds("SessionExpiry", c.SessionExpiry, (math.MaxUint32-1)*time.Second)
	seconds("KeepAlive", c.KeepAlive, math.MaxUint16*time.Second)
	if c.ConnectTimeout <= 0 {
		bad("ConnectTimeout", "%s is not positive; choose for example 10s", c.ConnectTimeout)
	}
	if c.MinBackoff <= 0 || c.MaxBackoff < c.MinBackoff || c.MaxBackoff > maxBackoff {
		bad("MinBackoff, MaxBackoff", "%s, %s are out of range; choose 0 < MinBackoff ≤ MaxBackoff ≤ %s", c.MinBackoff, c.MaxBackoff, maxBackoff)
	}
	if c.ReleaseDelay <= 0 {
		bad("ReleaseDelay", "%s is not positive; choose for example 5s", c.ReleaseDelay)
	}
}

// checkFilter applies the rules of MQTT section 4.7.1.
func checkFilter(filter string) error {
	if filter == "" {
		return errors.New("is empty; remove it")
	}
	if strings.HasPrefix(filter, "$share/") {
		return errors.New("must not start with $share/; set Group instead")
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		switch {
		case strings.Contains(level, "#") && (level != "#" || i != len(levels)-1):
			return errors.New("may have # only as its whole last level")
		case strings.Contains(level, "+") && level != "+":
			return errors.New("may have + only as a whole level")
		}
	}
	return nil
}

// hardLimit is HardLimit with its default.
func (c Config) hardLimit() int64 {
	if c.HardLimit == 0 {
		return 4 * int64(c.Window)
	}
	return int64(c.HardLimit)
}

// topics are the filters as they are subscribed to. A sentinel has to reach every
// session and on a shared subscription only one member gets it, so each session has
// a subscription of its own to them; a broker puts what comes by either into one
// queue, in the order in which it was published.
func (c Config) topics() []string {
	if c.Group == "" && c.takesAll() {
		return c.Filters
	}
	topics := make([]string, len(c.Filters), len(c.Filters)+1)
	for i, f := range c.Filters {
		topics[i] = f
		if c.Group != "" {
			topics[i] = "$share/" + c.Group + "/" + f
		}
	}
	return append(topics, pipeline.SentinelFilter)
}

// takesAll reports whether the filters take the sentinels of every tenant.
func (c Config) takesAll() bool {
	for _, f := range defaultFilters {
		if !slices.Contains(c.Filters, f) {
			return false
		}
	}
	return true
}

// exposesPassword reports whether the password would cross a network in clear.
func (c Config) exposesPassword(u *url.URL) bool {
	if c.Password == "" || secure(u) || u.Hostname() == "localhost" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return ip == nil || !ip.IsLoopback()
}

func secure(u *url.URL) bool { return u.Scheme == "mqtts" || u.Scheme == "wss" }
