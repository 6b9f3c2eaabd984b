package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The closed set of what can go wrong. Every error of this package wraps one of
// these or is the context's.
var (
	// ErrUnavailable: PostgreSQL can't be reached, is shutting down, or asks to try
	// again (deadlock, lock timeout, out of resources). The transaction may or may
	// not have been committed; running it again is safe and is what to do.
	ErrUnavailable = errors.New("PostgreSQL is unavailable")
	// ErrData: PostgreSQL refuses a value or a row. Nothing was committed. The same
	// rows will be refused again.
	ErrData = errors.New("PostgreSQL refuses the data")
	// ErrSchema: the database is not as the service needs it (missing table or
	// column, missing privilege). Nothing was committed; an operator has to act.
	ErrSchema = errors.New("the database is not set up as needed")
	// ErrLocked: another session holds a lock for longer than this one was to wait.
	// It is a case of ErrUnavailable, of which nothing was committed, and may concern
	// a single row: what does not need that row can be written meanwhile.
	ErrLocked error = lockedError{}
)

type lockedError struct{}

func (lockedError) Error() string { return "another session holds a lock" }
func (lockedError) Unwrap() error { return ErrUnavailable }

// translate turns a driver's error into one of the set, naming the operation.
func translate(operation string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", operation, err)
	}
	if errors.Is(err, ErrUnavailable) { // as commit has told already
		return fmt.Errorf("%s: %w", operation, err)
	}
	kind := ErrUnavailable
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		kind = classify(pg.Code)
	}
	return fmt.Errorf("%s: %w: %w", operation, kind, err)
}

// commit commits. The one limit that can be exceeded only now is that of the server's
// queue of notifications, which a session that listens and never ends its transaction
// fills in the course of time: no fault of the data.
func commit(ctx context.Context, tx pgx.Tx) error {
	const programLimitExceeded = "54000"
	err := tx.Commit(ctx)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == programLimitExceeded {
		return fmt.Errorf("commit: %w: look for a session that listens and has a transaction open for long (SELECT pid, xact_start, query FROM pg_stat_activity), and end it: %w", ErrUnavailable, err)
	}
	return translate("commit", err)
}

// classify maps an SQLSTATE (PostgreSQL manual, appendix A) by its class.
func classify(code string) error {
	const lockNotAvailable = "55P03"
	switch {
	case len(code) != 5:
		return ErrUnavailable
	case code == lockNotAvailable:
		return ErrLocked
	}
	switch code[:2] {
	case "22", "23", "44", "P0", "54", "21": // data, constraints, check option, raise in a trigger, limits, cardinality
		return ErrData
	case "42", "3D", "3F", "28", "0A": // unknown objects, privileges, database, schema, login, unsupported
		return ErrSchema
	}
	return ErrUnavailable
}

// Orphaned reports whether PostgreSQL refuses the data because a row refers to one that
// is not there. Where adopted tables have foreign keys to device_registry that is what
// becomes of the messages of a device that was deleted a moment ago.
func Orphaned(err error) bool {
	const foreignKeyViolation = "23503"
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == foreignKeyViolation
}

// Detail returns what PostgreSQL said of refused data, for the quarantine: the
// SQLSTATE and the message.
func Detail(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprintf("PostgreSQL refused the row: %s (SQLSTATE %s)", pg.Message, pg.Code)
	}
	return "PostgreSQL refused the row"
}
