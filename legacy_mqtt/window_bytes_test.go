package legacy_mqtt_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/eclipse/paho.golang/paho"
)

// TestLargeMessagesStayWithinBounds: few large messages are as much as many small ones.
// What is not read waits at the broker, and none is lost.
func TestLargeMessagesStayWithinBounds(t *testing.T) {
	for qos := range byte(2) {
		t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
			e := newEnv(t)
			cfg := e.config(t, 1000)
			const size = 256 << 10
			cfg.WindowBytes = 4 * size
			r := run(t, cfg)
			r.awaitHealthy(t)
			client := dialPublisher(t, e.broker)
			const sent = 40
			for n := range byte(sent) {
				_, err := client.Publish(bounded(t), &paho.Publish{Topic: deviceTopic, QoS: qos, Payload: bytes.Repeat([]byte{n}, size)})
				must(t, err)
			}
			must(t, client.Disconnect(&paho.Disconnect{}))
			for n := range byte(sent) {
				devstack.Await(t, "as much to be read as there is room for", func() bool {
					return r.Stats().HeldBytes >= min(cfg.WindowBytes, int64(sent-n)*size)
				})
				d := r.next(t)
				if d.Body[0] != n || len(d.Body) != size {
					t.Fatalf("message %d came with %d bytes, want message %d", d.Body[0], len(d.Body), n)
				}
				// One is read beyond the limit, and one is counted twice while it is handed over.
				if s := r.Stats(); s.HeldBytes > cfg.WindowBytes+2*(size+1000) {
					t.Fatalf("%d messages, and %d bytes in all, are held", s.InHand, s.HeldBytes)
				}
				must(t, d.Receipt.Ack())
			}
			devstack.Await(t, "empty hands", func() bool { return r.Stats().HeldBytes == 0 })
			if s := r.Stats(); s.Received != sent || s.Connections != 1 {
				t.Errorf("stats = %+v", s)
			}
		})
	}
}

// TestMessageAboveTheBoundIsTaken: it would never get room otherwise, nor what follows.
func TestMessageAboveTheBoundIsTaken(t *testing.T) {
	e := newEnv(t)
	cfg := e.config(t, 10)
	cfg.WindowBytes = 1
	r := run(t, cfg)
	r.awaitHealthy(t)
	e.Publish(t, "0", "1", "2", "3")
	for range 4 {
		d := r.next(t)
		if n := r.Stats().InHand; n != 1 {
			t.Errorf("%d are in hand, want one", n)
		}
		must(t, d.Receipt.Ack())
	}
}
