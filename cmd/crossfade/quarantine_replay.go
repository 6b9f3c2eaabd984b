package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// eachUpTo is how many messages a replay tells of one by one without being asked to.
const eachUpTo = 50

type quarantineReplayCommand struct {
	IDs      []int64          `arg:"" optional:"" name:"id" help:"IDs of rows to replay; the same as --id."`
	Filter   quarantineFilter `embed:"" group:"Which messages"`
	DryRun   bool             `help:"Say what would become of the messages, and change nothing."`
	Each     bool             `help:"Tell of each message, not of 50 at most; as JSON, one document per line."`
	Yes      bool             `short:"y" help:"Do not ask."`
	Output   string           `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common    `embed:"" group:"General"`
	Database config.Database  `embed:"" group:"PostgreSQL"`
	Pipeline config.Pipeline  `embed:"" group:"Pipeline"`
	NATS     bool             `name:"nats" env:"CROSSFADE_NATS_ENABLED" default:"true" negatable:"" group:"NATS JetStream" help:"As for crossfade run: without NATS nothing is put into the outbox of the routes."`
}

// Help is shown by --help below the summary.
func (quarantineReplayCommand) Help() string {
	return `Each message passes the checks again, under its old ID and with its old time, oldest first; without a filter, all of them. The settings are those of crossfade run: give it the same --config or environment. The rate limit does not apply. Asks first, with the number of messages; --dry-run does not.

What becomes of a message:

  written          it took effect, and left the quarantine
  already_written  it had taken effect before (another copy, replay or row); it left the quarantine
  quarantined      it stays, with the reason that it has now
  vanished         it was purged, or dropped by retention, before its turn came

It may be interrupted, started again and run twice at once, beside running instances: a message takes effect once. The counters per minute stay as they are.

Exit codes: 0 none of the messages is in the quarantine any more, 3 some stay there (or would), or the answer to the question was no, 1 it stopped before the end.

Examples:

  crossfade quarantine replay --config crossfade.yaml --tenant acme --reason UNREGISTERED_DEVICE --dry-run
  crossfade quarantine replay --config crossfade.yaml --reason RATE_LIMITED --since 2h --yes
  crossfade quarantine replay 1017 1018 --output json`
}

// Run replays and shows what became of the messages.
func (r *quarantineReplayCommand) Run(ctx context.Context, c *console) error {
	r.Filter.ID = append(r.Filter.ID, r.IDs...)
	if err := r.Database.Validate(); err != nil {
		return err
	}
	// All settings as crossfade run would take them.
	bc, err := bridgeConfig(&config.Run{Common: r.Common, Database: r.Database, Pipeline: r.Pipeline})
	if err != nil {
		return err
	}
	s, err := connect(ctx, bc.Store)
	if err != nil {
		return err
	}
	defer s.Close()
	o := process.DefaultReplayOptions()
	o.Settings, o.IDMember = bc.Pipeline.Settings, bc.Pipeline.IDMember
	o.AutoProvision, o.Routes = bc.Pipeline.AutoProvision, r.NATS
	o.DryRun, o.Logger = r.DryRun, c.logger(r.Common)
	if err := overrideSettings(ctx, s, &o); err != nil {
		return err
	}
	if err := o.Validate(); err != nil {
		return usageError{err}
	}
	f, err := r.Filter.resolve(ctx, s, time.Now())
	if err != nil {
		return err
	}
	n, span, err := s.CountQuarantined(ctx, f)
	if err != nil {
		return err
	}
	if n > 0 && !r.Yes && !r.DryRun {
		if err := confirm(ctx, c, fmt.Sprintf("Replay %s?", messages(n))); err != nil {
			return err
		}
	}
	return r.replay(ctx, c, s, f, span, n, o)
}

// overrideSettings takes over what app_settings says, as instances do. Of its rows
// the rate limit's do not matter here.
func overrideSettings(ctx context.Context, s *store.Store, o *process.ReplayOptions) error {
	const key = "MAX_PAYLOAD_BYTES"
	values, err := s.AppSettings(ctx, []string{key})
	if err != nil {
		return err
	}
	value, ok := values[key]
	if !ok {
		return nil
	}
	n, err := strconv.Atoi(strings.Trim(value, " \t\r\n\"")) // quotes are those of a jsonb text
	if err != nil || n < 64 || n > 1<<20 {
		o.Logger.Warn("a row of app_settings cannot be used; what is configured holds", "key", key, "value", fmt.Sprintf("%.64s", value),
			"remedy", "set it to a whole number of bytes, 64 to 1048576, or delete the row")
		return nil
	}
	o.Settings.MaxPayloadBytes = n
	return nil
}

func (r *quarantineReplayCommand) replay(ctx context.Context, c *console, s *store.Store, f store.QuarantineFilter, span store.QuarantineSpan, n int64, o process.ReplayOptions) error {
	t := tally{counts: make(map[fateKey]int64)}
	progress := newProgress(c, "replayed", n)
	each := r.Each || r.Output == "text" && n <= eachUpTo
	var unwritten error
	o.Each = func(m *store.Replayed) {
		t.add(m)
		progress.add(1)
		if each && unwritten == nil {
			unwritten = r.tell(c, m)
		}
	}
	err := process.Replay(ctx, s, f, span, o)
	progress.end()
	if unwritten == nil {
		unwritten = r.show(c, &t, each)
	}
	switch stay := t.fates[store.StillQuarantined]; {
	case err != nil:
		return fmt.Errorf("stopped after %d of %s; run it again, what was written is out of the quarantine: %w", t.all, messages(n), err)
	case unwritten != nil:
		return fmt.Errorf("write the answer: %w", unwritten)
	case stay > 0 && r.DryRun:
		return fmt.Errorf("%w: %s would stay in the quarantine", errNo, messages(stay))
	case stay > 0:
		return fmt.Errorf("%w: %s stayed in the quarantine", errNo, messages(stay))
	}
	return nil
}

// fateKey is what the answer counts by. Reason is empty but for those that stay.
type fateKey struct {
	Fate   store.Fate
	Reason pipeline.Reason
}

type tally struct {
	counts map[fateKey]int64
	fates  map[store.Fate]int64
	all    int64
}

func (t *tally) add(m *store.Replayed) {
	if t.fates == nil {
		t.fates = make(map[store.Fate]int64)
	}
	k := fateKey{Fate: m.Fate}
	if m.Fate == store.StillQuarantined {
		k.Reason, _ = m.Verdict()
	}
	t.counts[k]++
	t.fates[m.Fate]++
	t.all++
}

// outcomeJSON is a line of the answer.
type outcomeJSON struct {
	Outcome  store.Fate      `json:"outcome"`
	Reason   pipeline.Reason `json:"reason,omitempty"`
	Messages int64           `json:"messages"`
}

func (t *tally) lines() []outcomeJSON {
	lines := []outcomeJSON{}
	for k, n := range maps.All(t.counts) {
		lines = append(lines, outcomeJSON{k.Fate, k.Reason, n})
	}
	order := []store.Fate{store.Written, store.AlreadyWritten, store.Vanished, store.StillQuarantined}
	slices.SortFunc(lines, func(a, b outcomeJSON) int {
		return cmp.Or(slices.Index(order, a.Outcome)-slices.Index(order, b.Outcome), cmp.Compare(b.Messages, a.Messages), cmp.Compare(a.Reason, b.Reason))
	})
	return lines
}

// toldJSON is what became of one message.
type toldJSON struct {
	ID        int64           `json:"id"`
	MessageID string          `json:"message_id,omitempty"`
	Outcome   store.Fate      `json:"outcome"`
	Reason    pipeline.Reason `json:"reason,omitempty"`
	Before    pipeline.Reason `json:"reason_before"`
	Detail    string          `json:"detail,omitempty"`
}

// tell says what became of one message.
func (r *quarantineReplayCommand) tell(c *console, m *store.Replayed) error {
	j := toldJSON{ID: m.Row.ID, Outcome: m.Fate, Before: m.Row.Reason}
	switch {
	case m.Row.MessageID != nil:
		j.MessageID = m.Row.MessageID.String()
	case m.Entry.Msg != nil:
		j.MessageID = m.Entry.Msg.ID.String()
	}
	if m.Fate == store.StillQuarantined {
		j.Reason, j.Detail = m.Verdict()
		if m.Unreadable != "" {
			j.Detail = "cannot be replayed: " + m.Unreadable
		}
	}
	if r.Output == "json" {
		return writeJSONLine(c.out, j)
	}
	_, err := fmt.Fprintf(c.out, "%d: %s%s\n", j.ID, j.Outcome, printable(because(&j)))
	return err
}

func because(j *toldJSON) string {
	if j.Reason == "" {
		return ""
	}
	return fmt.Sprintf(" %s (%s)", j.Reason, j.Detail)
}

func (r *quarantineReplayCommand) show(c *console, t *tally, each bool) error {
	if r.Output == "json" {
		write := writeJSON
		if each {
			write = writeJSONLine
		}
		return write(c.out, map[string]any{"dry_run": r.DryRun, "messages": t.all, "outcomes": t.lines()})
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	if r.DryRun {
		fmt.Fprintln(w, "Nothing was changed. This would become of the messages:")
	}
	fmt.Fprintln(w, "OUTCOME\tREASON\tMESSAGES")
	for _, l := range t.lines() {
		fmt.Fprintf(w, "%s\t%s\t%d\n", l.Outcome, dash(printable(string(l.Reason))), l.Messages)
	}
	fmt.Fprintf(w, "all\t\t%d\n", t.all)
	return w.Flush()
}
