package main

import (
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/internal/config"
)

type historyCommand struct {
	Tenants  []string        `arg:"" optional:"" name:"tenant" help:"Only these tenants' changes. Without any, those of all."`
	Since    string          `placeholder:"TIME" help:"Only changes since then: RFC 3339, a date, or how long ago, as 2h or 7d."`
	Limit    int             `default:"50" help:"Most changes to show, 1 to 100000."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}. JSON holds the whole evidence."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (historyCommand) Help() string {
	return `Changes of stages, newest first, in UTC: who made them, why, and on what evidence. What was wished in between and never came about is not among them.

Examples:

  crossfade history acme
  crossfade history --since 24h --limit 1000
  crossfade history acme --output json | jq '.changes[] | {revision, to, evidence}'`
}

// Validate names the flag out of range; kong calls it.
func (h historyCommand) Validate() error {
	if h.Limit < 1 || h.Limit > 100_000 {
		return fmt.Errorf("--limit is %d: choose 1 to 100000", h.Limit)
	}
	return nil
}

// Run shows the changes.
func (h *historyCommand) Run(ctx context.Context, c *console) error {
	since, err := parseMoment("--since", h.Since, time.Now())
	if err != nil {
		return err
	}
	pool, err := openPool(ctx, h.Database, "crossfade history")
	if err != nil {
		return err
	}
	defer pool.Close()
	changes, err := control.History(ctx, pool, control.HistoryQuery{Tenants: h.Tenants, Since: since, Limit: h.Limit + 1})
	if err != nil {
		return err
	}
	more := len(changes) > h.Limit
	changes = changes[:min(len(changes), h.Limit)]
	if h.Output == "json" {
		return writeJSON(c.out, map[string]any{"changes": append([]control.Change{}, changes...), "more": more})
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "AT\tTENANT\tREV\tFROM\tTO\tBY\tWHY\tEVIDENCE")
	for _, x := range changes {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", moment(x.At), cell(x.Tenant, 32), x.Revision, dash(string(x.From)), x.To,
			cell(x.ChangedBy, 32), cell(x.Reason, 60), cell(evidenceText(x.Evidence), 120))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more {
		fmt.Fprintf(c.err, "There are more: these are the newest %d (--limit, or narrow it down).\n", len(changes))
	}
	return nil
}

// evidenceText is the evidence of a step in short.
func evidenceText(raw json.RawMessage) string {
	if len(raw) == 0 {
		return ""
	}
	var e struct {
		By       map[string]int64 `json:"instances"`
		Dwell    float64          `json:"dwell_seconds"`
		Nonce    string           `json:"sentinel"`
		Attempt  int              `json:"attempt"`
		Sessions struct {
			MQTT    map[string]string `json:"mqtt"`
			Mirrors map[string]string `json:"mirrors"`
		} `json:"sessions"`
		Kinds []string `json:"jetstream"`
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return string(raw) // of a release to come: show it as it is
	}
	text := fmt.Sprintf("confirmed by %d", len(e.By))
	if e.Nonce != "" {
		text += fmt.Sprintf("; dwelt %.1fs; sentinel (attempt %d) out of %d sessions, %d mirrors and %s", e.Dwell, e.Attempt, len(e.Sessions.MQTT), len(e.Sessions.Mirrors), list(e.Kinds))
	}
	return text
}
