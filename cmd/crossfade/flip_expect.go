package main

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
	"github.com/jackc/pgx/v5/pgxpool"
)

// parseExpected reads --expect-revision: a number for a single tenant, TENANT=REV for
// several. A tenant that has no stage yet has revision 0.
func parseExpected(values, tenants []string) (map[string]int64, error) {
	expected := make(map[string]int64, len(values))
	for _, v := range values {
		tenant, number := "", v
		if at := strings.LastIndexByte(v, '='); at >= 0 {
			tenant, number = v[:at], v[at+1:]
		} else if len(tenants) == 1 {
			tenant = tenants[0]
		}
		revision, err := strconv.ParseInt(number, 10, 64)
		switch {
		case err != nil || revision < 0:
			return nil, fmt.Errorf("--expect-revision is %s: give a number of 0 or more, or TENANT=REV", printable(v))
		case !slices.Contains(tenants, tenant):
			return nil, fmt.Errorf("--expect-revision %s: with several tenants say whose, as TENANT=REV, and only of those named", printable(v))
		}
		if _, twice := expected[tenant]; twice {
			return nil, fmt.Errorf("--expect-revision is given twice for tenant %s", printable(tenant))
		}
		expected[tenant] = revision
	}
	return expected, nil
}

// errStale is what a guard says when a revision is not the one expected.
var errStale = errors.New("not the revision expected")

// guardPatience is how long a guard may hold its rows. A process that is frozen then
// must not keep the leader from moving others for longer.
const guardPatience = 2 * time.Second

// guarded makes a change while nobody can move the tenants on from the revisions
// expected.
func guarded(ctx context.Context, pool *pgxpool.Pool, expected map[string]int64, change func() error) error {
	if len(expected) == 0 {
		return change()
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("guard revisions: %w", err)
	}
	unlocked := false
	defer func() {
		if !unlocked {
			_ = tx.Rollback(context.WithoutCancel(ctx)) // it wrote nothing
		}
	}()
	if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL idle_in_transaction_session_timeout = %d", guardPatience.Milliseconds())); err != nil {
		return fmt.Errorf("guard revisions: %w", err)
	}
	if err := lockExpected(ctx, tx, expected); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	unlocked = true
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("the wish is set, but the guard was lost before (the revision may have been another by then; see crossfade history): %w", err)
	}
	return nil
}

// lockExpected locks the rows, if they are at the revisions expected. It waits for
// nobody while it has locks, so it is in no circle with the leader, who writes rows
// in any order.
func lockExpected(ctx context.Context, tx pgx.Tx, expected map[string]int64) error {
	for try := 0; ; try++ {
		err := pgx.BeginFunc(ctx, tx, func(inner pgx.Tx) error { return compareExpected(ctx, inner, expected, "FOR SHARE NOWAIT") })
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != "55P03" || try == 100 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// checkExpected compares revisions without keeping them.
func checkExpected(ctx context.Context, pool *pgxpool.Pool, expected map[string]int64) error {
	if len(expected) == 0 {
		return nil
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return compareExpected(ctx, tx, expected, "") })
}

func compareExpected(ctx context.Context, tx pgx.Tx, expected map[string]int64, lock string) error {
	tenants := make([]string, 0, len(expected))
	for t := range expected {
		tenants = append(tenants, t)
	}
	slices.Sort(tenants)
	rows, err := tx.Query(ctx, `SELECT tenant_id, revision FROM crossfade_stages WHERE tenant_id = ANY($1) `+lock, tenants)
	if err != nil {
		return fmt.Errorf("read the revisions of %d tenants: %w", len(tenants), err)
	}
	actual := make(map[string]int64, len(tenants))
	var tenant string
	var revision int64
	if _, err := pgx.ForEachRow(rows, []any{&tenant, &revision}, func() error { actual[tenant] = revision; return nil }); err != nil {
		return fmt.Errorf("read the revisions of %d tenants: %w", len(tenants), err)
	}
	for _, t := range tenants {
		if actual[t] != expected[t] {
			return fmt.Errorf("%w: tenant %s is at revision %d, not %d; nothing was changed (see crossfade history %s)", errStale, printable(t), actual[t], expected[t], printable(t))
		}
	}
	return nil
}
