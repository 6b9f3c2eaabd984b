package fleet

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// link is one MQTT 5 connection that only publishes at QoS 1. It is built on
// paho's packets and not on its client, whose Publish blocks until the PUBACK:
// with a goroutine per message in flight a device's order would be lost.
//
// One goroutine writes (publish, ping, flush, close); the link's own reads. Its
// reader ends when the connection does, and close waits for it.
type link struct {
	conn   net.Conn
	w      *bufio.Writer
	buf    []byte
	window int // MaxInflight, or the broker's Receive Maximum if that is lower

	acks chan puback
	down chan struct{} // closed by the reader when nothing more can come
	err  error         // why; read it after down is closed
}

type puback struct {
	id     uint16
	reason byte
}

const (
	// keepAlive is announced to the broker; a ping goes out twice as often.
	keepAlive = 20 * time.Second
	// ioTimeout bounds the handshake and each write: a broker that takes
	// nothing for so long is treated as gone.
	ioTimeout = 10 * time.Second
)

// endpoint is what is needed to open links.
type endpoint struct {
	addr           string
	tls            *tls.Config
	user, password string
	maxInflight    int
}

// refusedError is a broker's answer that a retry cannot mend.
type refusedError struct{ reason byte }

func (e refusedError) Error() string {
	switch e.reason {
	case packets.ConnackBadUsernameOrPassword, packets.ConnackNotAuthorized:
		return fmt.Sprintf("the broker refused the login (reason 0x%02x): check user and password", e.reason)
	case packets.ConnackUnsupportedProtocolVersion:
		return "the broker does not speak MQTT 5 (reason 0x84): use a broker that does"
	}
	return fmt.Sprintf("the broker refused the connection (reason 0x%02x): see its log", e.reason)
}

// final says whether trying again is pointless.
func (e refusedError) final() bool {
	switch e.reason {
	case packets.ConnackBadUsernameOrPassword, packets.ConnackNotAuthorized,
		packets.ConnackUnsupportedProtocolVersion, packets.ConnackInvalidClientID,
		packets.ConnackBanned, packets.ConnackBadAuthenticationMethod:
		return true
	}
	return false
}

// dial opens a link with a session that ends with the connection: what is not
// acknowledged then is the publisher's to publish again, under new packet IDs.
func (e endpoint) dial(ctx context.Context, clientID string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	var d interface {
		DialContext(ctx context.Context, network, addr string) (net.Conn, error)
	} = &net.Dialer{}
	if e.tls != nil {
		d = &tls.Dialer{Config: e.tls}
	}
	conn, err := d.DialContext(ctx, "tcp", e.addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", e.addr, err)
	}
	// The handshake's reads and writes end with ctx.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	l, err := e.handshake(conn, clientID)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close() // the handshake's error is the one that tells
		return nil, fmt.Errorf("connect to %s: %w", e.addr, err)
	}
	return l, nil
}

func (e endpoint) handshake(conn net.Conn, clientID string) (*link, error) {
	connect := &packets.Connect{
		ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: clientID, CleanStart: true,
		KeepAlive: uint16(keepAlive / time.Second), Properties: &packets.Properties{},
		UsernameFlag: e.user != "", Username: e.user,
		PasswordFlag: e.password != "", Password: []byte(e.password),
	}
	if _, err := connect.WriteTo(conn); err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	p, err := packets.ReadPacket(r)
	if errors.Is(err, io.EOF) {
		return nil, errors.New("the broker closed the connection instead of answering: is this an MQTT port, without or with TLS as configured?")
	}
	if err != nil {
		return nil, err
	}
	ack, ok := p.Content.(*packets.Connack)
	if !ok {
		return nil, fmt.Errorf("the broker answered with %s instead of CONNACK", p.PacketType())
	}
	if ack.ReasonCode != packets.ConnackSuccess {
		return nil, refusedError{ack.ReasonCode}
	}
	if q := ack.Properties.MaximumQOS; q != nil && *q < 1 {
		return nil, errors.New("the broker allows only QoS 0: allow QoS 1")
	}
	l := &link{conn: conn, w: bufio.NewWriterSize(conn, 64<<10), window: e.maxInflight, down: make(chan struct{})}
	if n := ack.Properties.ReceiveMaximum; n != nil && *n > 0 {
		l.window = min(l.window, int(*n))
	}
	l.acks = make(chan puback, l.window)
	go l.read(r)
	return l, nil
}

// read hands PUBACKs on until the connection ends. acks has room for a whole
// window, so it does not block unless the broker acknowledges what it never got.
func (l *link) read(r io.Reader) {
	defer close(l.down)
	for {
		// We ping twice per keepAlive: silence means that the broker is gone.
		if l.err = l.conn.SetReadDeadline(time.Now().Add(keepAlive + ioTimeout)); l.err != nil {
			return
		}
		p, err := packets.ReadPacket(r)
		if err != nil {
			l.err = err
			return
		}
		switch c := p.Content.(type) {
		case *packets.Puback:
			select {
			case l.acks <- puback{c.PacketID, c.ReasonCode}:
			default:
				l.err = errors.New("the broker acknowledged more than it was sent")
				return
			}
		case *packets.Disconnect:
			l.err = fmt.Errorf("the broker ended the connection (reason 0x%02x)", c.ReasonCode)
			return
		}
	}
}

// publish buffers a QoS 1 PUBLISH; flush sends it.
func (l *link) publish(topic string, id uint16, body []byte) error {
	length := 2 + len(topic) + 2 + 1 + len(body)
	b := append(l.buf[:0], packets.PUBLISH<<4|1<<1)
	for n := length; ; { // MQTT 5, section 1.5.5: variable byte integer
		digit := byte(n & 0x7f)
		if n >>= 7; n > 0 {
			b = append(b, digit|0x80)
			continue
		}
		b = append(b, digit)
		break
	}
	b = append(b, byte(len(topic)>>8), byte(len(topic)))
	b = append(b, topic...)
	b = append(b, byte(id>>8), byte(id), 0) // packet ID, no properties
	b = append(b, body...)
	l.buf = b
	return l.write(func() error { _, err := l.w.Write(b); return err })
}

func (l *link) flush() error { return l.write(l.w.Flush) }

func (l *link) ping() error {
	return l.write(func() error {
		if _, err := packets.NewControlPacket(packets.PINGREQ).WriteTo(l.w); err != nil {
			return err
		}
		return l.w.Flush()
	})
}

func (l *link) write(f func() error) error {
	if err := l.conn.SetWriteDeadline(time.Now().Add(ioTimeout)); err != nil {
		return err
	}
	return f()
}

// leave tells the broker that this is not a failure. The link still has to be
// closed.
func (l *link) leave() error {
	return l.write(func() error {
		if _, err := packets.NewControlPacket(packets.DISCONNECT).WriteTo(l.w); err != nil {
			return err
		}
		return l.w.Flush()
	})
}

// close ends the connection and waits for the reader; what it has put in acks
// can still be taken out.
func (l *link) close() {
	_ = l.conn.Close() // whatever was to be learned of the connection is in l.err
	<-l.down
}
