package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// PostgreSQL may come back without its last commits: a replica that lagged has been
// promoted, or a backup brought back. Numbers are then given twice, leases and
// sessions are forgotten, and a tenant shows in an outer stage that it has left, while
// instances go on by what they know for as long as their leases last. Hence eras.
//
// A leader begins one with its term, under a name that is never given twice. Views and
// confirmations count in the era that they were read in; whoever sees another one reads
// everything anew and drops nothing until it has a lease in that era. An era begins on
// the timeline that crossfade_epoch names; on any other one nobody drops anything, and
// the next leader begins anew: it takes every tenant inside, throws away all evidence,
// and until leases from before are over nobody drops and nothing counts as confirmed.
// What an older history has written may say for how long leases were given there, or may
// not know of the last ones: the longest that any instance may have is waited for.

// sameHistory, about crossfade_epoch AS e: what the row shows is what was written last,
// as far as PostgreSQL can tell. It cannot tell of a copy of its files that is started
// in their place; see Distrust.
const sameHistory = `e.timeline = crossfade_timeline() AND e.written::xid = e.xmin`

// countsNow, about crossfade_stages AS s and the present value of anew: the row says which
// stage the tenant is in. Any other row is one from before, which somebody keeps locked.
const countsNow = `s.counts_in = (SELECT anew FROM crossfade_epoch)`

// inside is a stage where it counts, or else the inner one beside.
const inside = `CASE WHEN s.stage = 'mqtt' AND NOT (` + countsNow + `) THEN 'shadow' WHEN s.stage = 'jetstream' AND NOT (` + countsNow + `) THEN 'live' ELSE s.stage END`

// history is a point of what was written: up to an epoch, in an era.
type history struct {
	era   string
	epoch int64
}

// lost reports whether what a view shows lacks commits that this instance has seen.
func (v *view) lost(known history) bool {
	switch {
	case known.era == "":
		return false
	case v.era == known.era:
		return v.epoch < known.epoch
	}
	return v.continues != nil && *v.continues < known.epoch
}

// doubt has the next era begin everything anew, since this instance knows of commits
// that are not there any more. The leader ends its term upon it.
func (c *Control) doubt(ctx context.Context, v *view) error {
	tag, err := c.o.Pool.Exec(ctx, `
UPDATE crossfade_epoch AS e SET timeline = $2 WHERE era = $1 AND `+sameHistory, v.era, "doubted by instance "+c.o.Instance)
	if err != nil {
		return fmt.Errorf("PostgreSQL has lost commits that instance %s has seen; tell others in crossfade_epoch: %w", c.o.Instance, err)
	}
	if tag.RowsAffected() > 0 {
		c.log.Error("PostgreSQL has lost commits that this instance has seen; every tenant's stage is proved anew",
			"era", c.known.era, "epoch", c.known.epoch, "found_era", v.era, "found_epoch", v.epoch)
	}
	return nil
}

// errStandby refuses a server that only copies another one: its facts may be late, and
// leases cannot be written there.
var errStandby = errors.New("this PostgreSQL server is a standby (in recovery) or takes no writes: have the database URL name the primary, with several hosts by target_session_attrs=read-write, or promote this server")

// standby gives a refusal to write the words that say what to do.
func standby(err error) error {
	var refusal *pgconn.PgError
	if errors.As(err, &refusal) && refusal.Code == "25006" { // read_only_sql_transaction
		return fmt.Errorf("%w (%w)", errStandby, err)
	}
	return err
}

// refuseStandby is for a session of the leader's.
func refuseStandby(ctx context.Context, conn *pgx.Conn) error {
	var copies bool
	if err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&copies); err != nil {
		return fmt.Errorf("ask whether PostgreSQL is in recovery: %w", err)
	}
	if copies {
		return errStandby
	}
	return nil
}

// errEraOver ends a term whose era is not the one that is written: PostgreSQL, or what
// is in it, was changed under the leader.
var errEraOver = errors.New("somebody knows of commits that PostgreSQL has lost, or crossfade_epoch was changed")

const beginEra = `
WITH was AS (
    SELECT ` + sameHistory + ` AS same FROM crossfade_epoch AS e FOR UPDATE
)
UPDATE crossfade_epoch AS e
   SET era = $1, continues = CASE WHEN was.same THEN e.epoch END, epoch = e.epoch + CASE WHEN was.same THEN 0 ELSE 1 END,
       timeline = crossfade_timeline(), settles_at = CASE WHEN was.same THEN e.settles_at ELSE now() + make_interval(secs => $2) END,
       anew = CASE WHEN was.same THEN e.anew ELSE $1 END
  FROM was
RETURNING was.same`

// takeInside takes everybody inside whose row does not count yet: from the outer stages
// that commits which are lost may have left, or in which others may have dropped what
// this history does not know. Rows that somebody has locked are left for later.
const takeInside = `
WITH mine AS (
    SELECT s.tenant_id, s.stage AS from_stage, s.stage IN ('mqtt', 'jetstream') AS outside, ` + inside + ` AS to_stage,
           greatest(s.revision, coalesce((SELECT max(h.revision) FROM crossfade_stage_history AS h WHERE h.tenant_id = s.tenant_id), 0)) + 1 AS revision
      FROM crossfade_stages AS s
     WHERE NOT (` + countsNow + `)
       FOR NO KEY UPDATE OF s SKIP LOCKED
), e AS (
    UPDATE crossfade_epoch SET epoch = epoch + 1 WHERE EXISTS (SELECT FROM mine WHERE outside) RETURNING epoch
), moved AS (
    UPDATE crossfade_stages AS s
       SET stage = m.to_stage, revision = m.revision, since = now(), changed_by = $1, reason = $2, epoch = e.epoch,
           confirmed_at = NULL, counts_in = (SELECT anew FROM crossfade_epoch)
      FROM mine AS m, e
     WHERE s.tenant_id = m.tenant_id AND m.outside
 RETURNING s.tenant_id, s.revision, m.from_stage, s.stage
), stayed AS (
    UPDATE crossfade_stages AS s SET confirmed_at = NULL, counts_in = (SELECT anew FROM crossfade_epoch)
      FROM mine AS m
     WHERE s.tenant_id = m.tenant_id AND NOT m.outside
), written AS (
    INSERT INTO crossfade_stage_history (tenant_id, revision, from_stage, to_stage, changed_by, reason)
    SELECT tenant_id, revision, from_stage, stage, $1, $2 FROM moved
)
SELECT count(*) FROM mine`

// begin begins the era of this term, and everything anew if commits may be lost.
func (t *term) begin(ctx context.Context) error {
	era := rand.Text()
	err := pgx.BeginFunc(ctx, t.conn, func(tx pgx.Tx) error {
		var same bool
		if err := tx.QueryRow(ctx, beginEra, era, t.c.o.LeaseMost.Seconds()).Scan(&same); err != nil {
			return err
		}
		if same {
			return nil
		}
		var batch pgx.Batch
		batch.Queue(`DELETE FROM crossfade_sentinels WHERE nonce IN (SELECT nonce FROM crossfade_sentinels FOR UPDATE SKIP LOCKED)`)
		batch.Queue(takeInside, "instance "+t.c.o.Instance, begunAnew)
		if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
			return err
		}
		t.c.log.Warn("PostgreSQL has another history than before (a failover, or a backup that was brought back): every outer stage is left and proved anew")
		return nil
	})
	if err != nil {
		return fmt.Errorf("begin an era in crossfade_epoch: %w", standby(err))
	}
	t.era = era
	return nil
}

// begunAnew is the reason that a tenant's history shows.
const begunAnew = "PostgreSQL may have lost commits: to be proved anew"

// takeRest takes those inside whose rows were locked when everything began anew. They
// count as inside meanwhile, for every instance.
func (t *term) takeRest(ctx context.Context) error {
	rest := 0
	for _, f := range t.book.facts {
		if f.Undecided {
			rest++
		}
	}
	if rest == 0 {
		return nil
	}
	var taken int
	if err := t.conn.QueryRow(ctx, takeInside, "instance "+t.c.o.Instance, begunAnew).Scan(&taken); err != nil {
		return fmt.Errorf("take %d tenants inside: %w", rest, err)
	}
	if taken > 0 {
		return t.readAll(ctx)
	}
	for _, f := range t.book.facts {
		if f.Undecided {
			t.locked = append(t.locked, f.Tenant)
		}
	}
	return nil
}

// Distrust has everything proved anew, as after a failover: for those who have brought
// PostgreSQL back in a way that it cannot tell itself, such as a snapshot of its disk.
// Nobody drops anything until a leader has begun anew and leases from before are over.
func Distrust(ctx context.Context, pool *pgxpool.Pool, by, reason string) error {
	tag, err := pool.Exec(ctx, `
WITH doubted AS (
    UPDATE crossfade_epoch SET timeline = 'doubted by ' || $1::text || ': ' || $2::text RETURNING 1
)
SELECT pg_notify('`+stageNotifications+`', ''), pg_notify('`+controlNotifications+`', '') FROM doubted`, by, reason)
	if err != nil {
		return fmt.Errorf("write a doubt into crossfade_epoch: %w", standby(err))
	}
	if tag.RowsAffected() == 0 {
		return errors.New("write a doubt into crossfade_epoch: it has no row: somebody has emptied it; insert (epoch) as the greatest of crossfade_stages")
	}
	return nil
}
