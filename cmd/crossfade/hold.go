package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/internal/config"
)

// heldTenants says whom hold and release are about.
type heldTenants struct {
	Tenants []string `arg:"" optional:"" name:"tenant" help:"The tenants."`
	All     bool     `help:"All tenants, those that are yet to come included. One hold of its own: who is held by name stays held when it ends."`
}

func (h *heldTenants) names() ([]string, error) {
	if h.All == (len(h.Tenants) > 0) {
		return nil, usageError{errors.New("name the tenants, or pass --all")}
	}
	if h.All {
		return []string{control.Everybody}, nil
	}
	if slices.Contains(h.Tenants, control.Everybody) {
		return nil, usageError{errors.New("a tenant's name is empty: name the tenants, or pass --all")}
	}
	return slices.Compact(slices.Sorted(slices.Values(h.Tenants))), nil
}

type holdCommand struct {
	Which    heldTenants     `embed:""`
	By       string          `help:"Who holds them, for the record. Default: the user." placeholder:"NAME"`
	Reason   string          `help:"Why, for those who will ask." placeholder:"TEXT"`
	New      bool            `help:"Allow tenants that have no device yet."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (holdCommand) Help() string {
	return `Held tenants stay in the stage in which they are, whatever is wished, until crossfade release. Messages flow on as the stage says. One step is taken all the same: crossfade rollback (or flip) gives MQTT its authority back.

Examples:

  crossfade hold acme --reason "their migration weekend"
  crossfade hold --all --reason "change freeze" --by ops`
}

// Run holds.
func (h *holdCommand) Run(ctx context.Context, c *console) error {
	names, err := h.Which.names()
	if err != nil {
		return err
	}
	pool, err := openPool(ctx, h.Database, "crossfade hold")
	if err != nil {
		return err
	}
	defer pool.Close()
	if !h.Which.All && !h.New {
		if err := refuseUnknown(ctx, pool, names); err != nil {
			return err
		}
	}
	if err := control.Hold(ctx, pool, names, who(h.By), h.Reason); err != nil {
		return err
	}
	return showHolds(ctx, c, pool, h.Output, nil)
}

type releaseCommand struct {
	Which    heldTenants     `embed:""`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (releaseCommand) Help() string {
	return `Released tenants go on towards what is wished, from where they are, at once. Shows who was released, and who is still held.

Exit code 3 when a tenant was not held.

Examples:

  crossfade release acme
  crossfade release --all`
}

// Run releases.
func (r *releaseCommand) Run(ctx context.Context, c *console) error {
	names, err := r.Which.names()
	if err != nil {
		return err
	}
	pool, err := openPool(ctx, r.Database, "crossfade release")
	if err != nil {
		return err
	}
	defer pool.Close()
	released, err := control.Release(ctx, pool, names)
	if err != nil {
		return err
	}
	if err := showHolds(ctx, c, pool, r.Output, append([]string{}, released...)); err != nil {
		return err
	}
	if len(released) < len(names) {
		missing := slices.DeleteFunc(names, func(n string) bool { return slices.Contains(released, n) })
		return fmt.Errorf("%w: there was no hold of %s", errNo, nameOf(missing[0]))
	}
	return nil
}

func nameOf(tenant string) string {
	if tenant == control.Everybody {
		return "all tenants"
	}
	return "tenant " + printable(tenant)
}

// showHolds tells who was released and who is held now.
func showHolds(ctx context.Context, c *console, pool *pgxpool.Pool, output string, released []string) error {
	holds, err := control.Holds(ctx, pool)
	if err != nil {
		return err
	}
	if output == "json" {
		type hold struct {
			Tenant string `json:"tenant,omitempty"` // missing: all
			holdStatus
		}
		answer := struct {
			Released []string `json:"released,omitempty"`
			Holds    []hold   `json:"holds"`
		}{Released: released, Holds: []hold{}}
		for _, h := range holds {
			answer.Holds = append(answer.Holds, hold{h.Tenant, holdStatus{h.Tenant == control.Everybody, h.By, h.Reason, h.At}})
		}
		return writeJSON(c.out, answer)
	}
	for _, r := range released {
		fmt.Fprintf(c.out, "released: %s\n", nameOf(r))
	}
	for _, h := range holds {
		fmt.Fprintf(c.out, "held: %s, since %s, by %s: %s\n", nameOf(h.Tenant), moment(h.At), cell(h.By, 40), cell(h.Reason, 120))
	}
	return nil
}

type forgetCommand struct {
	Instance string          `arg:"" help:"The instance, as crossfade status names it."`
	Yes      bool            `short:"y" help:"Do not ask."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (forgetCommand) Help() string {
	return `An instance that has gone leaves its MQTT sessions at the broker, its source's and its mirror's, with copies queued in them that may be the only ones of their messages. Steps that need proof wait until a sentinel has come out of each, or until the broker has let it expire. Forget an instance only if its sessions (the client IDs) are gone from the broker, or nothing is queued in them. If it comes back with its sessions, what is queued there is processed after all; what the broker discards before that is lost.

Exit code 3 when there is no such instance, or it runs, or the answer to the question was no.

Examples:

  crossfade forget bridge-3
  crossfade forget bridge-3 --yes --output json`
}

// Run asks, and forgets.
func (f *forgetCommand) Run(ctx context.Context, c *console) error {
	pool, err := openPool(ctx, f.Database, "crossfade forget")
	if err != nil {
		return err
	}
	defer pool.Close()
	instances, err := control.Instances(ctx, pool)
	if err != nil {
		return err
	}
	var session, mirror string
	for _, i := range instances {
		if i.ID == f.Instance {
			session, mirror = i.Session, i.Mirror
		}
	}
	named, is, them := sessionsOf(session, mirror)
	if !f.Yes && named != "" {
		question := fmt.Sprintf("%s %s gone from the broker? What is queued in %s counts for nothing from now on. Forget %s?", is, named, them, printable(f.Instance))
		if err := confirm(ctx, c, question); err != nil {
			return err
		}
	}
	err = control.Forget(ctx, pool, f.Instance)
	switch {
	case errors.Is(err, control.ErrLive) || errors.Is(err, control.ErrNoInstance):
		return fmt.Errorf("%w: %w", errNo, err)
	case err != nil:
		return err
	case f.Output == "json":
		return writeJSON(c.out, map[string]string{"forgotten": f.Instance, "mqtt_session": session, "mirror_session": mirror})
	}
	_, err = fmt.Fprintf(c.out, "%s is forgotten; nothing waits for %s any more\n", printable(f.Instance), cmp.Or(named, "an MQTT session of its"))
	return err
}

// sessionsOf names an instance's sessions by their client IDs; empty: it has none.
func sessionsOf(session, mirror string) (named, is, them string) {
	session, mirror = printable(session), printable(mirror)
	switch {
	case session != "" && mirror != "":
		return fmt.Sprintf("the MQTT sessions %s and %s (of its mirror)", session, mirror), "Are", "them"
	case mirror != "":
		return fmt.Sprintf("the MQTT session %s (of its mirror)", mirror), "Is", "it"
	case session != "":
		return "the MQTT session " + session, "Is", "it"
	}
	return "", "", ""
}
