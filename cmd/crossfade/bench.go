package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

type benchCommand struct {
	Messages  int    `default:"300000" help:"Messages in the backlog, 1000 to 2000000."`
	Runs      int    `default:"3" help:"How often each thing is measured, in turn; medians count. 1 to 100."`
	Devices   int    `default:"1000" help:"Devices that the messages come from, 20 to 100000."`
	BatchSize int    `default:"2000" help:"Most messages in one transaction, 1 to 10000."`
	Workers   int    `default:"2" help:"Transactions at the same time, 1 to 64."`
	Output    string `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
}

// Help is shown by --help below the summary.
func (benchCommand) Help() string {
	return `Private servers are started and removed again. Absolute figures say more about the machine than about Crossfade, so every run also takes two ceilings: the same rows by bare binary COPY, and the same backlog pulled and acknowledged without a database. Compare ratios. Exit code 3 when a run did not store every message exactly once.

Examples:

  crossfade bench
  crossfade bench --messages 1000000 --runs 5
  crossfade bench --batch-size 500 --workers 1 --output json`
}

// Run measures and shows the answer.
func (b *benchCommand) Run(ctx context.Context, c *console) error {
	if err := b.validate(); err != nil {
		return usageError{err}
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program, to run it as the instance that is measured: %w", err)
	}
	bench := &bench{options: *b, program: self, progress: func(string) {}}
	if c.terminal {
		bench.progress = func(what string) { fmt.Fprintf(c.err, "\r\x1b[K%s", what) }
	}
	result, err := bench.run(ctx)
	bench.progress("")
	if err != nil {
		return err
	}
	return result.show(c.out, b.Output)
}

func (b *benchCommand) validate() error {
	var errs []error
	for _, o := range []struct {
		flag             string
		value, low, high int
	}{
		{"--messages", b.Messages, 1000, 2_000_000},
		{"--runs", b.Runs, 1, 100},
		{"--devices", b.Devices, 20, 100_000},
		{"--batch-size", b.BatchSize, 1, 10_000},
		{"--workers", b.Workers, 1, 64},
	} {
		if o.value < o.low || o.value > o.high {
			errs = append(errs, fmt.Errorf("%s is %d: choose %d to %d", o.flag, o.value, o.low, o.high))
		}
	}
	return errors.Join(errs...)
}

// bench is one measurement session on private servers.
type bench struct {
	options  benchCommand
	program  string // crossfade itself
	progress func(string)

	dir      string
	postgres *devstack.Postgres
	backlog  *benchBacklog
	rows     [][]byte // what the first run stored, as COPY streams of one batch each
}

// benchTimeout bounds one measurement; at a hundredth of the usual rate it would
// still be enough for the default backlog.
const benchTimeout = 10 * time.Minute

func (b *bench) run(ctx context.Context) (result *benchResult, err error) {
	if b.dir, err = os.MkdirTemp("", "crossfade-bench-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	b.progress("starting PostgreSQL")
	// A benchmark without fsync would be one of the page cache.
	if b.postgres, err = devstack.StartPostgres(ctx, devstack.PostgresOptions{Fsync: true}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.postgres.Close()) }()
	b.backlog = newBenchBacklog(b.options.Messages, b.options.Devices, time.Now())
	b.progress(fmt.Sprintf("filling the stream with %d messages", b.options.Messages))
	if err := b.backlog.fill(ctx, b.template()); err != nil {
		return nil, err
	}
	result = &benchResult{Messages: b.options.Messages, Devices: b.options.Devices,
		BatchSize: b.options.BatchSize, Workers: b.options.Workers}
	for n := range b.options.Runs {
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
func (b *bench) round(ctx context.Context, n int) (benchRound, error) {
	var r benchRound
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
		b.progress(fmt.Sprintf("run %d of %d: %s", n+1, b.options.Runs, s.name))
		step, cancel := context.WithTimeoutCause(ctx, benchTimeout, fmt.Errorf("not done within %v", benchTimeout))
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
	if r.OK() && r.Rows == int64(b.options.Messages) && r.Quarantine() == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d messages were to be stored once each: %s", errNo, b.options.Messages, r)
}
