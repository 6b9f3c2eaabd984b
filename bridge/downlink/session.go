package downlink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/internal/lanes"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// queue is how senders share crossfade_downlink.
var queue = lanes.Queue{
	Name:        "downlink",
	Channel:     "crossfade_downlink",
	Lanes:       64,         // crossfade_lane
	LaneClass:   0x7866646c, // "xfdl"
	MemberClass: 0x7866646d, // "xfdm"
}

// session is one hold on lanes, with the publisher that works for it alone.
type session struct {
	hold      *lanes.Hold
	publisher *legacy_mqtt.Publisher
	pool      *pgxpool.Pool
	clientID  string
	evict     func(ctx context.Context, clientID string) error
	places    *places

	pid   uint32
	began time.Time // of the database's session, which tells it from a later one of the same pid
	// barred are former holders that could not be cut off. It is the Sender's.
	barred map[string]*bar
	delay  func(n int) time.Duration
	// dirty are lanes of which a message was not confirmed: it may still be under way.
	dirty map[int16]bool
}

// openSession joins the senders. It holds no lane before balance. The caller calls
// close.
func (s *Sender) openSession(ctx context.Context) (_ *session, err error) {
	n := &session{pool: s.o.Pool, clientID: s.o.ClientID, evict: s.evict, places: &places{lanes.NewPlaces()}, barred: s.barred, delay: s.delay, dirty: make(map[int16]bool)}
	if n.hold, err = lanes.Open(ctx, s.o.Pool.Config().ConnConfig, queue); err != nil {
		return nil, err
	}
	n.pid = n.hold.Conn().PgConn().PID()
	if err := n.hold.Conn().QueryRow(ctx, `SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()`).Scan(&n.began); err != nil {
		n.hold.Close()
		return nil, fmt.Errorf("look at the session of the downlink: %w", err)
	}
	o := legacy_mqtt.DefaultPublisherOptions()
	o.ClientID, o.Guard, o.Window, o.Patience = s.o.ClientID, n.guard, s.o.Window, s.o.Patience
	if n.publisher, err = legacy_mqtt.NewPublisher(s.o.MQTT, o); err != nil {
		n.hold.Close()
		return nil, err
	}
	return n, nil
}

var errLanesLost = errors.New("the downlink's session in PostgreSQL is gone, and its lanes with it")

// guard is asked by the publisher whenever it has connected. It must not use the
// session's own connection, which may be waiting for a notification.
func (n *session) guard(ctx context.Context) error {
	var alive bool
	err := n.pool.QueryRow(ctx, `
SELECT EXISTS (SELECT FROM pg_stat_activity AS a JOIN pg_locks AS l USING (pid)
                WHERE a.pid = $1 AND a.backend_start = $2
                  AND l.locktype = 'advisory' AND l.classid::int8 = $3 AND l.objsubid = 2 AND l.granted)`,
		int32(n.pid), n.began, queue.MemberClass).Scan(&alive)
	switch {
	case err != nil:
		return fmt.Errorf("ask whether the lanes are still held: %w", err)
	case !alive:
		return errLanesLost
	}
	return nil
}

// balance takes lanes, or gives some back. Nothing that was read may be under way.
func (n *session) balance(ctx context.Context) error {
	ctx, cancel := uncut(ctx)
	defer cancel()
	if err := n.lookAtBars(ctx); err != nil {
		return err
	}
	surplus, wanted, err := n.hold.Look(ctx)
	switch {
	case err != nil:
		return err
	case len(surplus) > 0:
		return n.release(ctx, surplus)
	case len(wanted) > 0:
		return n.take(ctx, wanted)
	}
	return nil
}

// release gives lanes back, in order where nothing of them can be under way: the next
// holder then has nobody to cut off.
func (n *session) release(ctx context.Context, surplus []int16) error {
	clean := slices.DeleteFunc(slices.Clone(surplus), func(l int16) bool { return n.dirty[l] })
	if _, err := n.hold.Conn().Exec(ctx, `DELETE FROM crossfade_downlink_lanes WHERE lane = ANY($1) AND client_id = $2`, clean, n.clientID); err != nil {
		return fmt.Errorf("leave crossfade_downlink_lanes: %w", err)
	}
	return n.hold.Release(ctx, surplus)
}

// closePatience bounds what the end of a session takes.
const closePatience = 2 * time.Second

// close leaves in order as far as it can.
func (n *session) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closePatience)
	defer cancel()
	_ = n.release(ctx, n.hold.Held()) // otherwise the next holder cuts us off
	_ = n.publisher.Close(ctx)        // the connection ends in any case
	n.hold.Close()
}
