package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

type flipCommand struct {
	Args     []string        `arg:"" name:"tenant... stage" help:"The tenants, then the stage to wish for them: ${stages}."`
	By       string          `help:"Who wishes it, for the record. Default: the user." placeholder:"NAME"`
	Reason   string          `help:"Why, for the record." placeholder:"TEXT"`
	Wait     bool            `default:"true" negatable:"" help:"Wait until the instances have followed."`
	Timeout  time.Duration   `default:"15s" help:"How long to wait."`
	New      bool            `help:"Allow tenants that have no device yet."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (flipCommand) Help() string {
	return `The wish is a flag; the running instances follow it within a second. Both paths stay subscribed, so a flip back works the same way at any moment. Exit code 3 when the stage was not reached within --timeout: the wish stays, and instances follow it when they can.

Examples:

  crossfade flip acme jetstream
  crossfade flip acme globex jetstream --reason "wave 2"
  crossfade flip acme mqtt --output json`
}

// flipped is the answer for one tenant.
type flipped struct {
	Tenant    string      `json:"tenant"`
	Wished    stage.Stage `json:"wished"`
	Before    string      `json:"wished_before,omitempty"`
	Stage     stage.Stage `json:"stage,omitempty"`
	Authority string      `json:"authoritative,omitempty"`
	Revision  int64       `json:"revision,omitempty"`
	Reached   bool        `json:"reached"`
}

// Run sets the flag and waits for the stage.
func (f *flipCommand) Run(ctx context.Context, c *console) error {
	tenants, wish, err := f.arguments()
	if err != nil {
		return usageError{err}
	}
	pool, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := f.refuseUnknown(ctx, pool, tenants); err != nil {
		return err
	}
	previous, err := flags.OpenStore(pool).SetTargets(ctx, tenants, flags.Variant(wish), f.who(), f.Reason)
	if err != nil {
		return err
	}
	answers := make([]flipped, 0, len(previous))
	for _, p := range previous {
		answers = append(answers, flipped{Tenant: p.Tenant, Wished: wish, Before: string(p.Variant)})
	}
	if f.Wait {
		if err := f.await(ctx, pool, answers); err != nil {
			return err
		}
	}
	if err := f.show(c, answers); err != nil {
		return err
	}
	if f.Wait && slices.ContainsFunc(answers, func(a flipped) bool { return !a.Reached }) {
		return fmt.Errorf("%w: not every tenant has got there within %v; is an instance running (crossfade status)?", errNo, f.Timeout)
	}
	return nil
}

func (f *flipCommand) arguments() ([]string, stage.Stage, error) {
	if len(f.Args) < 2 {
		return nil, "", errors.New("name at least one tenant, and then the stage: crossfade flip acme jetstream")
	}
	last := len(f.Args) - 1
	wish, err := stage.Parse(f.Args[last])
	if err != nil {
		return nil, "", fmt.Errorf("the last argument is the stage: %w", err)
	}
	return f.Args[:last], wish, nil
}

func (f *flipCommand) open(ctx context.Context) (*pgxpool.Pool, error) {
	return openPool(ctx, f.Database, "crossfade flip")
}

func openPool(ctx context.Context, d config.Database, application string) (*pgxpool.Pool, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	sc, err := storeConfig(d)
	if err != nil {
		return nil, err
	}
	pool, err := store.NewPool(ctx, sc, application)
	if err != nil {
		return nil, err
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("PostgreSQL cannot be reached (check --database-url or DATABASE_URL): %w", err)
	}
	return pool, nil
}

func (f *flipCommand) who() string {
	if f.By != "" {
		return f.By
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "unknown"
}

// refuseUnknown keeps a misspelt tenant from becoming a wish that nobody follows.
func (f *flipCommand) refuseUnknown(ctx context.Context, pool *pgxpool.Pool, tenants []string) error {
	if f.New {
		return nil
	}
	known, err := bridge.Tenants(ctx, pool)
	if err != nil {
		return err
	}
	var unknown []string
	for _, t := range tenants {
		if !slices.Contains(known, t) {
			unknown = append(unknown, t)
		}
	}
	if len(unknown) > 0 {
		return usageError{fmt.Errorf("no device is registered under %s: check the name, or pass --new", strings.Join(unknown, ", "))}
	}
	return nil
}

// await fills in the facts until every tenant has reached its stage or time is up.
func (f *flipCommand) await(ctx context.Context, pool *pgxpool.Pool, answers []flipped) error {
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		facts, err := bridge.Facts(ctx, pool)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil // not reached: the answers say so
		}
		if err != nil {
			return err
		}
		left := len(answers)
		for i := range answers {
			a := &answers[i]
			at, ok := slices.BinarySearchFunc(facts, a.Tenant, func(x bridge.Fact, t string) int { return strings.Compare(x.Tenant, t) })
			if !ok {
				continue
			}
			a.Stage, a.Revision = facts[at].Stage, facts[at].Revision
			a.Authority = a.Stage.Authoritative().String()
			if a.Reached = a.Stage == stage.Toward(a.Wished); a.Reached {
				left--
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (f *flipCommand) show(c *console, answers []flipped) error {
	if f.Output == "json" {
		e := json.NewEncoder(c.out)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"tenants": answers})
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TENANT\tWISHED\tBEFORE\tSTAGE\tAUTHORITATIVE\tREACHED")
	for _, a := range answers {
		reached := "yes"
		if !a.Reached {
			reached = "not yet"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", a.Tenant, a.Wished, dash(a.Before), dash(string(a.Stage)), dash(a.Authority), reached)
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
