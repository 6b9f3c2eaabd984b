package downlink

import (
	"context"
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

// sweepAtOnce is how many rows one transaction changes or deletes.
const sweepAtOnce = 1000

// Commands that somebody else holds are left for the next time. Of a command that is
// past its expiry it does not matter whether it was published.
const (
	endExpired = `
UPDATE device_commands AS k SET status = 'expired'
  FROM (SELECT tenant_id, command_id FROM device_commands
         WHERE status = 'queued' AND expires_at <= now() ORDER BY expires_at LIMIT $1
           FOR NO KEY UPDATE SKIP LOCKED) AS e
 WHERE k.tenant_id = e.tenant_id AND k.command_id = e.command_id AND k.status = 'queued' AND k.expires_at <= now()`

	endMissed = `
UPDATE device_commands AS k SET status = 'missed'
  FROM (SELECT tenant_id, command_id FROM device_commands
         WHERE status = 'queued' AND expires_at IS NULL
           AND created_at <= now() - make_interval(secs => $2) AND published_at <= now() - make_interval(secs => $2)
         ORDER BY created_at LIMIT $1
           FOR NO KEY UPDATE SKIP LOCKED) AS e
 WHERE k.tenant_id = e.tenant_id AND k.command_id = e.command_id AND k.status = 'queued' AND k.expires_at IS NULL`
)

// sweep ends commands that have expired or are missed, until ctx ends, and tidies up.
func (s *Sender) sweep(ctx context.Context) {
	tick := time.NewTicker(s.o.Sweep)
	defer tick.Stop()
	var tidied time.Time
	for {
		if err := s.endCommands(ctx); err != nil && ctx.Err() == nil {
			s.metrics.sweepFailures.Inc()
			s.log.Warn("commands could not be looked through for expired and missed ones", "error", err)
		}
		if time.Since(tidied) >= tidyEvery {
			tidied = time.Now()
			if err := tidy(ctx, s.o.Pool); err != nil && ctx.Err() == nil {
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

func (s *Sender) endCommands(ctx context.Context) error {
	for _, step := range []struct {
		status, sql string
		arguments   []any
	}{
		{expired, endExpired, []any{sweepAtOnce}},
		{missed, endMissed, []any{sweepAtOnce, s.o.Missed.Seconds()}},
	} {
		if step.status == missed && s.o.Missed == 0 {
			continue
		}
		for {
			tag, err := s.o.Pool.Exec(ctx, step.sql, step.arguments...)
			if err != nil {
				return fmt.Errorf("set commands to %s: %w", step.status, err)
			}
			s.metrics.ended.WithLabelValues(step.status).Add(float64(tag.RowsAffected()))
			if tag.RowsAffected() < sweepAtOnce {
				break
			}
		}
	}
	return nil
}

const (
	tidyEvery = time.Minute
	// parkedResponses is how long answers stay parked, which nobody waits for any more.
	parkedResponses = 7 * 24 * time.Hour
)

// What has become pointless: marks that a later one of the same device stands for,
// marks of commands that are not to be sent any more, answers that nobody waits for.
// A sender passes by these anyway; without one, or while the broker is away, this
// bounds the tables to a row per device and queued command.
var tidying = []string{
	`DELETE FROM crossfade_downlink WHERE ctid = ANY (ARRAY(
	    SELECT o.ctid FROM (SELECT ctid, id, max(id) OVER (PARTITION BY lane, tenant_id, device_id) AS last FROM crossfade_downlink WHERE kind = 'desired') AS o
	     WHERE o.id < o.last LIMIT $1))`,
	// The ack of a command that nobody has noted as published proves that it was.
	`UPDATE device_commands SET published_at = least(now(), acked_at) WHERE status = 'delivered' AND published_at IS NULL AND ctid = ANY (ARRAY(
	    SELECT k.ctid FROM crossfade_downlink AS o JOIN device_commands AS k
	        ON k.tenant_id = o.tenant_id COLLATE "default" AND k.command_id = o.command_id COLLATE "default" AND k.device_id = o.device_id COLLATE "default"
	     WHERE o.kind = 'command' AND k.status = 'delivered' AND k.published_at IS NULL
	     LIMIT $1 FOR NO KEY UPDATE OF k SKIP LOCKED))`,
	`DELETE FROM crossfade_downlink WHERE kind = 'command' AND ctid = ANY (ARRAY(
	    SELECT o.ctid FROM crossfade_downlink AS o
	     WHERE o.kind = 'command' AND NOT EXISTS (SELECT FROM device_commands AS k
	           WHERE k.tenant_id = o.tenant_id COLLATE "default" AND k.command_id = o.command_id COLLATE "default" AND k.device_id = o.device_id COLLATE "default"
	             AND k.status IN ('queued', 'delivered') AND k.published_at IS NULL)
	     LIMIT $1))`,
	`DELETE FROM crossfade_downlink_parked WHERE kind = 'command' AND ctid = ANY (ARRAY(
	    SELECT o.ctid FROM crossfade_downlink_parked AS o
	     WHERE o.kind = 'command' AND NOT EXISTS (SELECT FROM device_commands AS k
	           WHERE k.tenant_id = o.tenant_id COLLATE "default" AND k.command_id = o.command_id COLLATE "default" AND k.device_id = o.device_id COLLATE "default"
	             AND k.status = 'queued')
	     LIMIT $1))`,
	fmt.Sprintf(`DELETE FROM crossfade_downlink WHERE ctid = ANY (ARRAY(
	    SELECT ctid FROM crossfade_downlink WHERE kind = 'response' AND created_at < now() - make_interval(secs => %d) LIMIT $1))`, int(responseExpiry.Seconds())),
	fmt.Sprintf(`DELETE FROM crossfade_downlink_parked WHERE ctid = ANY (ARRAY(
	    SELECT ctid FROM crossfade_downlink_parked WHERE kind = 'response' AND parked_at < now() - make_interval(secs => %d) LIMIT $1))`, int(parkedResponses.Seconds())),
}

func tidy(ctx context.Context, pool *pgxpool.Pool) error {
	const atOnce = 20_000
	for _, statement := range tidying {
		for {
			tag, err := pool.Exec(ctx, statement, atOnce)
			if err != nil {
				return fmt.Errorf("tidy crossfade_downlink: %w", err)
			}
			if tag.RowsAffected() < atOnce {
				break
			}
		}
	}
	return nil
}

// KeepTidy is for an instance that sends nothing: it bounds what triggers write into
// the downlink, until ctx ends. What is due stays, for a Sender that may come one day.
func KeepTidy(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		if err := tidy(ctx, pool); err != nil && ctx.Err() == nil {
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
