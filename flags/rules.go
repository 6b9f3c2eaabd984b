package flags

import (
	"maps"

	of "github.com/open-feature/go-sdk/openfeature"
)

// Reason says which part of the tables an answer came from. The strings are
// OpenFeature's.
type Reason string

// The reasons that our own provider gives. Other providers may give STATIC or
// CACHED as well.
const (
	ReasonTarget  = Reason(of.TargetingMatchReason) // the tenant's own row
	ReasonPercent = Reason(of.SplitReason)          // the percentage
	ReasonDefault = Reason(of.DefaultReason)        // the flag's default rule
)

// ruleSet is what the tables say about one flag. Variants are kept as they were
// read: whether they are known is judged where they are used, so that one odd
// row holds one tenant instead of the whole snapshot.
type ruleSet struct {
	hasRule        bool
	defaultVariant string
	percent        float64
	percentVariant string
	targets        map[string]string // tenant → variant
}

// resolve returns the variant for a tenant, and false where the tables say
// nothing about it.
func (r *ruleSet) resolve(flagKey, tenant string) (string, Reason, bool) {
	if v, ok := r.targets[tenant]; ok {
		return v, ReasonTarget, true
	}
	if !r.hasRule {
		return "", "", false
	}
	if r.percent > 0 && Bucket(flagKey, tenant) < threshold(r.percent) {
		return r.percentVariant, ReasonPercent, true
	}
	return r.defaultVariant, ReasonDefault, true
}

func (r *ruleSet) equal(o *ruleSet) bool {
	return r.hasRule == o.hasRule && r.defaultVariant == o.defaultVariant &&
		r.percent == o.percent && r.percentVariant == o.percentVariant &&
		maps.Equal(r.targets, o.targets)
}
