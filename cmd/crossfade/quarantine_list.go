package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

type quarantineListCommand struct {
	Filter   quarantineFilter `embed:"" group:"Which messages"`
	Limit    int              `default:"50" help:"Most messages to list, 1 to 100000."`
	Summary  bool             `help:"Count them by tenant and reason instead."`
	Output   string           `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common    `embed:"" group:"General"`
	Database config.Database  `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (quarantineListCommand) Help() string {
	return `Times are those of arrival, in UTC. Payloads are not shown: see crossfade quarantine show.

Examples:

  crossfade quarantine list --summary --since 24h
  crossfade quarantine list --tenant acme --reason TOKEN_INVALID --reason TOKEN_MISSING
  crossfade quarantine list --since 2026-11-23T09:00:00Z --until 30m --limit 1000 --output json`
}

// Validate names the flag out of range; kong calls it.
func (l quarantineListCommand) Validate() error {
	if l.Limit < 1 || l.Limit > 100_000 {
		return fmt.Errorf("--limit is %d: choose 1 to 100000", l.Limit)
	}
	return nil
}

// Run lists or counts.
func (l *quarantineListCommand) Run(ctx context.Context, c *console) error {
	s, err := openStore(ctx, l.Database)
	if err != nil {
		return err
	}
	defer s.Close()
	f, err := l.Filter.resolve(ctx, s, time.Now())
	if err != nil {
		return err
	}
	if l.Summary {
		counts, err := s.QuarantineCounts(ctx, f)
		if err != nil {
			return err
		}
		return l.showCounts(c.out, counts)
	}
	rows, err := s.NewestQuarantined(ctx, f, l.Limit+1)
	if err != nil {
		return err
	}
	more := len(rows) > l.Limit
	return l.showRows(c, rows[:min(len(rows), l.Limit)], more)
}

// quarantinedJSON is a row as programs get it.
type quarantinedJSON struct {
	ID         int64           `json:"id"`
	IngestedAt *time.Time      `json:"ingested_at"`
	EventTS    *time.Time      `json:"event_ts"`
	Topic      string          `json:"topic"`
	Tenant     string          `json:"tenant_id"`
	Site       string          `json:"site_id"`
	Device     string          `json:"device_id"`
	MsgType    string          `json:"msg_type"`
	Reason     pipeline.Reason `json:"reason"`
	Detail     string          `json:"detail"`
	Path       string          `json:"path"`
	Origin     string          `json:"origin,omitempty"`
	Username   *string         `json:"username"`
	MessageID  *string         `json:"message_id"`
}

func jsonRow(q *store.Quarantined) quarantinedJSON {
	j := quarantinedJSON{
		ID: q.ID, IngestedAt: given(q.IngestedAt), EventTS: given(q.EventTS), Topic: q.Topic, Tenant: q.Tenant, Site: q.Site,
		Device: q.Device, MsgType: q.MsgType, Reason: q.Reason, Detail: q.Detail, Path: q.Path.String(), Username: q.Username,
	}
	if q.Origin == pipeline.OriginHTTP {
		j.Origin = "http"
	}
	if q.MessageID != nil {
		id := q.MessageID.String()
		j.MessageID = &id
	}
	return j
}

func given(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (l *quarantineListCommand) showRows(c *console, rows []store.Quarantined, more bool) error {
	if l.Output == "json" {
		list := make([]quarantinedJSON, len(rows))
		for i := range rows {
			list[i] = jsonRow(&rows[i])
		}
		return writeJSON(c.out, map[string]any{"messages": list, "more": more})
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tARRIVED\tTENANT\tDEVICE\tTYPE\tREASON\tDETAIL")
	for i := range rows {
		q := &rows[i]
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", q.ID, moment(q.IngestedAt), cell(q.Tenant, 32), cell(q.Device, 40),
			cell(q.MsgType, 24), cell(string(q.Reason), 40), cell(q.Detail, 60))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more {
		fmt.Fprintf(c.err, "There are more: these are the newest %d (--limit, or narrow it down).\n", len(rows))
	}
	return nil
}

func (l *quarantineListCommand) showCounts(out io.Writer, counts []store.QuarantineCount) error {
	type group struct {
		Tenant   string          `json:"tenant_id"`
		Reason   pipeline.Reason `json:"reason"`
		Messages int64           `json:"messages"`
		Oldest   *time.Time      `json:"oldest"`
		Newest   *time.Time      `json:"newest"`
	}
	if l.Output == "json" {
		groups := make([]group, len(counts))
		for i, g := range counts {
			groups[i] = group{g.Tenant, g.Reason, g.Messages, given(g.Oldest), given(g.Newest)}
		}
		return writeJSON(out, map[string]any{"groups": groups})
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TENANT\tREASON\tMESSAGES\tOLDEST\tNEWEST")
	for _, g := range counts {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", cell(g.Tenant, 40), cell(string(g.Reason), 40), g.Messages, moment(g.Oldest), moment(g.Newest))
	}
	return w.Flush()
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.DateTime)
}
