// Package migrations holds the database's schema as numbered SQL files, embedded
// in the program, and applies them.
//
// Every file explains why a statement is there and which lock it takes. They run
// in order, each in a transaction of its own, and what has been applied is
// recorded in the table crossfade_migrations (a name of our own: the predecessor
// may have a goose_db_version). Any number of processes may apply at once: an
// advisory lock lets one at a time work and the rest find nothing left to do.
//
// Both kinds of database are welcome: an empty one, and one that already holds
// the contract's tables, which is adopted with its data (00001_contract.sql).
package migrations

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
)

// VersionTable records which migrations a database has.
const VersionTable = "crossfade_migrations"

//go:embed *.sql
var files embed.FS

// Migration is one embedded file.
type Migration struct {
	Version int64  // the number its name begins with; 1 or more
	Name    string // the file's name, e.g. 00001_contract.sql
}

// All returns the embedded migrations in the order they are applied.
func All() ([]Migration, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("list embedded migrations: %w", err)
	}
	all := make([]Migration, 0, len(names))
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, fmt.Errorf("embedded migration %s: %w", name, err)
		}
		all = append(all, Migration{Version: version, Name: name})
	}
	slices.SortFunc(all, func(a, b Migration) int { return int(a.Version - b.Version) })
	return all, nil
}

// Querier reads a database: *pgx.Conn, *pgxpool.Pool and pgx.Tx do.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Pending returns the migrations that the database lacks, in order; all of them
// for a database that was never migrated. It only reads, takes no lock and does
// not wait for a migration that is running. A database that is ahead of this
// program (a rolling upgrade) has none pending.
func Pending(ctx context.Context, q Querier) ([]Migration, error) {
	all, err := All()
	if err != nil {
		return nil, err
	}
	applied, err := appliedVersions(ctx, q)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(m Migration) bool { return slices.Contains(applied, m.Version) }), nil
}

// Version returns the highest migration the database has, 0 for none.
func Version(ctx context.Context, q Querier) (int64, error) {
	applied, err := appliedVersions(ctx, q)
	if err != nil {
		return 0, err
	}
	return slices.Max(append(applied, 0)), nil
}

func appliedVersions(ctx context.Context, q Querier) ([]int64, error) {
	rows, err := q.Query(ctx, `SELECT version_id FROM `+VersionTable+` WHERE is_applied AND version_id > 0`)
	var versions []int64
	if err == nil {
		versions, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	}
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == codeUndefinedTable {
		return nil, nil // never migrated
	}
	if err != nil {
		return nil, fmt.Errorf("read which migrations the database has (table %s): %w", VersionTable, err)
	}
	return versions, nil
}
