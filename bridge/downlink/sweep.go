package downlink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// What queued commands become that nobody acknowledges.
const (
	expired = "expired"
	missed  = "missed"
)

// sweep ends commands that have expired or are missed, until ctx ends, and tidies up.
func (s *Sender) sweep(ctx context.Context) {
	tick := time.NewTicker(s.o.Sweep)
	defer tick.Stop()
	var tidied time.Time
	t := newTidier(s.o.Pool)
	ending := map[string]*change{expired: newChange(endExpired), missed: newChange(endMissed)}
	for {
		if err := s.endCommands(ctx, ending); err != nil && ctx.Err() == nil {
			s.metrics.sweepFailures.Inc()
			s.log.Warn("commands could not all be looked through for expired and missed ones", "error", err)
		}
		if time.Since(tidied) >= tidyEvery {
			tidied = time.Now()
			if err := t.tidy(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("the downlink could not be tidied", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Sender) endCommands(ctx context.Context, ending map[string]*change) error {
	var errs []error
	for status, c := range ending {
		if status == missed && s.o.Missed == 0 {
			continue
		}
		n, err := c.run(ctx, s.o.Pool, s.o.Missed)
		s.metrics.ended.WithLabelValues(status).Add(float64(n))
		if err != nil {
			errs = append(errs, fmt.Errorf("set commands to %s: %w", status, err))
		}
	}
	return errors.Join(errs...)
}

const (
	tidyEvery = time.Minute
	// parkedResponses is how long answers stay parked, which nobody waits for any more.
	parkedResponses = 7 * 24 * time.Hour
)

// What has become pointless: marks that the next one of the same device stands for,
// marks of commands that are not to be sent any more, answers that nobody waits for.
// A sender passes by these anyway; without one, or while the broker is away, this
// bounds the tables to about a row per device and two per queued command or answer.
//
// Rows that a sender holds are left to it.
var tidying = []string{
	`DELETE FROM crossfade_downlink WHERE ctid = ANY (ARRAY(
	    SELECT o.ctid FROM crossfade_downlink AS o
	     WHERE o.kind = 'desired' AND (SELECT l.kind FROM crossfade_downlink AS l
	           WHERE l.lane = o.lane AND l.tenant_id = o.tenant_id AND l.device_id = o.device_id AND l.id > o.id ORDER BY l.id LIMIT 1) = 'desired'
	     LIMIT $1 FOR UPDATE OF o SKIP LOCKED))`,
	`DELETE FROM crossfade_downlink WHERE kind = 'command' AND ctid = ANY (ARRAY(
	    SELECT o.ctid FROM crossfade_downlink AS o
	     WHERE o.kind = 'command' AND NOT EXISTS (SELECT FROM device_commands AS k
	           WHERE k.tenant_id = o.tenant_id COLLATE "default" AND k.command_id = o.command_id COLLATE "default" AND k.device_id = o.device_id COLLATE "default"
	             AND k.status IN ('queued', 'delivered') AND k.published_at IS NULL)
	     LIMIT $1 FOR UPDATE OF o SKIP LOCKED))`,
	`DELETE FROM crossfade_downlink_parked WHERE kind = 'command' AND ctid = ANY (ARRAY(
	    SELECT o.ctid FROM crossfade_downlink_parked AS o
	     WHERE o.kind = 'command' AND NOT EXISTS (SELECT FROM device_commands AS k
	           WHERE k.tenant_id = o.tenant_id COLLATE "default" AND k.command_id = o.command_id COLLATE "default" AND k.device_id = o.device_id COLLATE "default"
	             AND k.status = 'queued')
	     LIMIT $1 FOR UPDATE OF o SKIP LOCKED))`,
	fmt.Sprintf(`DELETE FROM crossfade_downlink WHERE ctid = ANY (ARRAY(
	    SELECT ctid FROM crossfade_downlink WHERE kind = 'response' AND created_at < now() - make_interval(secs => %d) LIMIT $1 FOR UPDATE SKIP LOCKED))`, int(responseExpiry.Seconds())),
	fmt.Sprintf(`DELETE FROM crossfade_downlink_parked WHERE ctid = ANY (ARRAY(
	    SELECT ctid FROM crossfade_downlink_parked WHERE kind = 'response' AND parked_at < now() - make_interval(secs => %d) LIMIT $1 FOR UPDATE SKIP LOCKED))`, int(parkedResponses.Seconds())),
}

type tidier struct {
	pool  *pgxpool.Pool
	acked *change
}

func newTidier(pool *pgxpool.Pool) *tidier { return &tidier{pool, newChange(noteAcked)} }

// tidy runs every statement, whatever becomes of the others.
func (t *tidier) tidy(ctx context.Context) error {
	const atOnce = 20_000
	var errs []error
	if _, err := t.acked.run(ctx, t.pool, 0); err != nil {
		errs = append(errs, fmt.Errorf("note acknowledged commands as published: %w", err))
	}
	for _, statement := range tidying {
		for {
			tag, err := t.pool.Exec(ctx, statement, atOnce)
			if err != nil {
				errs = append(errs, fmt.Errorf("tidy crossfade_downlink: %w", err))
				break
			}
			if tag.RowsAffected() < atOnce {
				break
			}
		}
	}
	return errors.Join(errs...)
}

// KeepTidy is for an instance that sends nothing: it bounds what triggers write into
// the downlink, until ctx ends. What is due stays, for a Sender that may come one day.
func KeepTidy(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	t := newTidier(pool)
	for {
		if err := t.tidy(ctx); err != nil && ctx.Err() == nil {
			log.Debug("the downlink could not be tidied", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Backlog is how much waits to be sent, of all instances.
type Backlog struct {
	// Rows is exact up to 100,000; beyond that it is PostgreSQL's estimate.
	Rows int64
	// Parked is exact up to 100,000 and stays there.
	Parked int64
	// Oldest is how long the oldest row has waited; zero for none.
	Oldest time.Duration
}

const findBacklog = `
SELECT CASE WHEN c.n > 100000 THEN greatest(c.n, pg_stat_get_live_tuples('crossfade_downlink'::regclass)) ELSE c.n END,
       (SELECT count(*) FROM (SELECT FROM crossfade_downlink_parked LIMIT 100000) AS p),
       coalesce(extract(epoch FROM greatest(clock_timestamp() - (SELECT min(created_at) FROM crossfade_downlink), '0')), 0)::float8
  FROM (SELECT count(*) AS n FROM (SELECT FROM crossfade_downlink LIMIT 100001) AS o) AS c`

// FindBacklog looks at the downlink.
func FindBacklog(ctx context.Context, pool *pgxpool.Pool) (b Backlog, err error) {
	var seconds float64
	if err := pool.QueryRow(ctx, findBacklog).Scan(&b.Rows, &b.Parked, &seconds); err != nil {
		return b, fmt.Errorf("measure crossfade_downlink: %w", err)
	}
	b.Oldest = time.Duration(seconds * float64(time.Second))
	return b, nil
}

const sampleEvery = 10 * time.Second

// sample looks at the backlog now and then, for metrics and Health.
func (s *Sender) sample(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		if b, err := FindBacklog(ctx, s.o.Pool); err == nil {
			s.backlog.Store(&b)
		} else {
			s.log.Debug("the downlink could not be measured", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
