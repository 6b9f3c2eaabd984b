package jetstream_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

const backlog = 300_000

// BenchmarkBacklog pulls 300,000 envelopes of about 350 bytes from a server in
// a process of its own, and acknowledges them in batches of 2,000 from another
// goroutine.
func BenchmarkBacklog(b *testing.B) {
	server := devstack.TestNATS(b)
	js := direct(b, server)
	conn := connect(b, server, "")
	if _, err := jetstream.Ensure(b.Context(), conn, jetstream.DefaultSetupOptions()); err != nil {
		b.Fatal(err)
	}
	fill(b, js)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		// A new consumer has the whole stream before it.
		err := js.DeleteConsumer(b.Context(), "TELEMETRY", jetstream.ConsumerTelemetry)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		drain(b, conn)
	}
	b.ReportMetric(float64(backlog)*float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// drain runs a source until the backlog is acknowledged.
func drain(b *testing.B, conn *jetstream.Conn) {
	cfg := jetstream.DefaultSourceConfig()
	cfg.Consumers = []string{jetstream.ConsumerTelemetry}
	source, err := jetstream.NewSource(conn, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	incoming := make(chan pipeline.Delivery, 16_000)
	ended := make(chan error, 1)
	go func() {
		ended <- source.Run(ctx, func(d pipeline.Delivery) { incoming <- d })
	}()
	batch := make([]pipeline.Receipt, 0, 2000)
	for done := 0; done < backlog; {
		batch = append(batch, (<-incoming).Receipt)
		if len(batch) < cap(batch) {
			continue
		}
		for _, r := range batch {
			if err := r.Ack(); err != nil {
				b.Fatal(err)
			}
		}
		done += len(batch)
		batch = batch[:0]
	}
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	if err := source.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}

func fill(b *testing.B, js natsjs.JetStream) {
	for i := range backlog {
		tenant := i % 8
		body := fmt.Sprintf(`{"topic":"tenant/t%d/device/d%d/telemetry","tenant_id":"t%d","device_id":"d%d","msg_type":"telemetry","username":"","payload":{"ts":"2026-02-09T09:15:23.%06dZ","site_id":"s1","seq":%d,"tenant_id":"t%d","provision_token":"tok-0123456789abcdef","version":"1","lat":52.1,"lng":4.3,"metrics":{"temp_c":22.5,"door_open":true,"mode":"eco"}},"ts":%d}`,
			tenant, i%1000, tenant, i%1000, i%1_000_000, i, tenant, time.Now().UnixMilli())
		for {
			_, err := js.PublishAsync(fmt.Sprintf("telemetry.t%d", tenant), []byte(body))
			if err == nil {
				break
			}
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(patience):
		b.Fatal("the backlog was not stored in time")
	}
	info, err := js.Stream(b.Context(), "TELEMETRY")
	if err != nil {
		b.Fatal(err)
	}
	if got := info.CachedInfo().State.Msgs; got != backlog {
		b.Fatalf("stream holds %d messages, want %d", got, backlog)
	}
}

// BenchmarkMirror republishes 100,000 device payloads, each acknowledged after
// its PubAck.
func BenchmarkMirror(b *testing.B) {
	const messages = 100_000
	server := devstack.TestNATS(b)
	conn := connect(b, server, "")
	if _, err := jetstream.Ensure(b.Context(), conn, jetstream.DefaultSetupOptions()); err != nil {
		b.Fatal(err)
	}
	m, err := jetstream.NewMirror(conn, jetstream.DefaultMirrorConfig(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	acked := make(chan struct{}, 8000) // the window of a source
	body := []byte(`{"ts":"2026-02-09T09:15:23.045Z","site_id":"s1","seq":123,"provision_token":"tok-0123456789abcdef","version":"1","lat":52.1,"lng":4.3,"metrics":{"temp_c":22.5,"door_open":true,"mode":"eco"}}`)
	b.ReportAllocs()
	for b.Loop() {
		for range messages {
			acked <- struct{}{}
			m.Deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Body: body, Receipt: freed(acked)})
		}
	}
	for len(acked) > 0 {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(messages*float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
}

// freed is a receipt that makes room in a window.
type freed chan struct{}

func (f freed) Ack() error          { <-f; return nil }
func (f freed) Release() error      { <-f; return nil }
func (f freed) Occurred() time.Time { return time.Now() }
