// Package bench measures how fast a JetStream backlog reaches PostgreSQL, against
// what the parts can do alone.
//
//	                  ┌▶ crossfade run ──┐            the thing itself
//	copy of a backlog │                  ├▶ PostgreSQL
//	in a NATS server ─┤    bare COPY ────┘            its rows, encoded beforehand
//	                  └▶ pull and ack                 in this process, no database
//
// Run starts private servers, fills a backlog, and measures the three in turn, each
// on a fresh copy of the backlog and a new database. Absolute figures say more about
// the machine than about Crossfade: what counts is the ratio to the two ceilings.
// Every run of Crossfade is reconciled with the record of what was published.
// docs/benchmarks.md has the method and figures.
package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
	"github.com/crossfade-io/crossfade/internal/options"
)

// Options says what is measured.
type Options struct {
	// Messages in the backlog, 1,000 to 2,000,000.
	Messages int
	// Runs is how often each thing is measured, 1 to 100.
	Runs int
	// Devices that the messages come from, 20 to 100,000.
	Devices int
	// BatchSize is the most messages in one transaction, 1 to 10,000.
	BatchSize int
	// Workers is the number of transactions at the same time, 1 to 64.
	Workers int
	// Program is the path of the crossfade executable. Empty: this program is it.
	Program string
}

// DefaultOptions returns three runs of 300,000 messages.
func DefaultOptions() Options {
	return Options{Messages: 300_000, Runs: 3, Devices: 1000, BatchSize: 4000, Workers: 2}
}

// Validate returns nil or an [options.Invalid] with every field out of range.
func (o Options) Validate() error {
	invalid := options.Invalid{Of: "bench"}
	for _, f := range []struct {
		name             string
		value, low, high int
	}{
		{"Messages", o.Messages, 1000, 2_000_000},
		{"Runs", o.Runs, 1, 100},
		{"Devices", o.Devices, 20, 100_000},
		{"BatchSize", o.BatchSize, 1, 10_000},
		{"Workers", o.Workers, 1, 64},
	} {
		invalid.Need(f.value >= f.low && f.value <= f.high, f.name, "is %d: choose %d to %d", f.value, f.low, f.high)
	}
	return invalid.Err()
}

// ErrNotReconciled is the error of a run of Crossfade after which the database did
// not hold every message exactly once.
var ErrNotReconciled = errors.New("not reconciled")

// Run measures on servers of its own, which need PostgreSQL's programs, and leaves
// nothing behind. progress, unless nil, is told what comes next, one line each time.
// Where a run did not store every message exactly once, that ends the benchmark
// with an error that is [ErrNotReconciled].
func Run(ctx context.Context, o Options, progress func(what string)) (*Result, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if progress == nil {
		progress = func(string) {}
	}
	return (&bench{Options: o, progress: progress}).run(ctx)
}

// bench is one measurement session on private servers.
type bench struct {
	Options
	progress func(string)

	dir      string
	postgres *devstack.Postgres
	backlog  *backlog
	rows     [][]byte // what the first run stored, as COPY streams of one batch each
}

// stepTimeout bounds one measurement; at a hundredth of the usual rate it would
// still be enough for the default backlog.
const stepTimeout = 10 * time.Minute

func (b *bench) run(ctx context.Context) (result *Result, err error) {
	dir, remove, err := devstack.TempDir("bench")
	if err != nil {
		return nil, err
	}
	b.dir = dir
	defer func() { err = errors.Join(err, remove()) }()
	b.progress("starting PostgreSQL")
	// A benchmark without fsync would be one of the page cache.
	if b.postgres, err = devstack.StartPostgres(ctx, devstack.PostgresOptions{Fsync: true}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.postgres.Close()) }()
	b.backlog = newBacklog(b.Messages, b.Devices, time.Now())
	b.progress(fmt.Sprintf("filling the stream with %d messages", b.Messages))
	if err := b.backlog.fill(ctx, b.template()); err != nil {
		return nil, err
	}
	result = &Result{Messages: b.Messages, Devices: b.Devices, BatchSize: b.BatchSize, Workers: b.Workers}
	for n := range b.Runs {
		round, err := b.round(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("run %d: %w", n+1, err)
		}
		result.Rounds = append(result.Rounds, round)
	}
	result.summarize()
	return result, nil
}

// template holds the stream as filled; every measurement gets a copy of it.
func (b *bench) template() string { return filepath.Join(b.dir, "template") }

// round measures each thing once, in an order that rotates, so that whatever
// drifts meets them all alike. The first round begins with the pipeline, whose
// rows are what bare COPY then writes.
func (b *bench) round(ctx context.Context, n int) (Round, error) {
	var r Round
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"crossfade run", func(ctx context.Context) (err error) { r.Pipeline, r.Report, err = b.measurePipeline(ctx); return }},
		{"bare COPY", func(ctx context.Context) (err error) { r.Copy, err = b.measureCopy(ctx); return }},
		{"pull and ack", func(ctx context.Context) (err error) { r.Pull, err = b.measurePull(ctx); return }},
	}
	for i := range steps {
		s := steps[(n+i)%len(steps)]
		b.progress(fmt.Sprintf("run %d of %d: %s", n+1, b.Runs, s.name))
		step, cancel := context.WithTimeoutCause(ctx, stepTimeout, fmt.Errorf("not done within %v", stepTimeout))
		err := s.run(step)
		if err != nil && ctx.Err() == nil && step.Err() != nil {
			err = context.Cause(step)
		}
		cancel()
		if err != nil {
			return r, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return r, nil
}

// reconciled is an error unless the report shows exactly the backlog.
func (b *bench) reconciled(r fleet.Report) error {
	if r.OK() && r.Rows == int64(b.Messages) && r.Quarantine() == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d messages were to be stored once each: %s", ErrNotReconciled, b.Messages, r)
}
