package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/rollout"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/pipeline"
)

type rollbackCommand struct {
	Tenants  []string        `arg:"" optional:"" name:"tenant" help:"The tenants to bring back to MQTT."`
	All      bool            `help:"Bring all tenants back, and those that are yet to come: the percentage becomes 0 and the default mqtt."`
	Yes      bool            `short:"y" help:"Do not ask."`
	By       string          `help:"Who does it, for the record. Default: the user." placeholder:"NAME"`
	Reason   string          `default:"rollback" help:"Why, for the record." placeholder:"TEXT"`
	Wait     bool            `default:"true" negatable:"" help:"Wait until MQTT has authority on every instance, and show when."`
	Timeout  time.Duration   `default:"15s" help:"How long to wait at most."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (rollbackCommand) Help() string {
	return `Gives MQTT its authority back in one step that waits for nothing, and goes ahead of everything else. It is an operator's own wish for each tenant, so it wins over the flag service, percentages, rollouts and holds: a held tenant goes back to shadow and is held there. Whoever is not held goes on to mqtt once that is proved. A rollout to JetStream that has chosen one of the tenants is paused before, with --all whatever it has chosen; it never moves them again, even if it is resumed (docs/rollouts.md). The wish stays until another one (crossfade flip), or until it is taken back (crossfade flip --clear).

Asks first, with the number of tenants. Exit code 3 when the answer was no, or when MQTT does not have authority on every instance within --timeout; the wish stays then.

Examples:

  crossfade rollback acme --reason "metrics missing since 14:05"
  crossfade rollback --all --yes
  crossfade rollback acme globex --yes --output json`
}

// Run asks, wishes mqtt and waits for the authority.
func (r *rollbackCommand) Run(ctx context.Context, c *console) error {
	if r.All == (len(r.Tenants) > 0) {
		return usageError{errors.New("name the tenants, or pass --all")}
	}
	pool, err := openPool(ctx, r.Database, "crossfade rollback")
	if err != nil {
		return err
	}
	defer pool.Close()
	o, err := readOverview(ctx, pool)
	if err != nil {
		return err
	}
	names := slices.Compact(slices.Sorted(slices.Values(r.Tenants)))
	if r.All {
		names = o.names()
	} else if err := refuseUnknown(ctx, pool, names); err != nil {
		return err
	}
	names, unnameable := nameable(names)
	if !r.Yes {
		if err := confirm(ctx, c, rollbackQuestion(o, names)); err != nil {
			return err
		}
	}
	began := time.Now()
	aside, notAside := r.stopRollout(ctx, c, pool, names)
	answers, err := r.wish(ctx, pool, o, names)
	if err != nil {
		return errors.Join(err, notAside)
	}
	if notAside != nil { // whoever was in the way may be gone by now
		aside, notAside = r.stopRollout(ctx, c, pool, names)
	}
	if r.Wait {
		w := waiter{console: c, pool: pool, goal: goalBack, timeout: r.Timeout, began: began}
		if err := w.await(ctx, o.followed(answers)); err != nil {
			return errors.Join(err, notAside)
		}
	}
	if err := r.show(c, answers, aside); err != nil {
		return errors.Join(err, notAside)
	}
	return errors.Join(r.verdict(answers, unnameable), notAside)
}

// asidePatience bounds what a rollback waits for a rollout's row. The wishes win over
// the rollout's either way.
const asidePatience = 2 * time.Second

// stopRollout pauses a rollout that goes the other way, before the wishes are written,
// and says so at once.
func (r *rollbackCommand) stopRollout(ctx context.Context, c *console, pool *pgxpool.Pool, names []string) (*rollout.Rollout, error) {
	names = append([]string{}, names...) // nil would be everybody
	if r.All {
		names = nil
	}
	bounded, cancel := context.WithTimeout(ctx, asidePatience)
	defer cancel()
	aside, err := rollout.StandAside(bounded, pool, names, who(r.By), r.Reason)
	if err != nil {
		return nil, fmt.Errorf("the rollout that is under way could not be paused, and may go on with other tenants: crossfade rollout pause: %w", err)
	}
	if aside != nil {
		fmt.Fprintf(c.err, "rollout %[1]s is paused in wave %[2]d of %[3]d (%[4]s); once resumed it leaves these tenants alone (crossfade rollout resume %[1]s, or abort %[1]s --rollback)\n",
			aside.Plan.Name, aside.Wave+1, len(aside.Plan.Waves), printable(aside.Why))
	}
	return aside, nil
}

// wish sets the wishes: those of tenants first, since they bring somebody back now.
func (r *rollbackCommand) wish(ctx context.Context, pool *pgxpool.Pool, o *overview, names []string) ([]flipped, error) {
	store := flags.OpenStore(pool)
	var answers []flipped
	for some := range slices.Chunk(names, flags.MaxTenantsPerCall) {
		previous, err := store.SetTargets(ctx, some, flags.MQTT, who(r.By), r.Reason)
		if err != nil {
			return nil, err
		}
		for _, p := range previous {
			answers = append(answers, flipped{Tenant: p.Tenant, Wished: stage.MQTT, Before: string(p.Variant)})
		}
	}
	// Those whom nobody runs by come last: nobody follows their wish.
	slices.SortStableFunc(answers, func(a, b flipped) int { return o.follower(b.Tenant) - o.follower(a.Tenant) })
	if !r.All {
		return answers, nil
	}
	return answers, errors.Join(store.SetPercent(ctx, 0, flags.MQTT, who(r.By)), store.SetDefault(ctx, flags.MQTT, who(r.By)))
}

// follower is 1 for tenants that instances know of, and so move.
func (o *overview) follower(tenant string) int {
	_, fact := o.facts[tenant]
	_, device := slices.BinarySearch(o.devices, tenant)
	if fact || device {
		return 1
	}
	return 0
}

// followed is the part of the answers for which something is to be waited for.
func (o *overview) followed(answers []flipped) []flipped {
	n := 0
	for n < len(answers) && o.follower(answers[n].Tenant) == 1 {
		n++
	}
	for i := n; i < len(answers); i++ {
		answers[i].Reached = true // there is nothing to bring back
	}
	return answers[:n]
}

func rollbackQuestion(o *overview, names []string) string {
	on := 0
	for _, name := range names {
		if f, ok := o.facts[name]; ok && f.Stage.Authoritative() == pipeline.PathJetStream {
			on++
		}
	}
	return fmt.Sprintf("Roll %s back to MQTT? JetStream has authority for %d of them now.", tenants(len(names)), on)
}

func tenants(n int) string {
	if n == 1 {
		return "1 tenant"
	}
	return fmt.Sprintf("%d tenants", n)
}

// nameable leaves out names that no wish can have, so that one that somebody has put
// into the registry does not keep all others where they are.
func nameable(names []string) (good, bad []string) {
	for _, name := range names {
		if name == "" || utf8.RuneCountInString(name) > 256 {
			bad = append(bad, name)
		} else {
			good = append(good, name)
		}
	}
	return good, bad
}

func (r *rollbackCommand) show(c *console, answers []flipped, aside *rollout.Rollout) error {
	if r.Output == "json" {
		answer := map[string]any{"tenants": append([]flipped{}, answers...)}
		if aside != nil {
			answer["rollout"] = rolloutHead(aside)
		}
		return writeJSON(c.out, answer)
	}
	if err := showFlipped(c, answers, r.Wait); err != nil || !r.Wait {
		return err
	}
	back, last := 0, 0.0
	for i := range answers {
		if answers[i].Reached {
			back++
		}
		if answers[i].Seconds != nil {
			last = max(last, *answers[i].Seconds)
		}
	}
	_, err := fmt.Fprintf(c.out, "MQTT has authority for %d of %s on every instance, since %.2fs after the wish at most\n", back, tenants(len(answers)), last)
	return err
}

func (r *rollbackCommand) verdict(answers []flipped, unnameable []string) error {
	if len(unnameable) > 0 {
		return fmt.Errorf("%d names in the registry are empty or longer than 256 characters, and cannot be wished for: the first is %s", len(unnameable), cell(unnameable[0], 40))
	}
	if r.Wait && slices.ContainsFunc(answers, func(a flipped) bool { return !a.Reached }) {
		return fmt.Errorf("%w: MQTT does not have authority for every tenant on every instance within %v; the wish stays (see crossfade status; is an instance running?)", errNo, r.Timeout)
	}
	return nil
}
