package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/rollout"
	"github.com/crossfade-io/crossfade/internal/config"
)

type rolloutStatusCommand struct {
	Name     string          `arg:"" optional:"" help:"The rollout's name. Without one: a line for each, or with --watch the one that is under way."`
	Watch    bool            `short:"w" help:"Show it again and again until it pauses or is over."`
	Interval time.Duration   `default:"2s" help:"Time between two looks with --watch, 100ms or more."`
	Events   int             `default:"10" help:"How many events to show, 0 to 10000."`
	All      bool            `help:"Show the tenants of all waves so far, not of the present one."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}. With --watch, one JSON document per line."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (rolloutStatusCommand) Help() string {
	return `With --watch the exit code tells how it ended: 0 done (or interrupted), 3 paused, failed or aborted. Without, it is 0.

Examples:

  crossfade rollout status
  crossfade rollout status to-jetstream --all
  crossfade rollout status to-jetstream --watch
  crossfade rollout status to-jetstream --output json | jq .state`
}

// Run shows rollouts.
func (s *rolloutStatusCommand) Run(ctx context.Context, c *console) error {
	if s.Watch && s.Interval < 100*time.Millisecond {
		return usageError{fmt.Errorf("--interval is %v: choose 100ms or more", s.Interval)}
	}
	if s.Events < 0 || s.Events > 10_000 {
		return usageError{fmt.Errorf("--events is %d: choose 0 to 10000", s.Events)}
	}
	pool, err := openPool(ctx, s.Database, "crossfade rollout")
	if err != nil {
		return err
	}
	defer pool.Close()
	if s.Name == "" {
		list, err := rollout.List(ctx, pool)
		if err != nil {
			return err
		}
		if !s.Watch {
			return showRollouts(c, list, s.Output)
		}
		if len(list) == 0 || list[0].State.Over() {
			return usageError{errors.New("no rollout is under way: name the one to show, or start one (crossfade rollout start PLAN.yaml)")}
		}
		s.Name = list[0].Plan.Name
	}
	return s.follow(ctx, c, pool)
}

func (s *rolloutStatusCommand) follow(ctx context.Context, c *console, pool *pgxpool.Pool) error {
	for {
		report, err := rollout.Look(ctx, pool, s.Name, s.Events)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, rollout.ErrNone):
			return usageError{err}
		case err != nil:
			return err
		}
		if err := s.show(c, report); err != nil {
			return err
		}
		switch {
		case !s.Watch || report.State == rollout.Done:
			return nil
		case report.State == rollout.Paused || report.State.Over():
			return fmt.Errorf("%w: the rollout is %s", errNo, report.State)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.Interval):
		}
	}
}

func (s *rolloutStatusCommand) show(c *console, report *rollout.Report) error {
	if s.Output == "json" {
		if s.Watch {
			return writeJSONLine(c.out, rolloutJSON(report))
		}
		return writeJSON(c.out, rolloutJSON(report))
	}
	if s.Watch && c.terminal {
		fmt.Fprint(c.out, "\x1b[H\x1b[2J")
	}
	return showRollout(c.out, report, s.All)
}

// showOne shows a rollout after an order.
func showOne(ctx context.Context, c *console, pool *pgxpool.Pool, name, output string) error {
	report, err := rollout.Look(ctx, pool, name, 3)
	if err != nil {
		return err
	}
	if output == "json" {
		return writeJSON(c.out, rolloutJSON(report))
	}
	if err := showRollout(c.out, report, false); err != nil {
		return err
	}
	if report.State == rollout.Pending {
		_, err = fmt.Fprintf(c.out, "\nA running instance takes it up within some seconds: crossfade rollout status %s --watch\n", name)
	}
	return err
}

func showRollouts(c *console, list []*rollout.Rollout, output string) error {
	if output == "json" {
		all := make([]map[string]any, 0, len(list))
		for _, r := range list {
			all = append(all, rolloutHead(r))
		}
		return writeJSON(c.out, map[string]any{"rollouts": all})
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROLLOUT\tSTATE\tWAVE\tPHASE\tTO\tSTARTED\tBY\tWHY")
	for _, r := range list {
		fmt.Fprintf(w, "%s\t%s\t%d of %d\t%s\t%s\t%s\t%s\t%s\n", r.Plan.Name, r.State, r.Wave+1, len(r.Plan.Waves), r.Phase, r.Plan.Stage,
			r.StartedAt.UTC().Format(time.DateTime), dash(printable(r.StartedBy)), dash(printable(r.Why)))
	}
	if len(list) == 0 {
		fmt.Fprintln(w, "none\t\t\t\t\t\t\tcrossfade rollout start PLAN.yaml")
	}
	return w.Flush()
}

// shownTenants is how many tenants a table has at most.
const shownTenants = 50

func showRollout(out io.Writer, r *rollout.Report, all bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s: %s, %s in wave %d of %d, to %s\n", r.Plan.Name, r.State, r.Phase, r.Wave+1, len(r.Plan.Waves), r.Plan.Stage)
	if r.Why != "" {
		fmt.Fprintf(w, "why: %s\n", printable(r.Why))
	}
	if left := bakeLeft(r); left != "" {
		fmt.Fprintln(w, left)
	}
	fmt.Fprintln(w, "\nWAVE\tBAKE\tTENANTS\tWAITING\tON THE WAY\tBAKING\tPASSED\tLEFT ALONE\tBACK")
	for i, wave := range r.Plan.Waves {
		n := waveCounts(r, i)
		if i > r.Wave {
			fmt.Fprintf(w, "%d\t%s\tnot yet chosen\n", i+1, wave.Bake)
			continue
		}
		fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n", i+1, wave.Bake, n.all, n.waiting, n.moving, n.baking, n.done, n.alone, n.back)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	showRolloutTenants(w, r, all)
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Events) > 0 {
		fmt.Fprintln(w, "\nAT\tWAVE\tWHAT\tTENANT\tVERDICT\t")
	}
	for _, e := range r.Events {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", e.At.UTC().Format(time.DateTime), e.Wave, e.Kind, dash(printable(e.Tenant)), dash(string(e.Verdict)), printable(e.Message))
	}
	return w.Flush()
}

func showRolloutTenants(w io.Writer, r *rollout.Report, all bool) {
	shown := 0
	for i := range r.Tenants {
		t := &r.Tenants[i]
		if !all && t.Wave != r.Wave {
			continue
		}
		if shown++; shown == 1 {
			fmt.Fprintln(w, "\nTENANT\tWAVE\tSTATE\tSTAGE\tWISHED\tVERDICT\tNOTE")
		}
		if shown > shownTenants && !all {
			continue
		}
		verdict, note := verdictOf(r, t)
		seen := r.Seen[t.ID]
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", printable(t.ID), t.Wave+1, t.State, dash(string(seen.Stage)), dash(string(t.Wish)), dash(verdict), printable(note))
	}
	if shown > shownTenants && !all {
		fmt.Fprintf(w, "and %d more: --all shows them\n", shown-shownTenants)
	}
}

// verdictOf is what the gates say now, where they are asked, and else what they said.
func verdictOf(r *rollout.Report, t *rollout.Tenant) (verdict, note string) {
	if results, ok := r.Results[t.ID]; ok {
		v := rollout.Overall(results)
		return string(v), rollout.Reasons(results, v)
	}
	if seen := r.Seen[t.ID]; t.Note == "" && seen.WaitsFor != "" && t.State != rollout.Arrived {
		return string(t.Verdict), "waits for " + seen.WaitsFor
	}
	return string(t.Verdict), t.Note
}

type counts struct{ all, waiting, moving, baking, done, alone, back int }

func waveCounts(r *rollout.Report, wave int) (n counts) {
	for _, t := range r.Tenants {
		if t.Wave != wave {
			continue
		}
		n.all++
		switch t.State {
		case rollout.Waiting:
			n.waiting++
		case rollout.Moving, rollout.MovingOn:
			n.moving++
		case rollout.InBake:
			n.baking++
		case rollout.Arrived:
			n.done++
		case rollout.Skipped, rollout.Taken:
			n.alone++
		case rollout.RolledBack:
			n.back++
		}
	}
	return n
}

// bakeLeft says how long a rollout takes at least.
func bakeLeft(r *rollout.Report) string {
	if r.State != rollout.Running {
		return ""
	}
	var left time.Duration
	for i, wave := range r.Plan.Waves {
		bake := time.Duration(*wave.Bake)
		switch {
		case i > r.Wave, i == r.Wave && (r.Phase == rollout.Choosing || r.Phase == rollout.Flipping):
			left += bake
		case i == r.Wave && r.Phase == rollout.Baking:
			left += max(bake-r.Now.Sub(r.Since), 0)
		}
	}
	return fmt.Sprintf("in this phase for %v; at least %v left", max(r.Now.Sub(r.Since), 0).Round(time.Second), left.Round(time.Second))
}

func rolloutHead(r *rollout.Rollout) map[string]any {
	return map[string]any{
		"rollout": r.Plan.Name, "state": r.State, "phase": r.Phase, "wave": r.Wave + 1, "waves": len(r.Plan.Waves), "since": r.Since.UTC(),
		"cause": r.Cause, "why": r.Why, "revision": r.Revision, "started_by": r.StartedBy, "started_at": r.StartedAt.UTC(), "ended_at": r.EndedAt, "plan": r.Plan,
	}
}

func rolloutJSON(r *rollout.Report) map[string]any {
	type tenant struct {
		rollout.Tenant
		Wave     int              `json:"wave"`
		Stage    string           `json:"stage,omitempty"`
		WaitsFor string           `json:"waits_for,omitempty"`
		Gates    []rollout.Result `json:"gates,omitempty"`
	}
	head := rolloutHead(r.Rollout)
	tenants := make([]tenant, 0, len(r.Tenants))
	for _, t := range r.Tenants {
		seen := r.Seen[t.ID]
		tenants = append(tenants, tenant{t, t.Wave + 1, string(seen.Stage), seen.WaitsFor, r.Results[t.ID]})
	}
	head["tenants"], head["events"] = tenants, append([]rollout.Event{}, r.Events...)
	return head
}
