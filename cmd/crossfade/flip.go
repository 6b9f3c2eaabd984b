package main

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

type flipCommand struct {
	Args     []string        `arg:"" name:"tenant... stage" help:"The tenants, then the stage to wish for them: ${stages}."`
	Percent  *float64        `placeholder:"N" help:"Wish the stage for N percent of the tenants without a wish of their own, by a stable hash: 0 to 100, two decimals. Name no tenants then."`
	Clear    bool            `help:"Take the tenants' own wishes back instead: they follow the flag service, or the percentage, again. Name no stage then."`
	Expect   []string        `name:"expect-revision" sep:"none" placeholder:"REV" help:"Change nothing unless the tenant's revision is this, as status shows it; with several tenants TENANT=REV, for each. Exit code 4 otherwise."`
	DryRun   bool            `help:"Say step by step what would happen and what would stop it; change nothing."`
	By       string          `help:"Who wishes it, for the record. Default: the user." placeholder:"NAME"`
	Reason   string          `help:"Why, for the record." placeholder:"TEXT"`
	Wait     bool            `xor:"wait" help:"Wait until the stage itself is reached, and show how far it is. Default: wait until the path of the wished stage has authority."`
	NoWait   bool            `xor:"wait" help:"Wait for nothing."`
	Timeout  time.Duration   `default:"0s" help:"How long to wait at most. 0: 15s, and 10m with --wait."`
	New      bool            `help:"Allow tenants that have no device yet."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (flipCommand) Help() string {
	return `The wish is a flag; the running instances follow it step by step, and each step waits for what it needs (docs/stages.md). The way back to MQTT needs nothing and waits for nobody. In shadow and live the copies of the other path stand by; in mqtt and jetstream they are dropped, so these two are entered on proof only.

Exit code 3 when the wait was in vain: the wish stays, and is followed when it can be. With --dry-run it means that something would stop it. Exit code 4 when --expect-revision does not hold: nothing was changed. A percentage is looked at with --flags-provider store only.

Examples:

  crossfade flip acme jetstream --wait
  crossfade flip acme globex jetstream --reason "wave 2" --dry-run
  crossfade flip --percent 12.5 live
  crossfade flip acme mqtt --expect-revision 7 --output json
  crossfade flip acme --clear`
}

// flipped is the answer for one tenant.
type flipped struct {
	Tenant    string      `json:"tenant"`
	Wished    stage.Stage `json:"wished"`
	Before    string      `json:"wished_before,omitempty"`
	Stage     stage.Stage `json:"stage,omitempty"`
	Authority string      `json:"authoritative,omitempty"`
	Revision  int64       `json:"revision,omitempty"`
	WaitsFor  string      `json:"waits_for,omitempty"`
	// Reached is whether what was waited for has come; never without waiting.
	Reached bool `json:"reached"`
	// Seconds is after how long that was seen.
	Seconds *float64 `json:"seconds,omitempty"`
}

// Run sets the flag and waits for what was asked for.
func (f *flipCommand) Run(ctx context.Context, c *console) error {
	tenants, wish, err := f.arguments()
	if err != nil {
		return usageError{err}
	}
	expected, err := parseExpected(f.Expect, tenants)
	if err != nil {
		return usageError{err}
	}
	pool, err := openPool(ctx, f.Database, "crossfade flip")
	if err != nil {
		return err
	}
	defer pool.Close()
	if !f.New {
		if err := refuseUnknown(ctx, pool, tenants); err != nil {
			return err
		}
	}
	if f.Clear {
		return f.clear(ctx, c, pool, tenants, expected)
	}
	answers, err := f.affected(ctx, pool, tenants, wish)
	if err != nil {
		return err
	}
	if f.DryRun {
		if err := checkExpected(ctx, pool, expected); err != nil {
			return err
		}
		return f.showPlan(ctx, c, pool, answers)
	}
	began := time.Now()
	if err := guarded(ctx, pool, expected, func() error { return f.set(ctx, pool, tenants, wish, answers) }); err != nil {
		return err
	}
	if !f.NoWait {
		w := waiter{console: c, pool: pool, goal: f.goal(), timeout: f.timeout(), began: began, quiet: !f.Wait}
		if err := w.await(ctx, answers); err != nil {
			return err
		}
	}
	if err := f.show(c, answers); err != nil {
		return err
	}
	if !f.NoWait && slices.ContainsFunc(answers, func(a flipped) bool { return !a.Reached }) {
		return fmt.Errorf("%w: not every tenant has got there within %v; the wish stays (see crossfade status; is an instance running?)", errNo, f.timeout())
	}
	return nil
}

func (f *flipCommand) arguments() (tenants []string, wish stage.Stage, err error) {
	last := len(f.Args) - 1
	switch {
	case f.Clear && (f.Percent != nil || f.DryRun || f.Wait):
		return nil, "", errors.New("--clear goes with tenants, --expect-revision and --output only")
	case f.Clear:
		return f.Args, "", nil
	case f.Percent != nil && last > 0:
		return nil, "", errors.New("--percent takes a stage and no tenants: crossfade flip --percent 10 jetstream")
	case f.Percent != nil && (len(f.Expect) > 0 || f.Reason != ""):
		return nil, "", errors.New("--percent goes without --expect-revision and --reason: it is about no tenant in particular, and keeps no reason")
	case f.Percent == nil && last < 1:
		return nil, "", errors.New("name at least one tenant, and then the stage: crossfade flip acme jetstream")
	}
	wish, err = stage.Parse(f.Args[last])
	if err != nil {
		return nil, "", fmt.Errorf("the last argument is the stage: %w", err)
	}
	return slices.Compact(slices.Sorted(slices.Values(f.Args[:last]))), wish, nil
}

// affected are the tenants whose wish it is about, with what was wished before.
func (f *flipCommand) affected(ctx context.Context, pool *pgxpool.Pool, tenants []string, wish stage.Stage) ([]flipped, error) {
	if f.Percent == nil {
		answers := make([]flipped, len(tenants))
		for i, t := range tenants {
			answers[i] = flipped{Tenant: t, Wished: wish}
		}
		return answers, nil
	}
	o, err := readOverview(ctx, pool)
	if err != nil {
		return nil, err
	}
	after := o.wishes
	rule := flags.Rule{Default: flags.MQTT} // as the store makes one that is missing
	if o.wishes.Rule != nil {
		rule = *o.wishes.Rule
	}
	rule.Percent, rule.PercentVariant = *f.Percent, flags.Variant(wish)
	after.Rule = &rule
	var answers []flipped
	for _, name := range o.names() {
		before, _, _ := o.wishes.For(name)
		next, why, _ := after.For(name)
		if why == flags.ReasonPercent || before != next {
			answers = append(answers, flipped{Tenant: name, Wished: stage.Stage(next), Before: string(before)})
		}
	}
	return answers, nil
}

// set writes the wish, and what was wished before into the answers.
func (f *flipCommand) set(ctx context.Context, pool *pgxpool.Pool, tenants []string, wish stage.Stage, answers []flipped) error {
	if f.Percent != nil {
		return flags.OpenStore(pool).SetPercent(ctx, *f.Percent, flags.Variant(wish), who(f.By))
	}
	previous, err := flags.OpenStore(pool).SetTargets(ctx, tenants, flags.Variant(wish), who(f.By), f.Reason)
	if err != nil {
		return err
	}
	before := make(map[string]flags.Variant, len(previous))
	for _, p := range previous {
		before[p.Tenant] = p.Variant
	}
	for i := range answers {
		answers[i].Before = string(before[answers[i].Tenant])
	}
	return nil
}

// clear takes own wishes back. Nobody waits for what comes of it: the flag service
// says that, which only instances ask.
func (f *flipCommand) clear(ctx context.Context, c *console, pool *pgxpool.Pool, tenants []string, expected map[string]int64) error {
	var cleared []flags.Previous
	err := guarded(ctx, pool, expected, func() (err error) {
		cleared, err = flags.OpenStore(pool).ClearTargets(ctx, tenants)
		return err
	})
	if err != nil {
		return err
	}
	if f.Output == "json" {
		list := make([]map[string]string, len(cleared))
		for i, p := range cleared {
			list[i] = map[string]string{"tenant": p.Tenant, "wished_before": string(p.Variant)}
		}
		return writeJSON(c.out, map[string]any{"cleared": list})
	}
	for _, p := range cleared {
		fmt.Fprintf(c.out, "%s: %s was wished; from now on the flag service says what is\n", cell(p.Tenant, 256), p.Variant)
	}
	if len(cleared) == 0 {
		fmt.Fprintln(c.out, "none of them had a wish of its own")
	}
	return nil
}

// goal is what is waited for.
func (f *flipCommand) goal() goal {
	if f.Wait {
		return goalStage
	}
	return goalAuthority
}

func (f *flipCommand) timeout() time.Duration {
	switch {
	case f.Timeout > 0:
		return f.Timeout
	case f.Wait:
		return 10 * time.Minute
	}
	return 15 * time.Second
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

// who is the name for the record: the one given, or the user's.
func who(by string) string {
	if by != "" {
		return by
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "unknown"
}

// refuseUnknown keeps a misspelt tenant from becoming a wish that nobody follows.
func refuseUnknown(ctx context.Context, pool *pgxpool.Pool, tenants []string) error {
	if len(tenants) == 0 {
		return nil
	}
	o, err := readOverview(ctx, pool)
	if err != nil {
		return err
	}
	return refuse(o.names(), tenants, "check the name, or pass --new")
}

// refuse fails where a tenant is none of those known, which are sorted.
func refuse(known, tenants []string, remedy string) error {
	var unknown []string
	for _, t := range tenants {
		if _, ok := slices.BinarySearch(known, t); !ok {
			unknown = append(unknown, printable(t))
		}
	}
	if len(unknown) > 0 {
		return usageError{fmt.Errorf("no device is registered under %s: %s", strings.Join(unknown, ", "), remedy)}
	}
	return nil
}

func (f *flipCommand) show(c *console, answers []flipped) error {
	if f.Output == "json" {
		if answers == nil {
			answers = []flipped{}
		}
		return writeJSON(c.out, map[string]any{"tenants": answers})
	}
	if len(answers) == 0 {
		_, err := fmt.Fprintln(c.out, "no tenant is moved by this today")
		return err
	}
	return showFlipped(c, answers, !f.NoWait)
}

func showFlipped(c *console, answers []flipped, waited bool) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TENANT\tWISHED\tBEFORE\tSTAGE\tAUTHORITY\tREACHED\tWAITS FOR")
	for i := range answers {
		a := &answers[i]
		reached := "not yet"
		switch {
		case !waited:
			reached = "-"
		case a.Reached && a.Seconds != nil:
			reached = fmt.Sprintf("after %.1fs", *a.Seconds)
		case a.Reached:
			reached = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cell(a.Tenant, 32), a.Wished, dash(a.Before), dash(string(a.Stage)), dash(a.Authority), reached, cell(a.WaitsFor, 64))
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
