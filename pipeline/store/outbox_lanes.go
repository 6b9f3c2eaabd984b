package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// outboxChannel is where the outbox's trigger notifies.
const outboxChannel = "crossfade_outbox"

// The advisory locks of the publishers: one for each lane, and one that all of them
// share, whose holders are hence counted. The same in every release.
const (
	outboxLaneClass   = 0x78666f62 // "xfob"
	outboxMemberClass = 0x78666f6d // "xfom"
)

// The settings of a publisher's session. It holds lanes that nobody else can publish
// while it lives, so it must not outlive a machine that is gone. It is never idle for
// longer than a publisher's turn.
var outboxSession = map[string]string{
	"tcp_keepalives_idle":     "10",
	"tcp_keepalives_interval": "5",
	"tcp_keepalives_count":    "3",
	"tcp_user_timeout":        "25000",
	"idle_session_timeout":    "60000",
	// The table is empty at one turn and large at another: a plan for both reads all of it.
	"plan_cache_mode": "force_custom_plan",
	// Compiling the statement would take a hundred times as long as it runs.
	"jit": "off",
}

// Lanes is one publisher's hold on a share of the outbox, on a connection of its
// own: the lanes are its to publish for as long as that lives, and free when it
// ends, however that comes about. Behind a connection pooler it needs one that
// pools sessions, not transactions. Not for concurrent use.
type Lanes struct {
	conn    *pgx.Conn
	held    []int16 // sorted
	places  places  // where the next Read goes on
	noticed bool    // a notification came since the last Read began
}

// OpenLanes connects, and listens for new rows. It holds no lane before Balance.
// The caller calls Close.
func (s *Store) OpenLanes(ctx context.Context) (*Lanes, error) {
	config := s.pool.Config().ConnConfig
	config.RuntimeParams["application_name"] += " routes"
	for name, value := range outboxSession {
		config.RuntimeParams[name] = value
	}
	l := &Lanes{places: newPlaces()}
	// pgx would collect them in memory for as long as nobody waits for one.
	config.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) { l.noticed = true }
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, translate("connect to publish routes", err)
	}
	l.conn = conn
	if _, err := conn.Exec(ctx, "LISTEN "+outboxChannel); err != nil {
		l.Close()
		return nil, translate("listen on "+outboxChannel, err)
	}
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock_shared($1, 0)`, outboxMemberClass); err != nil {
		l.Close()
		return nil, translate("join the publishers of routes", err)
	}
	return l, nil
}

// Close gives the lanes back. It takes a second at most.
func (l *Lanes) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = l.conn.Close(ctx) // the server frees what a dead session held
}

// Held are the lanes that are this publisher's.
func (l *Lanes) Held() []int16 { return slices.Clone(l.held) }

const findLanes = `
SELECT (SELECT count(DISTINCT pid)
          FROM pg_locks
         WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND classid::int8 = $1 AND objsubid = 2 AND granted),
       ARRAY(SELECT l::int2 FROM generate_series(0, $3::int4 - 1) AS l
              WHERE NOT EXISTS (SELECT FROM pg_locks
                                 WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                                   AND classid::int8 = $2 AND objid::int8 = l AND objsubid = 2))`

// Balance takes free lanes, or gives some back, so that all publishers have equal
// shares but for one lane. Call it every second or so, and only while nothing that
// was read is being published: a lane that was given back may be read by another
// publisher at once.
func (l *Lanes) Balance(ctx context.Context) error {
	var publishers int
	var free []int16
	if err := l.conn.QueryRow(ctx, findLanes, outboxMemberClass, outboxLaneClass, OutboxLanes).Scan(&publishers, &free); err != nil {
		return translate("count the publishers of routes", err)
	}
	share := (OutboxLanes + publishers - 1) / max(publishers, 1)
	if len(l.held) > share {
		surplus := slices.Clone(l.held[share:])
		l.held = l.held[:share]
		if _, err := l.conn.Exec(ctx, `SELECT pg_advisory_unlock($1, lane) FROM unnest($2::int4[]) AS lane`, outboxLaneClass, surplus); err != nil {
			return translate("give back lanes of the outbox", err)
		}
		return nil
	}
	if len(l.held) == share || len(free) == 0 {
		return nil
	}
	// Whoever starts to look at the same end loses every race.
	start := int(l.conn.PgConn().PID() % uint32(len(free)))
	wanted := slices.Concat(free[start:], free[:start])
	wanted = wanted[:min(share-len(l.held), len(wanted))]
	rows, err := l.conn.Query(ctx, `SELECT lane::int2 FROM unnest($2::int4[]) AS lane WHERE pg_try_advisory_lock($1, lane)`, outboxLaneClass, wanted)
	if err != nil {
		return translate("take lanes of the outbox", err)
	}
	taken, err := pgx.CollectRows(rows, pgx.RowTo[int16])
	if err != nil {
		return translate("take lanes of the outbox", err)
	}
	l.held = append(l.held, taken...)
	slices.Sort(l.held)
	return nil
}

// linger is how long notifications are gathered: a busy installation sends one for
// every batch, and reading the lanes for each would find little.
const linger = 5 * time.Millisecond

// Wait returns when rows may be there that the last Read did not see, after d, or
// when ctx ends, whichever is first. Only a lost connection and the end of ctx are
// errors.
func (l *Lanes) Wait(ctx context.Context, d time.Duration) error {
	if !l.noticed {
		if err := l.listen(ctx, d); err != nil || !l.noticed {
			return err
		}
	}
	for end := time.Now().Add(linger); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if err := l.listen(ctx, left); err != nil {
			return err
		}
	}
}

// listen waits for one notification.
func (l *Lanes) listen(ctx context.Context, d time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	err := l.conn.PgConn().WaitForNotification(waiting)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case waiting.Err() != nil && !l.conn.IsClosed():
		return nil // pgx keeps the connection through a timeout
	}
	return fmt.Errorf("listen on %s: %w: %w", outboxChannel, ErrUnavailable, err)
}
