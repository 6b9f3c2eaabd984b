package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/flags"
)

const setProgress = `
UPDATE crossfade_rollouts
   SET state = $3, phase = $4, wave = $5, since = $6, window_from = $7, cause = nullif($8, ''), why = $9, revision = revision + 1,
       ended_at = CASE WHEN $3 IN ('failed', 'aborted', 'done') THEN now() END
 WHERE name = $1 AND revision = $2`

const setTenants = `
INSERT INTO crossfade_rollout_tenants AS t (rollout, tenant_id, wave, state, wish, before, since, verdict, note)
SELECT $1, u.id, u.wave, u.state, nullif(u.wish, ''), nullif(u.before, ''), u.since, u.verdict, u.note
  FROM unnest($2::text[], $3::int4[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::text[], $9::text[])
       AS u(id, wave, state, wish, before, since, verdict, note)
    ON CONFLICT (rollout, tenant_id) DO UPDATE
   SET wave = EXCLUDED.wave, state = EXCLUDED.state, wish = EXCLUDED.wish, before = EXCLUDED.before, since = EXCLUDED.since,
       verdict = EXCLUDED.verdict, note = EXCLUDED.note`

// setWishes writes where an operator writes. Under repeatable read it fails, and all is
// decided anew, where somebody has written one of these wishes since it was read. The
// order is that of package flags, so that the two do not wait for each other in a circle.
const setWishes = `
INSERT INTO crossfade_flag_targets (flag_key, tenant_id, variant, reason, updated_by)
SELECT $1, u.id, u.variant, u.reason, $2
  FROM unnest($3::text[], $4::text[], $5::text[]) AS u(id, variant, reason)
 ORDER BY u.id
    ON CONFLICT (flag_key, tenant_id) DO UPDATE
   SET variant = EXCLUDED.variant, reason = EXCLUDED.reason, updated_by = EXCLUDED.updated_by, updated_at = now()`

const addEvents = `
INSERT INTO crossfade_rollout_events (rollout, wave, kind, tenant_id, verdict, message, evidence)
SELECT $1, u.wave, u.kind, nullif(u.tenant, ''), nullif(u.verdict, ''), u.message, nullif(u.evidence, '')::jsonb
  FROM unnest($2::int4[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
       WITH ORDINALITY AS u(wave, kind, tenant, verdict, message, evidence, i)
 ORDER BY i`

// write makes a change of a rollout, wishes and all, in a transaction that has read it.
func write(ctx context.Context, tx pgx.Tx, r *Rollout, c *Change) error {
	if c.err != nil {
		return c.err
	}
	name, n := r.Plan.Name, c.Next
	var from *time.Time
	if !n.WindowFrom.IsZero() {
		from = &n.WindowFrom
	}
	tag, err := tx.Exec(ctx, setProgress, name, r.Revision, n.State, n.Phase, n.Wave, n.Since, from, n.Cause, n.Why)
	if err != nil {
		return fmt.Errorf("write rollout %q: %w", name, err)
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("write rollout %q: its row is not at revision %d any more", name, r.Revision)
	}
	if err := writeTenants(ctx, tx, name, c.Tenants); err != nil {
		return err
	}
	if err := writeWishes(ctx, tx, name, c.Wishes); err != nil {
		return err
	}
	return writeEvents(ctx, tx, name, c.Events)
}

func writeTenants(ctx context.Context, tx pgx.Tx, name string, tenants []Tenant) error {
	n := len(tenants)
	if n == 0 {
		return nil
	}
	ids, waves, states := make([]string, n), make([]int, n), make([]string, n)
	wishes, before, since := make([]string, n), make([]string, n), make([]time.Time, n)
	verdicts, notes := make([]string, n), make([]string, n)
	for i, t := range tenants {
		ids[i], waves[i], states[i], wishes[i], before[i] = t.ID, t.Wave, string(t.State), string(t.Wish), string(t.Before)
		since[i], verdicts[i], notes[i] = t.Since, string(t.Verdict), t.Note
	}
	if _, err := tx.Exec(ctx, setTenants, name, ids, waves, states, wishes, before, since, verdicts, notes); err != nil {
		return fmt.Errorf("write %d tenants of rollout %q: %w", n, name, err)
	}
	return nil
}

func writeWishes(ctx context.Context, tx pgx.Tx, name string, list []Wish) error {
	n := len(list)
	if n == 0 {
		return nil
	}
	ids, variants, reasons := make([]string, n), make([]string, n), make([]string, n)
	for i, wish := range list {
		ids[i], variants[i], reasons[i] = wish.Tenant, string(wish.Stage), wish.Reason
	}
	if _, err := tx.Exec(ctx, setWishes, flags.FlagKey, By(name), ids, variants, reasons); err != nil {
		return fmt.Errorf("write the wishes of rollout %q for %d tenants: %w", name, n, err)
	}
	return nil
}

// execer is a pool, a connection or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func writeEvents(ctx context.Context, db execer, name string, events []Event) error {
	n := len(events)
	if n == 0 {
		return nil
	}
	waves, kinds, tenants := make([]int, n), make([]string, n), make([]string, n)
	verdicts, messages, evidence := make([]string, n), make([]string, n), make([]string, n)
	for i, e := range events {
		waves[i], kinds[i], tenants[i], verdicts[i], messages[i] = e.Wave, e.Kind, e.Tenant, string(e.Verdict), e.Message
		if len(e.Evidence) > 0 {
			b, err := json.Marshal(e.Evidence)
			if err != nil {
				return fmt.Errorf("encode the evidence of rollout %q: %w", name, err)
			}
			evidence[i] = string(b)
		}
	}
	if _, err := db.Exec(ctx, addEvents, name, waves, kinds, tenants, verdicts, messages, evidence); err != nil {
		return fmt.Errorf("write %d events of rollout %q: %w", n, name, err)
	}
	return nil
}
