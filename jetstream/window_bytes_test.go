package jetstream_test

import (
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
)

// TestLargeMessagesStayWithinBounds: few large messages are as much as many small ones.
// What is too much comes again, once, since no more is asked for than there is room for.
func TestLargeMessagesStayWithinBounds(t *testing.T) {
	n := devstack.TestNATS(t)
	js := direct(t, n)
	createConsumer(t, js, nil)
	const size, room, sent = 64 << 10, 8, 200
	ids := names(strings.Repeat("x", size), sent)
	for _, id := range ids {
		if _, err := js.Publish(testContext(t), "telemetry.t1", []byte(id)); err != nil {
			t.Fatal(err)
		}
	}
	k := &taker{}
	source := run(t, connect(t, n, ""), k, func(c *jetstream.SourceConfig) { c.WindowBytes = room * (size + 1000) })
	for done := 0; done < sent; {
		devstack.Await(t, "as much to be in hand as there is room for", func() bool { return k.inHand() >= min(room, sent-done) })
		if s := source.Stats()[0]; s.InHand > room || s.HeldBytes > room*(size+1000) {
			t.Fatalf("%d messages of %d bytes are in hand", s.InHand, s.HeldBytes)
		}
		for _, d := range k.take() {
			if err := d.Receipt.Ack(); err != nil {
				t.Fatal(err)
			}
			done++
		}
	}
	settled(t, source)
	for _, id := range ids {
		if n := k.times(id); n != 1 {
			t.Errorf("message %s was handed over %d times, want once", id[size:], n)
		}
	}
	if s := source.Stats()[0]; s.HeldBytes != 0 || s.Released > 2*sent {
		t.Errorf("%+v; want at most %d given back", s, 2*sent)
	}
}

// TestMessageAboveTheBoundIsTaken: it would never get room otherwise.
func TestMessageAboveTheBoundIsTaken(t *testing.T) {
	n := devstack.TestNATS(t)
	js := direct(t, n)
	createConsumer(t, js, nil)
	k := &taker{}
	source := run(t, connect(t, n, ""), k, func(c *jetstream.SourceConfig) { c.WindowBytes = 1 })
	publish(t, js, "a", "b", "c")
	for range 3 {
		devstack.Await(t, "a message", func() bool { return k.inHand() == 1 })
		if err := k.take()[0].Receipt.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	settled(t, source)
}
