package rollout

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"time"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
)

// Bounds of a plan.
const (
	MaxPlanBytes = 1 << 20
	MaxWaves     = 100
	MaxListed    = 20_000 // tenants named in all waves together
	maxDuration  = 30 * 24 * time.Hour
)

// Plan says who is moved where, in which order, and what has to hold in between.
type Plan struct {
	// Name is the rollout's, for ever: 1 to 63 of a-z, 0-9, '.', '_' and '-'.
	Name string `yaml:"name" json:"name"`
	// Stage is where tenants are to end.
	Stage stage.Stage `yaml:"stage" json:"stage"`
	// BakeIn is the inner stage in which they are looked at before: the only stages in
	// which both paths arrive. Default: the one with the authority of Stage.
	BakeIn stage.Stage `yaml:"bake_in" json:"bake_in"`
	Waves  []Wave      `yaml:"waves" json:"waves"`
	Gates  Gates       `yaml:"gates" json:"gates"`
	// OnFailure is what becomes of a wave of which a gate fails.
	OnFailure OnFailure `yaml:"on_failure" json:"on_failure"`
	// MaxInTransition is how many tenants at most are on their way at once.
	MaxInTransition int `yaml:"max_in_transition" json:"max_in_transition"`
	// WaitAtMost is how long a tenant may take to arrive, and how long a wave that has
	// baked waits for a verdict; then the rollout pauses.
	WaitAtMost Duration `yaml:"wait_at_most" json:"wait_at_most"`
}

// Wave is a part of the tenants: those in the list, or all within Percent that no
// earlier wave has had and no list names.
type Wave struct {
	Tenants []string `yaml:"tenants" json:"tenants,omitempty"`
	// Percent, 0.01 to 100, is of all tenants, cumulative over waves, and by the same
	// hash as `flip --percent`.
	Percent float64 `yaml:"percent" json:"percent,omitempty"`
	// Bake is how long the wave is looked at. Measurements count from the first full
	// minute on.
	Bake *Duration `yaml:"bake" json:"bake"`
}

// OnFailure is hold (the rollout pauses, tenants stay where they are) or rollback (the
// wave's tenants go back to where they came from).
type OnFailure string

// What may become of a wave that fails.
const (
	HoldOnFailure     OnFailure = "hold"
	RollBackOnFailure OnFailure = "rollback"
)

// Duration is a time.Duration that is written as text, such as 10m.
type Duration time.Duration

// UnmarshalText reads 90s, 10m, 1h30m.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%.40q is no duration: write 90s, 10m or 1h30m", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// String returns the duration's text.
func (d Duration) String() string { return time.Duration(d).String() }

// DefaultPlan is what a plan does not say: to jetstream, at most 20 tenants in
// transition, rolling back what fails, waiting for an hour, and parity as the gate.
// Waves bake for 15 minutes.
func DefaultPlan() Plan {
	return Plan{Stage: stage.JetStream, OnFailure: RollBackOnFailure, MaxInTransition: 20, WaitAtMost: Duration(time.Hour)}
}

const defaultBake = Duration(15 * time.Minute)

// complete fills in what depends on other fields.
func (p *Plan) complete() {
	if p.BakeIn == "" && p.Stage != "" {
		p.BakeIn = stage.Toward(p.Stage)
	}
	for i := range p.Waves {
		if p.Waves[i].Bake == nil {
			bake := defaultBake
			p.Waves[i].Bake = &bake
		}
	}
	if p.Gates == (Gates{}) {
		g := defaultParityGate()
		p.Gates.Parity = &g
	}
}

func (w *Wave) bake() time.Duration { return time.Duration(*w.Bake) }

var nameFormat = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// Validate names the fields that cannot be followed, and the remedies.
func (p *Plan) Validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(nameFormat.MatchString(p.Name), "name is %.80q: choose 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first", p.Name)
	if _, err := stage.Parse(string(p.Stage)); err != nil {
		need(false, "stage: %w", err)
	} else {
		inner := []stage.Stage{stage.Toward(p.Stage)}
		if inner[0] == stage.Live {
			inner = append(inner, stage.Shadow)
		}
		need(slices.Contains(inner, p.BakeIn), "bake_in is %.20q: on the way to %s, choose one of %s", p.BakeIn, p.Stage, inner)
	}
	need(p.OnFailure == HoldOnFailure || p.OnFailure == RollBackOnFailure, "on_failure is %.20q: choose hold or rollback", p.OnFailure)
	need(p.MaxInTransition >= 1 && p.MaxInTransition <= 1_000_000, "max_in_transition is %d: choose 1 to 1000000", p.MaxInTransition)
	need(p.WaitAtMost > 0 && time.Duration(p.WaitAtMost) <= maxDuration, "wait_at_most is %v: choose more than 0s, up to %v", p.WaitAtMost, maxDuration)
	errs = append(errs, p.Gates.validate()...)
	errs = append(errs, p.validateWaves()...)
	return errors.Join(errs...)
}

func (p *Plan) validateWaves() (errs []error) {
	if n := len(p.Waves); n == 0 || n > MaxWaves {
		return []error{fmt.Errorf("waves has %d entries: give 1 to %d", n, MaxWaves)}
	}
	listed, percent := map[string]int{}, 0.0
	for i, w := range p.Waves {
		need := func(ok bool, format string, args ...any) {
			if !ok {
				errs = append(errs, fmt.Errorf("waves[%d]: "+format, append([]any{i + 1}, args...)...))
			}
		}
		need((len(w.Tenants) > 0) != (w.Percent != 0), "give either tenants or percent")
		need(w.Bake != nil && *w.Bake >= 0 && w.bake() <= maxDuration, "bake is %v: choose 0s to %v", w.Bake, maxDuration)
		if w.Percent != 0 {
			hundredths := w.Percent * 100
			need(w.Percent > 0 && w.Percent <= 100 && math.Abs(hundredths-math.Round(hundredths)) < 1e-6,
				"percent is %g: choose 0.01 to 100, with two decimals at most", w.Percent)
			need(w.Percent > percent, "percent is %g after %g: percentages add up, so let each be more than the one before", w.Percent, percent)
			percent = w.Percent
		}
		for _, tenant := range w.Tenants {
			before, twice := listed[tenant]
			need(tenant != "" && len(tenant) <= 256, "tenant %.40q: give 1 to 256 characters", tenant)
			need(!twice, "tenant %.40q is in waves[%d] already: name it once", tenant, before)
			listed[tenant] = i + 1
		}
	}
	if len(listed) > MaxListed {
		errs = append(errs, fmt.Errorf("waves name %d tenants: name %d at most, or use percent", len(listed), MaxListed))
	}
	return errs
}

// Members returns a wave's tenants, sorted, given all tenants and whom earlier waves
// have had. Tenants that a list names are its own, whether they are known or not.
func (p *Plan) Members(wave int, known []string, had func(string) bool) []string {
	w := p.Waves[wave]
	var members []string
	if len(w.Tenants) > 0 {
		for _, tenant := range w.Tenants {
			if !had(tenant) {
				members = append(members, tenant)
			}
		}
		slices.Sort(members)
		return members
	}
	listed := make(map[string]bool)
	for _, other := range p.Waves {
		for _, tenant := range other.Tenants {
			listed[tenant] = true
		}
	}
	below := int(math.Round(w.Percent * flags.Buckets / 100))
	for _, tenant := range known {
		if !listed[tenant] && !had(tenant) && flags.Bucket(flags.FlagKey, tenant) < below {
			members = append(members, tenant)
		}
	}
	slices.Sort(members)
	return slices.Compact(members)
}

// Chosen is a wave as it would be chosen now.
type Chosen struct {
	Wave    int      `json:"wave"` // from 1
	Tenants []string `json:"tenants"`
}

// Preview chooses all waves among the tenants that are known.
func (p *Plan) Preview(known []string) []Chosen {
	had := make(map[string]bool)
	waves := make([]Chosen, len(p.Waves))
	for i := range p.Waves {
		waves[i] = Chosen{i + 1, p.Members(i, known, func(t string) bool { return had[t] })}
		for _, t := range waves[i].Tenants {
			had[t] = true
		}
	}
	return waves
}

// bakeStage is the inner stage in which a tenant is looked at that is now in s: the
// plan's, unless it is past that already.
func (p *Plan) bakeStage(s stage.Stage) stage.Stage {
	if s == "" || s == p.BakeIn || slices.ContainsFunc(stage.Walk(s, p.Stage), func(step stage.Step) bool { return step.To == p.BakeIn }) {
		return p.BakeIn
	}
	if !s.Outer() {
		return s
	}
	return stage.Toward(p.Stage)
}

func defaultParityGate() ParityGate {
	t := parity.DefaultThresholds()
	return ParityGate{MinMessages: t.MinMessages, MaxRescuedShare: t.MaxRescuedShare, MaxMismatched: t.MaxMismatched}
}
