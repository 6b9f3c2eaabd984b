package legacy_mqtt_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/paho"

	"github.com/crossfade-io/crossfade/pipeline"
)

// TestHostilePackets: whatever a broker lets through reaches the pipeline byte for
// byte, breaks no connection, and keeps nothing from what comes after it.
func TestHostilePackets(t *testing.T) {
	e := newEnv(t)
	cfg := e.config(t, 10)
	cfg.UsernameProperty = "username"
	cfg.Filters = []string{"#"} // also what matches none of the default filters
	r := run(t, cfg)
	r.awaitHealthy(t)
	text, number, longest := byte(1), uint32(0), strings.Repeat("x", 65_000)
	type user = paho.UserProperties
	for _, c := range []struct {
		name, topic, username string
		body                  []byte
		qos                   byte
		properties            paho.PublishProperties
	}{
		{name: "an empty body", topic: deviceTopic, qos: 1},
		{name: "an empty body, QoS 0", topic: deviceTopic},
		{name: "an empty body, QoS 2", topic: deviceTopic, qos: 2},
		{name: "bytes of all kinds", topic: deviceTopic, body: []byte("\x00\xff\xed\xa0\x80\r\n{"), qos: 1},
		{name: "the largest body", topic: deviceTopic, body: bytes.Repeat([]byte("x"), int(cfg.MaxPacket)-100), qos: 1},
		{name: "spaces", topic: "tenant/t 1/device/ /tele metry", body: []byte("{}"), qos: 1},
		{name: "quotation marks", topic: `tenant/t"1/device/'\/telemetry`, body: []byte("{}"), qos: 1},
		{name: "empty levels", topic: "tenant//device//", body: []byte("{}"), qos: 1},
		{name: "only slashes", topic: strings.Repeat("/", 150), body: []byte("{}"), qos: 1},
		{name: "no topic of ours", topic: "x", body: []byte("{}"), qos: 1},
		{name: "other alphabets", topic: "tenant/😀/device/\u202e\ufeff/°", body: []byte("{}"), qos: 1},
		{name: "a topic of 65,535 bytes", topic: "tenant/t1/device/" + strings.Repeat("x", pipeline.MaxTopic-17), body: []byte("{}"), qos: 1},
		{name: "a user of no name", topic: deviceTopic, qos: 1, properties: paho.PublishProperties{User: user{{Key: "username", Value: ""}, {Key: "", Value: "x"}}}},
		// The device has sent one and the broker has added its own, before it or behind it.
		{name: "two users", topic: deviceTopic, username: "t1/d1\x00t2/d2", qos: 1, properties: paho.PublishProperties{User: user{{Key: "username", Value: "t1/d1"}, {Key: "username", Value: "t2/d2"}}}},
		{name: "a user and an empty one", topic: deviceTopic, username: "\x00t1/d1", qos: 1, properties: paho.PublishProperties{User: user{{Key: "username", Value: ""}, {Key: "username", Value: "t1/d1"}}}},
		{name: "a user twice", topic: deviceTopic, username: "t1/d1", qos: 1, properties: paho.PublishProperties{User: user{{Key: "username", Value: "t1/d1"}, {Key: "username", Value: "t1/d1"}}}},
		{name: "a user in capitals", topic: deviceTopic, qos: 1, properties: paho.PublishProperties{User: user{{Key: "USERNAME", Value: "t1/d1"}}}},
		{name: "a user of 65,000 bytes", topic: deviceTopic, username: longest, qos: 1, properties: paho.PublishProperties{User: user{{Key: "username", Value: longest}}}},
		{name: "a thousand properties", topic: deviceTopic, username: "u", qos: 1, properties: paho.PublishProperties{User: append(manyProperties(1000), paho.UserProperty{Key: "username", Value: "u"})}},
		{name: "every other property", topic: deviceTopic, body: []byte("{"), qos: 1, properties: paho.PublishProperties{
			PayloadFormat: &text, MessageExpiry: pointer(uint32(3600)), ContentType: "application/json; °", ResponseTopic: "tenant/t2/device/d2/commands", CorrelationData: []byte("\x00\xff")}},
		{name: "a life of no seconds", topic: deviceTopic, body: []byte("{}"), qos: 1, properties: paho.PublishProperties{MessageExpiry: &number}},
	} {
		client := dialPublisher(t, e.broker)
		properties := c.properties
		_, err := client.Publish(bounded(t), &paho.Publish{Topic: c.topic, QoS: c.qos, Payload: c.body, Properties: &properties})
		if err != nil {
			t.Fatalf("%s: the broker refuses it: %v", c.name, err)
		}
		if c.qos == 0 || c.properties.MessageExpiry == &number { // it may be dropped, so something must follow
			_, err := client.Publish(bounded(t), &paho.Publish{Topic: "after", QoS: 1})
			must(t, err)
		}
		must(t, client.Disconnect(&paho.Disconnect{}))
		d := r.next(t)
		must(t, d.Receipt.Ack())
		if d.Topic == "after" && c.properties.MessageExpiry == &number {
			continue
		}
		if d.Topic != c.topic || !bytes.Equal(d.Body, c.body) || d.Username != c.username {
			t.Errorf("%s: topic %.60q of %d bytes, %d bytes of body, user %.60q", c.name, d.Topic, len(d.Topic), len(d.Body), d.Username)
		}
		if c.qos == 0 || c.properties.MessageExpiry == &number {
			must(t, r.next(t).Receipt.Ack())
		}
	}
	e.Publish(t, "good")
	d := r.next(t)
	if idOf(d) != "good" {
		t.Errorf("after all, %.60q was delivered, want the good message", d.Body)
	}
	must(t, d.Receipt.Ack())
	if s := r.Stats(); s.Connections != 1 || r.Health() != nil {
		t.Errorf("%d connections were made, want one; health: %v", s.Connections, r.Health())
	}
}

func pointer[T any](v T) *T { return &v }

func manyProperties(n int) (list paho.UserProperties) {
	for range n {
		list = append(list, paho.UserProperty{Key: "k", Value: "°"})
	}
	return list
}
