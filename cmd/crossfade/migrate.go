package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

type migrateCommand struct {
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
}

// Help is shown by --help below the summary.
func (migrateCommand) Help() string {
	return `Safe to run at any time, by several at once, and again: what is done is not done twice. A database that already holds the tables is adopted with its data. The role needs the right to create tables in the schema.

Examples:

  crossfade migrate --database-url postgres://owner@db/iot
  DATABASE_URL=postgres://owner@db/iot crossfade migrate --output json`
}

// Run applies what is pending, checks the result and makes the first partitions.
func (m *migrateCommand) Run(ctx context.Context, c *console) error {
	if err := m.Database.Validate(); err != nil {
		return err
	}
	sc, err := storeConfig(m.Database)
	if err != nil {
		return err
	}
	result, err := migrations.Apply(ctx, sc.URL, c.logger(m.Common))
	if err != nil {
		return err
	}
	pool, err := store.NewPool(ctx, sc, "crossfade migrate")
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := store.VerifySchema(ctx, pool); err != nil {
		return err
	}
	partitions, err := store.NewPartitions(pool, store.DefaultPartitionOptions())
	if err != nil {
		return err
	}
	if err := partitions.Ensure(ctx, time.Now()); err != nil {
		return err
	}
	if m.Output == "json" {
		return json.NewEncoder(c.out).Encode(map[string]any{"from": result.From, "to": result.To, "applied": names(result.Applied)})
	}
	if len(result.Applied) == 0 {
		_, err = fmt.Fprintf(c.out, "The database is up to date (version %d).\n", result.To)
		return err
	}
	for _, name := range names(result.Applied) {
		fmt.Fprintln(c.out, "applied", name)
	}
	_, err = fmt.Fprintf(c.out, "The database was at version %d and is at %d now.\n", result.From, result.To)
	return err
}

func names(applied []migrations.Migration) []string {
	out := make([]string, 0, len(applied))
	for _, m := range applied {
		out = append(out, m.Name)
	}
	return out
}
