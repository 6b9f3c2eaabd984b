package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/rollout"
	"github.com/crossfade-io/crossfade/internal/config"
)

// rolloutOrder is what pause, resume and abort have in common.
type rolloutOrder struct {
	Name     string          `arg:"" help:"The rollout's name."`
	Operator rolloutOperator `embed:""`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// give opens the database, gives the order and shows the rollout as it is then.
func (o *rolloutOrder) give(ctx context.Context, c *console, order func(*pgxpool.Pool) error) error {
	pool, err := openPool(ctx, o.Database, "crossfade rollout")
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := order(pool); err != nil {
		if errors.Is(err, rollout.ErrState) || errors.Is(err, rollout.ErrNone) {
			return usageError{fmt.Errorf("%w (see crossfade rollout status)", err)}
		}
		return err
	}
	return showOne(ctx, c, pool, o.Name, o.Output)
}

type rolloutPauseCommand struct {
	Order rolloutOrder `embed:""`
}

// Help is shown by --help below the summary.
func (rolloutPauseCommand) Help() string {
	return `When it returns, no instance writes another wish for the rollout. Tenants on their way arrive where they are wished, and stay there.

Examples:

  crossfade rollout pause to-jetstream --reason "change freeze"
  crossfade rollout pause to-jetstream --output json`
}

// Run pauses.
func (r *rolloutPauseCommand) Run(ctx context.Context, c *console) error {
	o := &r.Order
	return o.give(ctx, c, func(pool *pgxpool.Pool) error {
		_, err := rollout.PauseNow(ctx, pool, o.Name, who(o.Operator.By), o.Operator.Reason)
		return err
	})
}

type rolloutResumeCommand struct {
	Order    rolloutOrder `embed:""`
	SkipWave bool         `help:"Go on to the next wave, whatever the present one says; its tenants stay where they are."`
}

// Help is shown by --help below the summary.
func (rolloutResumeCommand) Help() string {
	return `The clocks of the wave begin anew. A wave of which a gate has failed bakes and is measured from the beginning; one of which nobody was left is tried again.

Examples:

  crossfade rollout resume to-jetstream
  crossfade rollout resume to-jetstream --skip-wave --by ann`
}

// Run resumes.
func (r *rolloutResumeCommand) Run(ctx context.Context, c *console) error {
	o := &r.Order
	return o.give(ctx, c, func(pool *pgxpool.Pool) error {
		_, err := rollout.ResumeNow(ctx, pool, o.Name, who(o.Operator.By), r.SkipWave)
		return err
	})
}

type rolloutAbortCommand struct {
	Order    rolloutOrder `embed:""`
	Rollback bool         `help:"Wish the tenants of all waves back to what was wished for them before. Asks first."`
	Yes      bool         `short:"y" help:"Do not ask."`
}

// Help is shown by --help below the summary.
func (rolloutAbortCommand) Help() string {
	return `Ends the rollout for good. Without --rollback tenants stay where they are, or are wished to be. With it, those for whom nobody else has written a wish since go back, held ones included; crossfade status shows when they are there. Exit code 3 when the answer to the question was no.

Examples:

  crossfade rollout abort to-jetstream --reason "plan was wrong"
  crossfade rollout abort to-jetstream --rollback --yes`
}

// Run aborts.
func (r *rolloutAbortCommand) Run(ctx context.Context, c *console) error {
	o := &r.Order
	return o.give(ctx, c, func(pool *pgxpool.Pool) error {
		if r.Rollback && !r.Yes {
			if err := r.ask(ctx, c, pool); err != nil {
				return err
			}
		}
		_, err := rollout.AbortNow(ctx, pool, o.Name, who(o.Operator.By), o.Operator.Reason, r.Rollback)
		return err
	})
}

func (r *rolloutAbortCommand) ask(ctx context.Context, c *console, pool *pgxpool.Pool) error {
	report, err := rollout.Look(ctx, pool, r.Order.Name, 0)
	if err != nil {
		return err
	}
	n := 0
	for _, t := range report.Tenants {
		if t.Wish != "" && t.State != rollout.Taken && t.State != rollout.RolledBack {
			n++
		}
	}
	return confirm(ctx, c, fmt.Sprintf("Roll back %d tenants?", n))
}
