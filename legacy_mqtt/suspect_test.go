package legacy_mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// lockedBuffer is a connection that may be written to while it is read.
type lockedBuffer struct {
	x *outbox
	bytes.Buffer
}

// read returns the next PUBLISH, or nil. It waits for a suspect that is due to be sent.
func (w *lockedBuffer) read(t *testing.T) *packets.Publish {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		w.x.mu.Lock()
		p, err := packets.ReadPacket(&w.Buffer)
		waits := w.x.armed
		w.x.mu.Unlock()
		switch {
		case err == nil:
			return p.Content.(*packets.Publish)
		case !errors.Is(err, io.EOF):
			t.Fatal(err)
		case !waits:
			return nil
		case time.Now().After(deadline):
			t.Fatal("a suspect is not sent")
		}
		time.Sleep(time.Millisecond)
	}
}

// hostile is a broker that hangs up on messages with the payload "poison". Of what it
// confirmed on a connection on which it hung up, kept tells how much got through.
type hostile struct {
	kept        func(answered int) int
	connections int
	poisoned    int
}

// serve gives x connections until b is done.
func (h *hostile) serve(t *testing.T, x *outbox, b *batch) {
	t.Helper()
	for {
		h.connections++
		if h.connections > 100 {
			t.Fatal("100 connections were not enough")
		}
		w := &lockedBuffer{x: x}
		if err := x.ConAckReceived(w, nil, &packets.Connack{}); err != nil {
			t.Fatal(err)
		}
		h.connection(t, x, w)
		select {
		case <-b.done:
			return
		default:
		}
		_ = x.ConnectionLost(nil)
		_ = x.ConnectionLost(nil) // paho may say it twice
	}
}

func (h *hostile) connection(t *testing.T, x *outbox, w *lockedBuffer) {
	t.Helper()
	for {
		var ids []uint16
		poisoned := false
		p := w.read(t)
		if p == nil {
			return
		}
		for ; p != nil && !poisoned; p = w.read(t) {
			if string(p.Payload) == "poison" {
				poisoned = true
			} else {
				ids = append(ids, p.PacketID)
			}
		}
		if poisoned {
			h.poisoned++
			ids = ids[:h.kept(len(ids))]
		}
		for _, id := range ids {
			_ = x.PacketReceived(puback(id), nil)
		}
		if poisoned {
			return
		}
	}
}

// poisonAmong is a batch with poisons at some places.
func poisonAmong(n int, at ...int) *batch {
	b := newBatch(n)
	for i := range n {
		payload := "healthy"
		for _, p := range at {
			if i == p {
				payload = "poison"
			}
		}
		b.add(i, &packets.Publish{Topic: fmt.Sprint(i), QoS: 1, Payload: []byte(payload), Properties: &packets.Properties{}}, &Message{})
	}
	return b
}

func impatient() PublisherOptions {
	o := DefaultPublisherOptions()
	o.Patience = 40 * time.Millisecond // so a connection is proven after 10 ms
	return o
}

// TestPoisonIsFound: the messages upon which the broker hangs up are given up, within a
// few connections and however many confirmations are lost; all others are confirmed.
func TestPoisonIsFound(t *testing.T) {
	for name, kept := range map[string]func(int) int{
		"all confirmations arrive": func(n int) int { return n },
		"none arrives":             func(int) int { return 0 },
		"half of them arrive":      func(n int) int { return n / 2 },
	} {
		for _, c := range []struct {
			n, most int
			at      []int
		}{{1, 4, []int{0}}, {101, 6, []int{0}}, {101, 6, []int{50}}, {101, 6, []int{100}}, {101, 13, []int{3, 80}}, {1000, 7, []int{500}}} {
			x := newOutbox(t.Context(), impatient(), "", time.Second)
			forgiven := 0
			x.forgive = func() { forgiven++ }
			b := poisonAmong(c.n, c.at...)
			x.send(b)
			h := &hostile{kept: kept}
			h.serve(t, x, b)
			bad := 0
			for i, err := range b.results {
				poison := errors.Is(err, ErrHangsUp) && errors.Is(err, ErrUnconfirmed)
				if poison {
					bad++
				}
				if (err != nil) != poison || poison != (i == c.at[0] || i == c.at[len(c.at)-1]) {
					t.Errorf("%s: message %d of %d: %v", name, i, c.n, err)
				}
			}
			if bad != len(c.at) || forgiven != bad || h.connections > c.most {
				t.Errorf("%s, %v of %d: %d given up, %d forgiven, after %d connections", name, c.at, c.n, bad, forgiven, h.connections)
			}
		}
	}
}

// TestSuspectGoesLast: what is said to be a suspect costs the others nothing, and is
// given up the first time.
func TestSuspectGoesLast(t *testing.T) {
	x := newOutbox(t.Context(), impatient(), "", time.Second)
	b := newBatch(2)
	b.add(0, &packets.Publish{Topic: "a", QoS: 1, Payload: []byte("poison"), Properties: &packets.Properties{}}, &Message{Suspect: true})
	b.add(1, &packets.Publish{Topic: "b", QoS: 1, Payload: []byte("healthy"), Properties: &packets.Properties{}}, &Message{})
	x.send(b)
	h := &hostile{kept: func(int) int { return 0 }}
	h.serve(t, x, b)
	if !errors.Is(b.results[0], ErrHangsUp) || b.results[1] != nil || h.poisoned != 1 {
		t.Errorf("%v after %d times", b.results, h.poisoned)
	}
}

// TestRestartsBlameNobody: a broker that is restarted again and again in mid-flow, also
// before it has confirmed anything, makes nobody give a message up.
func TestRestartsBlameNobody(t *testing.T) {
	for _, n := range []int{1, 5, 500} {
		x := newOutbox(t.Context(), impatient(), "", time.Second)
		b := poisonAmong(n)
		x.send(b)
		for round := range 10 {
			w := &lockedBuffer{x: x}
			if err := x.ConAckReceived(w, nil, &packets.Connack{}); err != nil {
				t.Fatal(err)
			}
			for range min(round%3, n/10) {
				x.mu.Lock()
				p, err := packets.ReadPacket(&w.Buffer)
				x.mu.Unlock()
				if err != nil {
					break // a suspect, which is not sent before the connection is proven
				}
				_ = x.PacketReceived(puback(p.PacketID()), nil)
			}
			_ = x.ConnectionLost(nil)
		}
		(&hostile{}).serve(t, x, b)
		if err := errors.Join(b.results...); err != nil {
			t.Errorf("%d messages: %v", n, err)
		}
	}
}

// TestExcusedLosses: an end for which the broker gives another reason, and one of our
// own doing, is nobody's fault.
func TestExcusedLosses(t *testing.T) {
	x := newOutbox(t.Context(), impatient(), "", time.Second)
	b := poisonAmong(1)
	x.send(b)
	for round := range 10 {
		if err := x.ConAckReceived(&lockedBuffer{x: x}, nil, &packets.Connack{}); err != nil {
			t.Fatal(err)
		}
		var d *packets.Disconnect
		if x.abandoned = round%2 == 0; !x.abandoned {
			d = &packets.Disconnect{ReasonCode: 0x8B}
		}
		_ = x.ConnectionLost(d)
		if o := b.items[0]; o.done || o.blamed > 0 || o.suspect {
			t.Fatalf("round %d: %+v", round, o)
		}
	}
}

// TestDeadline: the expiry that is sent is what is left when it is sent, the second time
// too; past it the message is not sent.
func TestDeadline(t *testing.T) {
	x := newOutbox(t.Context(), DefaultPublisherOptions(), "", time.Second)
	b := newBatch(1)
	m := Message{Topic: "a", Expiry: time.Hour, Deadline: time.Now().Add(100*time.Second - time.Millisecond)}
	packet, err := m.packet()
	if err != nil {
		t.Fatal(err)
	}
	b.add(0, packet, &m)
	x.send(b)
	connect := func() *packets.Publish {
		w := &lockedBuffer{x: x}
		if err := x.ConAckReceived(w, nil, &packets.Connack{}); err != nil {
			t.Fatal(err)
		}
		p := w.read(t)
		_ = x.ConnectionLost(&packets.Disconnect{ReasonCode: 0x8B})
		return p
	}
	if p := connect(); p == nil || *p.Properties.MessageExpiry != 100 {
		t.Fatalf("sent %v", p)
	}
	b.items[0].deadline = b.items[0].deadline.Add(-60 * time.Second) // a minute later
	if p := connect(); p == nil || *p.Properties.MessageExpiry != 40 {
		t.Fatalf("sent %v", p)
	}
	b.items[0].deadline = b.items[0].deadline.Add(-time.Minute)
	if p := connect(); p != nil {
		t.Fatalf("sent %v past its deadline", p)
	}
	if err := b.results[0]; !errors.Is(err, ErrExpired) || errors.Is(err, ErrUnconfirmed) {
		t.Errorf("ended with %v", err)
	}
}
