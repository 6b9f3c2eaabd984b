package legacy_mqtt_test

import (
	"testing"

	"github.com/eclipse/paho.golang/paho"
)

// TestRetainedMessagesAreNotTaken: what a broker retains was delivered when it was
// published, maybe longer ago than the ledger remembers, so taking it at a new
// subscription could let it take effect again.
func TestRetainedMessagesAreNotTaken(t *testing.T) {
	e := newEnv(t)
	client := dialPublisher(t, e.broker)
	_, err := client.Publish(bounded(t), &paho.Publish{Topic: deviceTopic, QoS: 1, Retain: true, Payload: []byte(`{"id":"retained"}`)})
	must(t, err)
	must(t, client.Disconnect(&paho.Disconnect{}))
	r := run(t, e.config(t, 10))
	r.awaitHealthy(t)
	e.Publish(t, "live")
	if got := idOf(r.next(t)); got != "live" {
		t.Errorf("the first delivery is %q, want what was published after subscribing", got)
	}
}
