// Package lanes divides a queue in PostgreSQL among any number of instances. The
// queue's rows are in lanes, numbered from 0; an instance works on the lanes that it
// holds, and holds each by an advisory lock of one session, so that a lane has one
// holder at a time and is free as soon as that session is gone.
//
//	Open ─▶ Look ─▶ Take or Release ─▶ (read, work) ─▶ Wait ─┐
//	          ▲                                              │
//	          └───────────── every second, or told ◀─────────┘
package lanes

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Queue is what is divided. Its numbers and names are the same in every release:
// instances of different ones share the work.
type Queue struct {
	// Name goes into the sessions' application_name, and into errors.
	Name string
	// Channel is where new rows are notified.
	Channel string
	// Lanes is how many there are.
	Lanes int
	// LaneClass and MemberClass are the first keys of the advisory locks: of one for
	// each lane, and of one that all who share the queue hold together.
	LaneClass, MemberClass int32
}

// session are the settings of a holder's session. It holds lanes that nobody else can
// work on while it lives, so it must not outlive a machine that is gone. It is never
// idle for longer than a turn of work.
var session = map[string]string{
	"tcp_keepalives_idle":     "10",
	"tcp_keepalives_interval": "5",
	"tcp_keepalives_count":    "3",
	"tcp_user_timeout":        "25000",
	"idle_session_timeout":    "60000",
	// A queue is empty at one turn and large at another: a plan for both reads all of it.
	"plan_cache_mode": "force_custom_plan",
	// Compiling the statement would take a hundred times as long as it runs.
	"jit": "off",
}

// Hold is one instance's hold on a share of the lanes, on a connection of its own:
// the lanes are its for as long as that lives. Behind a connection pooler it needs
// one that pools sessions, not transactions. Not for concurrent use.
type Hold struct {
	queue   Queue
	conn    *pgx.Conn
	held    []int16 // sorted
	noticed bool    // a notification came since Begin
	avoided []int16
}

// Open connects with a copy of config, and listens for new rows. It holds no lane
// yet. The caller calls Close.
func Open(ctx context.Context, config *pgx.ConnConfig, q Queue) (*Hold, error) {
	config = config.Copy()
	config.RuntimeParams["application_name"] += " " + q.Name
	for name, value := range session {
		config.RuntimeParams[name] = value
	}
	h := &Hold{queue: q}
	// pgx would collect them in memory for as long as nobody waits for one.
	config.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) { h.noticed = true }
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect for the %s: %w", q.Name, err)
	}
	h.conn = conn
	if _, err := conn.Exec(ctx, "LISTEN "+q.Channel); err != nil {
		h.Close()
		return nil, fmt.Errorf("listen on %s: %w", q.Channel, err)
	}
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock_shared($1, 0)`, q.MemberClass); err != nil {
		h.Close()
		return nil, fmt.Errorf("join the %s: %w", q.Name, err)
	}
	return h, nil
}

// Close gives the lanes back. It takes a second at most.
func (h *Hold) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = h.conn.Close(ctx) // the server frees what a dead session held
}

// Conn is the session itself, to read the lanes with.
func (h *Hold) Conn() *pgx.Conn { return h.conn }

// Held are the lanes that are held.
func (h *Hold) Held() []int16 { return slices.Clone(h.held) }

// Avoid replaces the lanes that Look does not want.
func (h *Hold) Avoid(lanes []int16) { h.avoided = lanes }

const find = `
SELECT (SELECT count(DISTINCT pid)
          FROM pg_locks
         WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND classid::int8 = $1 AND objsubid = 2 AND granted),
       ARRAY(SELECT l::int2 FROM generate_series(0, $3::int4 - 1) AS l
              WHERE NOT EXISTS (SELECT FROM pg_locks
                                 WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                                   AND classid::int8 = $2 AND objid::int8 = l AND objsubid = 2))`

// Look says which lanes to give back, or which to try to take, so that all who share
// the queue come to equal shares but for one lane. Call it every second or so.
func (h *Hold) Look(ctx context.Context) (surplus, wanted []int16, err error) {
	var members int
	var free []int16
	if err := h.conn.QueryRow(ctx, find, h.queue.MemberClass, h.queue.LaneClass, h.queue.Lanes).Scan(&members, &free); err != nil {
		return nil, nil, fmt.Errorf("count who shares the %s: %w", h.queue.Name, err)
	}
	share := (h.queue.Lanes + members - 1) / max(members, 1)
	if len(h.held) > share {
		return slices.Clone(h.held[share:]), nil, nil
	}
	free = slices.DeleteFunc(free, func(l int16) bool { return slices.Contains(h.avoided, l) })
	if len(h.held) == share || len(free) == 0 {
		return nil, nil, nil
	}
	// Whoever starts to look at the same end loses every race.
	start := int(h.conn.PgConn().PID() % uint32(len(free)))
	wanted = slices.Concat(free[start:], free[:start])
	return nil, wanted[:min(share-len(h.held), len(wanted))], nil
}

// Take locks those of the lanes that are free, and returns them.
func (h *Hold) Take(ctx context.Context, wanted []int16) (taken []int16, err error) {
	rows, err := h.conn.Query(ctx, `SELECT lane::int2 FROM unnest($2::int4[]) AS lane WHERE pg_try_advisory_lock($1, lane)`, h.queue.LaneClass, wanted)
	if err == nil {
		taken, err = pgx.CollectRows(rows, pgx.RowTo[int16])
	}
	if err != nil {
		return nil, fmt.Errorf("take lanes of the %s: %w", h.queue.Name, err)
	}
	h.held = append(h.held, taken...)
	slices.Sort(h.held)
	return taken, nil
}

// Release gives lanes back. Nothing that was read from them may be under way any
// more: another may read them at once.
func (h *Hold) Release(ctx context.Context, lanes []int16) error {
	h.held = slices.DeleteFunc(h.held, func(l int16) bool { return slices.Contains(lanes, l) })
	if _, err := h.conn.Exec(ctx, `SELECT pg_advisory_unlock($1, lane) FROM unnest($2::int4[]) AS lane`, h.queue.LaneClass, lanes); err != nil {
		return fmt.Errorf("give back lanes of the %s: %w", h.queue.Name, err)
	}
	return nil
}

// linger is how long notifications are gathered: a busy installation sends one for
// every batch, and reading the lanes for each would find little.
const linger = 5 * time.Millisecond

// Begin is to be called before the lanes are read: what is notified from then on ends
// the next Wait.
func (h *Hold) Begin() { h.noticed = false }

// Wait returns when rows may be there that were not before the last Begin, after d,
// or when ctx ends, whichever is first. Only a lost connection and the end of ctx are
// errors.
func (h *Hold) Wait(ctx context.Context, d time.Duration) error {
	if !h.noticed {
		if err := h.listen(ctx, d); err != nil || !h.noticed {
			return err
		}
	}
	for end := time.Now().Add(linger); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if err := h.listen(ctx, left); err != nil {
			return err
		}
	}
}

// listen waits for one notification.
func (h *Hold) listen(ctx context.Context, d time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	err := h.conn.PgConn().WaitForNotification(waiting)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case waiting.Err() != nil && !h.conn.IsClosed():
		return nil // pgx keeps the connection through a timeout
	}
	return fmt.Errorf("listen on %s: %w", h.queue.Channel, err)
}
