package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// childLockTimeout bounds the wait for a partition while the parent is already
// locked, that is, while ingest stands still.
const childLockTimeout = 250 * time.Millisecond

// indexLockTimeout bounds each wait of CREATE INDEX CONCURRENTLY for an older
// transaction to end. Nobody waits for us meanwhile.
const indexLockTimeout = 30 * time.Second

// errRowsInTheWay: rows appeared in the DEFAULT partition between a look without
// locks and the lock that was chosen by it.
var errRowsInTheWay = errors.New("rows of the new partition arrived in the default partition")

// create adds the partition for s. Rows of that range which the DEFAULT partition
// holds move with it, in the same transaction: nobody ever sees a row twice, and
// whoever looks for a row after the commit finds it.
//
// The parent is locked against writers first. ATTACH alone would let them in, and
// one that had already chosen the DEFAULT partition for its row would then fail
// with a check violation, which is what a poison row looks like. Where rows move,
// readers are kept out as well: one that had planned without the new partition
// would miss them.
func (p *Partitions) create(ctx context.Context, conn *pgx.Conn, t *partitioned, s span, with string) error {
	name, err := t.freeName(ctx, conn, s.lo)
	if err != nil {
		return p.explain("look for partitions of "+t.name, err)
	}
	return p.retry(ctx, "create partition "+name, func() error {
		occupied, err := t.defaultHolds(ctx, conn, s)
		if err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			// INCLUDING ALL brings keys, indexes and checks, which ATTACH then
			// matches to the parent's instead of building them under its lock.
			// An identity belongs to the parent.
			if _, err := tx.Exec(ctx, fmt.Sprintf(`CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY)%s`, name, t.ident, with)); err != nil {
				return err
			}
			if err := t.seal(ctx, tx, name); err != nil {
				return err
			}
			mode := "SHARE ROW EXCLUSIVE"
			if occupied || t.kind == keyID {
				mode = "ACCESS EXCLUSIVE"
			}
			if err := p.lock(ctx, tx, t, mode); err != nil {
				return err
			}
			if t.defaultIdent != "" {
				if err := t.moveFromDefault(ctx, tx, name, s, occupied || t.kind == keyID); err != nil {
					return err
				}
			}
			_, err := tx.Exec(ctx, fmt.Sprintf(`ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)`,
				t.ident, name, t.kind.literal(s.lo), t.kind.literal(s.hi)))
			return err
		})
	})
}

// freeName is the name for the partition that begins at lo. By the day it may be taken:
// by a partition of somebody's whose days begin at another hour, or one that was detached.
func (t *partitioned) freeName(ctx context.Context, conn *pgx.Conn, lo int64) (string, error) {
	name := pgx.Identifier{t.schema, partitionName(t.name, lo)}.Sanitize()
	var taken bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, name).Scan(&taken); err != nil || !taken {
		return name, err
	}
	return pgx.Identifier{t.schema, partitionNameExact(t.name, lo)}.Sanitize(), nil
}

// createDefault adds the DEFAULT partition that an adopted table lacks: without it the
// rows of devices whose clock is off would be refused.
func (p *Partitions) createDefault(ctx context.Context, conn *pgx.Conn, t *partitioned) error {
	name := pgx.Identifier{t.schema, t.name + "_default"}.Sanitize()
	err := p.retry(ctx, "create partition "+name, func() error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if err := p.lock(ctx, tx, t, "ACCESS EXCLUSIVE"); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, fmt.Sprintf(`CREATE TABLE %s PARTITION OF %s DEFAULT`, name, t.ident)); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, fmt.Sprintf(`CREATE INDEX ON %s (%s)`, name, pgx.Identifier{t.key}.Sanitize())); err != nil {
				return err
			}
			return t.seal(ctx, tx, name)
		})
	})
	if err == nil {
		t.defaultIdent = name
	}
	return err
}

// seal closes a new partition to all but its owner, even where default privileges let
// others at every new table: the parent's policies guard queries of the parent only.
func (t *partitioned) seal(ctx context.Context, tx pgx.Tx, name string) error {
	if !t.rowSecurity {
		return nil
	}
	_, err := tx.Exec(ctx, `ALTER TABLE `+name+` ENABLE ROW LEVEL SECURITY`)
	return err
}

// lock takes the parent, waiting for p.o.LockTimeout at most, then the DEFAULT
// partition, for childLockTimeout at most: whoever else wants the parent
// waits as long as we do.
func (p *Partitions) lock(ctx context.Context, tx pgx.Tx, t *partitioned, mode string) error {
	if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, p.o.LockTimeout.Milliseconds())); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(`LOCK TABLE ONLY %s IN %s MODE`, t.ident, mode)); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, min(p.o.LockTimeout, childLockTimeout).Milliseconds())); err != nil {
		return err
	}
	if t.defaultIdent == "" {
		return nil
	}
	_, err := tx.Exec(ctx, fmt.Sprintf(`LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE`, t.defaultIdent))
	return err
}

func (t *partitioned) within(s span) string {
	key := pgx.Identifier{t.key}.Sanitize()
	return fmt.Sprintf(`%s >= %s AND %s < %s`, key, t.kind.literal(s.lo), key, t.kind.literal(s.hi))
}

type rowQuerier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func (t *partitioned) defaultHolds(ctx context.Context, q rowQuerier, s span) (bool, error) {
	if t.defaultIdent == "" {
		return false, nil
	}
	var holds bool
	err := q.QueryRow(ctx, fmt.Sprintf(`SELECT EXISTS (SELECT FROM %s WHERE %s)`, t.defaultIdent, t.within(s))).Scan(&holds)
	return holds, err
}

func (t *partitioned) moveFromDefault(ctx context.Context, tx pgx.Tx, to string, s span, readersOut bool) error {
	if !readersOut {
		if holds, err := t.defaultHolds(ctx, tx, s); err != nil || !holds {
			return err
		}
		return errRowsInTheWay
	}
	_, err := tx.Exec(ctx, fmt.Sprintf(
		`WITH moved AS (DELETE FROM %s WHERE %s RETURNING %s) INSERT INTO %s (%s) SELECT %s FROM moved`,
		t.defaultIdent, t.within(s), t.columns, to, t.columns, t.columns))
	return err
}

// drop removes a partition and its rows.
func (p *Partitions) drop(ctx context.Context, conn *pgx.Conn, t *partitioned, part partition) error {
	return p.retry(ctx, "drop partition "+part.ident, func() error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if err := p.detach(ctx, tx, t, part); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `DROP TABLE `+part.ident)
			return err
		})
	})
}

// dropLedger removes a ledger partition, except for the rows that were committed
// at cutoff or later: late messages, whose other copy may still come. These move
// to the DEFAULT partition, where IDs of the range belong from now on, in the same
// transaction.
func (p *Partitions) dropLedger(ctx context.Context, conn *pgx.Conn, t *partitioned, part partition, cutoff time.Time) (kept int64, err error) {
	young := fmt.Sprintf(`committed_at >= %s`, keyTime.literal(cutoff.UnixMicro()))
	err = p.retry(ctx, "drop ledger partition "+part.ident, func() error {
		if err := p.indexYoung(ctx, conn, part, young); err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if err := p.detach(ctx, tx, t, part); err != nil {
				return err
			}
			// Ingest stands still: without the index of indexYoung this reads
			// the whole partition.
			if _, err := tx.Exec(ctx, `SET LOCAL enable_seqscan = off`); err != nil {
				return err
			}
			tag, err := tx.Exec(ctx, fmt.Sprintf(`INSERT INTO %s (%s) SELECT %s FROM %s WHERE %s ORDER BY %s`,
				t.ident, t.columns, t.columns, part.ident, young, pgx.Identifier{t.key}.Sanitize()))
			if err != nil {
				return err
			}
			kept = tag.RowsAffected()
			_, err = tx.Exec(ctx, `DROP TABLE `+part.ident)
			return err
		})
	})
	return kept, err
}

// indexYoung indexes the few young rows of a large partition while ingest goes
// on, so that finding them under the lock takes no time. An index that an earlier,
// interrupted run has left is replaced: it was made for an earlier cutoff.
func (p *Partitions) indexYoung(ctx context.Context, conn *pgx.Conn, part partition, young string) error {
	var bytes int64
	if err := conn.QueryRow(ctx, `SELECT pg_relation_size(to_regclass($1))`, part.ident).Scan(&bytes); err != nil {
		return err
	}
	if bytes < p.indexFrom {
		return nil
	}
	index := pgx.Identifier{strings.Trim(part.ident[strings.LastIndexByte(part.ident, '.')+1:], `"`) + "_young"}.Sanitize()
	schema, _, qualified := strings.Cut(part.ident, ".")
	dropped := index
	if qualified {
		dropped = schema + "." + index
	}
	for _, sql := range []string{
		fmt.Sprintf(`SET lock_timeout = '%dms'`, indexLockTimeout.Milliseconds()),
		`DROP INDEX CONCURRENTLY IF EXISTS ` + dropped,
		fmt.Sprintf(`CREATE INDEX CONCURRENTLY %s ON %s (committed_at) WHERE %s`, index, part.ident, young),
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

func (p *Partitions) detach(ctx context.Context, tx pgx.Tx, t *partitioned, part partition) error {
	if err := p.lock(ctx, tx, t, "ACCESS EXCLUSIVE"); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, fmt.Sprintf(`ALTER TABLE %s DETACH PARTITION %s`, t.ident, part.ident))
	return err
}

// deleteOlder deletes rows with column < before from one table, a chunk per
// transaction, so that it holds no lock for long. It returns how many.
func (p *Partitions) deleteOlder(ctx context.Context, conn *pgx.Conn, ident, column string, before time.Time) (int64, error) {
	column = pgx.Identifier{column}.Sanitize()
	// The condition stands twice: the outer one is tested again on a row that
	// somebody changed meanwhile.
	sql := fmt.Sprintf(`DELETE FROM ONLY %[1]s WHERE %[2]s < $1 AND ctid = ANY (ARRAY(
		SELECT ctid FROM ONLY %[1]s WHERE %[2]s < $1 ORDER BY %[2]s LIMIT $2))`, ident, column)
	var deleted int64
	for {
		var n int64
		err := p.retry(ctx, "prune "+ident, func() error {
			tag, err := conn.Exec(ctx, sql, before, p.o.Chunk)
			n = tag.RowsAffected()
			return err
		})
		deleted += n
		if err != nil || n < int64(p.o.Chunk) {
			return deleted, err
		}
	}
}

// retry runs f again after lock timeouts and deadlocks, p.o.Attempts times at most,
// with pauses in which the traffic that was in the way can flow.
func (p *Partitions) retry(ctx context.Context, operation string, f func() error) error {
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil {
			return nil
		}
		if !lockTrouble(err) {
			return p.explain(operation, err)
		}
		if attempt >= p.o.Attempts {
			return translate(fmt.Sprintf("%s: the table was busy %d times (longest wait %v); it will be tried again, "+
				"and a long transaction on it should end (see pg_stat_activity.xact_start)", operation, attempt, p.o.LockTimeout), err)
		}
		p.o.Logger.DebugContext(ctx, "partition maintenance waits for locks", "operation", operation, "attempt", attempt, "error", err)
		pause := time.Duration(float64(attempt) * float64(100*time.Millisecond) * (0.5 + rand.Float64()))
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), translate(operation, err))
		case <-time.After(pause):
		}
	}
}

func lockTrouble(err error) bool {
	if errors.Is(err, errRowsInTheWay) {
		return true
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == "55P03" || pg.Code == "40P01") // lock_not_available, deadlock_detected
}

func (p *Partitions) explain(operation string, err error) error {
	err = translate(operation, err)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pg.Code {
		case "42501": // insufficient_privilege
			return fmt.Errorf("%w: partitions are made and dropped by the owner of the table; make this role a member of the owner's (GRANT owner TO role)", err)
		case "42P07": // duplicate_table
			return fmt.Errorf("%w: a table of that name is there but is no partition; rename or drop it", err)
		}
	}
	return err
}
