package rollout

import (
	"fmt"
	"math"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/crossfade-io/crossfade/bridge/parity"
)

// Gates are what every tenant of a wave has to pass; nil: not asked. A plan without
// any has the parity gate with its defaults.
type Gates struct {
	Parity     *ParityGate     `yaml:"parity" json:"parity,omitempty"`
	Lag        *LagGate        `yaml:"lag" json:"lag,omitempty"`
	Rescues    *RescueGate     `yaml:"rescues" json:"rescues,omitempty"`
	Quarantine *QuarantineGate `yaml:"quarantine" json:"quarantine,omitempty"`
}

// ParityGate judges how well the two paths agree.
type ParityGate struct {
	MinMessages     int64   `yaml:"min_messages" json:"min_messages"`           // fewer are inconclusive
	MaxRescuedShare float64 `yaml:"max_rescued_share" json:"max_rescued_share"` // 0 to 1
	MaxMismatched   int64   `yaml:"max_mismatched" json:"max_mismatched"`
}

// LagGate judges how long a sentinel takes by the path that gets the authority.
type LagGate struct {
	Max Duration `yaml:"max" json:"max"`
}

// RescueGate judges the number of rescues, where a share would hide a few among many.
type RescueGate struct {
	Max int64 `yaml:"max" json:"max"`
}

// QuarantineGate judges the share of quarantined messages in all.
type QuarantineGate struct {
	MaxShare    float64 `yaml:"max_share" json:"max_share"`       // 0 to 1
	MinMessages int64   `yaml:"min_messages" json:"min_messages"` // fewer are inconclusive
}

// UnmarshalYAML begins with the defaults.
func (g *ParityGate) UnmarshalYAML(n *yaml.Node) error {
	type plain ParityGate
	*g = defaultParityGate()
	return n.Decode((*plain)(g))
}

// UnmarshalYAML begins with the defaults.
func (g *QuarantineGate) UnmarshalYAML(n *yaml.Node) error {
	type plain QuarantineGate
	*g = QuarantineGate{MaxShare: 0.01, MinMessages: 100}
	return n.Decode((*plain)(g))
}

// UnmarshalYAML begins with the defaults.
func (g *LagGate) UnmarshalYAML(n *yaml.Node) error {
	type plain LagGate
	*g = LagGate{Max: Duration(10 * time.Second)}
	return n.Decode((*plain)(g))
}

func (g *Gates) validate() (errs []error) {
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("gates."+format, args...))
		}
	}
	share := func(f float64) bool { return !math.IsNaN(f) && f >= 0 && f <= 1 }
	if p := g.Parity; p != nil {
		need(p.MinMessages >= 1, "parity.min_messages is %d: choose 1 or more; without traffic nothing can be said", p.MinMessages)
		need(share(p.MaxRescuedShare), "parity.max_rescued_share is %g: choose 0 to 1 (0.01 is one in a hundred)", p.MaxRescuedShare)
		need(p.MaxMismatched >= 0, "parity.max_mismatched is %d: choose 0 or more", p.MaxMismatched)
	}
	if l := g.Lag; l != nil {
		need(l.Max > 0 && time.Duration(l.Max) <= maxDuration, "lag.max is %v: choose more than 0s, for example 10s", l.Max)
	}
	if r := g.Rescues; r != nil {
		need(r.Max >= 0, "rescues.max is %d: choose 0 or more", r.Max)
	}
	if q := g.Quarantine; q != nil {
		need(share(q.MaxShare), "quarantine.max_share is %g: choose 0 to 1 (0.01 is one in a hundred)", q.MaxShare)
		need(q.MinMessages >= 1, "quarantine.min_messages is %d: choose 1 or more", q.MinMessages)
	}
	return errs
}

// Measured is what was seen of a tenant since the wave's window began.
type Measured struct {
	Parity      parity.Counts
	Latency     Latency // of the path that gets the authority
	Quarantined int64
}

// Latency is what sentinels say of a path.
type Latency struct {
	Took         *time.Duration // of the last one that came; nil: none has
	SeenAt       *time.Time
	MissingSince *time.Time // since when one has been out that should have come
}

// Result is what one gate says of a tenant.
type Result struct {
	Gate    string             `json:"gate"`
	Verdict parity.Verdict     `json:"verdict"`
	Reason  string             `json:"reason"`
	Numbers map[string]float64 `json:"numbers,omitempty"`
}

// Judge says what each gate says of a tenant, in the order of the plan's fields, at a
// moment now for a window that began at from. It is pure.
func (g *Gates) Judge(m *Measured, from, now time.Time) []Result {
	var results []Result
	if g.Parity != nil {
		results = append(results, g.Parity.judge(m))
	}
	if g.Lag != nil {
		results = append(results, g.Lag.judge(m, from, now))
	}
	if g.Rescues != nil {
		results = append(results, g.Rescues.judge(m))
	}
	if g.Quarantine != nil {
		results = append(results, g.Quarantine.judge(m))
	}
	return results
}

// Overall is the worst of the verdicts: a failure, else what is inconclusive.
// Nothing at all is inconclusive.
func Overall(results []Result) parity.Verdict {
	overall := parity.Inconclusive
	for i, r := range results {
		switch {
		case r.Verdict == parity.Fail:
			return parity.Fail
		case i == 0 || overall == parity.Pass:
			overall = r.Verdict
		}
	}
	return overall
}

func (g *ParityGate) judge(m *Measured) Result {
	w := parity.Window{Counts: m.Parity}
	j := parity.Judge(w, parity.Thresholds{MaxRescuedShare: g.MaxRescuedShare, MaxMismatched: g.MaxMismatched, MinMessages: g.MinMessages})
	return Result{"parity", j.Verdict, j.Reason, map[string]float64{
		"matched": float64(m.Parity.Matched), "rescued": float64(m.Parity.Rescued), "mismatched": float64(m.Parity.Mismatched),
		"rescued_share": w.RescuedShare(),
	}}
}

func (g *LagGate) judge(m *Measured, from, now time.Time) Result {
	r := Result{Gate: "lag", Verdict: parity.Inconclusive, Reason: "no sentinel has come out of the path since the window began"}
	l, limit := m.Latency, time.Duration(g.Max)
	if l.MissingSince != nil {
		out := now.Sub(*l.MissingSince)
		r.Numbers = map[string]float64{"missing_seconds": out.Seconds()}
		r.Reason = fmt.Sprintf("a sentinel has been out for %v", out.Round(time.Second))
		if out > limit {
			r.Verdict = parity.Fail
			r.Reason += fmt.Sprintf(" (at most %v may be)", limit)
		}
		return r
	}
	if l.Took == nil || l.SeenAt == nil || l.SeenAt.Before(from) {
		return r
	}
	r.Numbers = map[string]float64{"seconds": l.Took.Seconds()}
	r.Verdict, r.Reason = parity.Pass, fmt.Sprintf("the last sentinel took %v", l.Took.Round(time.Millisecond))
	if *l.Took > limit {
		r.Verdict = parity.Fail
		r.Reason += fmt.Sprintf(" (at most %v may be)", limit)
	}
	return r
}

func (g *RescueGate) judge(m *Measured) Result {
	r := Result{Gate: "rescues", Verdict: parity.Pass, Reason: fmt.Sprintf("%d messages were rescued", m.Parity.Rescued),
		Numbers: map[string]float64{"rescued": float64(m.Parity.Rescued)}}
	switch {
	case m.Parity.Rescued > g.Max:
		r.Verdict = parity.Fail
		r.Reason += fmt.Sprintf(" (at most %d may be)", g.Max)
	case m.Parity.Total() == 0:
		r.Verdict, r.Reason = parity.Inconclusive, "no traffic: no copy stood by"
	}
	return r
}

// judge divides what was quarantined by the copies that stood by: every message with
// two copies has one of those, whatever became of it. Messages of which no copy stood
// by make the share too large, never too small.
func (g *QuarantineGate) judge(m *Measured) Result {
	all := max(m.Parity.Total(), m.Quarantined)
	r := Result{Gate: "quarantine", Verdict: parity.Inconclusive, Reason: fmt.Sprintf("too little traffic: %d of at least %d messages", all, g.MinMessages),
		Numbers: map[string]float64{"quarantined": float64(m.Quarantined), "messages": float64(all)}}
	if all < g.MinMessages {
		return r
	}
	share := float64(m.Quarantined) / float64(all)
	r.Numbers["share"] = share
	r.Verdict, r.Reason = parity.Pass, fmt.Sprintf("%d of %d messages were quarantined", m.Quarantined, all)
	if share > g.MaxShare {
		r.Verdict = parity.Fail
		r.Reason += fmt.Sprintf(" (at most %.3g %% may be)", 100*g.MaxShare)
	}
	return r
}
