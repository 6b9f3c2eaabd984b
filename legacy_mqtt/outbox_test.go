package legacy_mqtt

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// newBatchOf is a batch of messages of some bytes each.
func newBatchOf(n, size int) *batch {
	b := newBatch(n)
	for i := range n {
		b.add(i, &packets.Publish{Topic: "a", QoS: 1, Payload: make([]byte, size), Properties: &packets.Properties{}}, &Message{})
	}
	return b
}

// published reads the packet identifiers that were written since the last time.
func published(t *testing.T, wire *bytes.Buffer) (ids []uint16) {
	t.Helper()
	for wire.Len() > 0 {
		p, err := packets.ReadPacket(wire)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, p.PacketID())
	}
	return ids
}

func connack(receiveMaximum uint16) *packets.Connack {
	return &packets.Connack{Properties: &packets.Properties{ReceiveMaximum: &receiveMaximum}}
}

func puback(id uint16) *packets.ControlPacket {
	return &packets.ControlPacket{FixedHeader: packets.FixedHeader{Type: packets.PUBACK}, Content: &packets.Puback{PacketID: id}}
}

// TestOutboxKeepsToReceiveMaximum: no more is on its way than the broker allows, and
// identifiers that are in use are not given again, however often they wrap.
func TestOutboxKeepsToReceiveMaximum(t *testing.T) {
	x := newOutbox(t.Context(), DefaultPublisherOptions(), "", time.Second)
	var wire bytes.Buffer
	if err := x.ConAckReceived(&wire, nil, connack(3)); err != nil {
		t.Fatal(err)
	}
	const n = 70_000
	b := newBatchOf(n, 0)
	x.send(b)
	ids := published(t, &wire)
	stuck := ids[0]
	flying := ids[1:]
	if len(ids) != 3 {
		t.Fatalf("%d messages are on their way, want 3", len(ids))
	}
	for range n - 3 {
		if err := x.PacketReceived(puback(flying[0]), nil); err != nil {
			t.Fatal(err)
		}
		next := published(t, &wire)
		if len(next) != 1 || next[0] == stuck || next[0] == flying[1] || next[0] == 0 {
			t.Fatalf("%v came after %d; %d and %d are in use", next, flying[0], stuck, flying[1])
		}
		flying = append(flying[1:], next...)
	}
	for _, id := range append(flying, stuck) {
		_ = x.PacketReceived(puback(id), nil)
		_ = x.PacketReceived(puback(id), nil) // a broker that repeats itself
	}
	select {
	case <-b.done:
	default:
		t.Error("the batch is not done although everything is confirmed")
	}
	if err := errors.Join(b.results...); err != nil {
		t.Error(err)
	}
}
