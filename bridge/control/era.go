package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
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
UPDATE crossfade_epoch SET timeline = $2 WHERE era = $1 AND timeline = crossfade_timeline()`, v.era, "doubted by instance "+c.o.Instance)
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
    SELECT timeline = crossfade_timeline() AS same FROM crossfade_epoch FOR UPDATE
)
UPDATE crossfade_epoch AS e
   SET era = $1, continues = CASE WHEN was.same THEN e.epoch END, epoch = e.epoch + CASE WHEN was.same THEN 0 ELSE 1 END,
       timeline = crossfade_timeline(), settles_at = CASE WHEN was.same THEN e.settles_at ELSE now() + make_interval(secs => $2) END
  FROM was
RETURNING e.epoch, was.same`

// beginInside takes everybody inside: from the outer stages that commits which are lost
// may have left, or in which others may have dropped what this history does not know.
const beginInside = `
WITH inside AS (
    SELECT tenant_id, stage AS from_stage, CASE stage WHEN 'mqtt' THEN 'shadow' ELSE 'live' END AS to_stage,
           greatest(revision, coalesce((SELECT max(h.revision) FROM crossfade_stage_history AS h WHERE h.tenant_id = s.tenant_id), 0)) + 1 AS revision
      FROM crossfade_stages AS s
     WHERE stage IN ('mqtt', 'jetstream')
), moved AS (
    UPDATE crossfade_stages AS s
       SET stage = i.to_stage, revision = i.revision, since = now(), changed_by = $2, reason = $3, epoch = $1, confirmed_at = NULL
      FROM inside AS i
     WHERE s.tenant_id = i.tenant_id
 RETURNING s.tenant_id, s.revision, i.from_stage, s.stage
)
INSERT INTO crossfade_stage_history (tenant_id, revision, from_stage, to_stage, changed_by, reason)
SELECT tenant_id, revision, from_stage, stage, $2, $3 FROM moved`

// begin begins the era of this term, and everything anew if commits may be lost.
func (t *term) begin(ctx context.Context) error {
	era := rand.Text()
	err := pgx.BeginFunc(ctx, t.conn, func(tx pgx.Tx) error {
		var epoch int64
		var same bool
		if err := tx.QueryRow(ctx, beginEra, era, t.c.o.LeaseTTL.Seconds()).Scan(&epoch, &same); err != nil {
			return err
		}
		if same {
			return nil
		}
		var batch pgx.Batch
		batch.Queue(`DELETE FROM crossfade_sentinels`)
		batch.Queue(`UPDATE crossfade_stages SET confirmed_at = NULL WHERE confirmed_at IS NOT NULL`)
		batch.Queue(beginInside, epoch, "instance "+t.c.o.Instance, "PostgreSQL may have lost commits: to be proved anew")
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
