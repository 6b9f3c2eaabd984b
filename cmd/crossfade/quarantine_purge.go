package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// purgeBatch is how many rows one transaction deletes.
const purgeBatch = 5000

type quarantinePurgeCommand struct {
	IDs      []int64          `arg:"" optional:"" name:"id" help:"IDs of rows to delete; the same as --id."`
	Filter   quarantineFilter `embed:"" group:"Which messages"`
	All      bool             `help:"Delete every quarantined message, where no filter is given."`
	Yes      bool             `short:"y" help:"Do not ask."`
	Output   string           `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common    `embed:"" group:"General"`
	Database config.Database  `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (quarantinePurgeCommand) Help() string {
	return `Asks first, with the number of messages. What is deleted cannot be replayed any more. The ledger still knows the messages: a copy of one that comes late is not processed. The counters per minute stay as they are. Interrupted, it has deleted a part, the oldest first; run it again.

Exit code 3 when the answer to the question was no.

Examples:

  crossfade quarantine purge --tenant acme --reason INVALID_JSON
  crossfade quarantine purge --until 30d --yes
  crossfade quarantine purge 1017 1018`
}

// Run deletes in batches.
func (p *quarantinePurgeCommand) Run(ctx context.Context, c *console) error {
	p.Filter.ID = append(p.Filter.ID, p.IDs...)
	s, err := openStore(ctx, p.Database)
	if err != nil {
		return err
	}
	defer s.Close()
	f, err := p.Filter.resolve(ctx, s, time.Now())
	if err != nil {
		return err
	}
	switch {
	case f.Empty() && !p.All:
		return usageError{errors.New("say which messages to delete (--tenant, --reason, --until, …), or --all")}
	case !f.Empty() && p.All:
		return usageError{errors.New("--all and a filter contradict each other: leave one out")}
	}
	n, span, err := s.CountQuarantined(ctx, f)
	if err != nil {
		return err
	}
	if n > 0 && !p.Yes {
		if err := confirm(ctx, c, fmt.Sprintf("Delete %s for good?", messages(n))); err != nil {
			return err
		}
	}
	deleted, err := p.purge(ctx, c, s, f, span, n)
	if shown := p.show(c, deleted); shown != nil {
		return shown
	}
	if err != nil {
		return fmt.Errorf("stopped after %d of %s; run it again: %w", deleted, messages(n), err)
	}
	return nil
}

func (p *quarantinePurgeCommand) purge(ctx context.Context, c *console, s *store.Store, f store.QuarantineFilter, span store.QuarantineSpan, n int64) (total int64, err error) {
	progress := newProgress(c, "deleted", n)
	defer progress.end()
	for {
		deleted, last, done, err := s.PurgeQuarantined(ctx, f, span, purgeBatch)
		if err != nil || done {
			return total, err
		}
		total, span.After = total+deleted, last
		progress.add(deleted)
	}
}

func (p *quarantinePurgeCommand) show(c *console, deleted int64) error {
	if p.Output == "json" {
		return writeJSON(c.out, map[string]int64{"deleted": deleted})
	}
	_, err := fmt.Fprintf(c.out, "%s deleted\n", messages(deleted))
	return err
}
