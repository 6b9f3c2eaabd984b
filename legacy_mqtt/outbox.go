package legacy_mqtt

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	paholog "github.com/eclipse/paho.golang/paho/log"
	pahosession "github.com/eclipse/paho.golang/paho/session"
)

var errPublisherClosed = errors.New("mqtt: the publisher is closed")

// outbox is what a publisher has to send and what of it is not confirmed, in order.
// To paho it is the session: paho tells it of connections and confirmations, and
// what is sent it writes to the connection itself, since paho's own Publish either
// waits for each message or tells nothing of it.
type outbox struct {
	options  PublisherOptions
	user     string
	life     context.Context // ends with the publisher
	patience time.Duration   // for the guard

	mu       sync.Mutex
	conn     io.Writer // nil while there is no connection
	limits   limits    // of that connection
	queue    []*outgoing
	flying   map[uint16]*outgoing // sent on conn and not confirmed, by packet ID
	lastID   uint16
	sent     uint64    // numbers messages in the order of sending
	progress time.Time // when something was confirmed last
	ended    bool
	suspicion
}

// limits are the broker's, of one connection.
type limits struct {
	flying int
	packet uint32 // bytes
	retain bool
	qos    byte
}

// outgoing is a message on its way. outbox.mu protects it.
type outgoing struct {
	packet *packets.Publish
	batch  *batch
	index  int
	order  uint64
	end    uint64 // conn.position after it while it is flying
	done   bool

	deadline time.Time // zero: none
	blamed   int       // connections that were lost while it alone was flying
	suspect  bool      // it is sent by itself
}

// batch is what one call publishes. outbox.mu protects it until done is closed.
type batch struct {
	items   []*outgoing
	results []error
	left    int
	done    chan struct{}
}

func newBatch(n int) *batch {
	return &batch{results: make([]error, n), done: make(chan struct{})}
}

func (b *batch) add(index int, p *packets.Publish, m *Message) {
	b.items = append(b.items, &outgoing{packet: p, batch: b, index: index, deadline: m.Deadline, suspect: m.Suspect})
	b.left++
}

// fail ends everything that has not ended.
func (b *batch) fail(err error) {
	for _, o := range b.items {
		o.finish(err)
	}
}

func (o *outgoing) finish(err error) {
	if o.done {
		return
	}
	o.done = true
	o.batch.results[o.index] = err
	if o.batch.left--; o.batch.left == 0 {
		close(o.batch.done)
	}
}

// newOutbox makes the outbox of a publisher that lives until life ends and waits for
// its guard for as long as patience.
func newOutbox(life context.Context, o PublisherOptions, user string, patience time.Duration) *outbox {
	return &outbox{options: o, user: user, life: life, patience: patience, flying: make(map[uint16]*outgoing)}
}

// send takes a batch on.
func (x *outbox) send(b *batch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ended {
		b.fail(errPublisherClosed)
		return
	}
	x.progress = time.Now()
	x.queue = append(x.queue, b.items...)
	x.flow()
}

// await waits until the batch is done, ctx ends, or nothing has been confirmed for
// too long. health says why that may be.
func (x *outbox) await(ctx context.Context, b *batch, health func() error) {
	patience := time.NewTimer(x.options.Patience)
	defer patience.Stop()
	for {
		var why error
		select {
		case <-b.done:
			return
		case <-ctx.Done():
			why = context.Cause(ctx)
		case <-patience.C:
			x.mu.Lock()
			left := time.Until(x.progress.Add(x.options.Patience))
			x.mu.Unlock()
			if left > 0 {
				patience.Reset(left)
				continue
			}
			why = fmt.Errorf("nothing was confirmed for %s", x.options.Patience)
		}
		why = fmt.Errorf("%w: %w", ErrUnconfirmed, why)
		if state := health(); state != nil {
			why = fmt.Errorf("%w (%w)", why, state)
		}
		x.mu.Lock()
		x.holdBack(slices.Values(b.items))
		b.fail(why)
		x.flow() // others may have waited for one of these
		x.mu.Unlock()
		return
	}
}

// holdBack makes sure that none of the messages that are about to be given up is sent
// any more: who is told that one is unconfirmed goes by what the network has taken
// until then. The connection is ended if it still holds one, which happens when the
// broker reads no more. The caller holds mu.
func (x *outbox) holdBack(list iter.Seq[*outgoing]) {
	c, ok := x.conn.(*conn)
	if !ok {
		return
	}
	for o := range list {
		if !o.done && c.holds(o.end) {
			x.abandoned = true
			c.abandon()
			return
		}
	}
}

// flow sends what there is room for. The caller holds mu.
func (x *outbox) flow() {
	for x.conn != nil && len(x.queue) > 0 && len(x.flying) < x.allowance() {
		o := x.queue[0]
		x.queue[0] = nil
		x.queue = x.queue[1:]
		switch {
		case o.done: // nobody waits for it any more
		case o.suspect:
			x.suspects = append(x.suspects, o)
		default:
			x.launch(o)
		}
	}
	x.try()
}

func (x *outbox) launch(o *outgoing) {
	topic := o.packet.Topic
	switch {
	case x.limits.qos < 1:
		o.finish(fmt.Errorf("mqtt: message on %s: the broker takes QoS 0 only, which it does not confirm; allow QoS 1", topic))
		return
	case o.packet.Retain && !x.limits.retain:
		o.finish(&RefusedError{Topic: topic, Code: 0x9A})
		return
	}
	if !o.deadline.IsZero() {
		left := time.Until(o.deadline)
		if left <= 0 {
			o.finish(fmt.Errorf("%w: on %s", ErrExpired, topic))
			return
		}
		seconds := uint32((min(left, maxExpiry) + time.Second - 1) / time.Second)
		o.packet.Properties.MessageExpiry = &seconds
	}
	o.packet.PacketID = x.freeID()
	var wire bytes.Buffer
	if _, err := o.packet.WriteTo(&wire); err != nil {
		o.finish(fmt.Errorf("mqtt: encode message on %s: %w", topic, err))
		return
	}
	if size := wire.Len(); uint64(size) > uint64(x.limits.packet) {
		o.finish(fmt.Errorf("mqtt: message on %s: its %d bytes are more than the %d that the broker takes; raise its maximum packet size", topic, size, x.limits.packet))
		return
	}
	x.sent++
	o.order = x.sent
	x.flying[o.packet.PacketID] = o
	if l, ok := x.conn.(sync.Locker); ok {
		l.Lock()
		defer l.Unlock()
	}
	// A connection that cannot be written to is lost, which paho tells soon.
	_, _ = x.conn.Write(wire.Bytes())
	if c, ok := x.conn.(*conn); ok {
		o.end = c.position()
	}
}

// freeID returns a packet ID that is not in use. There is one: fewer are flying than
// there are.
func (x *outbox) freeID() uint16 {
	for {
		x.lastID++
		if _, used := x.flying[x.lastID]; x.lastID != 0 && !used {
			return x.lastID
		}
	}
}

// end fails what is waiting and what will be sent.
func (x *outbox) end() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended = true
	x.holdBack(maps.Values(x.flying))
	for _, o := range slices.Concat(x.queue, x.suspects) {
		o.finish(errPublisherClosed)
	}
	for _, o := range x.flying {
		o.finish(fmt.Errorf("%w: %w", ErrUnconfirmed, errPublisherClosed))
	}
	x.queue, x.suspects = nil, nil
}

// ConAckReceived begins a connection, if the guard allows it: what the one before has
// left comes first.
func (x *outbox) ConAckReceived(w io.Writer, _ *packets.Connect, ack *packets.Connack) error {
	forbidden := x.ask()
	x.mu.Lock()
	defer x.mu.Unlock()
	if forbidden != nil {
		for _, o := range slices.Concat(x.queue, x.suspects) {
			o.finish(fmt.Errorf("%w: %w", ErrUnconfirmed, forbidden))
		}
		x.queue, x.suspects = nil, nil
		return forbidden
	}
	x.limits = limits{flying: x.options.Window, packet: math.MaxUint32, retain: true, qos: 2}
	if p := ack.Properties; p != nil {
		if p.ReceiveMaximum != nil {
			x.limits.flying = min(x.limits.flying, int(*p.ReceiveMaximum))
		}
		if p.MaximumPacketSize != nil {
			x.limits.packet = *p.MaximumPacketSize
		}
		if p.RetainAvailable != nil {
			x.limits.retain = *p.RetainAvailable != 0
		}
		if p.MaximumQOS != nil {
			x.limits.qos = *p.MaximumQOS
		}
	}
	x.conn = w
	x.since, x.proven, x.abandoned = time.Now(), false, false
	x.flow()
	return nil
}

// ConnectionLost puts what was not confirmed back to the head of the queue. It may be
// told twice of one loss.
func (x *outbox) ConnectionLost(d *packets.Disconnect) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	ours := x.abandoned
	x.holdBack(maps.Values(x.flying))
	x.conn = nil
	lost := slices.SortedFunc(maps.Values(x.flying), func(a, b *outgoing) int { return cmp.Compare(a.order, b.order) })
	clear(x.flying)
	if !ours && !excused(d) {
		x.blame(lost, d)
	}
	x.trial = nil
	for _, o := range lost {
		o.end = 0
	}
	lost = slices.DeleteFunc(lost, func(o *outgoing) bool { return o.done })
	x.queue = append(lost, x.queue...)
	return nil
}

// ask has the guard decide about a connection. Nothing is flying then, since the end
// of the one before has put everything back into the queue. The connection sends no
// keep-alive meanwhile.
func (x *outbox) ask() error {
	if x.options.Guard == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(x.life, x.patience)
	defer cancel()
	err := x.options.Guard(ctx)
	if x.life.Err() != nil {
		return errPublisherClosed
	}
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("no answer within %s", x.patience)
	}
	if err != nil {
		return &guardError{err}
	}
	return nil
}

// PacketReceived takes confirmations.
func (x *outbox) PacketReceived(p *packets.ControlPacket, _ chan<- *packets.Publish) error {
	ack, ok := p.Content.(*packets.Puback)
	if !ok {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.flying[ack.PacketID]
	if o == nil {
		return nil
	}
	delete(x.flying, ack.PacketID)
	x.progress = time.Now()
	x.confirmed(o)
	if ack.ReasonCode >= 0x80 { // below are successes, also of a message to nobody
		o.finish(&RefusedError{Topic: o.packet.Topic, Code: ack.ReasonCode, User: x.user})
	} else {
		o.finish(nil)
	}
	x.flow()
	return nil
}

// AddToSession is for what paho itself sends and wants answered, which is nothing.
func (x *outbox) AddToSession(context.Context, pahosession.Packet, chan<- packets.ControlPacket) error {
	return errors.New("mqtt: this connection only publishes")
}

// The rest of paho's SessionManager has nothing to do here.

func (x *outbox) Ack(*packets.Publish) error    { return nil }
func (x *outbox) Close() error                  { return nil }
func (x *outbox) SetErrorLogger(paholog.Logger) {}
func (x *outbox) SetDebugLogger(paholog.Logger) {}
