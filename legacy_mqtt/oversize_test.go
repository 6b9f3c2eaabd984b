package legacy_mqtt_test

import (
	"bytes"
	"testing"

	"github.com/eclipse/paho.golang/paho"
)

// TestOversizedMessagesStayAtTheBroker: what is larger than MaxPacket is never read
// into memory, and takes neither the connection nor other messages with it.
func TestOversizedMessagesStayAtTheBroker(t *testing.T) {
	e := newEnv(t)
	cfg := e.config(t, 10)
	cfg.MaxPacket = 64 << 10
	r := run(t, cfg)
	r.awaitHealthy(t)
	client := dialPublisher(t, e.broker)
	_, err := client.Publish(bounded(t), &paho.Publish{Topic: deviceTopic, QoS: 1, Payload: bytes.Repeat([]byte("x"), 128<<10)})
	must(t, err)
	must(t, client.Disconnect(&paho.Disconnect{}))
	e.Publish(t, "small")
	d := r.next(t)
	if got := idOf(d); got != "small" {
		t.Errorf("the first delivery has %d bytes, want the small one", len(d.Body))
	}
	must(t, d.Receipt.Ack())
	if n := r.Stats().Connections; n != 1 {
		t.Errorf("%d connections were made, want one", n)
	}
}
