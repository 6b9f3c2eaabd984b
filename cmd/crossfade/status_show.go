package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/stage"
)

func (s *statusCommand) show(c *console, a statusAnswer) error {
	switch {
	case s.Output == "json" && s.Watch:
		return writeJSONLine(c.out, a)
	case s.Output == "json":
		return writeJSON(c.out, a)
	}
	if s.Watch && c.terminal {
		fmt.Fprint(c.out, "\x1b[H\x1b[2J")
	}
	if len(s.Tenants) > 0 {
		for i := range a.Tenants {
			if err := showDetails(c.out, a.At, &a.Tenants[i]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := showTenants(c.out, a); err != nil {
		return err
	}
	if err := showStreams(c.out, a); err != nil {
		return err
	}
	return showInstances(c.out, a)
}

func showTenants(out io.Writer, a statusAnswer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TENANT\tWANTED\tSTAGE\tAUTHORITY\tREV\tFOR\tMQTT\tJETSTREAM\tPARITY\tWAITS FOR")
	for i := range a.Tenants {
		t := &a.Tenants[i]
		since := "-"
		if t.Since != nil {
			since = age(a.At.Sub(*t.Since))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", cell(t.Tenant, 24), dash(t.Wanted), dash(string(t.Stage)), dash(t.Authority),
			t.Revision, since, t.Lag.MQTT.text(a.At), t.Lag.JetStream.text(a.At), t.Parity.Verdict, cell(t.remark(), 80))
	}
	return w.Flush()
}

// remark is the most important thing to say of a tenant in one line.
func (t *tenantStatus) remark() string {
	switch {
	case t.Progress != "":
		return t.Progress
	case t.Hold != nil && t.Note == "":
		return "(" + t.Hold.text() + ")"
	case t.Note != "":
		return t.Note
	}
	return ""
}

func (h *holdStatus) text() string {
	whom := "held"
	if h.All {
		whom = "all are held"
	}
	if h.By != "" {
		whom += " by " + h.By
	}
	return strings.TrimSuffix(whom+": "+h.Reason, ": ")
}

// showDetails writes a tenant's block, a line for each thing there is to know.
func showDetails(out io.Writer, now time.Time, t *tenantStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	fmt.Fprintln(w, cell(t.Tenant, 256))
	line("wanted", "%s", strings.TrimSpace(dash(t.Wanted)+" "+parenthesis(t.WantedWhy)))
	if t.Since == nil {
		line("stage", "none yet")
	} else {
		line("stage", "%s, revision %d, since %s (%s)", t.Stage, t.Revision, t.Since.Format(time.DateTime), age(now.Sub(*t.Since)))
		line("moved by", "%s: %s", dash(t.ChangedBy), dash(t.Reason))
		confirmed := "not yet confirmed by every instance"
		if t.ConfirmedAt != nil {
			confirmed = "confirmed by every instance"
		}
		line("authority", "%s, %s", t.Authority, confirmed)
	}
	if t.Note != "" {
		line("note", "%s", t.Note)
	}
	if t.Progress != "" {
		line("waits for", "%s", t.Progress)
	}
	for _, s := range stage.Walk(t.Stage, stage.Stage(t.Wanted)) {
		line("step ahead", "%s to %s, needs %s", s.From, s.To, s.Needs)
	}
	line("way back", "%s", t.Reverse.How)
	line("lag by MQTT", "%s", t.Lag.MQTT.sentence(now))
	line("lag by JetStream", "%s", t.Lag.JetStream.sentence(now))
	t.Parity.lines(line)
	if t.Hold != nil {
		line("hold", "%s, since %s", t.Hold.text(), t.Hold.At.UTC().Format(time.DateTime))
	}
	return w.Flush()
}

func (p *parityStatus) lines(line func(name, format string, args ...any)) {
	line("parity", "%s over %s: %s", p.Verdict, parityWindow, p.Reason)
	if p.P50 != nil {
		line("skew", "copies that stood by came %.0f ms (p50) and %.0f ms (p99) after their message; less than 0 is before", *p.P50, *p.P99)
	}
	for _, s := range p.Samples {
		line("mismatched", "%s by %s, %s: %s", s.At.UTC().Format(time.DateTime), s.Path, cell(s.Topic, 80), cell(s.Payload, 120))
	}
}

func parenthesis(s string) string {
	if s == "" {
		return ""
	}
	return "(" + s + ")"
}

func showInstances(out io.Writer, a statusAnswer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nINSTANCE\tVERSION\tSEEN\tSTATE")
	for _, i := range a.Instances {
		fmt.Fprintf(w, "%s\t%s\t%s ago\t%s\n", cell(i.ID, 40), cell(i.Version, 24), age(a.At.Sub(i.SeenAt)), cell(stateOf(i), 100))
	}
	if len(a.Instances) == 0 {
		fmt.Fprintln(w, "none\t\t\tno instance has signed on")
	}
	return w.Flush()
}

// stateOf is what matters most of an instance.
func stateOf(i bridge.Instance) string {
	if i.Alive {
		for _, name := range slices.Sorted(maps.Keys(i.Checks)) {
			if check := i.Checks[name]; !check.OK {
				return name + ": " + check.Error
			}
		}
		return "ok"
	}
	state := "stopped"
	if i.State != "stopped" {
		state = "gone without signing off"
	}
	if i.SessionExists {
		state += fmt.Sprintf("; its MQTT session is awaited %s (crossfade forget)", lastly(i.SessionUntil))
	}
	if i.MirrorExists {
		state += fmt.Sprintf("; its mirror's MQTT session is awaited %s (crossfade forget)", lastly(i.MirrorUntil))
	}
	return state
}

func lastly(until *time.Time) string {
	if until == nil {
		return "for ever"
	}
	return "until " + until.UTC().Format(time.DateTime)
}

// age is a duration as short as people say it.
func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%.0fs", d.Truncate(time.Second).Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}
