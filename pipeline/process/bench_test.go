package process_test

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// BenchmarkProcessor takes envelopes from memory through a Processor to a
// PostgreSQL of its own that flushes to disk: the pipeline without a source.
//
//	go test ./pipeline/process -run '^$' -bench Processor -benchtime 300000x
//
// One operation is one message. cpu-ns/op is this process's CPU time.
func BenchmarkProcessor(b *testing.B) {
	devices := fleet.Devices(fleet.Config{Tenants: 3, Devices: 1000, Seed: 1})
	s := benchStore(b, devices)
	deliveries := benchDeliveries(devices, b.N)

	o := process.DefaultOptions()
	o.Settings.RateLimit = 1000
	o.Logger, o.Registry = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	p, err := process.New(s, o)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { p.Run(ctx) })

	window := make(chan struct{}, 8000) // as a source would bound what is in hand
	before := processCPU(b)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range deliveries {
		window <- struct{}{}
		deliveries[i].Receipt = benchReceipt(window)
		p.Submit(deliveries[i])
	}
	if err := p.Drain(ctx); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(processCPU(b)-before)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	cancel()
	running.Wait()

	var rows int
	if err := s.Pool().QueryRow(b.Context(), `SELECT count(*) FROM telemetry`).Scan(&rows); err != nil {
		b.Fatal(err)
	}
	if rows != b.N {
		b.Fatalf("%d rows of %d messages", rows, b.N)
	}
}

func benchStore(b *testing.B, devices []fleet.Device) *store.Store {
	b.Helper()
	ctx := b.Context()
	pg, err := devstack.StartPostgres(ctx, devstack.PostgresOptions{Fsync: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := pg.Close(); err != nil {
			b.Error(err)
		}
	})
	url := pg.URL("postgres")
	if _, err := migrations.Apply(ctx, url, nil); err != nil {
		b.Fatal(err)
	}
	s, err := store.Open(ctx, store.DefaultConfig(url))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Close)
	partitions, err := store.NewPartitions(s.Pool(), store.DefaultPartitionOptions())
	if err != nil {
		b.Fatal(err)
	}
	if err := partitions.Ensure(ctx, time.Now()); err != nil {
		b.Fatal(err)
	}
	if err := fleet.Register(ctx, s.Pool(), devices); err != nil {
		b.Fatal(err)
	}
	return s
}

// benchDeliveries spreads n messages over the last five minutes, devices taking
// turns.
func benchDeliveries(devices []fleet.Device, n int) []pipeline.Delivery {
	const span = 5 * time.Minute
	began := time.Now().Add(-span)
	list := make([]pipeline.Delivery, n)
	for i := range list {
		d, at := devices[i%len(devices)], began.Add(span*time.Duration(i)/time.Duration(n))
		list[i] = pipeline.Delivery{Path: pipeline.PathJetStream, Subject: fleet.SubjectFor(d, fleet.KindTelemetry),
			Body: fleet.AppendEnvelope(nil, d, int64(i/len(devices)+1), at, fleet.KindTelemetry)}
	}
	return list
}

// benchReceipt makes room in the window.
type benchReceipt chan struct{}

func (r benchReceipt) Ack() error { <-r; return nil }
func (r benchReceipt) Release() error {
	<-r
	return os.ErrClosed // counted by the processor; the row count then tells
}
func (benchReceipt) Occurred() time.Time { return time.Now() }

// processCPU is user and system time of this process.
func processCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
