package bridge

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline"
)

var errSimGone = errors.New("the connection is gone")

// simMessage is what a device, or the prober, has published. n is 0 for a sentinel.
type simMessage struct {
	n      int
	tenant string
	topic  string
	body   []byte
}

// simBroker keeps a session for each instance and queues what is published on the
// sessions of a group's members, whether they are connected or not; sentinels go to
// each session besides. It hands all to the mirror.
type simBroker struct {
	w        *simWorld
	mu       sync.Mutex
	sessions map[string]*simSession
	names    []string
}

// simSession is what the broker keeps for a client: what it has not acknowledged, in
// order, of which the first next have been given to its present connection.
type simSession struct {
	id    string
	queue []*simMessage
	next  int
	conn  *simConn
	wake  chan struct{}
}

// simWindow is the most that is unacknowledged on a connection.
const simWindow = 64

func newSimBroker(w *simWorld) *simBroker {
	return &simBroker{w: w, sessions: make(map[string]*simSession)}
}

func (b *simBroker) open(id string) *simSession {
	s := b.sessions[id]
	if s == nil {
		s = &simSession{id: id, wake: make(chan struct{}, 1)}
		b.sessions[id] = s
		b.names = append(b.names, id)
	}
	return s
}

func (b *simBroker) publish(m *simMessage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sessions[b.names[int(b.w.draw(time.Duration(len(b.names))))]]
	b.queue(s, m)
	if m.n == 0 {
		for _, id := range b.names {
			b.queue(b.sessions[id], m)
		}
	}
	b.w.mirror.take(m)
}

func (b *simBroker) queue(s *simSession, m *simMessage) {
	s.queue = append(s.queue, m)
	b.w.trail(m, "waits on the session of %s", s.id)
	simSignal(s.wake)
}

// empty reports whether everything has been acknowledged.
func (b *simBroker) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		if len(s.queue) > 0 {
			return false
		}
	}
	return true
}

func (b *simBroker) connect(p *simPort, id string) *simConn {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.open(id)
	if s.conn != nil {
		s.conn.close()
	}
	s.conn = &simConn{b: b, port: p, session: s, done: make(chan struct{}), acked: make(chan struct{}, 1)}
	go s.conn.sendAcks()
	return s.conn
}

// simConn is a connection to the broker, and the client's part of it that keeps
// acknowledgements in the order of arrival.
type simConn struct {
	b       *simBroker
	port    *simPort
	session *simSession
	window  []*simReceipt // delivered and not settled, or behind one that is not
	acks    []*simMessage // settled, on their way to the broker
	acked   chan struct{}
	done    chan struct{}
	closed  bool
}

// close ends the connection: the broker will deliver again what it has no
// acknowledgement of. The broker's lock is held.
func (c *simConn) close() {
	if c.closed {
		return
	}
	c.closed = true
	close(c.done)
	if c.session.conn == c {
		c.session.conn, c.session.next = nil, 0
	}
}

func (c *simConn) end() {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	c.close()
}

// take returns the next message for the client, if there is one.
func (c *simConn) take() *simMessage {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	s := c.session
	if c.closed || s.next == len(s.queue) || s.next >= simWindow {
		return nil
	}
	s.next++
	return s.queue[s.next-1]
}

// arrive notes a message that has come to the client; nil: it never did.
func (c *simConn) arrive(m *simMessage) *simReceipt {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	if c.closed {
		return nil
	}
	r := &simReceipt{conn: c, m: m, at: time.Now()}
	c.window = append(c.window, r)
	return r
}

// sendAcks carries acknowledgements to the broker.
func (c *simConn) sendAcks() {
	for {
		select {
		case <-c.done:
			return
		case <-c.acked:
		}
		if !c.port.travel(c.done) {
			return
		}
		c.b.mu.Lock()
		c.land()
		c.b.mu.Unlock()
	}
}

// land has the broker take all acknowledgements. Its lock is held.
func (c *simConn) land() {
	if c.closed {
		return
	}
	s := c.session
	for _, m := range c.acks {
		c.b.w.trail(m, "its copy on the session of %s is gone", s.id)
	}
	s.queue, s.next, c.acks = s.queue[len(c.acks):], s.next-len(c.acks), nil
	simSignal(s.wake)
}

// simReceipt is a pipeline.OrderedReceipt.
type simReceipt struct {
	conn    *simConn
	m       *simMessage
	at      time.Time
	settled bool
	then    func()
}

func (r *simReceipt) Ack() error                { return r.settle(nil) }
func (r *simReceipt) AckThen(then func()) error { return r.settle(then) }
func (r *simReceipt) Occurred() time.Time       { return r.at }

// Release ends the connection, so that everything comes again.
func (r *simReceipt) Release() error {
	r.conn.end()
	return nil
}

func (r *simReceipt) settle(then func()) error {
	c := r.conn
	var thens []func()
	c.b.mu.Lock()
	if c.closed {
		c.b.mu.Unlock()
		return errSimGone
	}
	if r.settled {
		panic("a copy is settled twice")
	}
	r.settled, r.then = true, then
	c.b.w.trail(r.m, "%s acknowledges its MQTT copy", c.session.id)
	for len(c.window) > 0 && c.window[0].settled {
		head := c.window[0]
		c.window = c.window[1:]
		c.acks = append(c.acks, head.m)
		if head.then != nil {
			thens = append(thens, head.then)
		}
	}
	c.b.mu.Unlock()
	simSignal(c.acked)
	for _, then := range thens {
		then()
	}
	return nil
}

// simSource is an instance's MQTT source.
type simSource struct {
	port *simPort
	b    *simBroker
	id   string

	mu   sync.Mutex
	conn *simConn
}

func (s *simSource) Health() error { return nil }

func (s *simSource) Run(ctx context.Context, deliver deliverFunc) error {
	for ctx.Err() == nil {
		if !s.port.travel(ctx.Done()) {
			break
		}
		c := s.b.connect(s.port, s.id)
		s.mu.Lock()
		s.conn = c
		s.mu.Unlock()
		s.pump(ctx, c, deliver)
		if ctx.Err() == nil {
			backoff.Sleep(ctx, s.port.rand(2*time.Second))
		}
	}
	return nil
}

func (s *simSource) pump(ctx context.Context, c *simConn, deliver deliverFunc) {
	for ctx.Err() == nil {
		m := c.take()
		if m == nil {
			select {
			case <-ctx.Done():
				return
			case <-c.done:
				return
			case <-c.session.wake:
			}
			continue
		}
		if !s.port.travel(c.done) || ctx.Err() != nil {
			return
		}
		if r := c.arrive(m); r != nil {
			deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: m.topic, Body: m.body, Receipt: r})
		}
	}
}

// Close lets what was acknowledged reach the broker, as a clean end does.
func (s *simSource) Close(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.b.mu.Lock()
		s.conn.land()
		s.conn.close()
		s.b.mu.Unlock()
	}
	return nil
}

// cut ends the connection from outside, as the end of a process does.
func (s *simSource) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.end()
	}
}

func simSignal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
