package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/crossfade-io/crossfade/internal/bench"
	"github.com/crossfade-io/crossfade/internal/options"
)

type benchCommand struct {
	Messages  int    `default:"300000" help:"Messages in the backlog, 1000 to 2000000."`
	Runs      int    `default:"3" help:"How often each thing is measured, in turn; medians count. 1 to 100."`
	Devices   int    `default:"1000" help:"Devices that the messages come from, 20 to 100000."`
	BatchSize int    `default:"4000" help:"Most messages in one transaction, 1 to 10000."`
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

// Validate names every flag out of range; kong calls it.
func (b benchCommand) Validate() error { return options.Flags(b.options().Validate()) }

func (b benchCommand) options() bench.Options {
	return bench.Options{Messages: b.Messages, Runs: b.Runs, Devices: b.Devices, BatchSize: b.BatchSize, Workers: b.Workers}
}

// Run measures and shows the answer.
func (b *benchCommand) Run(ctx context.Context, c *console) error {
	progress := func(string) {}
	if c.terminal {
		progress = func(what string) { fmt.Fprintf(c.err, "\r\x1b[K%s", what) }
	}
	result, err := bench.Run(ctx, b.options(), progress)
	progress("")
	switch {
	case err != nil:
		return benchError(err)
	case b.Output == "json":
		return result.WriteJSON(c.out)
	}
	return result.WriteText(c.out)
}

// benchError is the error with the exit code that belongs to it.
func benchError(err error) error {
	if errors.Is(err, bench.ErrNotReconciled) {
		return fmt.Errorf("%w: %w", errNo, err)
	}
	return err
}
