package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

// lockID is the advisory lock under which migrations run. It is the same in every
// release: changing it would let two releases migrate at once.
const lockID int64 = 0x63726f7373660001 // "crossf", 1

// lockPoll is how often a waiting process asks for the lock. It asks rather than
// waits inside the server, because a waiting statement holds a snapshot and would
// hold up index builds of the one that works.
const lockPoll = 100 * time.Millisecond

// Options say how patient Apply is. Take DefaultOptions and change what you need.
type Options struct {
	// LockTimeout bounds the wait for each table lock, during which other
	// sessions queue up behind it. At least 1 ms.
	LockTimeout time.Duration
	// TurnTimeout bounds the wait for another process that is migrating the same
	// database. At least 1 ms.
	TurnTimeout time.Duration
	// Logger receives a line per migration, and what a migration leaves for the
	// operator to do; nil for none.
	Logger *slog.Logger
}

// DefaultOptions waits 5 s for a table lock and 5 min for another migration.
func DefaultOptions() Options {
	return Options{LockTimeout: 5 * time.Second, TurnTimeout: 5 * time.Minute}
}

// Validate names the first field that is out of range, and what would be in it.
func (o Options) Validate() error {
	if o.LockTimeout < time.Millisecond {
		return fmt.Errorf("migrations: LockTimeout is %v: set 1ms or more (5s is the default; without a bound a migration could block every writer)", o.LockTimeout)
	}
	if o.TurnTimeout < time.Millisecond {
		return fmt.Errorf("migrations: TurnTimeout is %v: set 1ms or more (5m is the default)", o.TurnTimeout)
	}
	return nil
}

// Result says what Apply did.
type Result struct {
	From, To int64       // the database's version before and after
	Applied  []Migration // in order; empty if nothing was pending
}

// Apply brings the database up to date with DefaultOptions.
func Apply(ctx context.Context, databaseURL string, logger *slog.Logger) (Result, error) {
	o := DefaultOptions()
	o.Logger = logger
	return ApplyWith(ctx, databaseURL, o)
}

// ApplyWith brings the database up to date. It waits for its turn if another
// process is migrating, and may be called concurrently. Each migration is one
// transaction: after an error, those in Result.Applied are there, the failed one
// has left no trace, and running again continues.
//
// A table that somebody holds locked for longer than LockTimeout makes a
// *LockError; a URL that cannot be parsed or a database that cannot be reached,
// an error without the password.
func ApplyWith(ctx context.Context, databaseURL string, o Options) (Result, error) {
	if err := o.Validate(); err != nil {
		return Result{}, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return Result{}, fmt.Errorf("migrate: read the database URL: %w", err)
	}
	last := new(lastStatement)
	cfg.Tracer = last
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" { // what a migration leaves for the operator to do
			o.Logger.WarnContext(ctx, n.Message)
		}
	}
	db := stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		// By statement and not as a start-up parameter, which poolers refuse.
		_, err := conn.Exec(ctx, fmt.Sprintf(`SET lock_timeout = '%dms'`, o.LockTimeout.Milliseconds()))
		return err
	}))
	defer db.Close()

	release, err := takeTurn(ctx, db, o)
	if err != nil {
		return Result{}, err
	}
	defer release()

	res, err := up(ctx, db, o.Logger)
	if err != nil {
		return res, explain(ctx, db, err, last, o)
	}
	return res, nil
}

// takeTurn waits for the advisory lock on a connection of its own. goose's
// session lock would come too late: it looks for pending migrations, and creates
// its table, before it locks.
func takeTurn(ctx context.Context, db *sql.DB, o Options) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, o.TurnTimeout)
	defer cancel()
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("migrate: connect to the database: %w", err)
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		var mine bool
		if err := conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, lockID).Scan(&mine); err != nil {
			return nil, errors.Join(fmt.Errorf("migrate: take the migration lock: %w", err), conn.Close())
		}
		if mine {
			// Closing the database closes the session, and that frees the lock.
			return func() { _ = conn.Close() }, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("migrate: another process has been migrating this database for %v; "+
				"see who holds the advisory lock: SELECT a.* FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory': %w",
				o.TurnTimeout, ctx.Err()), conn.Close())
		case <-tick.C:
		}
	}
}

// up runs what is pending, on connections other than the one that holds the lock.
func up(ctx context.Context, db *sql.DB, logger *slog.Logger) (Result, error) {
	provider, err := newProvider(db)
	if err != nil {
		return Result{}, err
	}
	var res Result
	if res.From, err = provider.GetDBVersion(ctx); err != nil {
		return res, fmt.Errorf("migrate: read the database's version: %w", err)
	}
	done, err := provider.Up(ctx)
	if partial := (*goose.PartialError)(nil); errors.As(err, &partial) {
		done = partial.Applied
		err = fmt.Errorf("migrate: %s: %w", path.Base(partial.Failed.Source.Path), partial.Err)
	} else if err != nil {
		err = fmt.Errorf("migrate: %w", err)
	}
	res.To = res.From
	for _, d := range done {
		m := Migration{Version: d.Source.Version, Name: path.Base(d.Source.Path)}
		res.Applied = append(res.Applied, m)
		res.To = max(res.To, m.Version)
		logger.InfoContext(ctx, "migration applied", "migration", m.Name, "duration", d.Duration)
	}
	return res, err
}

func newProvider(db *sql.DB) (*goose.Provider, error) {
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(VersionTable),
		goose.WithDisableGlobalRegistry(true),
		goose.WithSlog(slog.New(slog.DiscardHandler)), // Apply logs what was applied
	)
	if err != nil {
		return nil, fmt.Errorf("migrate: read the embedded migrations: %w", err)
	}
	return provider, nil
}

// lastStatement remembers what was sent to the database last, because goose's
// errors do not say which statement of a file failed.
type lastStatement struct{ sql atomic.Pointer[string] }

func (l *lastStatement) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	// What ends a failed transaction is not what failed.
	if data.SQL != "rollback" {
		l.sql.Store(&data.SQL)
	}
	return ctx
}

func (l *lastStatement) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (l *lastStatement) String() string {
	if s := l.sql.Load(); s != nil {
		return *s
	}
	return ""
}
