package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/internal/config"
)

type distrustCommand struct {
	Reason   string          `help:"What was brought back, and how. Needed." placeholder:"TEXT"`
	By       string          `help:"Who says so, for the record. Default: the user." placeholder:"NAME"`
	Yes      bool            `short:"y" help:"Do not ask."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (distrustCommand) Help() string {
	return `After a failover, and when a backup has been brought back by pg_restore or to a point in time, every tenant is proved anew by itself. PostgreSQL cannot tell when an older state of its files runs in their place: a snapshot of a disk or a virtual machine, a base backup that is started without recovery, a database that was put aside and takes its old name again. Then stop all instances before, and say so with this command before you start them.

Every tenant in an outer stage is taken to the inner one beside, and goes back when it is proved again. Nothing is lost by it. Nobody drops anything for five minutes.

Exit code 3 when the answer to the question was no.

Examples:

  crossfade distrust --reason "disk snapshot of 03:00 brought back"
  crossfade distrust --reason "snapshot" --by ops --yes --output json`
}

// Run asks, and has everything proved anew.
func (d *distrustCommand) Run(ctx context.Context, c *console) error {
	if strings.TrimSpace(d.Reason) == "" {
		return usageError{errors.New("say what was brought back: --reason TEXT")}
	}
	pool, err := openPool(ctx, d.Database, "crossfade distrust")
	if err != nil {
		return err
	}
	defer pool.Close()
	facts, err := control.Facts(ctx, pool)
	if err != nil {
		return err
	}
	outer := 0
	for _, f := range facts {
		if f.Stage.Outer() {
			outer++
		}
	}
	if !d.Yes {
		question := fmt.Sprintf("Of %d tenants, %d are in an outer stage, leave it and are proved anew. Begin?", len(facts), outer)
		if err := confirm(ctx, c, question); err != nil {
			return err
		}
	}
	if err := control.Distrust(ctx, pool, who(d.By), d.Reason); err != nil {
		return err
	}
	if d.Output == "json" {
		return writeJSON(c.out, struct {
			Tenants int `json:"tenants"`
			Anew    int `json:"proved_anew"`
		}{len(facts), outer})
	}
	_, err = fmt.Fprintf(c.out, "everything begins anew with the next round of a leader; tenants that leave their stage: %d of %d\n", outer, len(facts))
	return err
}
