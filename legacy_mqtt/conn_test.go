package legacy_mqtt

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// pipe returns a conn and the broker's end of it.
func pipe(t *testing.T) (*conn, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	if err := theirs.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	c := newConn(ours, func() {})
	t.Cleanup(func() { _ = theirs.Close(); _ = c.Close() })
	return c, theirs
}

// TestConnSendsEachPacketWhole: packets written by several goroutines arrive
// complete and without anyone asking for a flush.
func TestConnSendsEachPacketWhole(t *testing.T) {
	c, broker := pipe(t)
	const writers, each = 8, 50
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if _, err := packets.NewControlPacket(packets.PINGREQ).WriteTo(c); err != nil {
					t.Errorf("write: %v", err)
				}
			}
		})
	}
	for range writers * each {
		p, err := packets.ReadPacket(broker)
		if err != nil {
			t.Fatal(err)
		}
		if p.Type != packets.PINGREQ {
			t.Fatalf("read a %s", p.PacketType())
		}
	}
	wg.Wait()
}

// TestConnSendsPubacks: a PUBACK of our own making is one that paho can read,
// and needs no other traffic to be sent.
func TestConnSendsPubacks(t *testing.T) {
	c, broker := pipe(t)
	first, second := c.expect(0x1234, arrival{}), c.expect(7, arrival{})
	if err := errors.Join(c.settle(second, ackGiven), c.settle(first, ackGiven)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint16{0x1234, 7} {
		p, err := packets.ReadPacket(broker)
		if err != nil {
			t.Fatal(err)
		}
		ack, ok := p.Content.(*packets.Puback)
		if !ok || ack.PacketID != want || ack.ReasonCode != 0 {
			t.Fatalf("read %v, want PUBACK %d", p, want)
		}
	}
}

// TestConnCloseSendsWhatWasWritten: what was written before Close, the last
// packet included, goes out although the flusher is still busy with an earlier
// packet. It has a choice then, so once is not enough.
func TestConnCloseSendsWhatWasWritten(t *testing.T) {
	for range 30 {
		c, broker := pipe(t)
		if _, err := packets.NewControlPacket(packets.PINGREQ).WriteTo(c); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 1) // the flusher is now inside its write
		if _, err := io.ReadFull(broker, first); err != nil {
			t.Fatal(err)
		}
		if err := c.settle(c.expect(7, arrival{}), ackGiven); err != nil {
			t.Fatal(err)
		}
		if _, err := packets.NewControlPacket(packets.DISCONNECT).WriteTo(c); err != nil {
			t.Fatal(err)
		}
		go func() { _ = c.Close() }()
		<-c.closing
		got, err := io.ReadAll(broker)
		if err != nil {
			t.Fatal(err)
		}
		if want := []byte{0, 0x40, 2, 0, 7, 0xE0}; !bytes.HasPrefix(got, want) {
			t.Fatalf("the broker read % x, want % x and the rest of DISCONNECT", got, want)
		}
		if err := c.settle(c.expect(8, arrival{}), ackGiven); !errors.Is(err, ErrConnectionGone) {
			t.Errorf("settle after Close = %v, want ErrConnectionGone", err)
		}
		if _, err := packets.NewControlPacket(packets.PINGREQ).WriteTo(c); err == nil {
			t.Error("write after Close succeeded")
		}
	}
}

// TestConnWriteErrorEndsIt: a write that fails in the background reaches the
// reader, and with it paho, and makes every later write fail.
func TestConnWriteErrorEndsIt(t *testing.T) {
	c, broker := pipe(t)
	_ = broker.Close()
	_, _ = packets.NewControlPacket(packets.PINGREQ).WriteTo(c)
	<-c.finished
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("read after a failed write succeeded")
	}
	if _, err := packets.NewControlPacket(packets.PINGREQ).WriteTo(c); err == nil {
		t.Error("write after a failed write succeeded")
	}
	if err := c.settle(c.expect(1, arrival{}), ackGiven); !errors.Is(err, ErrConnectionGone) {
		t.Errorf("settle = %v, want ErrConnectionGone", err)
	}
}
