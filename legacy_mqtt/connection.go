package legacy_mqtt

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"
)

// stableAfter is how long a connection has to last before its end counts as a
// new trouble instead of one more failure of the same. Without it two clients
// with one ID would throw each other out as fast as the network allows.
const stableAfter = 10 * time.Second

// suspicious is how many connections in a row may end before stableAfter until
// we suspect that another client throws us out.
const suspicious = 3

// status is what is known of the connection. Source.mu protects it.
type status struct {
	health   error
	up       bool
	upSince  time.Time
	downBy   error // what paho said about the end of the connection
	failures int   // connections that ended before stableAfter, in a row
	everUp   bool
}

// session is paho's, except that it sends no PUBACK: paho asks for one as soon
// as its handler has returned, and conn sends it when the copy is settled.
type session struct{ *state.State }

func (session) Ack(*packets.Publish) error { return nil }

func (s *Source) clientConfig() autopaho.ClientConfig {
	window, packet := uint16(s.cfg.Window), s.cfg.MaxPacket
	return autopaho.ClientConfig{
		ServerUrls:            []*url.URL{s.broker},
		KeepAlive:             uint16(s.cfg.KeepAlive / time.Second),
		SessionExpiryInterval: uint32(s.cfg.SessionExpiry / time.Second),
		ConnectTimeout:        s.cfg.ConnectTimeout,
		ConnectUsername:       s.cfg.Username,
		ConnectPassword:       []byte(s.cfg.Password),
		ReconnectBackoff:      s.backoff,
		AttemptConnection:     s.connect,
		OnConnectionUp:        s.connectionUp,
		OnConnectionDown:      s.connectionDown,
		OnConnectError:        s.connectFailed,
		ConnectPacketBuilder: func(c *paho.Connect, _ *url.URL) (*paho.Connect, error) {
			c.Properties.ReceiveMaximum = &window
			c.Properties.MaximumPacketSize = &packet
			return c, nil
		},
		ClientConfig: paho.ClientConfig{
			ClientID:           s.cfg.ClientID,
			Session:            session{state.NewInMemory()},
			OnPublishReceived:  []func(paho.PublishReceived) (bool, error){s.receive},
			OnClientError:      s.connectionFailed,
			OnServerDisconnect: s.serverDisconnected,
		},
	}
}

// connect opens the transport for autopaho, which leaves the time limit to us.
func (s *Source) connect(ctx context.Context, _ autopaho.ClientConfig, u *url.URL) (net.Conn, error) {
	select {
	case <-s.stop:
		return nil, errIntakeEnded
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ConnectTimeout)
	defer cancel()
	raw, err := s.cfg.dial(ctx, u)
	if err != nil {
		return nil, err
	}
	var c *conn
	c = newConn(raw, func() { time.AfterFunc(s.cfg.ReleaseDelay, func() { s.renew(c) }) })
	s.current.Store(c)
	return c, nil
}

// renew ends a connection on which a released copy keeps back the PUBACKs of
// all that came after it. The broker sends them all again by the next one.
func (s *Source) renew(c *conn) {
	select {
	case <-s.stop: // the next session will do
	case <-c.closing:
	default:
		s.log.Info("renewing the MQTT connection so that released messages come again")
		_ = c.Close() // it has no error
	}
}

// backoff is the pause before attempt number attempt (from 0) of a series.
func (s *Source) backoff(attempt int) time.Duration {
	s.mu.Lock()
	failures := attempt + s.failures
	if s.everUp {
		failures++ // even after a long life: all instances lost the broker at once
	}
	s.mu.Unlock()
	return pause(failures, s.cfg.MinBackoff, s.cfg.MaxBackoff)
}

// pause doubles from least to most and takes a random half off.
func pause(failures int, least, most time.Duration) time.Duration {
	if failures == 0 {
		return 0
	}
	d := most
	if shift := failures - 1; shift < 20 {
		d = min(most, least<<shift)
	}
	return d - rand.N(d/2+1)
}

// connectionUp runs in autopaho's loop and must not block.
func (s *Source) connectionUp(manager *autopaho.ConnectionManager, ack *paho.Connack) {
	s.counters.connections.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.everUp && !ack.SessionPresent {
		s.log.Error("the broker has lost our session: what it held for us is gone from the MQTT path")
	}
	if p := ack.Properties; p != nil && p.SessionExpiryInterval != nil {
		if granted := time.Duration(*p.SessionExpiryInterval) * time.Second; granted < s.cfg.SessionExpiry {
			s.log.Warn("the broker keeps our session for less than was asked",
				"asked", s.cfg.SessionExpiry, "granted", granted)
		}
	}
	s.up, s.everUp, s.upSince, s.downBy = true, true, time.Now(), nil
	if s.closed {
		return
	}
	s.report(errors.New("mqtt: subscribing"))
	c := s.current.Load()
	s.workers.Add(1)
	go func() {
		defer s.workers.Done()
		s.subscribe(manager, c)
	}()
}

// report sets the health unless the source's own end has set it for good.
// Source.mu is held.
func (s *Source) report(err error) {
	select {
	case <-s.stop:
	default:
		if !s.closed {
			s.health = err
		}
	}
}

// subscribe asks until the broker has granted everything or c is gone. What
// the session was subscribed to keeps coming meanwhile.
func (s *Source) subscribe(manager *autopaho.ConnectionManager, c *conn) {
	for failures := 1; ; failures++ {
		err := s.subscribeOnce(manager)
		s.mu.Lock()
		if s.up && s.current.Load() == c {
			s.report(err)
		}
		s.mu.Unlock()
		if err == nil {
			s.log.Info("subscribed", "topics", s.cfg.topics())
			return
		}
		select {
		case <-c.closing:
			return
		case <-s.stop:
			return
		case <-s.life.Done():
			return
		default:
			s.log.Error("subscribing failed", "err", err)
		}
		select {
		case <-time.After(pause(failures, s.cfg.MinBackoff, s.cfg.MaxBackoff)):
		case <-c.closing:
			return
		case <-s.stop:
			return
		}
	}
}

func (s *Source) subscribeOnce(manager *autopaho.ConnectionManager) error {
	topics := s.cfg.topics()
	request := &paho.Subscribe{}
	for _, topic := range topics {
		request.Subscriptions = append(request.Subscriptions, paho.SubscribeOptions{
			Topic: topic, QoS: 1,
			// Never what the broker retains: it was delivered when it was published,
			// to the session or to the predecessor, perhaps longer ago than the
			// ledger remembers.
			RetainHandling: 2,
		})
	}
	granted, err := manager.Subscribe(s.life, request)
	if granted != nil {
		if refused := subscribeError(topics, granted.Reasons); refused != nil {
			return fmt.Errorf("mqtt: the broker refused to subscribe us: %w", refused)
		}
		for i, qos := range granted.Reasons {
			if qos == 0 && i < len(topics) {
				s.log.Warn("the broker grants QoS 0 only: messages are lost when we are away", "topic", topics[i])
			}
		}
	}
	if err != nil {
		return fmt.Errorf("mqtt: subscribe: %w", err)
	}
	return nil
}

// connectFailed hears of every attempt that failed.
func (s *Source) connectFailed(err error) {
	err = connectError(err)
	if errors.Is(err, errIntakeEnded) {
		return
	}
	s.log.Warn("connecting to the MQTT broker failed", "err", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report(fmt.Errorf("mqtt: cannot connect to %s: %w", s.broker.Host, err))
}

// connectionFailed and serverDisconnected hear why a connection ended, before
// or after connectionDown.
func (s *Source) connectionFailed(err error) { s.ended(err) }

func (s *Source) serverDisconnected(d *paho.Disconnect) {
	if d.ReasonCode == codeTakenOver {
		s.log.Error("another MQTT client uses our client ID and has taken our session; give each instance a ClientID of its own")
	}
	s.ended(fmt.Errorf("the broker ended the connection: %s", reason(d.ReasonCode)))
}

func (s *Source) ended(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.downBy = why
	if !s.up {
		s.report(s.lost())
	}
}

// connectionDown tells autopaho whether to reconnect.
func (s *Source) connectionDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up = false
	if time.Since(s.upSince) < stableAfter {
		s.failures++
	} else {
		s.failures = 0
	}
	err := s.lost()
	s.report(err)
	s.log.Warn("the MQTT connection is lost", "err", err)
	select {
	case <-s.stop:
		return false
	default:
		return true
	}
}

// lost says that and why there is no connection. Source.mu is held.
func (s *Source) lost() error {
	why := s.downBy
	if why == nil {
		why = errors.New("closed")
	}
	if s.failures >= suspicious {
		// Mosquitto 2.0.11 closes the loser of a takeover without a reason.
		why = fmt.Errorf("%w (for the %dth time within %s of connecting: does another client use the client ID %q?)",
			why, s.failures, stableAfter, s.cfg.ClientID)
	}
	return fmt.Errorf("mqtt: the connection to %s is lost: %w; reconnecting", s.broker.Host, why)
}
