package bridge_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

// jetstream is a connection of the test's own.
func (s *stack) jetstream() natsjs.JetStream {
	s.t.Helper()
	nc, err := nats.Connect(s.nats.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	js, err := natsjs.New(nc)
	if err != nil {
		s.t.Fatal(err)
	}
	return js
}

// consumer makes a stream with a durable consumer as an operator might have.
func (s *stack) consumer(js natsjs.JetStream, stream, subjects string, c natsjs.ConsumerConfig) {
	s.t.Helper()
	_, err := js.CreateOrUpdateStream(s.t.Context(), natsjs.StreamConfig{Name: stream, Subjects: []string{subjects}, Storage: natsjs.FileStorage})
	if err == nil {
		_, err = js.CreateOrUpdateConsumer(s.t.Context(), stream, c)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestDangerousSettingsAreReported: once in the log, in readiness for as long as
// they last, and they keep nothing from working. Streams that are missing are made,
// those included that only others read.
func TestDangerousSettingsAreReported(t *testing.T) {
	s := newStack(t)
	js := s.jetstream()
	s.consumer(js, "TELEMETRY", "telemetry.>", natsjs.ConsumerConfig{Durable: "ingest-workers", AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: 3, AckWait: time.Second})
	c := s.config("a")
	var j devstack.Log
	c.Logger = slog.New(slog.NewTextHandler(&j, nil))
	i := s.start(c)
	devstack.Await(t, "readiness shows them", func() bool { return !i.Ready().Checks["jetstream_settings"].OK })
	r := i.Ready()
	if !r.Ready {
		t.Errorf("dangerous settings make the instance unready: %+v", r)
	}
	for _, setting := range []string{"max_deliver", "ack_wait"} {
		if !strings.Contains(r.Checks["jetstream_settings"].Error, setting) {
			t.Errorf("readiness does not name %s: %s", setting, r.Checks["jetstream_settings"].Error)
		}
		if n := strings.Count(j.String(), "setting="+setting); n != 1 {
			t.Errorf("%s is logged %d times, want once", setting, n)
		}
	}
	for _, name := range []string{"SHADOW", "COMMANDS", "ROUTES"} {
		if _, err := js.Stream(t.Context(), name); err != nil {
			t.Errorf("stream %s: %v", name, err)
		}
	}
}

// TestUnusableConsumerLeavesMQTTWorking: a consumer that cannot be used stops the
// JetStream path alone. Once it is mended the path comes up by itself.
func TestUnusableConsumerLeavesMQTTWorking(t *testing.T) {
	s := newStack(t)
	js := s.jetstream()
	s.consumer(js, "COMMANDS", "commands.>", natsjs.ConsumerConfig{Durable: "ingest-commands", AckPolicy: natsjs.AckNonePolicy})
	c := s.config("a")
	i := s.launch(c)
	devstack.Await(t, "readiness names the consumer and MQTT is up", func() bool {
		r := i.Ready()
		return !r.Ready && r.Checks["mqtt"].OK && strings.Contains(r.Checks["jetstream"].Error, "ingest-commands")
	})
	record := s.play(some())
	devstack.Await(t, "MQTT's messages are written", func() bool { return s.count(`SELECT count(*) FROM telemetry`) > 0 })
	if err := js.DeleteConsumer(t.Context(), "COMMANDS", "ingest-commands"); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the instance is ready", func() bool { return i.Ready().Ready })
	s.reconcile(record)
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
}

// TestNoSourceThatWorks: with nothing to do the instance ends and says why.
func TestNoSourceThatWorks(t *testing.T) {
	s := newStack(t)
	s.consumer(s.jetstream(), "COMMANDS", "commands.>", natsjs.ConsumerConfig{Durable: "ingest-commands", AckPolicy: natsjs.AckNonePolicy})
	c := s.config("a")
	c.MQTT, c.Mirror = nil, nil
	i := s.launch(c)
	err := <-i.done
	i.done <- err
	if err == nil || !strings.Contains(err.Error(), "ingest-commands") {
		t.Errorf("Run = %v, want an error that names the consumer", err)
	}
}

// publish stores envelopes of one tenant in JetStream, of which MQTT knows nothing.
func (s *stack) publish(js natsjs.JetStream, tenant string, n int) {
	s.t.Helper()
	for i := range n {
		body := fmt.Sprintf(`{"topic":"tenant/%[1]s/device/d1/telemetry","tenant_id":%[1]q,"device_id":"d1","msg_type":"telemetry","payload":{"seq":%[2]d,"site_id":"s","provision_token":"tok","metrics":{"v":1}}}`, tenant, i)
		if _, err := js.PublishAsync("telemetry."+tenant, []byte(body)); err != nil {
			s.t.Fatal(err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-s.t.Context().Done():
	}
}

// TestTenantThatWaitsInVainOnJetStream: its copies stand by for an hour, since they
// never come by MQTT, and use up what the consumer lets two instances have in
// hand together. The others' messages flow all the same (P6).
func TestTenantThatWaitsInVainOnJetStream(t *testing.T) {
	s := newStack(t)
	js := s.jetstream()
	s.consumer(js, "TELEMETRY", "telemetry.>", natsjs.ConsumerConfig{Durable: "ingest-workers", AckPolicy: natsjs.AckExplicitPolicy, MaxAckPending: 200})
	a, b := s.config("a"), s.config("b")
	a.MQTT, a.Mirror, b.MQTT, b.Mirror = nil, nil, nil, nil
	a.StandbyWait, b.StandbyWait = time.Hour, time.Hour
	s.register("stuck", "sound")
	s.start(a)
	s.start(b)
	s.flip(flags.MQTT, "stuck")
	s.flip(flags.JetStream, "sound")
	s.publish(js, "stuck", 300)
	s.publish(js, "sound", 500)
	devstack.Await(t, "the sound tenant's messages are written", func() bool {
		return s.count(`SELECT count(*) FROM telemetry WHERE tenant_id = 'sound'`) == 500
	})
}

// register enters tenants with one device each.
func (s *stack) register(tenants ...string) {
	s.t.Helper()
	for _, tenant := range tenants {
		if err := fleet.Register(s.t.Context(), s.pool, []fleet.Device{{Tenant: tenant, ID: "d1", Site: "s", Token: "tok"}}); err != nil {
			s.t.Fatal(err)
		}
	}
}
