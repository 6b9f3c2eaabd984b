package bridge

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// Fact is what stage a tenant is in, as crossfade_stages has it.
type Fact struct {
	Tenant    string      `json:"tenant"`
	Stage     stage.Stage `json:"stage"`
	Revision  int64       `json:"revision"`
	Since     time.Time   `json:"since"`
	ChangedBy string      `json:"changed_by"`
	Reason    string      `json:"reason"`
}

// stageNotifications is the channel on which a trigger tells of every change.
const stageNotifications = "crossfade_stages"

// Facts returns the stages of all tenants that have one, by name.
func Facts(ctx context.Context, pool *pgxpool.Pool) ([]Fact, error) {
	rows, err := pool.Query(ctx, `
SELECT tenant_id, stage, revision, since, coalesce(changed_by, ''), coalesce(reason, '')
  FROM crossfade_stages
 ORDER BY tenant_id`)
	if err != nil {
		return nil, fmt.Errorf("read crossfade_stages: %w", err)
	}
	facts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Fact])
	if err != nil {
		return nil, fmt.Errorf("read crossfade_stages: %w", err)
	}
	return facts, nil
}

// Tenants returns the tenants that have a device, by name. It hops from
// tenant to tenant through the primary key, so its cost does not depend on how
// many devices there are.
func Tenants(ctx context.Context, pool *pgxpool.Pool) ([]string, error) {
	rows, err := pool.Query(ctx, `
WITH RECURSIVE t(tenant_id) AS (
    (SELECT tenant_id FROM device_registry ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT r.tenant_id FROM device_registry AS r WHERE r.tenant_id > t.tenant_id ORDER BY r.tenant_id LIMIT 1)
      FROM t
     WHERE t.tenant_id IS NOT NULL
)
SELECT tenant_id FROM t WHERE tenant_id IS NOT NULL`)
	if err != nil {
		return nil, fmt.Errorf("read the tenants of device_registry: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the tenants of device_registry: %w", err)
	}
	return names, nil
}

// move is a wanted change of one tenant's stage; revision is the one it starts
// from, 0 for a tenant that has no row yet.
type move struct {
	tenant   string
	from, to stage.Stage
	revision int64
}

// moveStages changes stages by compare-and-set, all in one statement, and writes
// their history. Rows whose revision has moved on are left alone. A revision is
// also above all that the history knows, since rows of a tenant that was removed
// and has come back, or that a backup has brought back, must not collide with what
// was written there: one such tenant would keep all others where they are.
const moveStages = `
WITH wanted AS (
    SELECT u.*, coalesce((SELECT max(h.revision) FROM crossfade_stage_history AS h WHERE h.tenant_id = u.tenant_id), 0) AS past
      FROM unnest($1::text[], $2::text[], $3::text[], $4::int8[]) AS u(tenant_id, from_stage, to_stage, revision)
), moved AS (
    UPDATE crossfade_stages AS s
       SET stage = w.to_stage, revision = greatest(s.revision, w.past) + 1, since = now(), changed_by = $5, reason = $6
      FROM wanted AS w
     WHERE s.tenant_id = w.tenant_id AND s.revision = w.revision AND w.revision > 0
 RETURNING s.tenant_id, s.revision, w.from_stage, s.stage
), added AS (
    INSERT INTO crossfade_stages (tenant_id, stage, revision, changed_by, reason)
    SELECT tenant_id, to_stage, past + 1, $5, $6 FROM wanted WHERE revision = 0
        ON CONFLICT DO NOTHING
 RETURNING tenant_id, revision, NULL::text, stage
)
INSERT INTO crossfade_stage_history (tenant_id, revision, from_stage, to_stage, changed_by, reason)
SELECT *, $5, $6 FROM moved
 UNION ALL
SELECT *, $5, $6 FROM added`

// stageLock serializes instances that move stages, so that they do not lock rows
// in different orders. Who waited finds the revisions moved on and changes only
// what the other did not.
const stageLock = 0x63726f7373667374 // "crossfst"

// apply carries out those moves whose tenants are still where they started from.
func apply(ctx context.Context, pool *pgxpool.Pool, moves []move, by, reason string) error {
	var tenants, from, to []string
	var revisions []int64
	for _, m := range moves {
		tenants, from, to = append(tenants, m.tenant), append(from, string(m.from)), append(to, string(m.to))
		revisions = append(revisions, m.revision)
	}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(stageLock)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, moveStages, tenants, from, to, revisions, by, reason)
		return err
	})
	if err != nil {
		return fmt.Errorf("move %d tenants in crossfade_stages: %w", len(moves), err)
	}
	return nil
}
