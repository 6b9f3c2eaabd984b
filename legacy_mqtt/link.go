package legacy_mqtt

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/crossfade-io/crossfade/internal/backoff"
)

// stableAfter is how long a connection has to last before its end counts as a
// new trouble instead of one more failure of the same. Without it two clients
// with one ID would throw each other out as fast as the network allows.
const stableAfter = 10 * time.Second

// suspicious is how many connections in a row may end before stableAfter until
// we suspect that another client throws us out.
const suspicious = 3

// link is what is known of a connection that autopaho makes again and again. Its
// methods with the names of events are autopaho's callbacks.
type link struct {
	cfg      *Config
	clientID string
	broker   *url.URL
	log      *slog.Logger

	mu       sync.Mutex // protects what follows
	state    error      // what Health says
	over     bool       // state is for good
	up       bool
	upSince  time.Time
	downBy   error // what paho said about the end of the connection
	failures int   // connections that ended before stableAfter, in a row
	everUp   bool
	forgiven bool // the end of this connection is no failure
}

func newLink(cfg *Config, clientID string, broker *url.URL, state error) *link {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &link{
		cfg: cfg, clientID: clientID, broker: broker, state: state,
		log: log.With("broker", broker.Host, "client_id", clientID),
	}
}

// clientConfig is what every connection of ours has in common.
func (l *link) clientConfig() autopaho.ClientConfig {
	return autopaho.ClientConfig{
		ServerUrls:       []*url.URL{l.broker},
		KeepAlive:        uint16(l.cfg.KeepAlive / time.Second),
		ConnectTimeout:   l.cfg.ConnectTimeout,
		ConnectUsername:  l.cfg.Username,
		ConnectPassword:  []byte(l.cfg.Password),
		ReconnectBackoff: l.backoff,
		OnConnectionDown: l.connectionDown,
		OnConnectError:   l.connectFailed,
		ClientConfig: paho.ClientConfig{
			ClientID:           l.clientID,
			OnClientError:      l.ended,
			OnServerDisconnect: l.serverDisconnected,
		},
	}
}

func (l *link) warnClearPassword() {
	if l.cfg.exposesPassword(l.broker) {
		l.log.Warn("the MQTT password crosses the network in clear; use mqtts:// or wss://")
	}
}

func (l *link) health() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// say sets what Health says, unless that is said for good.
func (l *link) say(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report(err)
}

// report is say with mu held.
func (l *link) report(err error) {
	if !l.over {
		l.state = err
	}
}

// conclude sets what Health says from now on. No connection is made any more.
func (l *link) conclude(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over, l.state = true, err
}

// connected notes that a connection is up and returns whether it is the first.
func (l *link) connected(state error) (first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first = !l.everUp
	l.up, l.everUp, l.upSince, l.downBy = true, true, time.Now(), nil
	l.report(state)
	return first
}

// backoff is the pause before attempt number attempt (from 0) of a series.
func (l *link) backoff(attempt int) time.Duration {
	l.mu.Lock()
	failures := attempt + l.failures
	if l.everUp {
		failures++ // even after a long life: all instances lost the broker at once
	}
	l.mu.Unlock()
	return backoff.Delay(failures, l.cfg.MinBackoff, l.cfg.MaxBackoff)
}

// connectFailed hears of every attempt that failed.
func (l *link) connectFailed(err error) {
	err = connectError(err)
	if errors.Is(err, errIntakeEnded) || errors.Is(err, errPublisherClosed) {
		return
	}
	l.log.Warn("connecting to the MQTT broker failed", "err", err)
	l.say(fmt.Errorf("mqtt: cannot connect to %s: %w", l.broker.Host, err))
}

// ended and serverDisconnected hear why a connection ended, before or after
// connectionDown.
func (l *link) ended(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.downBy = why
	if !l.up {
		l.report(l.lost())
	}
}

func (l *link) serverDisconnected(d *paho.Disconnect) {
	if d.ReasonCode == codeTakenOver {
		l.log.Error("another MQTT client uses our client ID and has taken our session; give each instance a ClientID of its own")
	}
	l.ended(fmt.Errorf("the broker ended the connection: %s", reason(d.ReasonCode)))
}

// connectionDown tells autopaho whether to reconnect.
func (l *link) connectionDown() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = false
	if time.Since(l.upSince) < stableAfter && !l.forgiven {
		l.failures++
	} else {
		l.failures = 0
	}
	l.forgiven = false
	err := l.lost()
	l.report(err)
	l.log.Warn("the MQTT connection is lost", "err", err)
	return !l.over
}

// forgive is for connections that are lost for a reason that will not come again: the
// next is made as soon as after a long life.
func (l *link) forgive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgiven = l.up
	l.failures = 0
}

// lost says that and why there is no connection. The caller holds mu.
func (l *link) lost() error {
	why := l.downBy
	if why == nil {
		why = errors.New("closed")
	}
	if l.failures >= suspicious {
		// Mosquitto 2.0.11 closes the loser of a takeover without a reason.
		why = fmt.Errorf("%w (for the %dth time within %s of connecting: does another client use the client ID %q?)",
			why, l.failures, stableAfter, l.clientID)
	}
	return fmt.Errorf("mqtt: the connection to %s is lost: %w; reconnecting", l.broker.Host, why)
}
