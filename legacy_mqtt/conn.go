package legacy_mqtt

import (
	"bufio"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	readBuffer = 64 << 10
	// ackDelay is how long a PUBACK waits for company before it is sent.
	ackDelay = 5 * time.Millisecond
	// writeTimeout ends a connection whose peer no longer takes our few bytes.
	writeTimeout = 10 * time.Second
	// closeTimeout bounds the last flush of a connection that is being closed.
	closeTimeout = 2 * time.Second
)

// ErrConnectionGone: the copy came by a connection that no longer exists, so
// the broker has it still and sends it again.
var ErrConnectionGone = errors.New("mqtt: the connection by which the message came is gone; the broker sends it again")

// conn is a broker connection with buffered writes. Without the buffer every
// PUBACK is a system call of its own, which halves the throughput.
//
// paho writes a packet in pieces between Lock and Unlock, as it does with every
// connection that is a sync.Locker; ack writes a PUBACK in the same way. One
// goroutine, flush, moves what was written to the network: paho's packets at
// once, PUBACKs after ackDelay. It ends when the connection is closed, and a
// write that fails closes it, which paho's reader then notices.
type conn struct {
	net.Conn
	readMu sync.Mutex // finish reads too, when paho may have stopped
	reader *bufio.Reader
	inflow *inflow // nil: reading never waits

	mu     sync.Mutex // what Lock locks; protects the rest of this block
	buf    []byte
	acks   acks
	closed bool
	// sent counts the bytes that the network has taken, writing those that it is just
	// being given.
	sent, writing uint64

	urgent   chan struct{} // a packet other than a PUBACK waits
	lazy     chan struct{} // a PUBACK waits
	closing  chan struct{} // closed by Close, before the last flush
	finished chan struct{} // closed when flush has ended and the socket is closed
	// linger asks Close to wait until the broker has read everything and closed
	// its end. A socket closed with unread input is reset, and a reset can
	// overtake PUBACKs that the broker has not read yet.
	linger    atomic.Bool
	onBlocked func() // called once, locked, when a released copy begins to keep back PUBACKs
	blocked   bool
}

func newConn(c net.Conn, onBlocked func()) *conn {
	b := &conn{
		Conn:      c,
		reader:    bufio.NewReaderSize(c, readBuffer),
		urgent:    make(chan struct{}, 1),
		lazy:      make(chan struct{}, 1),
		closing:   make(chan struct{}),
		finished:  make(chan struct{}),
		onBlocked: onBlocked,
	}
	go b.flush()
	return b
}

// Lock and Unlock make a packet's pieces one write.
func (b *conn) Lock() { b.mu.Lock() }

func (b *conn) Unlock() {
	waiting := len(b.buf) > 0
	b.mu.Unlock()
	if waiting {
		wake(b.urgent)
	}
}

// Write appends to the buffer. The caller holds the lock (see Lock).
func (b *conn) Write(p []byte) (int, error) {
	if b.closed {
		return 0, net.ErrClosed
	}
	b.buf = append(b.buf, p...)
	return len(p), nil
}

// Read fills p from the network, once there is room for what it brings.
func (b *conn) Read(p []byte) (int, error) {
	b.readMu.Lock()
	defer b.readMu.Unlock()
	if b.inflow == nil {
		return b.reader.Read(p)
	}
	b.inflow.await(b.closing)
	n, err := b.reader.Read(p)
	b.inflow.read(p[:n])
	return n, err
}

// expect enters a received QoS 1 message into the ledger.
func (b *conn) expect(packetID uint16, m arrival) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.acks.expect(packetID, m)
}

// settle notes what became of a message, buffers the PUBACKs that are due, and
// calls what waited for them.
func (b *conn) settle(seq uint64, state ackState) error {
	due, err := b.note(seq, state)
	for _, f := range due {
		f()
	}
	return err
}

func (b *conn) note(seq uint64, state ackState) (due []func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrConnectionGone
	}
	before := len(b.buf)
	due = b.acks.settle(seq, state, func(id uint16) {
		// PUBACK, remaining length 2: reason code 0 (success) is left out.
		b.buf = append(b.buf, 0x40, 0x02, byte(id>>8), byte(id))
	})
	if len(b.buf) > before {
		wake(b.lazy)
	}
	if !b.blocked && b.acks.blocked() {
		b.blocked = true
		b.onBlocked()
	}
	return due, nil
}

// settleThen acknowledges a message and has then called once the PUBACKs of all
// before it, and its own, are buffered. It is never called if the connection ends
// before.
func (b *conn) settleThen(seq uint64, then func()) error {
	b.mu.Lock()
	waits := !b.closed && b.acks.after(seq+1, then)
	b.mu.Unlock()
	if !waits {
		return ErrConnectionGone
	}
	return b.settle(seq, ackGiven)
}

// flush moves the buffer to the network until the connection is closed.
func (b *conn) flush() {
	defer close(b.finished)
	defer b.Conn.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-b.urgent:
		case <-b.lazy:
			timer.Reset(ackDelay)
			select {
			case <-timer.C:
			case <-b.urgent:
			case <-b.closing:
			}
		case <-b.closing:
			b.finish()
			return
		}
		if err := b.writeOut(writeTimeout); err != nil {
			b.markClosed()
			return
		}
	}
}

// writeOut sends what is in the buffer.
func (b *conn) writeOut(timeout time.Duration) error {
	b.mu.Lock()
	out := b.buf
	b.buf = nil
	b.writing = uint64(len(out))
	b.mu.Unlock()
	if len(out) == 0 {
		return nil
	}
	if err := b.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := b.Conn.Write(out); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent, b.writing = b.sent+b.writing, 0
	return nil
}

// position is where in everything that was ever written the last Write has ended. The
// caller holds the lock.
func (b *conn) position() uint64 { return b.sent + b.writing + uint64(len(b.buf)) }

// holds reports whether the network has not taken everything up to a position.
func (b *conn) holds(position uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sent < position
}

// abandon ends the connection at once. What it holds is never sent.
func (b *conn) abandon() {
	b.markClosed()
	b.mu.Lock()
	b.buf = nil
	b.mu.Unlock()
	_ = b.Conn.Close() // it ends all the same
}

// finish sends what was buffered before Close, DISCONNECT last, and if asked
// to waits for the broker to hang up.
func (b *conn) finish() {
	if err := b.writeOut(closeTimeout); err != nil || !b.linger.Load() {
		return
	}
	if b.SetReadDeadline(time.Now().Add(closeTimeout)) != nil {
		return
	}
	rest := make([]byte, readBuffer)
	for {
		if _, err := b.Read(rest); err != nil {
			return
		}
	}
}

// Close sends what is buffered and closes the connection.
func (b *conn) Close() error {
	b.markClosed()
	<-b.finished
	return nil
}

// markClosed makes the connection refuse writes and acknowledgements.
func (b *conn) markClosed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.closed = true
		close(b.closing)
	}
}

// wake makes sure that whoever waits on c looks once more.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
