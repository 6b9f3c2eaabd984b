package legacy_mqtt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"

	"github.com/crossfade-io/crossfade/internal/backoff"
)

// session is paho's, except that it sends no PUBACK: paho asks for one as soon
// as its handler has returned, and conn sends it when the copy is settled.
type session struct{ *state.State }

func (session) Ack(*packets.Publish) error { return nil }

func (s *Source) clientConfig() autopaho.ClientConfig {
	window, packet := uint16(s.cfg.Window), s.cfg.MaxPacket
	c := s.link.clientConfig()
	c.SessionExpiryInterval = uint32(s.cfg.SessionExpiry / time.Second)
	c.AttemptConnection = s.connect
	c.OnConnectionUp = s.connectionUp
	c.ConnectPacketBuilder = func(c *paho.Connect, _ *url.URL) (*paho.Connect, error) {
		c.Properties.ReceiveMaximum = &window
		c.Properties.MaximumPacketSize = &packet
		return c, nil
	}
	c.Session = session{state.NewInMemory()}
	c.OnPublishReceived = []func(paho.PublishReceived) (bool, error){s.receive}
	return c
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
	c.inflow = newInflow(func(queued int64) bool { return s.counters.inHandBytes.Load()+queued < s.cfg.WindowBytes })
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

// connectionUp runs in autopaho's loop and must not block.
func (s *Source) connectionUp(manager *autopaho.ConnectionManager, ack *paho.Connack) {
	s.counters.connections.Add(1)
	first := s.link.connected(errors.New("mqtt: subscribing"))
	if !first && !ack.SessionPresent {
		s.log.Error("the broker has lost our session: what it held for us is gone from the MQTT path")
	}
	s.kept.Store(int64(s.cfg.kept(ack.Properties)))
	if p := ack.Properties; p != nil && p.SessionExpiryInterval != nil {
		if granted := time.Duration(*p.SessionExpiryInterval) * time.Second; granted < s.cfg.SessionExpiry {
			s.log.Warn("the broker keeps our session for less than was asked",
				"asked", s.cfg.SessionExpiry, "granted", granted)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	c := s.current.Load()
	s.workers.Add(1)
	go func() {
		defer s.workers.Done()
		s.subscribe(manager, c)
	}()
}

// subscribe asks until the broker has granted everything or c is gone. What
// the session was subscribed to keeps coming meanwhile.
func (s *Source) subscribe(manager *autopaho.ConnectionManager, c *conn) {
	for failures := 1; ; failures++ {
		err := s.subscribeOnce(manager)
		s.link.mu.Lock()
		if s.link.up && s.current.Load() == c {
			s.link.report(err)
		}
		s.link.mu.Unlock()
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
		case <-time.After(backoff.Delay(failures, s.cfg.MinBackoff, s.cfg.MaxBackoff)):
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
