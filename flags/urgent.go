package flags

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// urgentChunk is how many tenants are written by one statement at most: those that
	// are written first need not wait for a hundred thousand others.
	urgentChunk = 10_000
	// urgentLock is what a statement waits for one lock. Whoever waits that long for
	// somebody else's insert is told apart from the others by smaller statements.
	urgentLock = 20 * time.Millisecond
	// urgentSplit is into how many parts a statement is taken that had to wait.
	urgentSplit = 16
	// urgentPause is the time between two attempts at the same tenants.
	urgentPause = 50 * time.Millisecond
	// urgentSearch bounds the search for those who are in the way, so that it ends where
	// that is everybody.
	urgentSearch = 10 * time.Second
)

// Rows that others have locked are left out, and so are those that were locked and then
// deleted: there is one in the snapshot, and none that can be had. What is not in the
// snapshot may be somebody's insert that is not committed yet; the statement then
// waits for it, for as long as lock_timeout says.
const setFreeTargets = `
WITH wanted AS (
    SELECT DISTINCT unnest($2::text[]) AS tenant_id
), seen AS (
    SELECT t.tenant_id
      FROM crossfade_flag_targets t JOIN wanted USING (tenant_id)
     WHERE t.flag_key = $1
), before AS MATERIALIZED (
    SELECT t.tenant_id, t.variant
      FROM crossfade_flag_targets t JOIN wanted USING (tenant_id)
     WHERE t.flag_key = $1
     ORDER BY t.tenant_id
       FOR UPDATE OF t SKIP LOCKED
), written AS (
    INSERT INTO crossfade_flag_targets (flag_key, tenant_id, variant, reason, updated_by)
    SELECT $1, wanted.tenant_id, $3, $4, $5
      FROM wanted LEFT JOIN before USING (tenant_id) LEFT JOIN seen USING (tenant_id)
     WHERE before.tenant_id IS NOT NULL OR seen.tenant_id IS NULL
     ORDER BY wanted.tenant_id
    ON CONFLICT (flag_key, tenant_id) DO UPDATE
       SET variant = excluded.variant, reason = excluded.reason,
           updated_by = excluded.updated_by, updated_at = now()
    RETURNING tenant_id
)
SELECT written.tenant_id, COALESCE(before.variant, '')
  FROM written LEFT JOIN before USING (tenant_id)`

// SetTargetsUrgently is SetTargets for when nobody may be kept waiting: a tenant whose
// wish somebody else has locked holds up no other, and there may be any number of
// tenants. It is not all or nothing. The locked ones are tried again until patience has
// passed, once at least.
//
// It returns what those whose wish was set had wished before, and those whose wish was
// not set, both sorted. The error is nil if locks alone were in the way.
func (s *Store) SetTargetsUrgently(ctx context.Context, tenants []string, variant Variant, by, reason string, patience time.Duration) (done []Previous, left []string, err error) {
	op := fmt.Sprintf("setting the wish of %s to %s", describe(tenants), clip(string(variant), 64))
	err = errors.Join(checkVariant(variant), checkText("by", by, maxByLength), checkText("reason", reason, maxReasonLength))
	for _, tenant := range tenants {
		err = errors.Join(err, checkTenant(tenant))
	}
	if err != nil {
		return nil, tenants, fmt.Errorf("%s: %w", op, err)
	}
	tenants = slices.Compact(slices.Sorted(slices.Values(tenants)))
	u := urgent{s: s, args: []any{string(variant), reason, by}}
	u.pass(ctx, slices.Collect(slices.Chunk(tenants, urgentChunk)))
	for until := time.Now().Add(patience); len(u.left) > 0 && u.err == nil && time.Now().Before(until); {
		select {
		case <-ctx.Done():
		case <-time.After(min(urgentPause, time.Until(until))):
		}
		if ctx.Err() != nil {
			u.err = ctx.Err()
			break
		}
		again := u.left
		u.left = nil
		u.pass(ctx, again)
	}
	slices.SortFunc(u.done, func(a, b Previous) int { return strings.Compare(a.Tenant, b.Tenant) })
	left = slices.Sorted(slices.Values(slices.Concat(u.left...)))
	if u.err != nil {
		return u.done, left, fmt.Errorf("%s: %w", op, explain(u.err))
	}
	return u.done, left, nil
}

// urgent is a setting of wishes under way.
type urgent struct {
	s    *Store
	args []any // of the statement, after the tenants
	done []Previous
	left [][]string // as they are to be tried again
	err  error      // the first that is not about a lock
}

// pass tries all pieces once. What had to wait is tried again in smaller ones, after
// all that had not.
func (u *urgent) pass(ctx context.Context, pieces [][]string) {
	began := time.Now()
	var locked []string // rows: they cost no time together
	for len(pieces) > 0 {
		piece := pieces[0]
		pieces = pieces[1:]
		done, err := u.write(ctx, piece)
		switch {
		case err == nil:
			u.done = append(u.done, done...)
			locked = append(locked, without(piece, done)...)
		case errors.Is(err, errInserting) && len(piece) > 1 && time.Since(began) < urgentSearch:
			pieces = slices.AppendSeq(pieces, slices.Chunk(piece, (len(piece)+urgentSplit-1)/urgentSplit))
		case u.err == nil && !isLock(err):
			u.err = err
			fallthrough
		default:
			u.left = append(u.left, piece)
		}
	}
	if len(locked) > 0 {
		u.left = append(u.left, locked)
	}
}

// without returns the tenants that are not among those done; both know no repeats.
func without(tenants []string, done []Previous) (rest []string) {
	if len(done) == len(tenants) {
		return nil
	}
	have := make(map[string]bool, len(done))
	for _, p := range done {
		have[p.Tenant] = true
	}
	for _, t := range tenants {
		if !have[t] {
			rest = append(rest, t)
		}
	}
	return rest
}

// errInserting marks a wait that smaller statements can avoid, unlike one for the
// table.
var errInserting = errors.New("somebody else is about to wish for one of these tenants")

// write makes one transaction of its own for a piece, and returns those that were free.
func (u *urgent) write(ctx context.Context, tenants []string) (done []Previous, err error) {
	err = pgx.BeginTxFunc(ctx, u.s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = "+strconv.FormatInt(urgentLock.Milliseconds(), 10)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "LOCK TABLE crossfade_flag_targets IN ROW EXCLUSIVE MODE"); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, setFreeTargets, append([]any{FlagKey, tenants}, u.args...)...)
		if err != nil {
			return err
		}
		done, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Previous])
		if isLock(err) {
			return fmt.Errorf("%w: %w", errInserting, err)
		}
		if err != nil {
			return err
		}
		// To notify others takes a lock that a commit may hold for longer.
		_, err = tx.Exec(ctx, "SET LOCAL lock_timeout = '1s'")
		return err
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// isLock reports whether a statement failed over a lock of somebody else's.
func isLock(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == "55P03" || pg.Code == "40P01")
}
