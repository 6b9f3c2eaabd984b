package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/rollout"
	"github.com/crossfade-io/crossfade/internal/config"
)

type rolloutCommand struct {
	Start  rolloutStartCommand  `cmd:"" help:"Start a plan."`
	Status rolloutStatusCommand `cmd:"" help:"Show rollouts, or all there is of one."`
	Pause  rolloutPauseCommand  `cmd:"" help:"Stop a rollout before its next step."`
	Resume rolloutResumeCommand `cmd:"" help:"Let a paused rollout go on."`
	Abort  rolloutAbortCommand  `cmd:"" help:"End a rollout, and take its tenants back if asked to."`
}

// rolloutOperator is who gives an order, and why.
type rolloutOperator struct {
	By     string `help:"Who does it, for the record. Default: the user." placeholder:"NAME"`
	Reason string `help:"Why, for the record." placeholder:"TEXT"`
}

type rolloutStartCommand struct {
	Plan     string          `arg:"" type:"path" help:"The plan, a YAML file; - is standard input."`
	DryRun   bool            `help:"Say who would be in which wave and what would stop it, and change nothing."`
	By       string          `help:"Who starts it, for the record. Default: the user." placeholder:"NAME"`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (rolloutStartCommand) Help() string {
	return `Tenants are moved wave by wave; each wave is looked at before the next one begins. docs/rollouts.md says what a plan may have. The running instances carry it out, so this command returns at once, and it goes on whatever becomes of a single instance. One rollout may be under way at a time.

With --dry-run, exit code 3 when something would stop it.

Examples:

  crossfade rollout start plan.yaml --dry-run
  crossfade rollout start plan.yaml && crossfade rollout status --watch to-jetstream
  printf 'name: canary\nwaves: [{tenants: [acme], bake: 30m}, {percent: 100}]\n' | crossfade rollout start -`
}

// rolloutPreview is the answer to --dry-run.
type rolloutPreview struct {
	Plan  rollout.Plan     `json:"plan"`
	Waves []rollout.Chosen `json:"waves"`
	Stops []string         `json:"stopped_by"`
}

// Run starts a plan, or says what would become of it.
func (s *rolloutStartCommand) Run(ctx context.Context, c *console) error {
	plan, err := readPlan(s.Plan)
	if err != nil {
		return usageError{err}
	}
	pool, err := openPool(ctx, s.Database, "crossfade rollout")
	if err != nil {
		return err
	}
	defer pool.Close()
	known, err := rollout.Tenants(ctx, pool)
	if err != nil {
		return err
	}
	if s.DryRun {
		return s.dryRun(ctx, c, pool, plan, known)
	}
	if problems := plan.Check(known); len(problems) > 0 {
		return usageError{fmt.Errorf("the plan cannot be carried out: %s", strings.Join(problems, "; "))}
	}
	if err := rollout.Start(ctx, pool, plan, who(s.By)); err != nil {
		if errors.Is(err, rollout.ErrActive) || errors.Is(err, rollout.ErrExists) {
			return usageError{fmt.Errorf("%w (see crossfade rollout status)", err)}
		}
		return err
	}
	return showOne(ctx, c, pool, plan.Name, s.Output)
}

func readPlan(path string) (rollout.Plan, error) {
	in := io.Reader(os.Stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return rollout.Plan{}, fmt.Errorf("the plan cannot be opened: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, rollout.MaxPlanBytes+1))
	if err != nil {
		return rollout.Plan{}, fmt.Errorf("read the plan %s: %w", path, err)
	}
	plan, err := rollout.Parse(data)
	if err != nil {
		return plan, fmt.Errorf("%s: %w", path, err)
	}
	return plan, nil
}

func (s *rolloutStartCommand) dryRun(ctx context.Context, c *console, pool *pgxpool.Pool, plan rollout.Plan, known []string) error {
	answer := rolloutPreview{Plan: plan, Waves: plan.Preview(known), Stops: plan.Check(known)}
	held, err := rollout.Obstacles(ctx, pool, &plan, answer.Waves)
	if err != nil {
		return err
	}
	answer.Stops = append(append([]string{}, answer.Stops...), held...)
	if s.Output == "json" {
		err = writeJSON(c.out, answer)
	} else {
		err = showPreview(c, answer)
	}
	if err == nil && len(answer.Stops) > 0 {
		return errNo
	}
	return err
}

func showPreview(c *console, p rolloutPreview) error {
	fmt.Fprintf(c.out, "Nothing was changed. Rollout %s would take tenants to %s and look at them in %s, at most %d on their way at once; on failure: %s.\n\n",
		p.Plan.Name, p.Plan.Stage, p.Plan.BakeIn, p.Plan.MaxInTransition, p.Plan.OnFailure)
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WAVE\tBAKE\tTENANTS\tWHO")
	for i, wave := range p.Waves {
		fmt.Fprintf(w, "%d\t%s\t%d\t%s\n", wave.Wave, p.Plan.Waves[i].Bake, len(wave.Tenants), dash(printable(firstOf(wave.Tenants))))
	}
	for _, stop := range p.Stops {
		fmt.Fprintf(w, "\nstopped by: %s", printable(stop))
	}
	if len(p.Stops) > 0 {
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// firstOf names a few of many.
func firstOf(list []string) string {
	if n := len(list); n > 6 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:5], ", "), n-5)
	}
	return strings.Join(list, ", ")
}
