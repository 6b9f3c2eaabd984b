package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// SQLSTATE codes that have a meaning of their own here
// (PostgreSQL documentation, appendix A).
const (
	codeUndefinedTable   = "42P01"
	codeLockNotAvailable = "55P03"
	codeUniqueViolation  = "23505"
	codeNoPrivilege      = "42501"
)

// LockError says that a migration gave up waiting for a table. Nothing of the
// migration was applied; it is safe to try again.
type LockError struct {
	Table   string        // empty if it cannot be told
	Waited  time.Duration // the bound that was reached
	Holders []string      // the sessions that had it locked a moment later; may be empty
	Err     error
}

func (e *LockError) Error() string {
	table := "a table"
	if e.Table != "" {
		table = "table " + e.Table
	}
	held := "the session that held it has let go since"
	if len(e.Holders) > 0 {
		held = "it is held by " + strings.Join(e.Holders, "; ")
	}
	return fmt.Sprintf("%v: gave up after waiting %v for %s: %s. Nothing of this migration was applied. "+
		"End that transaction (SELECT pg_terminate_backend(pid)) or wait for it, then run `crossfade migrate` again",
		e.Err, e.Waited, table, held)
}

func (e *LockError) Unwrap() error { return e.Err }

// alteredTable finds the table in a statement of ours, or in the context line
// that PostgreSQL reports for one run from a DO block.
var alteredTable = regexp.MustCompile(`(?i)\b(?:ALTER TABLE|CREATE (?:UNIQUE )?\s*INDEX (?:IF NOT EXISTS )?\S+ ON|CREATE TRIGGER [^;]*? ON|LOCK TABLE|DROP TABLE)\s+(?:IF EXISTS\s+)?(?:ONLY\s+)?([\w."]+)`)

// explain adds to a failed migration's error what its reader can do about it.
func explain(ctx context.Context, db *sql.DB, err error, last *lastStatement, o Options) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err
	}
	switch {
	case pgErr.Code == codeLockNotAvailable:
		lockErr := &LockError{Waited: o.LockTimeout, Err: err}
		for _, text := range []string{pgErr.Where, last.String()} {
			if m := alteredTable.FindStringSubmatch(text); m != nil {
				lockErr.Table = m[1]
				break
			}
		}
		lockErr.Holders = holders(ctx, db, lockErr.Table)
		return lockErr
	case pgErr.Code == codeUniqueViolation && pgErr.SchemaName != "pg_catalog": // a key that an adopted table lacked
		return fmt.Errorf("%w (%s): table %s holds the same key more than once; remove the extra rows, then run `crossfade migrate` again",
			err, pgErr.Detail, pgErr.TableName)
	case pgErr.Code == codeNoPrivilege:
		return fmt.Errorf("%w: run `crossfade migrate` as the owner of the tables, or a member of it, and `crossfade run` too (docs/database.md)", err)
	}
	if pgErr.Where != "" {
		return fmt.Errorf("%w (%s)", err, pgErr.Where)
	}
	return err
}

// holders describes the sessions that have a table locked. What it cannot find
// out it leaves out: the error it serves is already there.
func holders(ctx context.Context, db *sql.DB, table string) []string {
	if table == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	rows, err := db.QueryContext(ctx, `
		SELECT DISTINCT a.pid, a.usename, a.application_name, coalesce(a.state, ''),
		       coalesce(extract(epoch FROM now() - a.xact_start), 0)::bigint
		FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE l.granted AND l.relation = to_regclass($1) AND l.pid <> pg_backend_pid()`, table)
	if err != nil {
		return []string{fmt.Sprintf("unknown sessions (%v)", err)}
	}
	defer rows.Close()
	var found []string
	for rows.Next() {
		var pid, seconds int64
		var user, app, state string
		if err := rows.Scan(&pid, &user, &app, &state, &seconds); err != nil {
			return append(found, fmt.Sprintf("unknown sessions (%v)", err))
		}
		found = append(found, fmt.Sprintf("pid %d (user %s, application %q, %s, transaction open for %d s)", pid, user, app, state, seconds))
	}
	if err := rows.Err(); err != nil {
		found = append(found, fmt.Sprintf("unknown sessions (%v)", err))
	}
	return found
}
