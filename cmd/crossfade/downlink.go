package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/downlink"
	"github.com/crossfade-io/crossfade/internal/config"
)

type downlinkCommand struct {
	List  downlinkListCommand  `cmd:"" help:"List messages to devices that are parked, or that wait."`
	Retry downlinkRetryCommand `cmd:"" help:"Send parked messages again, or waiting ones at once."`
	Drop  downlinkDropCommand  `cmd:"" help:"Give up messages to devices."`
}

// downlinkFilter selects messages; all three commands share it.
type downlinkFilter struct {
	Waiting bool     `help:"Those that wait to be sent, not those that are parked."`
	Tenant  []string `sep:"none" placeholder:"TENANT" help:"Only this tenant's; may be repeated."`
	Device  []string `sep:"none" placeholder:"DEVICE" help:"Only this device's; may be repeated."`
	Kind    []string `enum:"desired,command,response" placeholder:"KIND" help:"Only of this kind: ${enum}; may be repeated."`
	ID      []int64  `name:"id" placeholder:"ID" help:"Only the row with this ID; may be repeated."`
}

func (d *downlinkFilter) resolve() (side downlink.Side, f downlink.Filter) {
	side = downlink.Parked
	if d.Waiting {
		side = downlink.Waiting
	}
	f = downlink.Filter{IDs: d.ID, Tenants: d.Tenant, Devices: d.Device}
	for _, k := range d.Kind {
		f.Kinds = append(f.Kinds, downlink.Kind(k))
	}
	return side, f
}

type downlinkListCommand struct {
	Filter   downlinkFilter  `embed:"" group:"Which messages"`
	Limit    int             `default:"50" help:"Most messages to list, 1 to 100000."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (downlinkListCommand) Help() string {
	return `Parked messages are those that can never be sent as they are, newest first: WHY says what to mend. With --waiting, those that will be sent, oldest first: WHY is the last error of one that was tried. Times are in UTC.

Examples:

  crossfade downlink list
  crossfade downlink list --tenant acme --kind command --output json
  crossfade downlink list --waiting --device pump-7`
}

// Validate names the flag out of range; kong calls it.
func (l downlinkListCommand) Validate() error {
	if l.Limit < 1 || l.Limit > 100_000 {
		return fmt.Errorf("--limit is %d: choose 1 to 100000", l.Limit)
	}
	return nil
}

// Run lists.
func (l *downlinkListCommand) Run(ctx context.Context, c *console) error {
	pool, err := openPool(ctx, l.Database, "crossfade downlink")
	if err != nil {
		return err
	}
	defer pool.Close()
	side, f := l.Filter.resolve()
	rows, err := downlink.List(ctx, pool, side, f, l.Limit+1)
	if err != nil {
		return err
	}
	more := len(rows) > l.Limit
	return l.show(c, rows[:min(len(rows), l.Limit)], more)
}

// downlinkJSON is a row as programs get it.
type downlinkJSON struct {
	ID        int64           `json:"id"`
	Tenant    string          `json:"tenant_id"`
	Device    string          `json:"device_id"`
	Kind      downlink.Kind   `json:"kind"`
	CommandID string          `json:"command_id,omitempty"`
	CreatedAt time.Time       `json:"created_at"`
	ParkedAt  *time.Time      `json:"parked_at,omitempty"`
	NextTry   *time.Time      `json:"next_try,omitempty"`
	Attempts  int             `json:"attempts"`
	Why       string          `json:"why,omitempty"`
	Body      json.RawMessage `json:"body,omitempty"`
}

func (l *downlinkListCommand) show(c *console, rows []downlink.Entry, more bool) error {
	if l.Output == "json" {
		list := make([]downlinkJSON, len(rows))
		for i, e := range rows {
			list[i] = downlinkJSON{e.ID, e.Tenant, e.Device, e.Kind, e.CommandID, e.Created, given(e.Parked), given(e.NextTry), e.Attempts, e.Why, e.Body}
		}
		return writeJSON(c.out, map[string]any{"messages": list, "more": more})
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	when := "PARKED"
	if l.Filter.Waiting {
		when = "NEXT TRY"
	}
	fmt.Fprintf(w, "ID\tWRITTEN\t%s\tTENANT\tDEVICE\tKIND\tCOMMAND\tATTEMPTS\tWHY\n", when)
	for _, e := range rows {
		at := e.Parked
		if l.Filter.Waiting {
			at = e.NextTry
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", e.ID, moment(e.Created), moment(at), cell(e.Tenant, 32), cell(e.Device, 40),
			cell(string(e.Kind), 12), cell(e.CommandID, 40), e.Attempts, cell(e.Why, 120))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more {
		fmt.Fprintf(c.err, "There are more than these %d (--limit, or narrow it down).\n", len(rows))
	}
	return nil
}

// downlinkChange is what retry and drop have in common.
type downlinkChange struct {
	IDs      []int64         `arg:"" optional:"" name:"id" help:"IDs of rows; the same as --id."`
	Filter   downlinkFilter  `embed:"" group:"Which messages"`
	All      bool            `help:"All of them, where no filter is given."`
	Yes      bool            `short:"y" help:"Do not ask."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// run asks, where question is not empty, and changes what the filter selects.
func (d *downlinkChange) run(ctx context.Context, c *console, question, done string, change func(context.Context, *pgxpool.Pool, downlink.Side, downlink.Filter) (int64, error)) error {
	d.Filter.ID = append(d.Filter.ID, d.IDs...)
	side, f := d.Filter.resolve()
	switch {
	case f.Empty() && !d.All:
		return usageError{errors.New("say which messages (IDs, --tenant, --device, --kind), or --all")}
	case !f.Empty() && d.All:
		return usageError{errors.New("--all and a filter contradict each other: leave one out")}
	}
	pool, err := openPool(ctx, d.Database, "crossfade downlink")
	if err != nil {
		return err
	}
	defer pool.Close()
	if question != "" && !d.Yes {
		n, err := downlink.Count(ctx, pool, side, f)
		if err != nil {
			return err
		}
		if n > 0 {
			if err := confirm(ctx, c, fmt.Sprintf(question, messages(n))); err != nil {
				return err
			}
		}
	}
	n, err := change(ctx, pool, side, f)
	if err != nil {
		return err
	}
	if d.Output == "json" {
		return writeJSON(c.out, map[string]int64{done: n})
	}
	_, err = fmt.Fprintf(c.out, "%s %s\n", messages(n), done)
	return err
}

type downlinkRetryCommand struct {
	Change downlinkChange `embed:""`
}

// Help is shown by --help below the summary.
func (downlinkRetryCommand) Help() string {
	return `Parked messages go back into the queue, behind what has come for their devices since; mend first what they were parked for, or they are parked again. With --waiting, messages that wait for another try are tried at once. Of a desired state the latest version is sent, and nothing where that is out already; of a command nothing where it has expired or been acknowledged meanwhile.

Examples:

  crossfade downlink retry --tenant acme
  crossfade downlink retry 1017 1018
  crossfade downlink retry --waiting --all`
}

// Run puts back.
func (r *downlinkRetryCommand) Run(ctx context.Context, c *console) error {
	return r.Change.run(ctx, c, "", "retried", downlink.Retry)
}

type downlinkDropCommand struct {
	Change downlinkChange `embed:""`
}

// Help is shown by --help below the summary.
func (downlinkDropCommand) Help() string {
	return `Asks first, with the number of messages. A dropped desired state reaches the device with its next change. A dropped command stays queued in device_commands until it expires or somebody ends it: it is only not sent.

Exit code 3 when the answer to the question was no.

Examples:

  crossfade downlink drop --kind response
  crossfade downlink drop --tenant acme --device pump-7 --yes`
}

// Run deletes.
func (d *downlinkDropCommand) Run(ctx context.Context, c *console) error {
	return d.Change.run(ctx, c, "Drop %s for good?", "dropped", downlink.Drop)
}
