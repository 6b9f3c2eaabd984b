package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/pipeline"
)

// StandAside pauses the rollout under way if it takes to JetStream whom an operator is
// about to roll back: tenants that it has chosen, or everybody where tenants is nil.
// When it returns, no instance writes another wish for it, so whoever writes wishes
// afterwards has the last word.
//
// It returns the rollout as it is then, paused now or before; nil where there is none,
// or none that is concerned. It waits no longer than patience for a lock; where somebody
// has one for longer, the wishes must not wait, and the rollout is to be paused after them.
func StandAside(ctx context.Context, pool *pgxpool.Pool, tenants []string, by, reason string, patience time.Duration) (*Rollout, error) {
	db := impatient{pool, patience}
	name, err := db.underWay(ctx)
	if err != nil || name == "" {
		return nil, err
	}
	concerned := false
	r, err := command(ctx, db, name, func(r *Rollout, o *Observation) (Change, error) {
		if concerned = r.concernedBy(tenants); !concerned || r.State == Paused {
			return Change{}, nil
		}
		return Pause(r, o, by, told("rollback of "+rolledBack(tenants), reason))
	})
	if err != nil || !concerned {
		return nil, err
	}
	return r, nil
}

// impatient begins transactions that wait no longer than patience for one lock.
type impatient struct {
	beginner
	patience time.Duration
}

// BeginTx begins one.
func (i impatient) BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error) {
	tx, err := i.beginner.BeginTx(ctx, o)
	if err != nil {
		return nil, err
	}
	// Zero would be without end.
	if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = "+strconv.FormatInt(max(i.patience.Milliseconds(), 1), 10)); err != nil {
		return nil, errors.Join(err, tx.Rollback(context.WithoutCancel(ctx)))
	}
	return tx, nil
}

// underWay is the name of the rollout under way, "" if there is none.
func (i impatient) underWay(ctx context.Context) (name string, err error) {
	err = pgx.BeginTxFunc(ctx, i, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `SELECT name FROM crossfade_rollouts WHERE state IN ('pending', 'running', 'paused')`).Scan(&name)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for a rollout to pause: %w", err)
	}
	return name, nil
}

// concernedBy reports whether a rollback goes against what the rollout does. Whom it
// has not chosen yet it will leave alone by itself, and one that goes towards MQTT is
// in nobody's way.
func (r *Rollout) concernedBy(tenants []string) bool {
	switch {
	case r.State.Over() || r.Plan.Stage.Authoritative() != pipeline.PathJetStream:
		return false
	case tenants == nil:
		return true
	}
	return slices.ContainsFunc(r.Tenants, func(t Tenant) bool {
		moves := t.Wish != "" || t.State == Waiting
		return moves && t.State != Taken && t.State != RolledBack && slices.Contains(tenants, t.ID)
	})
}

func rolledBack(tenants []string) string {
	switch n := len(tenants); {
	case tenants == nil:
		return "all tenants"
	case n > 4:
		return fmt.Sprintf("%s and %d more", strings.Join(tenants[:3], ", "), n-3)
	}
	return strings.Join(tenants, ", ")
}
