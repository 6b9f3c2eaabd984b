package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Config says how to reach PostgreSQL.
type Config struct {
	// URL is a connection URL or keyword/value string; what it leaves out comes from
	// libpq's environment variables. It may hold a password.
	URL string
	// MaxConns bounds the pool, 2 and up.
	MaxConns int
	// StatementTimeout bounds one statement, LockTimeout waiting for one lock: the
	// loser of a race for an ID waits for the winner's transaction, and a stuck one
	// must not stall the other path for ever.
	StatementTimeout, LockTimeout time.Duration
	// Responses has Commit write an answer to every ack that takes effect into
	// crossfade_downlink. Instances that send nothing themselves write answers too, for
	// another may send them; what nobody sends is removed after an hour (bridge/downlink).
	Responses bool
	// Dial makes the connections in place of a net.Dialer; nil: one of those does.
	Dial pgconn.DialFunc
}

// DefaultConfig returns the configuration for a URL.
func DefaultConfig(url string) Config {
	return Config{URL: url, MaxConns: 8, StatementTimeout: 30 * time.Second, LockTimeout: 10 * time.Second, Responses: true}
}

// Store is safe for concurrent use.
type Store struct {
	pool *pgxpool.Pool
	// beginQuery begins the transactions that write messages and devices, and those in
	// which devices are looked up; "" is BEGIN, and none for a look-up.
	beginQuery string
	responses  bool // Config.Responses
}

// Waiting returns the same store, on the same connections, in which Commit,
// Provision and Devices wait no longer than d for a lock (1ms and up), and then fail
// with ErrLocked. It need not be closed.
func (s *Store) Waiting(d time.Duration) *Store {
	return &Store{pool: s.pool, responses: s.responses, beginQuery: "BEGIN; SET LOCAL lock_timeout = " + millis(d)}
}

func (s *Store) begin(ctx context.Context) (pgx.Tx, error) {
	return s.pool.BeginTx(ctx, pgx.TxOptions{BeginQuery: s.beginQuery})
}

// Open prepares a pool of connections; it does not connect yet.
func Open(ctx context.Context, c Config) (*Store, error) {
	pool, err := NewPool(ctx, c, "crossfade")
	if err != nil {
		return nil, err
	}
	return &Store{pool: pool, responses: c.Responses}, nil
}

// NewPool returns a pool whose sessions have c's time-outs and the given
// application_name. The error never holds the password.
func NewPool(ctx context.Context, c Config, application string) (*pgxpool.Pool, error) {
	pc, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, fmt.Errorf("the database URL cannot be read (expected postgres://user@host:port/database): %w", err)
	}
	switch mode := pc.ConnConfig.DefaultQueryExecMode; mode {
	case pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol:
		return nil, fmt.Errorf("the database URL sets default_query_exec_mode=%s, in which arrays of IDs cannot be sent; behind a connection pooler use describe_exec", strings.ReplaceAll(mode.String(), " ", "_"))
	}
	pc.MaxConns = int32(max(c.MaxConns, 2))
	pc.ConnConfig.ConnectTimeout = 5 * time.Second
	if c.Dial != nil {
		pc.ConnConfig.DialFunc = c.Dial
	}
	params := pc.ConnConfig.RuntimeParams
	params["application_name"] = application
	params["statement_timeout"] = millis(c.StatementTimeout)
	params["lock_timeout"] = millis(c.LockTimeout)
	params["idle_in_transaction_session_timeout"] = millis(c.StatementTimeout)
	params["timezone"] = "UTC"
	// Whoever waited for a lock must then see what its holder committed.
	params["default_transaction_isolation"] = "read committed"
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("prepare the connection pool: %w", err)
	}
	return pool, nil
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// Pool gives the pool to those who keep tables of their own in the same database.
func (s *Store) Pool() *pgxpool.Pool { return s.pool }

// Close waits for connections in use and closes them all.
func (s *Store) Close() { s.pool.Close() }

// Ping tells whether PostgreSQL answers.
func (s *Store) Ping(ctx context.Context) error {
	return translate("ping", s.pool.Ping(ctx))
}

// rollback ends a transaction that was not committed, on a context of its own:
// the caller's may have ended, and an open transaction would hold its locks.
func rollback(tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = tx.Rollback(ctx) // after a commit or on a dead connection there is nothing to undo
}
