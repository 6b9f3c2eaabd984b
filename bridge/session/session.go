// Package session opens the database session that a lock of an instance's hangs on. An
// instance that is dead, frozen or cut off must lose the lock, or no other would take
// its place: PostgreSQL ends such a session soon, and the lock with it.
//
// Whatever is written on the strength of the lock goes through this session and no
// other, so that who has lost it cannot write any more.
package session

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Options says what a session is for and how long it lasts.
type Options struct {
	// Application is the session's name in pg_stat_activity; a constant of ours.
	Application string
	// Silence is after how long PostgreSQL ends the session of an instance that is not
	// heard of: whole seconds, 1s or more. Who holds it has to say something more often.
	Silence time.Duration
	// StatementTimeout bounds one statement and LockTimeout one wait for a row.
	StatementTimeout, LockTimeout time.Duration
}

// settings are statements, since poolers refuse start-up parameters. A kernel keeps a
// connection alive for a process that is frozen, hence the limit on idleness besides
// those on silence.
func (o Options) settings() string {
	probe := max(o.Silence/5, time.Second)
	set := []string{
		"SET application_name = '" + o.Application + "'",
		"SET timezone = 'UTC'",
		"SET default_transaction_isolation = 'read committed'",
		"SET tcp_keepalives_count = 3",
	}
	for name, d := range map[string]time.Duration{
		"idle_session_timeout":                o.Silence,
		"idle_in_transaction_session_timeout": o.Silence,
		"tcp_user_timeout":                    o.Silence,
		"statement_timeout":                   o.StatementTimeout,
		"lock_timeout":                        o.LockTimeout,
	} {
		set = append(set, fmt.Sprintf("SET %s = %d", name, d.Milliseconds()))
	}
	for _, name := range []string{"tcp_keepalives_idle", "tcp_keepalives_interval"} {
		set = append(set, fmt.Sprintf("SET %s = %d", name, int(probe.Seconds())))
	}
	return strings.Join(set, ";")
}

// Open connects as config says, with a copy of it. The caller closes with Close.
func Open(ctx context.Context, config *pgx.ConnConfig, o Options) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, config.Copy())
	if err != nil {
		return nil, fmt.Errorf("connect for %s: %w", o.Application, err)
	}
	if _, err := conn.Exec(ctx, o.settings(), pgx.QueryExecModeSimpleProtocol); err != nil {
		Close(conn)
		return nil, fmt.Errorf("set up the session for %s (PostgreSQL 14 or newer is needed): %w", o.Application, err)
	}
	return conn, nil
}

// Close ends a session, within 2 s, whatever state it is in.
func Close(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the session is gone either way
}
