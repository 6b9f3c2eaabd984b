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

// What a publisher's session is told of its peer: it holds lanes that nobody else
// can publish while it lives, so it must not outlive a machine that is gone. It is
// never idle for longer than a publisher's turn.
var outboxSession = map[string]string{
	"tcp_keepalives_idle":     "10",
	"tcp_keepalives_interval": "5",
	"tcp_keepalives_count":    "3",
	"tcp_user_timeout":        "25000",
	"idle_session_timeout":    "60000",
}

// Lanes is one publisher's hold on a share of the outbox, on a connection of its
// own: the lanes are its to publish for as long as that lives, and free when it
// ends, however that comes about. Behind a connection pooler it needs one that
// pools sessions, not transactions. Not for concurrent use.
type Lanes struct {
	conn    *pgx.Conn
	held    []int16 // sorted
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
	l := new(Lanes)
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

// readOutbox reads the beginning of each lane. Sizes are summed up without reading
// the bodies that are left out.
const readOutbox = `
SELECT o.id, l.lane, o.tenant_id, o.device_id, o.route_id, o.message_id, o.body
  FROM unnest($1::int2[]) AS l(lane)
 CROSS JOIN LATERAL (
       SELECT h.*, sum(octet_length(h.body)) OVER (ORDER BY h.id ROWS UNBOUNDED PRECEDING) - octet_length(h.body) AS before
         FROM (SELECT id, tenant_id, device_id, route_id, message_id, body
                 FROM crossfade_outbox
                WHERE lane = l.lane AND tenant_id <> ALL($4)
                ORDER BY id
                LIMIT $2) AS h) AS o
 WHERE o.before < $3
 ORDER BY o.id`

// Read returns the first rows of the lanes held, in the order of their IDs: at most
// perLane rows of each, and about maxBytes of bodies in all (a lane gives one row
// whatever its size). It leaves out the rows of the tenants in except.
func (l *Lanes) Read(ctx context.Context, perLane, maxBytes int, except []string) ([]OutboxRow, error) {
	l.noticed = false
	if len(l.held) == 0 {
		return nil, nil
	}
	if except == nil {
		except = []string{}
	}
	rows, err := l.conn.Query(ctx, readOutbox, l.held, perLane, max(maxBytes/len(l.held), 1), except)
	if err != nil {
		return nil, translate("read crossfade_outbox", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r OutboxRow, err error) {
		err = row.Scan(&r.ID, &r.Lane, &r.Tenant, &r.Device, &r.RouteID, (*[16]byte)(&r.MessageID), &r.Body)
		return r, err
	})
	return found, translate("read crossfade_outbox", err)
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
