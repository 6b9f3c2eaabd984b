package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// moveStages changes stages by compare-and-set, all in one statement with one epoch,
// and writes their history. Rows whose revision has moved on are left alone. A
// revision is also above all that the history knows, since rows of a tenant that was
// removed and has come back, or that a backup has brought back, must not collide with
// what was written there: one such tenant would keep all others where they are. For
// the same reason it waits for nobody's lock on a row: such a row is left for the next
// round, and returned as locked. The epoch, which comes last, is all it waits for.
const moveStages = `
WITH wanted AS (
    SELECT u.*, coalesce((SELECT max(h.revision) FROM crossfade_stage_history AS h WHERE h.tenant_id = u.tenant_id), 0) AS past
      FROM unnest($1::text[], $2::text[], $3::text[], $4::int8[], $5::text[], $6::text[], $7::text[], $8::text[])
           AS u(tenant_id, from_stage, to_stage, revision, reason, evidence, wish, why)
), mine AS (
    SELECT w.* FROM crossfade_stages AS s JOIN wanted AS w ON s.tenant_id = w.tenant_id AND s.revision = w.revision AND s.stage = w.from_stage
     WHERE w.revision > 0
       FOR NO KEY UPDATE OF s SKIP LOCKED
), e AS (
    UPDATE crossfade_epoch SET epoch = epoch + 1
     WHERE EXISTS (SELECT FROM mine) OR EXISTS (SELECT FROM wanted WHERE revision = 0)
 RETURNING epoch, anew
), moved AS (
    UPDATE crossfade_stages AS s
       SET stage = w.to_stage, revision = greatest(s.revision, w.past) + 1, since = now(), changed_by = $9, reason = w.reason,
           epoch = e.epoch, confirmed_at = NULL, wanted = w.wish, wanted_why = w.why, waits_for = NULL, waits_since = NULL
      FROM mine AS w, e
     WHERE s.tenant_id = w.tenant_id AND s.revision = w.revision AND s.stage = w.from_stage
 RETURNING s.tenant_id, s.revision, w.from_stage, s.stage, s.reason, w.evidence, s.epoch, s.since
), added AS (
    INSERT INTO crossfade_stages (tenant_id, stage, revision, changed_by, reason, epoch, wanted, wanted_why, counts_in)
    SELECT w.tenant_id, w.to_stage, w.past + 1, $9, w.reason, e.epoch, w.wish, w.why, e.anew FROM wanted AS w, e WHERE w.revision = 0
        ON CONFLICT DO NOTHING
 RETURNING tenant_id, revision, NULL::text AS from_stage, stage, reason, NULL::text AS evidence, epoch, since
), changed AS (
    SELECT * FROM moved UNION ALL SELECT * FROM added
), written AS (
    INSERT INTO crossfade_stage_history (tenant_id, revision, from_stage, to_stage, changed_by, reason, evidence)
    SELECT tenant_id, revision, from_stage, stage, $9, reason, nullif(evidence, '')::jsonb FROM changed
)
SELECT tenant_id, revision, stage, reason, epoch, since, false AS locked FROM changed
 UNION ALL
SELECT s.tenant_id, s.revision, s.stage, '', s.epoch, s.since, true
  FROM crossfade_stages AS s JOIN wanted AS w ON s.tenant_id = w.tenant_id AND s.revision = w.revision AND s.stage = w.from_stage
 WHERE w.revision > 0 AND (SELECT count(*) FROM mine) < (SELECT count(*) FROM wanted WHERE revision > 0)
   AND w.tenant_id NOT IN (SELECT tenant_id FROM mine)`

// moveAll carries out those moves whose tenants are still where they started from, but
// for those whose rows somebody has locked: these are tried again in the next round.
func (t *term) moveAll(ctx context.Context, moves []move) error {
	if len(moves) == 0 {
		return nil
	}
	by := "instance " + t.c.o.Instance
	rows, err := t.conn.Query(ctx, moveStages, columns(moves, by)...)
	if err != nil {
		return fmt.Errorf("move %d tenants in crossfade_stages: %w", len(moves), err)
	}
	wishes := make(map[string]Wish, len(moves))
	for _, m := range moves {
		wishes[m.tenant] = m.wish
	}
	moved, before := 0, len(t.locked)
	var f Fact
	var locked bool
	_, err = pgx.ForEachRow(rows, []any{&f.Tenant, &f.Revision, &f.Stage, &f.Reason, &f.Epoch, &f.Since, &locked}, func() error {
		if locked {
			t.locked = append(t.locked, f.Tenant)
			return nil
		}
		next := f
		next.ChangedBy, next.Wanted, next.WantedWhy = by, wishes[f.Tenant].Stage, wishes[f.Tenant].Why
		t.book.moved(&next)
		t.c.moves.WithLabelValues(string(f.Stage)).Inc()
		moved++
		return nil
	})
	if err != nil {
		return fmt.Errorf("move %d tenants in crossfade_stages: %w", len(moves), err)
	}
	if moved+len(t.locked)-before < len(moves) { // somebody else has changed rows: read them
		t.book.readAt = time.Time{}
	}
	if moved > 0 {
		signal(t.c.stale)
	}
	return nil
}

// moved takes down a change of the leader's own. Where others have changed stages
// since the book was read it stays at the epoch that it has read: theirs comes next.
func (b *book) moved(f *Fact) {
	b.facts[f.Tenant] = f
	if f.Epoch == b.epoch+1 {
		b.epoch = f.Epoch
	}
}

// noteLocked tells of tenants that are due and whose rows somebody keeps locked: what
// each of them waits for cannot be written into its row.
func (t *term) noteLocked() {
	var err error
	slices.Sort(t.locked)
	if t.locked = slices.Compact(t.locked); len(t.locked) > 0 { // some were tried twice
		err = fmt.Errorf("%d tenants are due to move, but another session keeps their rows of crossfade_stages locked (%s): end its transaction, see pg_stat_activity",
			len(t.locked), some(t.locked))
	}
	switch was := t.c.locked.err(); {
	case err == nil:
		t.c.locked.Store(nil)
		if was != nil {
			t.c.log.Info("no row of crossfade_stages is locked any more")
		}
	case was == nil || was.Error() != err.Error():
		t.c.locked.Store(&err)
		t.c.log.Warn("rows of crossfade_stages are locked; their tenants wait, all others go on", "error", err)
	}
	t.locked = t.locked[:0]
}

func columns(moves []move, by string) []any {
	n := len(moves)
	tenants, from, to, reasons, evidence := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	wishes, why := make([]string, n), make([]string, n)
	revisions := make([]int64, n)
	for i, m := range moves {
		tenants[i], from[i], to[i], revisions[i] = m.tenant, string(m.from), string(m.to), m.revision
		reasons[i], evidence[i], wishes[i], why[i] = m.reason(), string(m.evidence), string(m.wish.Stage), m.wish.Why
	}
	return []any{tenants, from, to, revisions, reasons, evidence, wishes, why, by}
}

// reason words why a tenant was moved.
func (m *move) reason() string {
	what := "follows the flag"
	if m.wish.Operator {
		what = "follows the operator's wish"
	}
	if m.to == m.wish.Stage || m.revision == 0 && m.to == stage.Toward(m.wish.Stage) {
		return what
	}
	return fmt.Sprintf("%s, on the way to %s", what, m.wish.Stage)
}
