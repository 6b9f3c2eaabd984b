package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/fleet"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// database is a database with the contract's tables, their partitions and the
// fleet's devices, whose tenants are wished to be on JetStream.
type database struct {
	url  string
	pool *pgxpool.Pool
	drop func() error
}

func (b *bench) newDatabase(ctx context.Context) (*database, error) {
	const name = "bench"
	url, err := b.postgres.CreateDatabase(ctx, name)
	if err != nil {
		return nil, err
	}
	pool, err := store.NewPool(ctx, store.DefaultConfig(url), "crossfade bench")
	if err != nil {
		return nil, err
	}
	db := &database{url: url, pool: pool, drop: func() error {
		pool.Close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return b.postgres.DropDatabase(ctx, name)
	}}
	if err := b.prepareDatabase(ctx, db); err != nil {
		return nil, errors.Join(err, db.drop())
	}
	return db, nil
}

func (b *bench) prepareDatabase(ctx context.Context, db *database) error {
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
