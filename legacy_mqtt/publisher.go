package legacy_mqtt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/crossfade-io/crossfade/pipeline"
)

// ErrUnconfirmed: the broker has not said that it took the message. It may have
// it all the same, so publishing again can make two of it.
var ErrUnconfirmed = errors.New("mqtt: the broker has not confirmed the message")

// ErrExpired: a message's Deadline was over before the broker confirmed it. It is not
// sent any more; a connection that was lost before may have taken it.
var ErrExpired = errors.New("mqtt: the message has expired")

// ErrHangsUp: the broker ends the connection whenever it is sent the message. It comes
// together with [ErrUnconfirmed].
var ErrHangsUp = errors.New("mqtt: the broker ends the connection upon the message")

// Message is one to be published, at QoS 1.
type Message struct {
	Topic   string // without wildcards
	Payload []byte // must stay as it is until Publish has returned
	// Retain makes the broker keep it for later subscribers; an empty payload then
	// makes it forget the one before.
	Retain bool
	// Expiry is how long the broker may keep it for a subscriber that is away, rounded
	// up to whole seconds; 0 is without end.
	Expiry time.Duration
	// Deadline, unless it is zero, takes Expiry's place: what is left until then counts
	// whenever the message is sent, be it for the second time, and past it it is not sent.
	// Make it with time.Now, whose monotonic clock nobody sets.
	Deadline time.Time
	// Suspect is to be set where publishing it before has ended in [ErrHangsUp]: it is
	// sent by itself, when all else is confirmed.
	Suspect         bool
	ContentType     string
	CorrelationData []byte
	User            []UserProperty
}

// UserProperty is an MQTT 5 user property; names may be repeated.
type UserProperty struct{ Name, Value string }

// RefusedError is the broker's answer to a message that it does not take. To try
// again does not help before somebody has changed something.
type RefusedError struct {
	Topic string
	Code  byte // MQTT 5, section 3.4.2.1; 0x80 and up
	User  string
}

func (e *RefusedError) Error() string {
	s := fmt.Sprintf("mqtt: the broker refuses a message on %s: %s", e.Topic, reason(e.Code))
	if e.Code == codeNotAuthorized && e.User != "" {
		s += fmt.Sprintf("; allow the user %s to write to this topic", e.User)
	}
	return s
}

// PublisherOptions bound a publisher's work.
type PublisherOptions struct {
	// Name is appended to Config.ClientID, since no two connections may share one.
	Name string
	// ClientID replaces the client ID that is made with Name, if it is not empty. Two
	// publishers that share one cut each other off, more and more slowly.
	ClientID string
	// Guard, if there is one, is asked after every CONNACK and before anything is sent
	// or sent again on that connection. Its error ends the connection: what waits fails
	// with ErrUnconfirmed and that error, nothing is sent, and what is published later
	// waits for the next connection, which is tried with the usual pauses. It has to
	// return when ctx ends, which is after the shorter of Config's ConnectTimeout and
	// KeepAlive; an answer that comes later counts as an error. It must not publish.
	// It is called by one goroutine at a time.
	Guard func(ctx context.Context) error
	// Window is how many messages may be sent and not confirmed, 1 to 65535; the
	// broker's Receive Maximum bounds it further.
	Window int
	// Patience is how long Publish waits while the broker confirms nothing at all.
	Patience time.Duration
}

// DefaultPublisherOptions returns 1,000 messages on their way and 30 s of patience.
func DefaultPublisherOptions() PublisherOptions {
	return PublisherOptions{Name: "publisher", Window: 1000, Patience: 30 * time.Second}
}

// Validate names the first option that is out of range and its remedy.
func (o PublisherOptions) Validate() error {
	switch {
	case o.Name == "" && o.ClientID == "":
		return errors.New("mqtt publisher: Name: is empty; name what is published, or set ClientID")
	case !utf8.ValidString(o.ClientID) || strings.ContainsRune(o.ClientID, 0) || len(o.ClientID) > pipeline.MaxTopic:
		return fmt.Errorf("mqtt publisher: ClientID: must be at most %d bytes of UTF-8 without NUL", pipeline.MaxTopic)
	case o.Window < 1 || o.Window > 65535:
		return fmt.Errorf("mqtt publisher: Window: %d is out of range; choose 1 to 65535", o.Window)
	case o.Patience <= 0:
		return fmt.Errorf("mqtt publisher: Patience: %s is not positive; choose for example 30s", o.Patience)
	}
	return nil
}

// Publisher publishes over a connection of its own, with a session that ends with
// it. It connects with the first message, reconnects by itself until Close, and
// sends again what was not confirmed when a connection was lost: a message reaches
// its subscribers once or, around a loss, several times. The messages of one call
// are sent in their order, those of different calls in any; but a message that alone
// was under way when connections were lost comes after all others, since the broker may
// hang up on it.
//
// A message that is not confirmed when its call returns is not sent any more. What the
// network has taken before that the broker may still read, until it ends the
// connection; [Evict] makes it do so.
//
// Its methods may be called concurrently.
type Publisher struct {
	link   *link
	outbox *outbox

	current atomic.Pointer[conn]
	life    context.Context // ends when it is closed
	stop    context.CancelFunc

	mu      sync.Mutex // protects what follows
	manager *autopaho.ConnectionManager
	closed  bool
}

// NewPublisher checks its configuration and makes a publisher that is not connected
// yet. Of cfg it uses the broker, the login, the times of the connection and the
// logger.
func NewPublisher(cfg Config, o PublisherOptions) (*Publisher, error) {
	if err := errors.Join(cfg.Validate(), o.Validate()); err != nil {
		return nil, err
	}
	broker, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("mqtt: URL: %w", err)
	}
	id := o.ClientID
	if id == "" {
		id = cfg.ClientID + "-" + o.Name
	}
	life, stop := context.WithCancel(context.Background())
	p := &Publisher{
		link:   newLink(&cfg, id, broker, nil),
		outbox: newOutbox(life, o, cfg.Username, min(cfg.ConnectTimeout, cfg.KeepAlive)),
		life:   life,
		stop:   stop,
	}
	p.outbox.forgive = p.link.forgive
	return p, nil
}

// Health is nil while connected, and as long as nothing was to be published; otherwise
// it says what is missing and what to do.
func (p *Publisher) Health() error { return p.link.health() }

// Publish returns nil once the broker has confirmed the message, whether or not
// anybody subscribes to it. Its error is a [*RefusedError], or matches
// [ErrUnconfirmed] where ctx has ended or Patience is over, and [ErrHangsUp] too where
// connections end upon the message, or [ErrExpired], or tells what in the message no
// broker takes.
func (p *Publisher) Publish(ctx context.Context, m Message) error {
	return p.PublishAll(ctx, []Message{m})[0]
}

// PublishAll publishes messages without waiting for one before it sends the next.
// It returns what became of each, as Publish would, in the same order.
func (p *Publisher) PublishAll(ctx context.Context, messages []Message) []error {
	b := newBatch(len(messages))
	for i := range messages {
		packet, err := messages[i].packet()
		if err != nil {
			b.results[i] = err
			continue
		}
		b.add(i, packet, &messages[i])
	}
	if len(b.items) == 0 {
		return b.results
	}
	if err := p.connect(); err != nil {
		b.fail(err)
		return b.results
	}
	p.outbox.send(b)
	p.outbox.await(ctx, b, p.link.health)
	return b.results
}

// packet checks a message and turns it into one of paho's.
func (m *Message) packet() (*packets.Publish, error) {
	switch {
	case m.Topic == "" || len(m.Topic) > pipeline.MaxTopic || !utf8.ValidString(m.Topic) || strings.ContainsAny(m.Topic, "+#\x00"):
		return nil, fmt.Errorf("mqtt: %.100q is no topic to publish on; it must have 1 to %d bytes of UTF-8 and neither + nor #", m.Topic, pipeline.MaxTopic)
	case m.Expiry < 0 || m.Expiry > 1<<32*time.Second-time.Second:
		return nil, fmt.Errorf("mqtt: message on %s: an expiry of %s is out of range; choose 0 to 136 years", m.Topic, m.Expiry)
	case !utf8.ValidString(m.ContentType) || len(m.ContentType) > pipeline.MaxTopic || len(m.CorrelationData) > 65_535:
		return nil, fmt.Errorf("mqtt: message on %s: content type or correlation data is no UTF-8 or longer than 65535 bytes", m.Topic)
	}
	properties := &packets.Properties{ContentType: m.ContentType, CorrelationData: m.CorrelationData}
	if m.Expiry > 0 {
		seconds := uint32((m.Expiry + time.Second - 1) / time.Second)
		properties.MessageExpiry = &seconds
	}
	for _, u := range m.User {
		if len(u.Name) > 65_535 || len(u.Value) > 65_535 || !utf8.ValidString(u.Name+u.Value) {
			return nil, fmt.Errorf("mqtt: message on %s: a user property is no UTF-8 or longer than 65535 bytes", m.Topic)
		}
		properties.User = append(properties.User, packets.User{Key: u.Name, Value: u.Value})
	}
	return &packets.Publish{Topic: m.Topic, Payload: m.Payload, QoS: 1, Retain: m.Retain, Properties: properties}, nil
}

// connect starts the connection, once.
func (p *Publisher) connect() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errPublisherClosed
	}
	if p.manager != nil {
		return nil
	}
	p.link.warnClearPassword()
	p.link.say(fmt.Errorf("mqtt: connecting to %s", p.link.broker.Host))
	c := p.link.clientConfig()
	c.AttemptConnection = p.dial
	c.OnConnectionUp = func(*autopaho.ConnectionManager, *paho.Connack) { p.link.connected(nil) }
	c.ConnectPacketBuilder = func(c *paho.Connect, _ *url.URL) (*paho.Connect, error) {
		c.CleanStart = true
		return c, nil
	}
	c.Session = p.outbox
	manager, err := autopaho.NewConnection(context.Background(), c)
	if err != nil {
		return fmt.Errorf("mqtt: start publisher: %w", err)
	}
	p.manager = manager
	return nil
}

func (p *Publisher) dial(ctx context.Context, _ autopaho.ClientConfig, u *url.URL) (net.Conn, error) {
	if p.life.Err() != nil {
		return nil, errPublisherClosed
	}
	ctx, cancel := context.WithTimeout(ctx, p.link.cfg.ConnectTimeout)
	defer cancel()
	raw, err := p.link.cfg.dial(ctx, u)
	if err != nil {
		return nil, err
	}
	c := newConn(raw, func() {})
	p.current.Store(c)
	return c, nil
}

// Close ends the connection; who still waits for a confirmation is told that there
// is none. It returns within ctx. Closing twice is fine.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	manager := p.manager
	p.closed = true
	p.stop()
	p.mu.Unlock()
	p.link.conclude(errPublisherClosed)
	p.outbox.end()
	if manager == nil {
		return nil
	}
	if err := manager.Disconnect(ctx); err != nil {
		if c := p.current.Load(); c != nil {
			_ = c.Conn.Close() // the error that counts is err
		}
		return fmt.Errorf("mqtt: disconnect from %s: %w", p.link.broker.Host, err)
	}
	return nil
}
