package flags

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// snapshot is everything in the flag tables at one moment. It never changes
// once it is made.
type snapshot struct {
	// asOf is taken before the query is sent: the data is at least as new.
	asOf  time.Time
	flags map[string]*ruleSet
}

// One statement, so that rules and targets are of the same moment.
const readFlags = `
SELECT flag_key, NULL AS tenant_id, default_variant AS variant,
       percent::float8, COALESCE(percent_variant, '')
  FROM crossfade_flag_rules
UNION ALL
SELECT flag_key, tenant_id, variant, 0, ''
  FROM crossfade_flag_targets`

// querier is what both a connection and a pool offer.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func readSnapshot(ctx context.Context, q querier) (*snapshot, error) {
	s := &snapshot{asOf: time.Now(), flags: map[string]*ruleSet{}}
	rows, err := q.Query(ctx, readFlags)
	if err != nil {
		return nil, fmt.Errorf("reading the flag tables: %w", err)
	}
	var (
		flagKey, variant, percentVariant string
		tenant                           *string
		percent                          float64
	)
	_, err = pgx.ForEachRow(rows, []any{&flagKey, &tenant, &variant, &percent, &percentVariant}, func() error {
		r := s.flags[flagKey]
		if r == nil {
			r = &ruleSet{targets: map[string]string{}}
			s.flags[flagKey] = r
		}
		if tenant != nil {
			r.targets[*tenant] = variant
			return nil
		}
		r.hasRule, r.defaultVariant, r.percent, r.percentVariant = true, variant, percent, percentVariant
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the flag tables: %w", err)
	}
	return s, nil
}

// changedFrom returns the keys of the flags that differ from old, sorted. The
// first snapshot changes nothing: there was no answer before it.
func (s *snapshot) changedFrom(old *snapshot) []string {
	if old == nil {
		return nil
	}
	var changed []string
	for key, r := range s.flags {
		if old.flags[key] == nil || !r.equal(old.flags[key]) {
			changed = append(changed, key)
		}
	}
	for key := range old.flags {
		if s.flags[key] == nil {
			changed = append(changed, key)
		}
	}
	slices.Sort(changed)
	return changed
}
