package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// lease is this instance's right to be waited for. It belongs to a number: when it may
// have run out before it was renewed, the number grows, and views that were read
// under an earlier one are no longer good for dropping.
type lease struct {
	number uint64
	from   time.Time // when the last renewal was sent; zero: none was
	era    string    // in which it was renewed
}

// covers reports whether the lease is valid at a moment.
func (l *lease) covers(now time.Time, ttl time.Duration) bool {
	return !l.from.IsZero() && lasts(now.Sub(l.from), now.Round(0).Sub(l.from.Round(0)), ttl)
}

// Spans reports whether a moment by somebody else's clock is before the end of the
// lease. What a stream has stored after it shows that this instance has been stopped
// with both its clocks, and may not know of what has come about meanwhile. Where that
// clock is ahead by seconds this says no for as long.
func (c *Control) Spans(at time.Time) bool {
	l := c.lease.Load()
	return !l.from.IsZero() && at.Before(l.from.Round(0).Add(c.o.LeaseTTL))
}

// lasts reports whether what was granted for ttl is valid after so much time by the
// monotonic clock and by the wall clock. It must be by both: the one stands still while
// a machine is suspended, the other is set by others.
func lasts(elapsed, wall, ttl time.Duration) bool {
	return 0 <= elapsed && elapsed < ttl && 0 <= wall && wall < ttl
}

// signOn enters a run into the row of its instance, with a lease and nothing confirmed.
// A row that another run keeps up is taken over only if $11; that one is then waited
// for until its lease is over. A session of another name that may still exist gets a
// row of its own, unless another instance answers for it; and one that this instance
// takes up is no longer awaited from who had it: two instances may have swapped their
// names, or theirs at the broker. The other parameters are those of [Control.entry].
const signOn = `
WITH free AS (
    SELECT * FROM crossfade_instances
     WHERE instance_id = $1 AND ($11 OR run = $2 OR state = 'stopped' OR coalesce(lease_until < now(), true))
), left_behind AS (
    INSERT INTO crossfade_instances (instance_id, run, state, seen_at, version, mqtt_session, session, session_until, details)
    SELECT instance_id || ' (session ' || session || ')', run, 'stopped', seen_at, version, true, session, session_until, '{}'
      FROM free
     WHERE session IS DISTINCT FROM $6::text AND session_until > now()
       AND NOT EXISTS (SELECT FROM crossfade_instances AS o WHERE o.instance_id <> $1 AND o.session = free.session AND o.session_until > now())
        ON CONFLICT (instance_id) DO UPDATE SET session_until = greatest(crossfade_instances.session_until, EXCLUDED.session_until)
), mirror_left_behind AS (
    INSERT INTO crossfade_instances (instance_id, run, state, seen_at, version, mirror_session, mirror_until, details)
    SELECT instance_id || ' (mirror ' || mirror_session || ')', run, 'stopped', seen_at, version, mirror_session, mirror_until, '{}'
      FROM free
     WHERE mirror_session IS DISTINCT FROM $9::text AND mirror_until > now()
       AND NOT EXISTS (SELECT FROM crossfade_instances AS o WHERE o.instance_id <> $1 AND o.mirror_session = free.mirror_session AND o.mirror_until > now())
        ON CONFLICT (instance_id) DO UPDATE SET mirror_until = greatest(crossfade_instances.mirror_until, EXCLUDED.mirror_until)
), entered AS (
    INSERT INTO crossfade_instances AS i (instance_id, run, version, lease_until, details, mqtt_session, session, session_until, prober, mirror_session, mirror_until)
    VALUES ($1, $2, $3, now() + make_interval(secs => $4), $5::jsonb, $6::text IS NOT NULL, $6::text, ` + sessionUntil + `, $8, $9::text, ` + mirrorUntil + `)
        ON CONFLICT (instance_id) DO UPDATE
       SET run = EXCLUDED.run, version = EXCLUDED.version, started_at = now(), seen_at = now(), state = 'running', confirmed_revision = 0,
           lease_until = EXCLUDED.lease_until, details = EXCLUDED.details, prober = EXCLUDED.prober,
           mqtt_session = EXCLUDED.mqtt_session, session = EXCLUDED.session,
           session_until = CASE WHEN i.session = EXCLUDED.session THEN greatest(i.session_until, EXCLUDED.session_until) ELSE EXCLUDED.session_until END,
           mirror_session = EXCLUDED.mirror_session,
           mirror_until = CASE WHEN i.mirror_session = EXCLUDED.mirror_session THEN greatest(i.mirror_until, EXCLUDED.mirror_until) ELSE EXCLUDED.mirror_until END,
           other = NULL,
           other_until = CASE WHEN i.run <> EXCLUDED.run AND i.state = 'running' THEN greatest(i.lease_until, i.other_until) ELSE i.other_until END
     WHERE $11 OR i.run = EXCLUDED.run OR i.state = 'stopped' OR coalesce(i.lease_until < now(), true)
 RETURNING 1 AS one
), idle AS (
    SELECT instance_id, state = 'stopped' AND coalesce(session_until IS NULL OR session_until <= now() OR session = $6::text, false)
           AND coalesce(mirror_until IS NULL OR mirror_until <= now() OR mirror_session = $9::text, false) AS bare
      FROM crossfade_instances
     WHERE instance_id <> $1 AND (session = $6::text OR mirror_session = $9::text)
       AND coalesce(lease_until <= now(), true) AND coalesce(other_until <= now(), true) AND EXISTS (SELECT FROM entered)
), taken_up AS (
    DELETE FROM crossfade_instances AS i USING idle WHERE i.instance_id = idle.instance_id AND idle.bare
), handed_over AS (
    UPDATE crossfade_instances AS i
       SET mqtt_session = i.mqtt_session AND i.session IS DISTINCT FROM $6::text,
           session = nullif(i.session, $6::text), session_until = CASE WHEN i.session = $6::text THEN NULL ELSE i.session_until END,
           mirror_session = nullif(i.mirror_session, $9::text), mirror_until = CASE WHEN i.mirror_session = $9::text THEN NULL ELSE i.mirror_until END
      FROM idle WHERE i.instance_id = idle.instance_id AND NOT idle.bare
)
SELECT coalesce(e.era, '') FROM entered LEFT JOIN crossfade_epoch AS e ON true`

const (
	sessionUntil = `CASE WHEN $6::text IS NULL THEN NULL WHEN $7::float8 < 0 THEN 'infinity' ELSE now() + make_interval(secs => $7::float8) END`
	mirrorUntil  = `CASE WHEN $9::text IS NULL THEN NULL WHEN $10::float8 < 0 THEN 'infinity' ELSE now() + make_interval(secs => $10::float8) END`
)

// renew keeps the row up and confirms an epoch. It returns a row only if the row is
// this run's: whether another run has said lately that it goes by the same name, the
// era, whether that is to be relied on, and whether the lease had run out. A renewal that
// reaches PostgreSQL after the run has signed off revives nothing.
const renew = `
WITH was AS (
    SELECT lease_until <= now() AS lapsed FROM crossfade_instances WHERE instance_id = $1 AND run = $2
), mine AS (
    UPDATE crossfade_instances
       SET version = $3, seen_at = now(), lease_until = now() + make_interval(secs => $4), details = $5::jsonb,
           session_until = greatest(session_until, ` + sessionUntil + `), mirror_until = greatest(mirror_until, ` + mirrorUntil + `),
           prober = $8, mirror_session = $9::text, confirmed_revision = $11, confirmed_era = $13
     WHERE instance_id = $1 AND run = $2 AND state = 'running'
 RETURNING other IS NOT NULL AND other_until > now() AS shared
)
SELECT shared, CASE WHEN $12 THEN pg_notify('` + controlNotifications + `', '') END IS NULL, coalesce(e.era, ''),
       coalesce(` + sameHistory + ` AND e.settles_at <= now(), false), coalesce((SELECT bool_or(lapsed) FROM was), true)
  FROM mine LEFT JOIN crossfade_epoch AS e ON true`

// entry are the parameters that signOn and renew have in common.
func (c *Control) entry() ([]any, error) {
	details, err := json.Marshal(c.o.Details())
	if err != nil {
		return nil, fmt.Errorf("details of instance %s: %w", c.o.Instance, err)
	}
	session, expiry := c.o.Session.columns(c.o.LeaseTTL)
	mirror, mirrorExpiry := c.o.Mirror.columns(c.o.LeaseTTL)
	return []any{c.o.Instance, c.run, c.o.Version, c.o.LeaseTTL.Seconds(), string(details), session, expiry, c.o.Prober != nil, mirror, mirrorExpiry}, nil
}

// columns are the session's name and for how long it is to be awaited, in seconds, below
// zero for ever: no shorter than the lease, by which its instance takes it to be awaited.
func (s *Session) columns(least time.Duration) (name *string, expiry float64) {
	if s == nil {
		return nil, 0
	}
	kept := s.Expiry
	if s.Granted != nil && kept != Never {
		if granted := s.Granted(); granted == Never || granted > kept {
			kept = granted
		}
	}
	if kept != Never {
		kept = max(kept, least)
	}
	return &s.ClientID, kept.Seconds()
}

// SignOn enters this instance, loads the facts and confirms them: after that, and not
// before, copies may be taken in. It may be called again after an error.
func (c *Control) SignOn(ctx context.Context) error {
	if err := c.readSeal(ctx); err != nil {
		return standby(err)
	}
	if err := c.enter(ctx, true); err != nil {
		return err
	}
	if err := c.load(ctx, true); err != nil {
		return err
	}
	return c.renew(ctx)
}

// enter writes this run into its instance's row, which begins a new lease.
func (c *Control) enter(ctx context.Context, takeOver bool) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	args, err := c.entry()
	if err != nil {
		return err
	}
	sent := time.Now()
	var era string
	err = c.o.Pool.QueryRow(ctx, signOn, append(args, takeOver)...).Scan(&era)
	if errors.Is(err, pgx.ErrNoRows) {
		return errTaken
	}
	if err != nil {
		return fmt.Errorf("enter %s into crossfade_instances: %w", c.o.Instance, standby(err))
	}
	c.confirmed = history{}
	c.other.Store(nil)
	c.hold(&lease{c.lease.Load().number + 1, sent, era})
	return nil
}

var errTaken = errors.New("another run keeps the row up")

// renew keeps the lease and confirms what the view has. What it confirms is in force
// already: the view was put there before.
func (c *Control) renew(ctx context.Context) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	args, err := c.entry()
	if err != nil {
		return err
	}
	v := c.view.Load()
	at := history{v.era, v.epoch}
	var shared, quiet, sure, lapsed bool
	var era string
	sent := time.Now()
	err = c.o.Pool.QueryRow(ctx, renew, append(args, at.epoch, at != c.confirmed, at.era)...).Scan(&shared, &quiet, &era, &sure, &lapsed)
	before := c.lease.Load()
	switch {
	case errors.Is(err, pgx.ErrNoRows): // the row is another run's, or somebody removed it
		c.hold(&lease{number: before.number + 1})
		return errTaken
	case err != nil:
		return fmt.Errorf("PostgreSQL: renew the lease: %w", standby(err))
	}
	c.confirmed = at
	next := &lease{before.number, sent, era}
	// Where the lease had run out nobody may have waited for us meanwhile, and what was
	// granted in another era may not be known in this one. PostgreSQL's clock is asked as
	// well: both of ours stand still while a hypervisor keeps us stopped.
	if lapsed || !before.covers(time.Now(), c.o.LeaseTTL) || era != before.era {
		next.number++
	}
	c.hold(next)
	if next.number != v.lease || era != v.era || sure != v.sure {
		signal(c.stale)
	}
	c.share(shared)
	return nil
}

// hold puts a lease in force. With another number it is to be earned anew.
func (c *Control) hold(next *lease) {
	if c.lease.Swap(next).number != next.number {
		signal(c.anew.wake)
	}
}

// share notes whether another process goes by this instance's name: the two would
// throw each other out at the broker and answer for each other's stages.
func (c *Control) share(shared bool) {
	if !shared {
		c.other.Store(nil)
		return
	}
	err := fmt.Errorf("another process runs as instance %q at the same time: give each a name and an MQTT client ID of its own", c.o.Instance)
	if c.other.Swap(&err) == nil {
		c.log.Error("two processes under one name", "instance", c.o.Instance, "error", err)
	}
}

// claim takes the row back once nobody keeps it up, and until then tells whoever does
// that there are two.
func (c *Control) claim(ctx context.Context) error {
	err := c.enter(ctx, false)
	if err == nil {
		return c.load(ctx, true)
	}
	if !errors.Is(err, errTaken) {
		return err
	}
	c.share(true)
	_, err = c.o.Pool.Exec(ctx, `
UPDATE crossfade_instances SET other = $2, other_until = now() + make_interval(secs => $3) WHERE instance_id = $1 AND run <> $2`,
		c.o.Instance, c.run, c.o.LeaseTTL.Seconds())
	if err != nil {
		return fmt.Errorf("tell the other process of instance %s: %w", c.o.Instance, err)
	}
	return nil
}

// keepLease renews until ctx ends: on its own beat, and when there is an epoch to
// confirm.
func (c *Control) keepLease(ctx context.Context) {
	beat := time.NewTicker(c.o.Renew)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
		case <-c.told:
		}
		err := c.renewBounded(ctx)
		if ctx.Err() != nil {
			return
		}
		c.o.Renewed(err)
	}
}

func (c *Control) renewBounded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.LeaseTTL)
	defer cancel()
	err := c.renew(ctx)
	if errors.Is(err, errTaken) {
		err = c.claim(ctx)
	}
	return err
}

// SignOff ends this instance's lease; afterwards it drops nothing. Its row stays for
// as long as its MQTT session may exist. Call it once nothing is in hand any more.
func (c *Control) SignOff(ctx context.Context) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.gone.Store(true)
	args, err := c.entry()
	if err != nil {
		return err
	}
	// In one transaction: a row is removed only once it has no lease.
	var batch pgx.Batch
	batch.Queue(`
UPDATE crossfade_instances
   SET state = 'stopped', seen_at = now(), lease_until = now(), version = $3, details = $5::jsonb,
       session_until = greatest(session_until, `+sessionUntil+`), mirror_until = greatest(mirror_until, `+mirrorUntil+`)
 WHERE instance_id = $1 AND run = $2 AND ($4::float8, $8::boolean) IS NOT NULL -- every parameter needs a type`, args...)
	batch.Queue(`
WITH removed AS (
    DELETE FROM crossfade_instances WHERE instance_id = $1 AND run = $2 AND $3 AND coalesce(other_until <= now(), true)
), left_alone AS (
    UPDATE crossfade_instances SET other = NULL, other_until = NULL WHERE instance_id = $1 AND run <> $2 AND other = $2
)
SELECT pg_notify('`+controlNotifications+`', '')`, c.o.Instance, c.run, c.o.Session == nil && c.o.Mirror == nil)
	err = c.o.Pool.SendBatch(ctx, &batch).Close()
	if err != nil {
		return fmt.Errorf("sign %s off in crossfade_instances: %w", c.o.Instance, err)
	}
	return nil
}
