package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/config"
)

type statusCommand struct {
	Watch    bool            `short:"w" help:"Show it again and again until interrupted."`
	Interval time.Duration   `default:"2s" help:"Time between two looks with --watch, 100ms or more."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}. With --watch, one JSON document per line."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (statusCommand) Help() string {
	return `WANTED is what the flag says, STAGE what is; in the stages shadow and live both paths stay subscribed, so the way back is open.

Examples:

  crossfade status
  crossfade status --watch --interval 1s
  crossfade status --output json | jq '.tenants[] | select(.stage == "live")'`
}

// tenantStatus is a line of the answer.
type tenantStatus struct {
	Tenant    string      `json:"tenant"`
	Wanted    string      `json:"wanted"`
	WantedWhy string      `json:"wanted_why"`
	Stage     stage.Stage `json:"stage"`
	Authority string      `json:"authoritative"`
	Revision  int64       `json:"revision"`
	Since     *time.Time  `json:"since,omitempty"`
	Note      string      `json:"note,omitempty"`
}

type statusAnswer struct {
	At        time.Time         `json:"at"`
	Tenants   []tenantStatus    `json:"tenants"`
	Instances []bridge.Instance `json:"instances"`
}

// Run shows the status once, or until ctx ends.
func (s *statusCommand) Run(ctx context.Context, c *console) error {
	if s.Watch && s.Interval < 100*time.Millisecond {
		return usageError{fmt.Errorf("--interval is %v: choose 100ms or more", s.Interval)}
	}
	pool, err := openPool(ctx, s.Database, "crossfade status")
	if err != nil {
		return err
	}
	defer pool.Close()
	for {
		answer, err := readStatus(ctx, pool)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.show(c, answer); err != nil {
			return err
		}
		if !s.Watch {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.Interval):
		}
	}
}

func readStatus(ctx context.Context, pool *pgxpool.Pool) (statusAnswer, error) {
	a := statusAnswer{At: time.Now().UTC()}
	wishes, err := flags.OpenStore(pool).List(ctx)
	if err != nil {
		return a, err
	}
	facts, err := bridge.Facts(ctx, pool)
	if err != nil {
		return a, err
	}
	names, err := bridge.Tenants(ctx, pool)
	if err != nil {
		return a, err
	}
	if a.Instances, err = bridge.Instances(ctx, pool); err != nil {
		return a, err
	}
	alive := slices.ContainsFunc(a.Instances, func(i bridge.Instance) bool { return i.Alive })
	byName := make(map[string]bridge.Fact, len(facts))
	for _, f := range facts {
		byName[f.Tenant] = f
		names = append(names, f.Tenant)
	}
	for _, t := range wishes.Targets {
		names = append(names, t.Tenant)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		a.Tenants = append(a.Tenants, tenantLine(name, byName, wishes, alive))
	}
	return a, nil
}

func tenantLine(name string, facts map[string]bridge.Fact, wishes flags.Wishes, alive bool) tenantStatus {
	t := tenantStatus{Tenant: name}
	wish, why, ok := wishes.For(name)
	if ok {
		t.Wanted, t.WantedWhy = string(wish), string(why)
	}
	f, known := facts[name]
	if known {
		since := f.Since.UTC()
		t.Stage, t.Revision, t.Since = f.Stage, f.Revision, &since
		t.Authority = f.Stage.Authoritative().String()
	}
	switch {
	case !ok:
		t.Note = "no flag says what is wanted: it stays where it is"
	case !known && !alive:
		t.Note = "no instance is running"
	case !known:
		t.Note = "no instance has seen it yet"
	case stage.Toward(stage.Stage(wish)) == f.Stage:
		if stage.Stage(wish) != f.Stage {
			t.Note = "both paths stay subscribed: the other one stands by"
		}
	case alive:
		t.Note = "moving"
	default:
		t.Note = "waits: no instance is running"
	}
	return t
}

func (s *statusCommand) show(c *console, a statusAnswer) error {
	if s.Output == "json" {
		e := json.NewEncoder(c.out)
		if !s.Watch {
			e.SetIndent("", "  ")
		}
		return e.Encode(a)
	}
	if s.Watch && c.terminal {
		fmt.Fprint(c.out, "\x1b[H\x1b[2J")
	}
	if err := showTenants(c.out, a); err != nil {
		return err
	}
	return showInstances(c.out, a)
}

func showTenants(out io.Writer, a statusAnswer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TENANT\tWANTED\tSTAGE\tAUTHORITATIVE\tREV\tSINCE\tNOTE")
	for _, t := range a.Tenants {
		since := "-"
		if t.Since != nil {
			since = t.Since.Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", t.Tenant, dash(t.Wanted), dash(string(t.Stage)), dash(t.Authority), t.Revision, since, t.Note)
	}
	return w.Flush()
}

func showInstances(out io.Writer, a statusAnswer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nINSTANCE\tVERSION\tSEEN\tSTATE")
	for _, i := range a.Instances {
		state := "ok"
		if !i.Alive {
			state = "gone without signing off"
		}
		for _, name := range slices.Sorted(maps.Keys(i.Checks)) {
			if check := i.Checks[name]; i.Alive && !check.OK {
				state = name + ": " + check.Error
				break
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s ago\t%s\n", i.ID, dash(i.Version), a.At.Sub(i.SeenAt).Round(time.Second), state)
	}
	if len(a.Instances) == 0 {
		fmt.Fprintln(w, "none\t\t\tno instance has signed on")
	}
	return w.Flush()
}
