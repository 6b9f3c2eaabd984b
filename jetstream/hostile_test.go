package jetstream_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
)

// TestHostileMessages: whatever a server lets into the streams reaches the pipeline
// byte for byte, with the tenant that its subject names, and keeps nothing from
// what comes after it.
func TestHostileMessages(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	conn := connect(t, server, "")
	ensure(t, conn)
	k := &taker{}
	source := run(t, conn, k, func(cfg *jetstream.SourceConfig) { cfg.Consumers = jetstream.Consumers() })
	long := strings.Repeat("t", 3_000) // the server's max_control_line is 4,096
	for _, c := range []struct {
		name, subject, tenant string
		header                nats.Header
		body                  []byte
	}{
		{name: "an empty body", subject: "telemetry.t1", tenant: "t1"},
		{name: "an empty body with headers", subject: "telemetry.t1", tenant: "t1", header: nats.Header{"X": {""}}},
		{name: "bytes of all kinds", subject: "telemetry.t1", tenant: "t1", body: []byte("\x00\xff\r\n+OK\r\nMSG x 1 0\r\n")},
		{name: "the largest body", subject: "telemetry.t1", tenant: "t1", body: bytes.Repeat([]byte("x"), 1<<20)},
		{name: "more tokens", subject: "telemetry.t1.device.d1", tenant: "t1.device.d1"},
		{name: "other alphabets", subject: "telemetry.😀\u202e", tenant: "😀\u202e"},
		{name: "no UTF-8", subject: "telemetry.\xff\xc0\x80", tenant: "\xff\xc0\x80"},
		{name: "a dollar", subject: "telemetry.$JS.API", tenant: "$JS.API"},
		{name: "a wildcard within a token", subject: "telemetry.a*b>c", tenant: "a*b>c"},
		{name: "a slash", subject: "telemetry.t1/device/#", tenant: "t1/device/#"},
		{name: "a long tenant", subject: "telemetry." + long, tenant: long},
		{name: "shadow", subject: "shadow.t1", tenant: "t1", body: []byte("{")},
		{name: "commands", subject: "commands.t1", tenant: "t1", body: []byte("{")},
		{name: "headers of other systems", subject: "telemetry.t1", tenant: "t1", body: []byte("h"), header: nats.Header{
			"Nats-Expected-Last-Msg-Id": {""}, "Nats-Sequence": {"x"}, "Status": {"503"}, "Description": {"No Responders"}, "Nats-Pending-Messages": {"-1"}, "Reply": {"$JS.ACK.x"}}},
		{name: "a status that a pull would end with", subject: "telemetry.t1", tenant: "t1", body: []byte("s"), header: nats.Header{"Status": {"409"}, "Description": {"Consumer Deleted"}}},
		{name: "many headers", subject: "telemetry.t1", tenant: "t1", body: []byte("m"), header: nats.Header{"K": make([]string, 5_000)}},
	} {
		if _, err := js.PublishMsg(testContext(t), &nats.Msg{Subject: c.subject, Header: c.header, Data: c.body}); err != nil {
			t.Fatalf("%s: the server refuses it: %v", c.name, err)
		}
		devstack.Await(t, c.name, func() bool { return k.inHand() > 0 })
		for _, d := range k.take() {
			if d.Subject != c.subject || d.Tenant() != c.tenant || !bytes.Equal(d.Body, c.body) {
				t.Errorf("%s: subject %.60q, tenant %.60q, %d bytes", c.name, d.Subject, d.Tenant(), len(d.Body))
			}
			if d.Receipt.Occurred().IsZero() {
				t.Errorf("%s: has no time", c.name)
			}
			if err := d.Receipt.Ack(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
	k.setAuto()
	publish(t, js, "good")
	devstack.Await(t, "the good message", func() bool { return k.times("good") == 1 })
	for _, s := range source.Stats() {
		if s.FetchErrors != 0 || s.AckErrors != 0 {
			t.Errorf("%s started over %d times, %d acknowledgements failed", s.Consumer, s.FetchErrors, s.AckErrors)
		}
	}
	settled(t, source)
}
