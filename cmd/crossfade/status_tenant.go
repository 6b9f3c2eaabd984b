package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/pipeline"
)

// tenantStatus is what status tells of a tenant.
type tenantStatus struct {
	Tenant    string      `json:"tenant"`
	Wanted    string      `json:"wanted"`
	WantedWhy string      `json:"wanted_why"`
	Stage     stage.Stage `json:"stage"`
	Authority string      `json:"authoritative"`
	Revision  int64       `json:"revision"`
	Since     *time.Time  `json:"since,omitempty"`
	ChangedBy string      `json:"changed_by,omitempty"`
	Reason    string      `json:"reason,omitempty"`
	// ConfirmedAt is when every running instance was seen to follow this revision.
	ConfirmedAt *time.Time `json:"confirmed_at,omitempty"`
	// WaitsFor is as the leader has noted it, Progress how far that is.
	WaitsFor   string     `json:"waits_for,omitempty"`
	WaitsSince *time.Time `json:"waits_since,omitempty"`
	Progress   string     `json:"progress,omitempty"`
	// LeftSeconds is how long the wait will last where that can be told.
	LeftSeconds *float64      `json:"left_seconds,omitempty"`
	Lag         lagStatus     `json:"lag"`
	Parity      parityStatus  `json:"parity"`
	Reverse     reverseStatus `json:"reverse"`
	Hold        *holdStatus   `json:"hold,omitempty"`
	Note        string        `json:"note,omitempty"`
}

type parityStatus struct {
	Verdict       parity.Verdict   `json:"verdict"`
	Reason        string           `json:"reason"`
	WindowSeconds float64          `json:"window_seconds"`
	Matched       int64            `json:"matched"`
	Rescued       int64            `json:"rescued"`
	Mismatched    int64            `json:"mismatched"`
	P50           *float64         `json:"skew_p50_ms,omitempty"`
	P99           *float64         `json:"skew_p99_ms,omitempty"`
	Samples       []mismatchSample `json:"mismatched_samples,omitempty"`
}

type mismatchSample struct {
	At      time.Time `json:"at"`
	Path    string    `json:"path"`
	Topic   string    `json:"topic"`
	Payload string    `json:"payload"`
}

// reverseStatus is whether authority can go back to MQTT right now.
type reverseStatus struct {
	Available bool   `json:"available"`
	How       string `json:"how"`
}

type holdStatus struct {
	All    bool      `json:"all"` // it holds all tenants, not this one by name
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

func (o *overview) tenant(name string, w parity.Window) tenantStatus {
	t := tenantStatus{Tenant: name, Parity: judged(w)}
	f, known := o.facts[name]
	wish, why, wished := o.wanted(name)
	if wished {
		t.Wanted = string(wish)
	}
	t.WantedWhy = why
	if known {
		since := f.Since.UTC()
		t.Stage, t.Revision, t.Since, t.ChangedBy, t.Reason = f.Stage, f.Revision, &since, f.ChangedBy, f.Reason
		t.Authority, t.ConfirmedAt = f.Stage.Authoritative().String(), f.ConfirmedAt
		t.WaitsFor, t.WaitsSince = f.WaitsFor, f.WaitsSince
	}
	t.Lag = o.lagOf(name, t.Stage)
	if h, ok := o.held(name); ok {
		t.Hold = &holdStatus{h.Tenant == control.Everybody, h.By, h.Reason, h.At}
	}
	t.Reverse = o.reverse(f, known)
	switch {
	case !wished:
		t.Note = "no clean answer says what is wanted: it stays where it is"
	case !o.alive() && (!known || wish != f.Stage):
		t.Note = "no instance is running"
	case !known && t.Hold != nil:
		t.Note = "held before it had a stage"
	case !known:
		t.Note = "no instance has seen it yet"
	case wish == f.Stage:
	case f.WaitsFor == "":
		t.Note = "moving"
	default:
		var left *time.Duration
		if t.Progress, left = o.progressOf(f); left != nil {
			seconds := left.Seconds()
			t.LeftSeconds = &seconds
		}
	}
	return t
}

// wanted is which stage is wished for a tenant, and why. The operator's own wish is
// as fresh as its table; any other is as the leader saw it last, since only the
// instances know the flag service.
func (o *overview) wanted(tenant string) (wish stage.Stage, why string, ok bool) {
	v, reason, ok := o.wishes.For(tenant)
	f, known := o.facts[tenant]
	if ok && reason == flags.ReasonTarget || !known || f.WantedWhy == "" {
		return stage.Stage(v), string(reason), ok
	}
	return f.Wanted, f.WantedWhy, f.Wanted != ""
}

// progressOf words what a tenant waits for and how far that is; left is how long it
// will take, nil where nobody can tell.
func (o *overview) progressOf(f control.Fact) (text string, left *time.Duration) {
	if total, ok := dwellOf(f); ok {
		rest := max(f.ConfirmedAt.Add(total).Sub(o.at), 0)
		return fmt.Sprintf("%s: %s of %s left", stage.AwaitDwell, rest.Round(100*time.Millisecond), total), &rest
	}
	text = f.WaitsFor
	if f.WaitsSince != nil {
		what, detail, _ := strings.Cut(text, ": ") // how long is to be seen where the detail is cut off
		text = strings.TrimSuffix(fmt.Sprintf("%s, for %s: %s", what, age(o.at.Sub(*f.WaitsSince)), detail), ": ")
	}
	if strings.HasPrefix(f.WaitsFor, stage.AwaitConfirmation.String()) {
		for _, i := range o.instances {
			if silent := o.at.Sub(i.SeenAt); i.Live && i.Confirmed < f.Epoch && silent > 2*time.Second {
				text += fmt.Sprintf("; %s was last heard of %s ago and is waited for until its lease is over", i.ID, age(silent))
			}
		}
	}
	return text, nil
}

// dwellOf returns how long a tenant has to dwell, if that is what it waits for. The
// instances' setting is known from what the leader notes.
func dwellOf(f control.Fact) (total time.Duration, ok bool) {
	rest, ok := strings.CutPrefix(f.WaitsFor, stage.AwaitDwell.String()+": ")
	if !ok || f.ConfirmedAt == nil {
		return 0, false
	}
	number, _, _ := strings.Cut(rest, " ")
	total, err := time.ParseDuration(number)
	return total, err == nil
}

// reverse tells whether MQTT has authority, or could have it back at once.
func (o *overview) reverse(f control.Fact, known bool) reverseStatus {
	switch {
	case !known:
		return reverseStatus{true, "it has no stage yet"}
	case f.Stage.Authoritative() == pipeline.PathMQTT:
		return reverseStatus{true, "MQTT has authority"}
	case !o.alive():
		return reverseStatus{false, "waits for an instance: none is running"}
	}
	for _, i := range o.instances {
		if check, ok := i.Checks["mqtt"]; ok && i.Alive && !check.OK {
			return reverseStatus{true, fmt.Sprintf("rollback is one immediate step, but MQTT is not well on %s: %s", i.ID, check.Error)}
		}
	}
	return reverseStatus{true, "rollback is one immediate step, to shadow"}
}

func judged(w parity.Window) parityStatus {
	j := parity.Judge(w, parity.DefaultThresholds())
	p := parityStatus{Verdict: j.Verdict, Reason: j.Reason, WindowSeconds: parityWindow.Seconds(),
		Matched: w.Matched, Rescued: w.Rescued, Mismatched: w.Mismatched}
	if w.Skew.Count() > 0 {
		p50, p99 := float64(w.P50)/float64(time.Millisecond), float64(w.P99)/float64(time.Millisecond)
		p.P50, p.P99 = &p50, &p99
	}
	return p
}

// addSamples adds the newest copies that differed.
func (p *parityStatus) addSamples(ctx context.Context, pool *pgxpool.Pool, tenant string) error {
	samples, err := parity.Samples(ctx, pool, tenant, 3)
	for _, s := range samples {
		p.Samples = append(p.Samples, mismatchSample{s.At, s.Path.String(), s.Topic, s.Payload})
	}
	return err
}

// running names the instances whose confirmation is needed.
func (o *overview) running() []string {
	var names []string
	for _, i := range o.instances {
		if i.Live {
			names = append(names, i.ID)
		}
	}
	slices.Sort(names)
	return names
}
