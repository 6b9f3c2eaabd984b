package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/control"
)

// ErrExists is what Start returns where a rollout of that name has been.
var ErrExists = errors.New("a rollout of that name has been started before: choose another name")

// ErrActive is what Start returns while another rollout is not over.
var ErrActive = errors.New("another rollout is not over: only one may be under way")

// Start enters a plan as a rollout, which an instance takes up within a second or so.
// by is who starts it.
func Start(ctx context.Context, pool *pgxpool.Pool, p Plan, by string) error {
	if err := p.Validate(); err != nil {
		return err
	}
	plan, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode the plan of rollout %q: %w", p.Name, err)
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO crossfade_rollouts (name, plan, state, phase, started_by) VALUES ($1, $2, 'pending', 'choosing', $3)`,
			p.Name, string(plan), by)
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "23505" {
			if pg.ConstraintName == "crossfade_rollouts_one" {
				return fmt.Errorf("start rollout %q: %w", p.Name, ErrActive)
			}
			return fmt.Errorf("start rollout %q: %w", p.Name, ErrExists)
		}
		if err != nil {
			return fmt.Errorf("start rollout %q: %w", p.Name, err)
		}
		return writeEvents(ctx, tx, p.Name, []Event{{Wave: 1, Kind: "state", Message: "pending: started by " + orSomebody(by)}})
	})
}

// Check says what would stop a plan if it were started now: tenants that nobody knows,
// waves without any. It is empty where nothing would.
func (p *Plan) Check(known []string) (problems []string) {
	there := make(map[string]bool, len(known))
	for _, t := range known {
		there[t] = true
	}
	for _, w := range p.Preview(known) {
		var unknown []string
		for _, t := range w.Tenants {
			if !there[t] {
				unknown = append(unknown, t)
			}
		}
		if len(unknown) > 0 {
			problems = append(problems, fmt.Sprintf("waves[%d]: no device is registered under %s: check the names", w.Wave, strings.Join(unknown, ", ")))
		}
		if len(w.Tenants) == 0 {
			problems = append(problems, fmt.Sprintf("waves[%d]: %g %% of %d tenants are none that no wave before has: choose more percent", w.Wave, p.Waves[w.Wave-1].Percent, len(known)))
		}
	}
	return problems
}

// Obstacles says what in the database would stop a plan, or keep tenants out of it, if it
// were started now: a rollout of its name or one under way, and holds.
func Obstacles(ctx context.Context, pool *pgxpool.Pool, p *Plan, waves []Chosen) (obstacles []string, err error) {
	list, err := List(ctx, pool)
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		if !r.State.Over() {
			obstacles = append(obstacles, fmt.Sprintf("rollout %s, which is %s", r.Plan.Name, r.State))
		} else if r.Plan.Name == p.Name {
			obstacles = append(obstacles, fmt.Sprintf("the name: rollout %s has been, and is %s", r.Plan.Name, r.State))
		}
	}
	holds, err := control.Holds(ctx, pool)
	if err != nil {
		return nil, err
	}
	for _, h := range holds {
		by := strings.TrimSuffix(orSomebody(h.By)+": "+h.Reason, ": ")
		if h.Tenant == control.Everybody {
			obstacles = append(obstacles, "the hold of all tenants by "+by)
			continue
		}
		for _, wave := range waves {
			if slices.Contains(wave.Tenants, h.Tenant) {
				obstacles = append(obstacles, fmt.Sprintf("the hold of %s by %s: wave %d would skip it", h.Tenant, by, wave.Wave))
			}
		}
	}
	return obstacles, nil
}

// command carries out an operator's decision.
func command(ctx context.Context, db beginner, name string, decide func(*Rollout, *Observation) (Change, error)) (*Rollout, error) {
	r, _, err := transact(ctx, db, name, func(ctx context.Context, tx pgx.Tx, r *Rollout) (Change, error) {
		o, err := observe(ctx, tx, r, nil, nil)
		if err != nil {
			return Change{}, err
		}
		return decide(r, o)
	})
	return r, err
}

// PauseNow pauses a rollout: when it returns, no instance writes another wish for it.
// It returns the rollout as it is then.
func PauseNow(ctx context.Context, pool *pgxpool.Pool, name, by, reason string) (*Rollout, error) {
	return command(ctx, pool, name, func(r *Rollout, o *Observation) (Change, error) { return Pause(r, o, by, reason) })
}

// ResumeNow lets a paused rollout go on.
func ResumeNow(ctx context.Context, pool *pgxpool.Pool, name, by string, skipWave bool) (*Rollout, error) {
	return command(ctx, pool, name, func(r *Rollout, o *Observation) (Change, error) { return Resume(r, o, by, skipWave) })
}

// AbortNow ends a rollout, and with rollBack writes the wishes that take its tenants
// back.
func AbortNow(ctx context.Context, pool *pgxpool.Pool, name, by, reason string, rollBack bool) (*Rollout, error) {
	return command(ctx, pool, name, func(r *Rollout, o *Observation) (Change, error) { return Abort(r, o, by, reason, rollBack) })
}

// List returns all rollouts without their tenants, newest first.
func List(ctx context.Context, pool *pgxpool.Pool) ([]*Rollout, error) {
	rows, err := pool.Query(ctx, `SELECT `+rolloutColumns+` FROM crossfade_rollouts ORDER BY started_at DESC, name`)
	if err != nil {
		return nil, fmt.Errorf("read crossfade_rollouts: %w", err)
	}
	all, err := pgx.CollectRows(rows, scanRollout)
	if err != nil {
		return nil, fmt.Errorf("read crossfade_rollouts: %w", err)
	}
	return all, nil
}

// Report is all there is to see of a rollout at one moment.
type Report struct {
	*Rollout
	*Observation
	// Results are what the gates say now, of tenants that are in the inner stage.
	Results map[string][]Result
	Events  []Event // the newest, oldest of them first
}

// Look returns a report, with no more than so many events.
func Look(ctx context.Context, pool *pgxpool.Pool, name string, events int) (*Report, error) {
	report := &Report{Results: make(map[string][]Result)}
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		if report.Rollout, err = load(ctx, tx, name); err != nil {
			return err
		}
		r := report.Rollout
		if report.Observation, err = observe(ctx, tx, r, nil, func(t *Tenant) bool { return judged(r, t) }); err != nil {
			return err
		}
		report.Events, err = readEvents(ctx, tx, name, events)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range report.Tenants {
		if t := &report.Tenants[i]; judged(report.Rollout, t) {
			m := report.Seen[t.ID].Measured
			report.Results[t.ID] = report.Plan.Gates.Judge(&m, report.WindowFrom, report.Now)
		}
	}
	return report, nil
}

func judged(r *Rollout, t *Tenant) bool {
	return t.State == InBake && t.Wave == r.Wave && !r.State.Over() && !r.WindowFrom.IsZero()
}

func readEvents(ctx context.Context, tx pgx.Tx, name string, n int) ([]Event, error) {
	rows, err := tx.Query(ctx, `
SELECT at, wave, kind, coalesce(tenant_id, ''), coalesce(verdict, ''), message, evidence
  FROM crossfade_rollout_events WHERE rollout = $1 ORDER BY id DESC LIMIT $2`, name, n)
	if err != nil {
		return nil, fmt.Errorf("read the events of rollout %q: %w", name, err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Event])
	if err != nil {
		return nil, fmt.Errorf("read the events of rollout %q: %w", name, err)
	}
	slices.Reverse(events)
	return events, nil
}

// Tenants returns all tenants that a plan may choose from.
func Tenants(ctx context.Context, pool *pgxpool.Pool) ([]string, error) {
	return control.Tenants(ctx, pool)
}
