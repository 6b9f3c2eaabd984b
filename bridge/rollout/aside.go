package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
// or none that is concerned.
func StandAside(ctx context.Context, pool *pgxpool.Pool, tenants []string, by, reason string) (*Rollout, error) {
	var name string
	err := pool.QueryRow(ctx, `SELECT name FROM crossfade_rollouts WHERE state IN ('pending', 'running', 'paused')`).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for a rollout to pause: %w", err)
	}
	concerned := false
	r, err := command(ctx, pool, name, func(r *Rollout, o *Observation) (Change, error) {
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
