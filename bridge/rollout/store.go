package rollout

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/pipeline"
)

// ErrNone is what is returned where there is no rollout of that name.
var ErrNone = errors.New("there is no such rollout")

// beginner is a pool or a connection.
type beginner interface {
	BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error)
}

// attempts is how often a transaction is made again that met with another one.
const attempts = 10

// decision says what is to be done with a rollout in a transaction's snapshot. It may
// be asked several times.
type decision func(ctx context.Context, tx pgx.Tx, r *Rollout) (Change, error)

// transact carries out a decision. All is read in one snapshot and written over
// exactly that: whoever changes the rollout, or a wish that is to be written, in
// between makes it begin again. After an error whose outcome is not known the next
// look at the rollout tells.
func transact(ctx context.Context, db beginner, name string, decide decision) (r *Rollout, changed bool, err error) {
	for range attempts {
		r, changed, err = transactOnce(ctx, db, name, decide)
		pg, ok := errors.AsType[*pgconn.PgError](err)
		if !ok || pg.Code != "40001" && pg.Code != "40P01" && pg.Code != "23505" {
			break
		}
	}
	return r, changed, err
}

func transactOnce(ctx context.Context, db beginner, name string, decide decision) (*Rollout, bool, error) {
	tx, err := db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return nil, false, fmt.Errorf("begin on rollout %q: %w", name, err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = tx.Rollback(ctx) // after a commit there is nothing to roll back
	}()
	r, err := load(ctx, tx, name)
	if err != nil {
		return nil, false, err
	}
	c, err := decide(ctx, tx, r)
	if err != nil || !c.Any() {
		return r, false, err
	}
	if err := write(ctx, tx, r, &c); err != nil {
		return r, false, err
	}
	if err := tx.Commit(ctx); err != nil {
		return r, false, fmt.Errorf("commit rollout %q: %w", name, err)
	}
	return r.after(&c), true, nil
}

// after is the rollout as a change leaves it.
func (r *Rollout) after(c *Change) *Rollout {
	next := *r
	next.Progress, next.Revision, next.Tenants = c.Next, r.Revision+1, nil
	changed := make(map[string]Tenant, len(c.Tenants))
	for _, t := range c.Tenants {
		changed[t.ID] = t
	}
	for _, t := range r.Tenants {
		if now, ok := changed[t.ID]; ok {
			t = now
			delete(changed, t.ID)
		}
		next.Tenants = append(next.Tenants, t)
	}
	for _, t := range c.Tenants {
		if _, ok := changed[t.ID]; ok {
			next.Tenants = append(next.Tenants, t)
		}
	}
	return &next
}

const rolloutColumns = `plan, state, phase, wave, since, window_from, coalesce(cause, ''), why, revision, started_by, started_at, ended_at`

func scanRollout(row pgx.CollectableRow) (*Rollout, error) {
	var r Rollout
	var plan []byte
	var from *time.Time
	err := row.Scan(&plan, &r.State, &r.Phase, &r.Wave, &r.Since, &from, &r.Cause, &r.Why, &r.Revision, &r.StartedBy, &r.StartedAt, &r.EndedAt)
	if err != nil {
		return nil, err
	}
	if from != nil {
		r.WindowFrom = *from
	}
	if err := json.Unmarshal(plan, &r.Plan); err != nil {
		return nil, fmt.Errorf("the plan in crossfade_rollouts: %w", err)
	}
	if r.Plan.complete(); r.Wave >= len(r.Plan.Waves) {
		return nil, fmt.Errorf("rollout %q is in wave %d of %d: somebody has changed its row", r.Plan.Name, r.Wave+1, len(r.Plan.Waves))
	}
	return &r, nil
}

func load(ctx context.Context, db parity.DB, name string) (*Rollout, error) {
	rows, err := db.Query(ctx, `SELECT `+rolloutColumns+` FROM crossfade_rollouts WHERE name = $1`, name)
	if err != nil {
		return nil, fmt.Errorf("read rollout %q: %w", name, err)
	}
	r, err := pgx.CollectExactlyOneRow(rows, scanRollout)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("rollout %q: %w", name, ErrNone)
	}
	if err != nil {
		return nil, fmt.Errorf("read rollout %q: %w", name, err)
	}
	rows, err = db.Query(ctx, `
SELECT tenant_id, wave, state, coalesce(wish, ''), coalesce(before, ''), since, verdict, note
  FROM crossfade_rollout_tenants WHERE rollout = $1 ORDER BY wave, tenant_id COLLATE "C"`, name)
	if err != nil {
		return nil, fmt.Errorf("read the tenants of rollout %q: %w", name, err)
	}
	if r.Tenants, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Tenant]); err != nil {
		return nil, fmt.Errorf("read the tenants of rollout %q: %w", name, err)
	}
	return r, nil
}

// observe reads what is known of a rollout's tenants, in the snapshot of db. known are
// all tenants; measured is for which of r's tenants measurements are wanted, nil: none.
func observe(ctx context.Context, db parity.DB, r *Rollout, known []string, measured func(*Tenant) bool) (*Observation, error) {
	o := &Observation{Known: known, Seen: make(map[string]Seen, len(known)+len(r.Tenants)), Measured: measured != nil}
	names := make([]string, 0, len(known)+len(r.Tenants))
	for _, t := range r.Tenants {
		names = append(names, t.ID)
	}
	names = append(names, known...)
	rows, err := db.Query(ctx, `
SELECT now(), coalesce((SELECT concat_ws(': ', nullif(held_by, ''), nullif(reason, '')) || ' ' FROM crossfade_holds WHERE tenant_id = ''), ''),
       u.id, coalesce(s.stage, ''), coalesce(s.wanted, ''), coalesce(s.waits_for, ''), f.variant, coalesce(f.updated_by, ''), coalesce(f.reason, ''), f.updated_at,
       coalesce(concat_ws(': ', nullif(h.held_by, ''), nullif(h.reason, '')), ''), h.tenant_id IS NOT NULL
  FROM (SELECT 1) AS one
  LEFT JOIN (SELECT DISTINCT unnest($1::text[]) AS id) AS u ON true
  LEFT JOIN crossfade_stages AS s ON s.tenant_id = u.id
  LEFT JOIN crossfade_flag_targets AS f ON f.tenant_id = u.id AND f.flag_key = $2
  LEFT JOIN crossfade_holds AS h ON h.tenant_id = u.id`, names, flags.FlagKey)
	if err != nil {
		return nil, fmt.Errorf("observe rollout %q: %w", r.Plan.Name, err)
	}
	var tenant, variant *string
	var by, reason string
	var written *time.Time
	var held bool
	var s Seen
	_, err = pgx.ForEachRow(rows, []any{&o.Now, &o.HeldAll, &tenant, &s.Stage, &s.Wanted, &s.WaitsFor, &variant, &by, &reason, &written, &s.Held, &held}, func() error {
		if tenant == nil {
			return nil
		}
		seen := s
		if variant != nil {
			seen.Target = &Target{stage.Stage(*variant), by, reason, *written}
		}
		if held {
			seen.Held = cmp.Or(seen.Held, "somebody")
		}
		o.Seen[*tenant] = seen
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("observe rollout %q: %w", r.Plan.Name, err)
	}
	if o.HeldAll != "" { // the space after it: held, even by nobody for nothing
		o.HeldAll = cmp.Or(strings.TrimSpace(o.HeldAll), "somebody")
	}
	if measured != nil {
		err = measure(ctx, db, r, o, measured)
	}
	return o, err
}

// measure reads what the gates judge by. Three statements, whatever the number of
// tenants; their cost is that of the minutes of the window.
func measure(ctx context.Context, db parity.DB, r *Rollout, o *Observation, wanted func(*Tenant) bool) error {
	var names []string
	for i := range r.Tenants {
		if wanted(&r.Tenants[i]) {
			names = append(names, r.Tenants[i].ID)
		}
	}
	if len(names) == 0 {
		return nil
	}
	all := make(map[string]*Measured, len(names))
	windows, err := parity.Windows(ctx, db, names, r.WindowFrom)
	if err != nil {
		return err
	}
	for _, w := range windows {
		all[w.Tenant] = &Measured{Parity: w.Counts}
	}
	path := pipeline.PathMQTT
	if r.Plan.Stage.Authoritative() == pipeline.PathJetStream {
		path = pipeline.PathJetStream
	}
	rows, err := db.Query(ctx, `SELECT tenant_id, seconds, seen_at, missing_since FROM crossfade_path_latency WHERE path = $1 AND tenant_id = ANY($2)`, int16(path), names)
	if err != nil {
		return fmt.Errorf("read crossfade_path_latency: %w", err)
	}
	var tenant string
	var seconds *float64
	var l Latency
	if _, err = pgx.ForEachRow(rows, []any{&tenant, &seconds, &l.SeenAt, &l.MissingSince}, func() error {
		got := l
		if seconds != nil {
			took := time.Duration(*seconds * float64(time.Second))
			got.Took = &took
		}
		all[tenant].Latency = got
		return nil
	}); err != nil {
		return fmt.Errorf("read crossfade_path_latency: %w", err)
	}
	rows, err = db.Query(ctx, `SELECT tenant_id, sum(cnt)::int8 FROM quarantine_counters_minute WHERE bucket_minute >= $1 AND tenant_id = ANY($2) GROUP BY 1`, r.WindowFrom, names)
	if err != nil {
		return fmt.Errorf("read quarantine_counters_minute: %w", err)
	}
	var n int64
	if _, err = pgx.ForEachRow(rows, []any{&tenant, &n}, func() error { all[tenant].Quarantined = n; return nil }); err != nil {
		return fmt.Errorf("read quarantine_counters_minute: %w", err)
	}
	for name, m := range all {
		seen := o.Seen[name]
		seen.Measured = *m
		o.Seen[name] = seen
	}
	return nil
}
