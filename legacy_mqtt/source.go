package legacy_mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/crossfade-io/crossfade/pipeline"
)

var (
	errNotStarted  = errors.New("mqtt: not started")
	errIntakeEnded = errors.New("mqtt: intake has ended")
	errClosed      = errors.New("mqtt: the source is closed")
)

// Source is one persistent MQTT session. It implements bridge.Source: Run once,
// Close once.
type Source struct {
	cfg      Config
	link     *link
	log      *slog.Logger
	counters counters

	// life ends with Close; it bounds what the source itself asks of the broker.
	life context.Context
	end  context.CancelFunc

	// gate is held shared while a message is delivered. Run takes it to close
	// stop, so that nothing is delivered once Run has returned.
	gate    sync.RWMutex
	stop    chan struct{}
	deliver func(pipeline.Delivery)

	// current is the newest connection. autopaho opens one only after the one
	// before has ended with all its goroutines, so within paho's handler it is
	// the connection by which the message came.
	current     atomic.Pointer[conn]
	unconfirmed unconfirmed
	full        atomic.Bool   // a message waits for room
	room        chan struct{} // something was settled meanwhile
	lastFull    atomic.Int64  // when the hard limit was last logged, Unix seconds
	kept        atomic.Int64  // see Kept

	closeOnce sync.Once
	closeErr  error
	workers   sync.WaitGroup // subscribing goroutines

	mu      sync.Mutex // protects what follows
	manager *autopaho.ConnectionManager
	running bool
	closed  bool
}

// New checks cfg and makes a source that is not connected yet. Its error is
// that of [Config.Validate].
func New(cfg Config) (*Source, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	broker, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("mqtt: URL: %w", err)
	}
	life, end := context.WithCancel(context.Background())
	s := &Source{
		cfg:  cfg,
		life: life, end: end,
		stop: make(chan struct{}),
		room: make(chan struct{}, 1),
	}
	s.link = newLink(&s.cfg, cfg.ClientID, broker, errNotStarted)
	s.log = s.link.log
	return s, nil
}

// Run connects and delivers until ctx ends; see bridge.Source. It is called
// once. Messages that arrive after ctx has ended are neither delivered nor
// acknowledged, so that the broker sends them to the next session.
func (s *Source) Run(ctx context.Context, deliver func(pipeline.Delivery)) error {
	if err := s.start(deliver); err != nil {
		return err
	}
	defer s.endIntake()
	select {
	case <-ctx.Done():
		return nil
	case <-s.life.Done():
		return errClosed
	}
}

func (s *Source) start(deliver func(pipeline.Delivery)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errClosed
	case s.running:
		return errors.New("mqtt: Run was called twice; make a source for each run")
	}
	s.link.warnClearPassword()
	s.running = true
	s.deliver = deliver
	s.link.say(fmt.Errorf("mqtt: connecting to %s", s.link.broker.Host))
	manager, err := autopaho.NewConnection(context.Background(), s.clientConfig())
	if err != nil {
		err = fmt.Errorf("mqtt: start client: %w", err)
		s.link.say(err)
		return err
	}
	s.manager = manager
	return nil
}

// endIntake returns when no delivery is under way and none will follow.
func (s *Source) endIntake() {
	s.gate.Lock()
	close(s.stop)
	s.gate.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.link.conclude(errIntakeEnded)
	}
}

// receive is paho's handler: it is called for one message after the other and
// holds up the connection while it runs.
func (s *Source) receive(pr paho.PublishReceived) (bool, error) {
	c := s.current.Load()
	d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: pr.Packet.Topic, Body: pr.Packet.Payload}
	if s.cfg.UsernameProperty != "" {
		d.Username = usernameIn(pr.Packet.Properties.User, s.cfg.UsernameProperty)
	}
	size := int64(len(d.Topic) + len(d.Body) + len(d.Username))
	defer c.inflow.handedOver()
	if !s.awaitRoom(c, size) {
		return true, nil
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	select {
	case <-s.stop:
		return true, nil
	default:
	}
	r := &receipt{source: s, conn: c, arrived: time.Now(), size: size, qos0: pr.Packet.QoS == 0}
	if r.qos0 {
		r.seq = s.unconfirmed.expect(arrival{pr.Packet.Topic, r.arrived})
	} else {
		r.seq = c.expect(pr.Packet.PacketID, arrival{pr.Packet.Topic, r.arrived})
	}
	s.counters.received.Add(1)
	s.counters.inHand.Add(1)
	s.counters.inHandBytes.Add(size)
	d.Receipt = r
	s.deliver(d)
	return true, nil
}

// usernameIn is what the broker says of the sender. A device may have sent the same
// property, which some brokers leave beside their own: where several differ, which is
// the broker's can't be told, and together they name nobody.
func usernameIn(properties paho.UserProperties, name string) string {
	return strings.Join(slices.Compact(properties.GetAll(name)), "\x00")
}

// awaitRoom waits while there is no room for a body of this size. It returns false
// for a message that is not to be delivered, because its connection or intake has
// ended; the broker keeps it. It watches the connection itself: paho closes its
// client's Done only after this handler has returned.
func (s *Source) awaitRoom(c *conn, size int64) bool {
	defer s.full.Store(false)
	for {
		select {
		case <-c.closing:
			return false
		case <-s.stop:
			return false
		default:
		}
		if s.hasRoom(size) {
			return true
		}
		s.warnFull()
		s.full.Store(true)
		if s.hasRoom(size) { // settled before anybody knew that this waits
			return true
		}
		select {
		case <-s.room:
		case <-c.closing:
		case <-s.stop:
		}
	}
}

// hasRoom reports whether a message of this size may be taken in hand. One always may:
// nothing would make room for it.
func (s *Source) hasRoom(size int64) bool {
	held := s.counters.inHandBytes.Load()
	return s.counters.inHand.Load() < s.cfg.hardLimit() && (held == 0 || held+size <= s.cfg.WindowBytes)
}

// warnFull logs at most once a minute.
func (s *Source) warnFull() {
	now, last := time.Now().Unix(), s.lastFull.Load()
	if now-last < 60 || !s.lastFull.CompareAndSwap(last, now) {
		return
	}
	s.log.Warn("reading from the broker has stopped: too much in hand; it goes on as messages are settled",
		"in_hand", s.counters.inHand.Load(), "hard_limit", s.cfg.hardLimit(), "window", s.cfg.Window,
		"bytes", s.counters.inHandBytes.Load(), "window_bytes", s.cfg.WindowBytes)
}

// heldBytes is the memory of what was read and is not settled. It may count a message
// twice while that is handed over.
func (s *Source) heldBytes() int64 {
	held := s.counters.inHandBytes.Load()
	if c := s.current.Load(); c != nil {
		held += c.inflow.unhandled()
	}
	return held
}

// letGo counts a copy as settled.
func (s *Source) letGo(size int64) {
	s.counters.inHand.Add(-1)
	s.counters.inHandBytes.Add(-size)
	if s.full.Load() {
		wake(s.room)
	}
}

// Close sends the PUBACKs that are due, then DISCONNECT, which keeps the
// session, and closes the connection. Nothing acknowledged before Close comes
// again, except behind a copy that was not settled. It returns within ctx.
func (s *Source) Close(ctx context.Context) error {
	s.closeOnce.Do(func() { s.closeErr = s.close(ctx) })
	return s.closeErr
}

func (s *Source) close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.link.conclude(errClosed)
	manager := s.manager
	s.mu.Unlock()
	defer s.workers.Wait()
	defer s.end()
	if manager == nil {
		return nil
	}
	if c := s.current.Load(); c != nil {
		c.linger.Store(true)
	}
	if err := manager.Disconnect(ctx); err != nil {
		if c := s.current.Load(); c != nil {
			_ = c.Conn.Close() // the error that counts is err
		}
		return fmt.Errorf("mqtt: disconnect from %s: %w; acknowledged messages may come again", s.link.broker.Host, err)
	}
	return nil
}

// Health is nil while the source is connected and subscribed, and otherwise
// says what is missing and what to do.
func (s *Source) Health() error { return s.link.health() }
