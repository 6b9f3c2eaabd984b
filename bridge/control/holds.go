package control

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Everybody is the tenant of a hold that holds all.
const Everybody = ""

// Held is a hold: its tenant stays where it is, whatever is wished. One step is taken
// all the same: the one that gives MQTT its authority back, where an operator's own
// wish for that very tenant asks for it. The emergency exit needs no key.
type Held struct {
	Tenant string    `json:"tenant"` // Everybody: all
	By     string    `json:"held_by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// Hold holds tenants where they are; Everybody holds all. Who is held already gets
// the new reason. It takes effect at the leader's next step, some milliseconds later.
func Hold(ctx context.Context, pool *pgxpool.Pool, tenants []string, by, reason string) error {
	_, err := pool.Exec(ctx, `
INSERT INTO crossfade_holds (tenant_id, held_by, reason)
SELECT DISTINCT u, $2::text, $3::text FROM unnest($1::text[]) AS u ORDER BY u
    ON CONFLICT (tenant_id) DO UPDATE SET held_by = EXCLUDED.held_by, reason = EXCLUDED.reason, at = now()`, tenants, by, reason)
	if err != nil {
		return fmt.Errorf("hold %d tenants in crossfade_holds: %w", len(tenants), err)
	}
	return nil
}

// Release lets tenants go, and returns those that were held, by name. Releasing
// Everybody ends the hold of all; tenants that are held by name stay held.
func Release(ctx context.Context, pool *pgxpool.Pool, tenants []string) ([]string, error) {
	rows, err := pool.Query(ctx, `
WITH gone AS (DELETE FROM crossfade_holds WHERE tenant_id = ANY($1::text[]) RETURNING tenant_id)
SELECT tenant_id FROM gone ORDER BY 1`, tenants)
	if err != nil {
		return nil, fmt.Errorf("release %d tenants in crossfade_holds: %w", len(tenants), err)
	}
	released, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("release %d tenants in crossfade_holds: %w", len(tenants), err)
	}
	return released, nil
}

// Holds returns all holds, by tenant; that of Everybody comes first.
func Holds(ctx context.Context, pool *pgxpool.Pool) ([]Held, error) {
	rows, err := pool.Query(ctx, `SELECT tenant_id, held_by, reason, at FROM crossfade_holds ORDER BY tenant_id`)
	if err != nil {
		return nil, fmt.Errorf("read crossfade_holds: %w", err)
	}
	holds, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Held])
	if err != nil {
		return nil, fmt.Errorf("read crossfade_holds: %w", err)
	}
	return holds, nil
}
