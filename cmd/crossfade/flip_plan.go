package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
)

// plan is what a flip would do with one tenant.
type plan struct {
	Tenant   string      `json:"tenant"`
	Stage    stage.Stage `json:"stage,omitempty"`
	Revision int64       `json:"revision"`
	Before   string      `json:"wished_before,omitempty"`
	Wished   stage.Stage `json:"wished"`
	Steps    []planStep  `json:"steps"`
	// StoppedBy is what would keep it from getting there as things are now.
	StoppedBy []string `json:"stopped_by"`
}

type planStep struct {
	From  stage.Stage `json:"from,omitempty"` // empty: its first stage
	To    stage.Stage `json:"to"`
	Needs string      `json:"needs"`
	// Waits is for what, and by whom, in order.
	Waits []string `json:"waits_for"`
}

func (f *flipCommand) showPlan(ctx context.Context, c *console, pool *pgxpool.Pool, answers []flipped) error {
	o, err := readOverview(ctx, pool)
	if err != nil {
		return err
	}
	if err := o.addInstances(ctx, pool); err != nil {
		return err
	}
	if err := o.addLag(ctx, pool); err != nil {
		return err
	}
	plans := make([]plan, len(answers))
	stopped := 0
	for i, a := range answers {
		before, _, _ := o.wanted(a.Tenant)
		plans[i] = o.plan(a.Tenant, a.Wished, f.Percent == nil)
		plans[i].Before = string(before)
		if len(plans[i].StoppedBy) > 0 {
			stopped++
		}
	}
	if f.Output == "json" {
		err = writeJSON(c.out, map[string]any{"dry_run": true, "tenants": plans})
	} else {
		showPlans(c.out, plans)
	}
	if err == nil && stopped > 0 {
		return fmt.Errorf("%w: %d of %d tenants would not get there as things are now; nothing was changed", errNo, stopped, len(plans))
	}
	return err
}

// plan walks from where a tenant is to the wish. operator is set where the wish is the
// operator's own for this tenant: that may go back to MQTT in spite of a hold.
func (o *overview) plan(tenant string, wish stage.Stage, operator bool) plan {
	f, known := o.facts[tenant]
	p := plan{Tenant: tenant, Stage: f.Stage, Revision: f.Revision, Wished: wish, Steps: []planStep{}, StoppedBy: []string{}}
	from := f.Stage
	if !known {
		from = stage.Toward(wish)
		p.Steps = append(p.Steps, planStep{To: from, Needs: stage.NeedsNothing.String(), Waits: []string{}})
	}
	walk := stage.Walk(from, wish)
	needs := stage.NeedsNothing
	for _, s := range walk {
		needs = max(needs, s.Needs)
		p.Steps = append(p.Steps, planStep{s.From, s.To, s.Needs.String(), o.waitsOf(s, f)})
	}
	if len(p.Steps) == 0 {
		return p // it is there
	}
	if h, held := o.held(tenant); held {
		p.StoppedBy = append(p.StoppedBy, holdStop(h, walk, known && operator))
		p.StoppedBy = slices.DeleteFunc(p.StoppedBy, func(s string) bool { return s == "" })
	}
	if !o.alive() {
		p.StoppedBy = append(p.StoppedBy, "no instance is running")
		return p
	}
	p.StoppedBy = append(p.StoppedBy, o.unwell()...)
	if why := o.overdue(tenant, walk); why != "" {
		p.StoppedBy = append(p.StoppedBy, why)
	}
	if needs == stage.NeedsProof {
		p.StoppedBy = append(p.StoppedBy, o.unproved(tenant)...)
	}
	return p
}

// waitsOf lists what a step waits for, with what is there already when it is the next.
func (o *overview) waitsOf(s stage.Step, f control.Fact) []string {
	if s.Needs == stage.NeedsNothing {
		return []string{}
	}
	confirmed := fmt.Sprintf("confirmation of %s by %s", s.From, list(o.running()))
	if s.From == f.Stage && f.ConfirmedAt != nil {
		confirmed = fmt.Sprintf("confirmation of %s (is there)", s.From)
	}
	if s.Needs == stage.NeedsConfirmation {
		return []string{confirmed}
	}
	var sessions []string
	for _, i := range o.instances {
		if i.SessionExists {
			sessions = append(sessions, i.ID)
		}
	}
	dwell := "the dwell after it"
	if total, ok := dwellOf(f); ok {
		dwell = fmt.Sprintf("a dwell of %s after it", total)
	}
	return []string{confirmed, dwell,
		"a sentinel out of the MQTT session of " + list(sessions),
		fmt.Sprintf("the sentinel through every mirror and out of the streams of %s, %s and %s", control.KindTelemetry, control.KindShadow, control.KindCommands)}
}

// holdStop words how far a hold lets a tenant go; empty: all the way.
func holdStop(h control.Held, walk []stage.Step, operator bool) string {
	hold := holdStatus{h.Tenant == control.Everybody, h.By, h.Reason, h.At}
	back := len(walk) > 0 && backToMQTT(walk[0])
	switch {
	case operator && back && len(walk) == 1:
		return ""
	case operator && back:
		return fmt.Sprintf("it goes back to %s in spite of the hold, and no further (%s)", walk[0].To, hold.text())
	}
	return hold.text() + " (crossfade release)"
}

// unwell lists checks that fail on running instances and concern stages or paths.
func (o *overview) unwell() (stops []string) {
	for _, i := range o.instances {
		for _, name := range slices.Sorted(maps.Keys(i.Checks)) {
			check := i.Checks[name]
			if i.Alive && !check.OK && slices.Contains([]string{"flags", "instance", "jetstream", "mirror", "mqtt", "stages"}, name) {
				stops = append(stops, fmt.Sprintf("%s is not well: %s: %s", i.ID, name, check.Error))
			}
		}
	}
	return stops
}

// unproved lists what would keep a sentinel from coming out.
func (o *overview) unproved(tenant string) (stops []string) {
	prober := false
	for _, i := range o.instances {
		prober = prober || i.Alive && i.Prober
		if i.SessionExists && !i.Alive {
			stops = append(stops, fmt.Sprintf("%s does not run and its MQTT session may hold copies: start it, or crossfade forget %s", i.ID, i.ID))
		}
		if i.MirrorExists && !i.Alive {
			stops = append(stops, fmt.Sprintf("%s does not run and its mirror's MQTT session may hold copies: start it, or crossfade forget %s", i.ID, i.ID))
		}
	}
	if !prober {
		stops = append(stops, "no running instance can send sentinels: one needs an MQTT connection")
	}
	l := o.latencies[tenant]
	if l.MQTTMissing != nil {
		stops = append(stops, fmt.Sprintf("no sentinel has come out of MQTT for %s", age(o.at.Sub(*l.MQTTMissing))))
	}
	if l.JetStreamMissing != nil {
		stops = append(stops, fmt.Sprintf("no sentinel has come out of JetStream for %s: is the mirror running?", age(o.at.Sub(*l.JetStreamMissing))))
	}
	return stops
}

// showPlans writes tenants that go the same way together.
func showPlans(out io.Writer, plans []plan) {
	var order []string
	tenants := make(map[string][]string)
	for i := range plans {
		text := plans[i].text()
		if tenants[text] == nil {
			order = append(order, text)
		}
		tenants[text] = append(tenants[text], cell(plans[i].Tenant, 64))
	}
	for _, text := range order {
		names := tenants[text]
		if len(names) > 1 {
			fmt.Fprintf(out, "%d tenants: ", len(names))
		}
		fmt.Fprintf(out, "%s\n%s", list(names), text)
	}
	if len(plans) == 0 {
		fmt.Fprintln(out, "no tenant would be moved by this today")
	}
}

func (p *plan) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "  wished %s, until now %s\n", p.Wished, dash(p.Before))
	if len(p.Steps) == 0 {
		fmt.Fprintf(&b, "  is in %s already\n", p.Stage)
	}
	for i, s := range p.Steps {
		waits := "at once"
		if len(s.Waits) > 0 {
			waits = "waits for " + strings.Join(s.Waits, ", then ")
		}
		from := string(s.From) + " to "
		if s.From == "" {
			from = "first stage: "
		}
		fmt.Fprintf(&b, "  %d. %s%s: %s\n", i+1, from, s.To, printable(waits))
	}
	for _, s := range p.StoppedBy {
		fmt.Fprintf(&b, "  would stop it: %s\n", printable(s))
	}
	return b.String()
}

// list names a few of many.
func list(names []string) string {
	switch n := len(names); {
	case n == 0:
		return "nobody"
	case n > 8:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:7], ", "), n-7)
	}
	return strings.Join(names, ", ")
}
