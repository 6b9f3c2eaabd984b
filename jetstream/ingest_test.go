package jetstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge/sourcetest"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

func newIngest(t *testing.T, conn *jetstream.Conn) *jetstream.Ingest {
	t.Helper()
	i, err := jetstream.NewIngest(conn, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// TestIngest: what is published comes out of the source as envelopes of its tenant's
// subjects, in order, and is known to have no sibling; what others publish is not.
func TestIngest(t *testing.T) {
	n := devstack.TestNATS(t)
	conn := connect(t, n, "")
	if _, err := jetstream.Ensure(testContext(t), conn, jetstream.DefaultSetupOptions()); err != nil {
		t.Fatal(err)
	}
	i := newIngest(t, conn)
	var messages []jetstream.IngestMessage
	for k := range 300 {
		messages = append(messages, jetstream.IngestMessage{Tenant: "t1", Device: "é d", MsgType: "telemetry", Payload: fmt.Appendf(nil, `{"seq":%d}`, k)})
	}
	messages = append(messages,
		jetstream.IngestMessage{Tenant: "t1", Device: "d", MsgType: "shadow/reported", Payload: []byte(`{"reported":{}}`)},
		jetstream.IngestMessage{Tenant: "t1", Device: "d", MsgType: "commands/ack", Payload: []byte(`{"command_id":"c"}`)})
	if err := errors.Join(i.PublishAll(testContext(t), messages)...); err != nil {
		t.Fatal(err)
	}
	js := direct(t, n)
	publish(t, js, "foreign")
	source, err := jetstream.NewSource(conn, jetstream.DefaultSourceConfig(), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	deliveries := make(chan pipeline.Delivery, 1000)
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx, func(d pipeline.Delivery) { deliveries <- d }) }()
	defer func() {
		stop()
		if err := errors.Join(<-done, source.Close(testContext(t))); err != nil {
			t.Error(err)
		}
	}()
	next, subjects := 0, map[string]int{}
	for range len(messages) + 1 {
		var d pipeline.Delivery
		select {
		case d = <-deliveries:
		case <-time.After(patience):
			t.Fatal("not everything was delivered")
		}
		if string(d.Body) == "foreign" {
			if d.Sole || d.Origin == pipeline.OriginHTTP {
				t.Error("a message of somebody else's has no sibling, or came by HTTP")
			}
			continue
		}
		subjects[d.Subject]++
		var m pipeline.Message
		pipeline.NewDecoder("").Decode(&m, &d)
		if !d.Sole || d.Origin != pipeline.OriginHTTP || m.Failed != pipeline.Accepted || m.Tenant != "t1" {
			t.Fatalf("received %s, sole %t: %v %s", d.Body, d.Sole, m.Failed, m.Detail)
		}
		if m.Kind == pipeline.KindTelemetry {
			if seq, _ := m.Fields.Seq.Int(); seq != int64(next) || m.Device != "é d" {
				t.Fatalf("%s came when number %d was due", d.Body, next)
			}
			next++
		}
		var envelope map[string]any
		if err := json.Unmarshal(d.Body, &envelope); err != nil || envelope["ts"].(float64) < 1e12 {
			t.Errorf("envelope %s: %v", d.Body, err)
		}
	}
	if fmt.Sprint(subjects) != "map[commands.t1:1 shadow.t1:1 telemetry.t1:300]" {
		t.Errorf("subjects %v", subjects)
	}
}

// TestIngestRefuses what never can be published, and publishes what is beside it.
func TestIngestRefuses(t *testing.T) {
	n := devstack.TestNATS(t)
	conn := connect(t, n, "")
	if _, err := jetstream.Ensure(testContext(t), conn, jetstream.DefaultSetupOptions()); err != nil {
		t.Fatal(err)
	}
	good := jetstream.IngestMessage{Tenant: "t1", Device: "d1", MsgType: "telemetry", Payload: []byte(`{}`)}
	but := func(change func(*jetstream.IngestMessage)) jetstream.IngestMessage {
		m := good
		change(&m)
		return m
	}
	bad := map[string]jetstream.IngestMessage{
		"NATS subject":     but(func(m *jetstream.IngestMessage) { m.Tenant = "a b" }),
		"subject":          but(func(m *jetstream.IngestMessage) { m.Tenant = strings.Repeat("x", 600) }),
		"no topic":         but(func(m *jetstream.IngestMessage) { m.Tenant = "" }),
		"make no topic":    but(func(m *jetstream.IngestMessage) { m.Device = "a/b" }),
		"no topic that":    but(func(m *jetstream.IngestMessage) { m.Device = "a+" }),
		"that devices":     but(func(m *jetstream.IngestMessage) { m.MsgType = "commands" }),
		"larger than NATS": but(func(m *jetstream.IngestMessage) { m.Payload = []byte(`{"x":"` + strings.Repeat("x", 2<<20) + `"}`) }),
		"devices publish":  but(func(m *jetstream.IngestMessage) { m.Device = pipeline.SentinelDevice }),
	}
	i := newIngest(t, conn)
	for want, m := range bad {
		results := i.PublishAll(testContext(t), []jetstream.IngestMessage{good, m, good})
		refused, ok := errors.AsType[*jetstream.RefusedError](results[1])
		if !ok || !strings.Contains(refused.Error(), want) {
			t.Errorf("%.60q: %v, want %q", m, results[1], want)
		}
		if results[0] != nil || results[2] != nil {
			t.Errorf("beside %.60q: %v, %v", m, results[0], results[2])
		}
	}
	if _, err := jetstream.NewIngest(conn, time.Millisecond); err == nil {
		t.Error("a time-out of 1ms is taken")
	}
}

// TestIngestWithoutNATS: it fails at once while there is no connection, when it is lost
// meanwhile, and where no stream takes the message; and works again by itself.
func TestIngestWithoutNATS(t *testing.T) {
	n := devstack.TestNATS(t)
	network := sourcetest.NewNetwork(t, n.Address())
	conn := connect(t, n, network.Addr())
	i := newIngest(t, conn)
	devstack.Await(t, "connection", func() bool { return conn.Health() == nil })
	retryable := func(what string) {
		t.Helper()
		err := i.Publish(testContext(t), "t1", "d1", "telemetry", []byte(`{}`))
		if _, refused := errors.AsType[*jetstream.RefusedError](err); err == nil || refused || !strings.Contains(err.Error(), "publish to JetStream") {
			t.Errorf("%s: %v", what, err)
		}
	}
	retryable("without a stream")
	if _, err := jetstream.Ensure(testContext(t), conn, jetstream.DefaultSetupOptions()); err != nil {
		t.Fatal(err)
	}
	network.Cut(t)
	devstack.Await(t, "the loss to be noticed", func() bool { return conn.Health() != nil })
	retryable("without a connection")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := i.Publish(ended, "t1", "d1", "telemetry", []byte(`{}`)); err == nil {
		t.Error("published with a context that has ended")
	}
	network.Restore(t)
	devstack.Await(t, "a message to be published", func() bool {
		return i.Publish(testContext(t), "t1", "d1", "telemetry", []byte(`{}`)) == nil
	})
}
