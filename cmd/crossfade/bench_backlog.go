package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// The stream as installations run it keeps no more than 100,000 messages of one
// subject, which is a tenant.
const benchPerTenant = 100_000

// benchSpan is the time that the backlog covers; it ends at its making.
const benchSpan = 5 * time.Minute

// benchBacklog is what all measurements are of: telemetry of a fleet whose devices
// took turns, as envelopes.
type benchBacklog struct {
	devices  []fleet.Device
	record   *fleet.Record
	messages int
	began    time.Time
}

func newBenchBacklog(messages, devices int, now time.Time) *benchBacklog {
	tenants := max(3, (messages+benchPerTenant-1)/benchPerTenant)
	// A device more or less per tenant must not push a subject over its limit.
	if messages%devices != 0 || devices%tenants != 0 {
		tenants++
	}
	b := &benchBacklog{devices: fleet.Devices(fleet.Config{Tenants: tenants, Devices: devices, Seed: 1}),
		messages: messages, began: now.Add(-benchSpan)}
	b.record = fleet.NewRecord(b.devices)
	for i := range messages {
		d, seq := b.message(i)
		b.record.Attempted(d, seq, fleet.KindTelemetry)
		b.record.Acked(d, seq, fleet.KindTelemetry, true)
	}
	return b
}

func (b *benchBacklog) message(i int) (fleet.Device, int64) {
	return b.devices[i%len(b.devices)], int64(i/len(b.devices) + 1)
}

// each yields every message's subject and envelope, oldest first.
func (b *benchBacklog) each(yield func(string, []byte) bool) {
	for i := range b.messages {
		d, seq := b.message(i)
		ts := b.began.Add(benchSpan * time.Duration(i) / time.Duration(b.messages))
		if !yield(fleet.SubjectFor(d, fleet.KindTelemetry), fleet.AppendEnvelope(nil, d, seq, ts, fleet.KindTelemetry)) {
			return
		}
	}
}

func (b *benchBacklog) tenants() []string {
	var names []string
	seen := map[string]bool{}
	for _, d := range b.devices {
		if !seen[d.Tenant] {
			seen[d.Tenant] = true
			names = append(names, d.Tenant)
		}
	}
	return names
}

// fill leaves the backlog in the store of a NATS server that has stopped again.
func (b *benchBacklog) fill(ctx context.Context, dir string) (err error) {
	nats, err := devstack.StartNATS(ctx, devstack.NATSOptions{Dir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, nats.Close()) }()
	conn, err := benchConnect(nats)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if _, err := jetstream.Ensure(ctx, conn, jetstream.DefaultSetupOptions()); err != nil {
		return err
	}
	return jetstream.Publish(ctx, conn, b.each)
}

func benchConnect(nats *devstack.NATS) (*jetstream.Conn, error) {
	c := jetstream.DefaultConfig()
	c.URLs, c.Name = []string{nats.URL()}, "crossfade bench"
	return jetstream.Connect(c, slog.New(slog.DiscardHandler))
}

// startNATS starts a server on a copy of the backlog, none of which anybody has
// taken yet. The function removes both.
func (b *bench) startNATS(ctx context.Context) (*devstack.NATS, func() error, error) {
	dir, err := os.MkdirTemp(b.dir, "nats-")
	if err != nil {
		return nil, nil, err
	}
	remove := func() error { return os.RemoveAll(dir) }
	from, to := filepath.Join(b.template(), "jetstream"), filepath.Join(dir, "jetstream")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("copy the backlog: %w", err), remove())
	}
	nats, err := devstack.StartNATS(ctx, devstack.NATSOptions{Dir: dir})
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return nats, func() error { return errors.Join(nats.Close(), remove()) }, nil
}

// benchDatabase is a database with the contract's tables, their partitions and the
// fleet's devices, whose tenants are wished to be on JetStream.
type benchDatabase struct {
	url  string
	pool *pgxpool.Pool
	drop func() error
}

func (b *bench) newDatabase(ctx context.Context) (*benchDatabase, error) {
	const name = "bench"
	url, err := b.postgres.CreateDatabase(ctx, name)
	if err != nil {
		return nil, err
	}
	pool, err := store.NewPool(ctx, store.DefaultConfig(url), "crossfade bench")
	if err != nil {
		return nil, err
	}
	db := &benchDatabase{url: url, pool: pool, drop: func() error {
		pool.Close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return benchExec(ctx, b.postgres.URL("postgres"), "DROP DATABASE "+name+" WITH (FORCE)")
	}}
	if err := b.prepareDatabase(ctx, db); err != nil {
		return nil, errors.Join(err, db.drop())
	}
	return db, nil
}

func (b *bench) prepareDatabase(ctx context.Context, db *benchDatabase) error {
	if _, err := migrations.Apply(ctx, db.url, nil); err != nil {
		return err
	}
	if err := fleet.Register(ctx, db.pool, b.backlog.devices); err != nil {
		return err
	}
	partitions, err := store.NewPartitions(db.pool, store.DefaultPartitionOptions())
	if err != nil {
		return err
	}
	if err := partitions.Ensure(ctx, time.Now()); err != nil {
		return err
	}
	if _, err := flags.OpenStore(db.pool).SetTargets(ctx, b.backlog.tenants(), flags.JetStream, "bench", "measured on JetStream"); err != nil {
		return err
	}
	// What the measurement before this one left to be written must not be
	// written during this one.
	if _, err := db.pool.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}
