package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/bridge/session"
	"github.com/crossfade-io/crossfade/internal/backoff"
)

// leaderLock is the advisory lock of whoever moves stages.
const leaderLock = 0x63726f73736c6472 // "crossldr"

// silence is after how long PostgreSQL ends the session of a candidate that is not
// heard of: dead, frozen or cut off.
const silence = 4 * time.Second

// lockPatience is how long a leader's statement waits for a lock. A round that cannot
// get one ends there, and the next begins with the ways back to MQTT again.
const lockPatience = time.Second

// lockSession is that of a candidate.
var lockSession = session.Options{
	Application: "crossfade control", Silence: silence, StatementTimeout: 15 * time.Second, LockTimeout: lockPatience,
}

// errResigned ends the term of a leader that cannot send sentinels, for one that may.
var errResigned = errors.New("this instance cannot send sentinels, another one may")

// stand is a candidate until ctx ends: it leads whenever it gets the lock.
func (c *Control) stand(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.standOnce(ctx)
		if errors.Is(err, errResigned) {
			c.log.Info("no longer the leader", "reason", err)
			err = nil
			backoff.Sleep(ctx, 2*c.o.Round) // so that another gets the lock
		}
		if errors.Is(err, errEraOver) {
			c.log.Warn("the leader's term ends, and the next begins everything anew", "reason", err)
			err = nil
		}
		c.note(ctx, &c.unmoved, err, "stages cannot be moved by this instance; trying again")
		backoff.Sleep(ctx, c.o.Round)
	}
}

// standOnce keeps one session until it fails or ctx ends.
func (c *Control) standOnce(ctx context.Context) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer session.Close(conn)
	for ctx.Err() == nil {
		mine, err := c.tryLock(ctx, conn)
		if err != nil {
			return err
		}
		c.unmoved.Store(nil)
		if mine {
			return c.lead(ctx, conn)
		}
		backoff.Sleep(ctx, c.o.Round)
	}
	return nil
}

func (c *Control) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := session.Open(ctx, c.o.Pool.Config().ConnConfig, lockSession)
	if err != nil {
		return nil, err
	}
	if err := refuseStandby(ctx, conn); err != nil {
		session.Close(conn)
		return nil, err
	}
	return conn, nil
}

// tryLock asks for the lock. Who cannot send sentinels asks only while nobody runs who
// can.
func (c *Control) tryLock(ctx context.Context, conn *pgx.Conn) (mine bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	err = conn.QueryRow(ctx, `
SELECT CASE WHEN $2 OR NOT EXISTS (SELECT FROM crossfade_instances WHERE prober AND lease_until > now())
            THEN pg_try_advisory_lock($1) ELSE false END`, int64(leaderLock), c.o.Prober != nil).Scan(&mine)
	if err != nil {
		return false, fmt.Errorf("ask for the leader's lock: %w", err)
	}
	return mine, nil
}

// lead moves stages until the session fails or ctx ends.
func (c *Control) lead(ctx context.Context, conn *pgx.Conn) error {
	ctx, resign := context.WithCancel(ctx)
	t := newTerm(c, conn)
	var parts sync.WaitGroup
	c.leads.Store(true)
	c.leader.Set(1)
	c.log.Info("leading", "instance", c.o.Instance)
	defer func() {
		resign()
		parts.Wait()
		c.leads.Store(false)
		c.locked.Store(nil)
		c.leader.Set(0)
		c.unanswered.Set(0)
	}()
	parts.Go(func() { t.wishes.follow(ctx) })
	parts.Go(func() { t.wishes.followOverrides(ctx) })
	parts.Go(func() { t.wishes.discover(ctx) })
	parts.Go(func() { t.mail.run(ctx) })
	if c.o.Retention > 0 {
		t.lag.Store(&Lag{unread: true})
		parts.Go(func() { t.followLag(ctx) })
	}
	return t.serve(ctx)
}

// term is the time for which an instance leads. It belongs to the goroutine of serve.
type term struct {
	c      *Control
	conn   *pgx.Conn
	wishes *wishes
	mail   *mail

	book    book
	beats   beats
	era     string             // the term's
	watched map[string]watched // instances
	pending map[string]waiting
	locked  []string // tenants due to move in this round whose rows others have locked
	pruneAt time.Time

	lag atomic.Pointer[Lag] // nil: nobody looks
}

func newTerm(c *Control, conn *pgx.Conn) *term {
	return &term{
		c: c, conn: conn, wishes: newWishes(c), mail: newMail(c),
		watched: make(map[string]watched), pending: make(map[string]waiting),
	}
}

// serve makes rounds: when told that there may be something to do, and on a beat.
func (t *term) serve(ctx context.Context) error {
	if err := t.takeOver(ctx); err != nil {
		return ignoreEnd(ctx, err)
	}
	beat := time.NewTicker(t.c.o.Round)
	defer beat.Stop()
	for {
		began := time.Now()
		err := t.bounded(ctx, t.round)
		if err != nil && !lockedOut(err) {
			return ignoreEnd(ctx, err)
		}
		if err != nil {
			err = fmt.Errorf("%w: another session holds a lock; end its transaction, see pg_stat_activity", err)
		}
		t.c.note(ctx, &t.c.unmoved, err, "a round over all stages could not be finished; trying again")
		// A round over very many tenants leaves others some of the server's time.
		backoff.Sleep(ctx, min(max(time.Since(began)/2, factsPause), 200*time.Millisecond))
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
		case <-t.c.nudge:
		case <-t.wishes.changed:
		case <-t.mail.delivered:
		}
	}
}

// lockedOut reports whether a statement gave up waiting for a lock, which leaves the
// session and the leadership as they are.
func lockedOut(err error) bool {
	var refusal *pgconn.PgError
	return errors.As(err, &refusal) && refusal.Code == "55P03"
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// bounded gives what uses the session no longer than the session itself is given.
func (t *term) bounded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return f(ctx)
}

// takeOver begins an era and cleans up after the leader before: sentinels of which nobody knows whether
// they were sent are sent anew.
func (t *term) takeOver(ctx context.Context) error {
	return t.bounded(ctx, func(ctx context.Context) error {
		if err := t.begin(ctx); err != nil {
			return err
		}
		_, err := t.conn.Exec(ctx, `
DELETE FROM crossfade_sentinels WHERE nonce IN (
    SELECT n.nonce FROM crossfade_sentinels AS n
     WHERE n.published_at IS NULL AND NOT EXISTS (SELECT FROM crossfade_sightings AS g WHERE g.nonce = n.nonce)
       FOR UPDATE SKIP LOCKED)`)
		if err != nil {
			return fmt.Errorf("take over from the leader before: %w", err)
		}
		return nil
	})
}
