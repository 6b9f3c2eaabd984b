package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

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
	return `Gives MQTT its authority back in one step that waits for nothing, and goes ahead of everything else. It is an operator's own wish for each tenant, so it wins over the flag service, percentages, rollouts and holds: a held tenant goes back to shadow and is held there. Whoever is not held goes on to mqtt once that is proved. A rollout to JetStream that has chosen one of the tenants is paused before (or right after, where its row is locked), with --all whatever it has chosen; it never moves them again, even if it is resumed (docs/rollouts.md). The wish stays until another one (crossfade flip), or until it is taken back (crossfade flip --clear).

What other sessions have locked delays nobody else: such a wish is tried again until --timeout, also with --no-wait, and named if it could not be set (exit code 1). If device_registry cannot be read, it goes by the stages and wishes that there are.

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
	names := slices.Compact(slices.Sorted(slices.Values(r.Tenants)))
	o, err := readForRollback(ctx, pool, names)
	if err != nil {
		return err
	}
	if r.All {
		names = o.names()
	} else if err := o.refuse(names); err != nil {
		return err
	}
	if o.unread != nil {
		fmt.Fprintf(c.err, "%s; going on without it: %s\n", r.unreadMeans(), printable(o.unread.Error()))
	}
	names, unnameable := nameable(names)
	if !r.Yes {
		if err := confirm(ctx, c, rollbackQuestion(o, names)); err != nil {
			return err
		}
	}
	w := &wayBack{rollbackCommand: r, console: c, pool: pool, store: flags.OpenStore(pool), overview: o, names: names, began: time.Now()}
	if err := w.walk(ctx); err != nil {
		return errors.Join(err, w.notAside)
	}
	if err := r.show(c, w); err != nil {
		return errors.Join(err, w.notAside)
	}
	return errors.Join(w.verdict(unnameable), w.notAside)
}

// unreadMeans says what follows from a registry that cannot be read.
func (r *rollbackCommand) unreadMeans() string {
	if r.All {
		return "device_registry cannot be read, so tenants that have neither a stage nor a wish yet get no wish of their own"
	}
	return "device_registry cannot be read, so names are not checked"
}

// follower is 1 for tenants that instances know of, and so move; also where that cannot
// be told.
func (o *overview) follower(tenant string) int {
	_, fact := o.facts[tenant]
	_, device := slices.BinarySearch(o.devices, tenant)
	if fact || device || o.unread != nil {
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

func (r *rollbackCommand) show(c *console, w *wayBack) error {
	if r.Output == "json" {
		answer := map[string]any{"tenants": append([]flipped{}, w.answers...)}
		if w.aside != nil {
			answer["rollout"] = rolloutHead(w.aside)
		}
		if len(w.left) > 0 {
			answer["not_wished"] = w.left
		}
		return writeJSON(c.out, answer)
	}
	if err := showFlipped(c, w.answers, r.Wait); err != nil || !r.Wait {
		return err
	}
	back, last := 0, 0.0
	for i := range w.answers {
		if w.answers[i].Reached {
			back++
		}
		if w.answers[i].Seconds != nil {
			last = max(last, *w.answers[i].Seconds)
		}
	}
	_, err := fmt.Fprintf(c.out, "MQTT has authority for %d of %s on every instance, since %.2fs after the wish at most\n", back, tenants(len(w.answers)+len(w.left)), last)
	return err
}

// verdict is what has not been done, and what to do about it.
func (w *wayBack) verdict(unnameable []string) error {
	var errs []error
	switch {
	case w.notWished != nil:
		errs = append(errs, fmt.Errorf("the wishes of %s are not set: %s: %w", tenants(len(w.left)), someNames(w.left), w.notWished))
	case len(w.left) > 0:
		errs = append(errs, fmt.Errorf("the wishes of %s are still locked by another session after %v, and are not set: %s (pg_blocking_pids tells which; then repeat)", tenants(len(w.left)), w.Timeout, someNames(w.left)))
	}
	if w.notRule != nil {
		errs = append(errs, fmt.Errorf("the percentage or the default is not set, and may take tenants to JetStream that have no wish of their own: repeat: %w", w.notRule))
	}
	if w.All && w.overview.unread != nil {
		errs = append(errs, errors.New("device_registry could not be read: repeat once it can, for tenants without a stage or wish that follow another flag service"))
	}
	if len(unnameable) > 0 {
		errs = append(errs, fmt.Errorf("%d names in the registry are empty or longer than 256 characters, and cannot be wished for: the first is %s", len(unnameable), cell(unnameable[0], 40)))
	}
	if len(errs) == 0 && w.Wait && slices.ContainsFunc(w.answers, func(a flipped) bool { return !a.Reached }) {
		return fmt.Errorf("%w: MQTT does not have authority for every tenant on every instance within %v; the wish stays (see crossfade status; is an instance running?)", errNo, w.Timeout)
	}
	return errors.Join(errs...)
}

// someNames are the first of many, fit to be shown.
func someNames(names []string) string {
	shown := make([]string, 0, 11)
	for _, name := range names[:min(len(names), 10)] {
		shown = append(shown, cell(name, 64))
	}
	if n := len(names) - len(shown); n > 0 {
		shown = append(shown, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(shown, ", ")
}
