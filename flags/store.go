package flags

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// MaxTenantsPerCall bounds the tenants that one call of the Store may name, except
// SetTargetsUrgently.
const MaxTenantsPerCall = 100_000

// Store is the operator's side of the flag tables: it says what is wished, for
// `crossfade flip`, `rollback` and `status`. It works on FlagKey only. Each method
// but SetTargetsUrgently is one statement, all or nothing; all may be called
// concurrently.
type Store struct {
	pool *pgxpool.Pool
}

// OpenStore returns a Store over a pool, which the caller goes on owning.
func OpenStore(pool *pgxpool.Pool) *Store { return &Store{pool: pool} }

// Previous is what a tenant's own wish was before a change.
type Previous struct {
	Tenant string
	// Variant is empty where the tenant had no wish of its own and followed the rule.
	Variant Variant
}

// Target is one tenant's own wish.
type Target struct {
	Tenant    string    `json:"tenant"`
	Variant   Variant   `json:"variant"`
	Reason    string    `json:"reason,omitempty"`
	UpdatedBy string    `json:"updated_by,omitempty"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Rule is what holds for tenants without a wish of their own.
type Rule struct {
	Default Variant `json:"default"`
	// Percent of the tenants, 0 to 100 with two decimals, are wished to be in
	// PercentVariant. Which ones, Bucket says.
	Percent        float64   `json:"percent"`
	PercentVariant Variant   `json:"percent_variant,omitempty"` // may be empty at 0 percent
	UpdatedBy      string    `json:"updated_by,omitempty"`
	UpdatedAt      time.Time `json:"updated_at"`
}

// Wishes is the content of the flag tables at one moment.
type Wishes struct {
	// Rule is nil where its row is missing: then a tenant without a target has
	// no answer and stays where it is.
	Rule *Rule `json:"rule"`
	// Targets are sorted by tenant.
	Targets []Target `json:"targets"`
}

// For returns the wish for a tenant, where it comes from, and false where there is
// none. It is the StoreProvider's own computation, so status shows what instances
// are told.
func (w Wishes) For(tenant string) (Variant, Reason, bool) {
	i, ok := slices.BinarySearchFunc(w.Targets, tenant, func(t Target, name string) int {
		return strings.Compare(t.Tenant, name)
	})
	if ok {
		return w.Targets[i].Variant, ReasonTarget, true
	}
	if w.Rule == nil {
		return "", "", false
	}
	rules := ruleSet{
		hasRule:        true,
		defaultVariant: string(w.Rule.Default),
		percent:        w.Rule.Percent,
		percentVariant: string(w.Rule.PercentVariant),
	}
	v, reason, ok := rules.resolve(FlagKey, tenant)
	return Variant(v), reason, ok
}

// The rows are locked in order of the tenant before they are written, so that two
// calls with overlapping tenants wait for each other instead of deadlocking, and
// so that what is reported as previous is what was replaced.
const setTargets = `
WITH wanted AS (
    SELECT DISTINCT unnest($2::text[]) AS tenant_id
), before AS (
    SELECT t.tenant_id, t.variant
      FROM crossfade_flag_targets t JOIN wanted USING (tenant_id)
     WHERE t.flag_key = $1
     ORDER BY t.tenant_id
       FOR UPDATE OF t
), written AS (
    INSERT INTO crossfade_flag_targets (flag_key, tenant_id, variant, reason, updated_by)
    SELECT $1, wanted.tenant_id, $3, $4, $5
      FROM wanted LEFT JOIN before USING (tenant_id)
     ORDER BY wanted.tenant_id
    ON CONFLICT (flag_key, tenant_id) DO UPDATE
       SET variant = excluded.variant, reason = excluded.reason,
           updated_by = excluded.updated_by, updated_at = now()
    RETURNING tenant_id
)
SELECT written.tenant_id, COALESCE(before.variant, '')
  FROM written LEFT JOIN before USING (tenant_id)`

// SetTargets wishes the variant for the tenants, whether they have sent anything
// yet or not, and returns what each had wished before, sorted by tenant, repeats
// removed. by is who (at most 128 characters), reason is why (at most 512).
func (s *Store) SetTargets(ctx context.Context, tenants []string, variant Variant, by, reason string) ([]Previous, error) {
	op := fmt.Sprintf("setting the wish of %s to %s", describe(tenants), clip(string(variant), 64))
	if err := errors.Join(checkTenants(tenants), checkVariant(variant), checkText("by", by, maxByLength), checkText("reason", reason, maxReasonLength)); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return s.previous(ctx, op, setTargets, FlagKey, tenants, string(variant), reason, by)
}

const clearTargets = `
WITH doomed AS (
    SELECT tenant_id FROM crossfade_flag_targets
     WHERE flag_key = $1 AND tenant_id = ANY ($2::text[])
     ORDER BY tenant_id
       FOR UPDATE
)
DELETE FROM crossfade_flag_targets t USING doomed
 WHERE t.flag_key = $1 AND t.tenant_id = doomed.tenant_id
RETURNING t.tenant_id, t.variant`

// ClearTargets takes the tenants' own wishes back: from now on they follow the
// rule. It returns those that had one, sorted by tenant.
func (s *Store) ClearTargets(ctx context.Context, tenants []string) ([]Previous, error) {
	op := "clearing the wish of " + describe(tenants)
	if err := checkTenants(tenants); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return s.previous(ctx, op, clearTargets, FlagKey, tenants)
}

func (s *Store) previous(ctx context.Context, op, sql string, args ...any) ([]Previous, error) {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, explain(err))
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Previous])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, explain(err))
	}
	slices.SortFunc(all, func(a, b Previous) int { return strings.Compare(a.Tenant, b.Tenant) })
	return all, nil
}

const setPercent = `
INSERT INTO crossfade_flag_rules (flag_key, percent, percent_variant, updated_by)
VALUES ($1, $2::float8::numeric(5, 2), $3, $4)
ON CONFLICT (flag_key) DO UPDATE
   SET percent = excluded.percent, percent_variant = excluded.percent_variant,
       updated_by = excluded.updated_by, updated_at = now()`

// SetPercent wishes the variant for a percentage of the tenants that have no wish
// of their own: 0 to 100, with at most two decimals. Raising it moves no tenant
// out. by is who, at most 128 characters.
func (s *Store) SetPercent(ctx context.Context, percent float64, variant Variant, by string) error {
	op := fmt.Sprintf("wishing %s for %g percent of the tenants", clip(string(variant), 64), percent)
	if err := errors.Join(checkPercent(percent), checkVariant(variant), checkText("by", by, maxByLength)); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if _, err := s.pool.Exec(ctx, setPercent, FlagKey, percent, string(variant), by); err != nil {
		return fmt.Errorf("%s: %w", op, explain(err))
	}
	return nil
}

const setDefault = `
INSERT INTO crossfade_flag_rules (flag_key, default_variant, updated_by)
VALUES ($1, $2, $3)
ON CONFLICT (flag_key) DO UPDATE
   SET default_variant = excluded.default_variant,
       updated_by = excluded.updated_by, updated_at = now()`

// SetDefault wishes the variant for every tenant that has no wish of its own and
// is not within the percentage. by is who, at most 128 characters.
func (s *Store) SetDefault(ctx context.Context, variant Variant, by string) error {
	op := "setting the default wish to " + clip(string(variant), 64)
	if err := errors.Join(checkVariant(variant), checkText("by", by, maxByLength)); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if _, err := s.pool.Exec(ctx, setDefault, FlagKey, string(variant), by); err != nil {
		return fmt.Errorf("%s: %w", op, explain(err))
	}
	return nil
}

const listWishes = `
SELECT NULL, default_variant, percent::float8, COALESCE(percent_variant, ''), '', updated_by, updated_at
  FROM crossfade_flag_rules WHERE flag_key = $1
UNION ALL
SELECT tenant_id, variant, 0, '', reason, updated_by, updated_at
  FROM crossfade_flag_targets WHERE flag_key = $1`

// List reads all wishes as of one moment.
func (s *Store) List(ctx context.Context) (Wishes, error) {
	var w Wishes
	rows, err := s.pool.Query(ctx, listWishes, FlagKey)
	if err != nil {
		return Wishes{}, fmt.Errorf("listing the wishes: %w", explain(err))
	}
	var (
		tenant *string
		t      Target
		r      Rule
	)
	_, err = pgx.ForEachRow(rows, []any{&tenant, &t.Variant, &r.Percent, &r.PercentVariant, &t.Reason, &t.UpdatedBy, &t.UpdatedAt}, func() error {
		if tenant == nil {
			w.Rule = &Rule{t.Variant, r.Percent, r.PercentVariant, t.UpdatedBy, t.UpdatedAt}
			return nil
		}
		t.Tenant = *tenant
		w.Targets = append(w.Targets, t)
		return nil
	})
	if err != nil {
		return Wishes{}, fmt.Errorf("listing the wishes: %w", explain(err))
	}
	// Here and not in SQL: the database's collation may order otherwise.
	slices.SortFunc(w.Targets, func(a, b Target) int { return strings.Compare(a.Tenant, b.Tenant) })
	return w, nil
}

func checkTenants(tenants []string) error {
	switch {
	case len(tenants) == 0:
		return errors.New("no tenant is named: name at least one")
	case len(tenants) > MaxTenantsPerCall:
		return fmt.Errorf("%d tenants at once: name at most %d, or use a percentage", len(tenants), MaxTenantsPerCall)
	}
	for _, tenant := range tenants {
		if err := checkTenant(tenant); err != nil {
			return err
		}
	}
	return nil
}

func checkVariant(v Variant) error {
	_, err := ParseVariant(string(v))
	return err
}

func checkPercent(percent float64) error {
	if !(percent >= 0 && percent <= 100) { // NaN is neither
		return fmt.Errorf("percent is %g: use 0 to 100", percent)
	}
	if hundredths := percent * 100; math.Abs(hundredths-math.Round(hundredths)) > 1e-6 {
		return fmt.Errorf("percent is %g: use at most two decimals", percent)
	}
	return nil
}

// describe names tenants in an error, without filling the screen.
func describe(tenants []string) string {
	if len(tenants) == 1 {
		return fmt.Sprintf("tenant %q", clip(tenants[0], 64))
	}
	return fmt.Sprintf("%d tenants", len(tenants))
}
