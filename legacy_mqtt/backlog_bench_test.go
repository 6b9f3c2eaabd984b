package legacy_mqtt_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline"
)

// BenchmarkBacklog drains what a broker has kept for the session, settling as
// the pipeline does: in batches whose order has nothing to do with arrival.
//
//	go test ./legacy_mqtt -run '^$' -bench Backlog -benchtime 200000x
//
// msgs/s counts from the first delivery to the last acknowledgement.
func BenchmarkBacklog(b *testing.B) {
	for _, batch := range []int{1, 500, 2000, 5000} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) { drain(b, batch) })
	}
}

func drain(b *testing.B, batch int) {
	broker := devstack.TestMosquitto(b)
	cfg := legacy_mqtt.DefaultConfig()
	cfg.URL, cfg.ClientID = broker.URL(), "bench"
	cfg.Username, cfg.Password = broker.User(), broker.Password()
	cfg.Logger = slog.New(slog.DiscardHandler)
	first := run(b, cfg)
	first.awaitHealthy(b)
	first.end()
	fill(b, broker, b.N)

	source := newSource(b, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	deliveries := make(chan pipeline.Delivery, 4*cfg.Window)
	var started sync.Once
	var begin time.Time
	ended := make(chan error, 1)
	b.ResetTimer()
	go func() {
		ended <- source.Run(ctx, func(d pipeline.Delivery) {
			started.Do(func() { begin = time.Now() })
			deliveries <- d
		})
	}()
	var peak int64
	for done := 0; done < b.N; {
		receipts := make([]pipeline.Receipt, 0, batch)
		for len(receipts) < min(batch, b.N-done) {
			receipts = append(receipts, (<-deliveries).Receipt)
		}
		peak = max(peak, source.Stats().InHand)
		rand.Shuffle(len(receipts), func(i, j int) { receipts[i], receipts[j] = receipts[j], receipts[i] })
		for _, r := range receipts {
			must(b, r.Ack())
		}
		done += len(receipts)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "msgs/s")
	b.ReportMetric(float64(peak), "peak-in-hand")
	cancel()
	must(b, <-ended)
	must(b, source.Close(bounded(b)))
	if s := source.Stats(); s.Connections != 1 || s.Received != uint64(b.N) {
		b.Errorf("stats = %+v, want one connection and %d messages", s, b.N)
	}
}

// fill publishes n messages of about 220 bytes through several connections.
func fill(b *testing.B, broker *devstack.Mosquitto, n int) {
	payload, err := json.Marshal(map[string]any{
		"ts": "2026-02-09T09:15:23.045Z", "site_id": "s1", "seq": 123, "version": "1", "provision_token": "tok-0123456789abcdef",
		"metrics": map[string]any{"temp_c": 22.5, "door_open": true, "mode": "eco", "humidity": 41.25, "battery": 3.61},
	})
	must(b, err)
	const publishers, inFlight = 4, 8
	var all sync.WaitGroup
	for p := range publishers {
		client := dialPublisher(b, broker)
		share := n / publishers
		if p == 0 {
			share += n % publishers
		}
		for s := range inFlight {
			mine := share / inFlight
			if s == 0 {
				mine += share % inFlight
			}
			all.Go(func() {
				for range mine {
					if _, err := client.Publish(context.Background(), &paho.Publish{Topic: deviceTopic, QoS: 1, Payload: payload}); err != nil {
						b.Errorf("publish: %v", err)
						return
					}
				}
			})
		}
		defer func() { _ = client.Disconnect(&paho.Disconnect{}) }()
	}
	all.Wait()
}
