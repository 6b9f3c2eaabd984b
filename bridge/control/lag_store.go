package control

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline"
)

// LagFresh is for how long figures count as those of now.
const LagFresh = 15 * time.Second

// The sources of figures in crossfade_lag.
const (
	lagInstance = "instance"
	lagStream   = "stream"
	lagTurn     = "turn"
)

// TellLag writes what this instance has in hand, and what it has heard of streams.
func (c *Control) TellLag(ctx context.Context, h Hand, streams []Stream) error {
	sources, names := []string{lagInstance}, []string{c.o.Instance}
	figures := make([]string, 0, 1+len(streams))
	told := []any{h}
	for _, s := range streams {
		sources, names, told = append(sources, lagStream), append(names, s.Stream), append(told, s)
	}
	for _, f := range told {
		b, err := json.Marshal(f)
		if err != nil {
			return fmt.Errorf("write lag: %w", err)
		}
		figures = append(figures, string(b))
	}
	_, err := c.o.Pool.Exec(ctx, `
INSERT INTO crossfade_lag AS l (source, name, measured_by, figures)
SELECT u.source, u.name, $1, u.figures::jsonb FROM unnest($2::text[], $3::text[], $4::text[]) AS u(source, name, figures)
 ORDER BY u.source, u.name
    ON CONFLICT (source, name) DO UPDATE SET measured_at = now(), measured_by = EXCLUDED.measured_by, figures = EXCLUDED.figures`,
		c.o.Instance, sources, names, figures)
	if err != nil {
		return fmt.Errorf("write lag: %w", err)
	}
	return nil
}

// TakeLagTurn reports whether it is this instance's turn to tell of streams, which are
// the same for all: one of them does, once in a while. Figures of instances and streams
// that nobody tells of any more are removed.
func (c *Control) TakeLagTurn(ctx context.Context, every time.Duration) (mine bool, err error) {
	tag, err := c.o.Pool.Exec(ctx, `
WITH old AS (
    DELETE FROM crossfade_lag WHERE measured_at < now() - interval '1 hour' AND source <> '`+lagTurn+`'
)
INSERT INTO crossfade_lag AS l (source, name, measured_by) VALUES ('`+lagTurn+`', '', $1)
    ON CONFLICT (source, name) DO UPDATE SET measured_at = now(), measured_by = EXCLUDED.measured_by
 WHERE l.measured_at < now() - make_interval(secs => $2)`, c.o.Instance, every.Seconds())
	if err != nil {
		return false, fmt.Errorf("take the turn to tell of lag: %w", err)
	}
	return tag.RowsAffected() > 0, nil
}

// querier is a pool or a connection.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// ReadLag returns the figures that are not too old. With a retention it is that, instead
// of the shortest which instances tell.
func ReadLag(ctx context.Context, db querier, retention time.Duration) (*Lag, error) {
	l := &Lag{Retention: retention, Stuck: make(map[string]pipeline.Path)}
	fail := func(err error) (*Lag, error) { return nil, fmt.Errorf("read crossfade_lag: %w", err) }
	if err := l.readFigures(ctx, db); err != nil {
		return fail(err)
	}
	if err := l.readInstances(ctx, db); err != nil {
		return fail(err)
	}
	for _, h := range l.Hands {
		told := time.Duration(h.Retention * float64(time.Second))
		if retention == 0 && told > 0 && (l.Retention == 0 || told < l.Retention) {
			l.Retention = told
		}
	}
	if l.Retention > 0 {
		if err := l.readStuck(ctx, db); err != nil {
			return fail(err)
		}
	}
	l.prepare()
	return l, nil
}

func (l *Lag) readFigures(ctx context.Context, db querier) error {
	rows, err := db.Query(ctx, `
SELECT source, measured_at, measured_by, figures FROM crossfade_lag
 WHERE source <> '`+lagTurn+`' AND measured_at > now() - make_interval(secs => $1) ORDER BY name`, LagFresh.Seconds())
	if err != nil {
		return err
	}
	var source, by string
	var at time.Time
	var figures []byte
	_, err = pgx.ForEachRow(rows, []any{&source, &at, &by, &figures}, func() error {
		if source == lagInstance {
			h := Hand{}
			err := json.Unmarshal(figures, &h)
			h.Instance, h.MeasuredAt = by, at
			l.Hands = append(l.Hands, h)
			return err
		}
		s := Stream{}
		err := json.Unmarshal(figures, &s)
		s.MeasuredAt, s.MeasuredBy = at, by
		l.Streams = append(l.Streams, s)
		return err
	})
	return err
}

// readInstances leaves out the hands of those that are gone: what they had comes again.
func (l *Lag) readInstances(ctx context.Context, db querier) error {
	rows, err := db.Query(ctx, `
SELECT instance_id, state = 'running' AND coalesce(lease_until > now(), false), coalesce(session_until > now(), false), now() FROM crossfade_instances
 ORDER BY instance_id`)
	if err != nil {
		return err
	}
	hands := make(map[string]Hand, len(l.Hands))
	for _, h := range l.Hands {
		hands[h.Instance] = h
	}
	l.Hands = nil
	var instance string
	var live, session bool
	_, err = pgx.ForEachRow(rows, []any{&instance, &live, &session, &l.At}, func() error {
		h, told := hands[instance]
		switch {
		case live && told:
			l.Hands = append(l.Hands, h)
		case live:
			l.Silent = append(l.Silent, instance)
		case session:
			l.Away = append(l.Away, instance)
		}
		return nil
	})
	return err
}

func (l *Lag) readStuck(ctx context.Context, db querier) error {
	rows, err := db.Query(ctx, `SELECT tenant_id, path FROM crossfade_path_latency WHERE missing_since < now() - make_interval(secs => $1) ORDER BY path DESC`,
		l.Retention.Seconds())
	if err != nil {
		return err
	}
	var tenant string
	var path int16
	_, err = pgx.ForEachRow(rows, []any{&tenant, &path}, func() error {
		l.Stuck[tenant] = pipeline.Path(path)
		return nil
	})
	return err
}

// Waiting is since when sentinels of a tenant have been out, if since then none has come
// out of a path; nil for none.
type Waiting struct{ MQTT, JetStream *time.Time }

// WaitingSentinels returns them by tenant.
func WaitingSentinels(ctx context.Context, db querier) (map[string]Waiting, error) {
	rows, err := db.Query(ctx, `
SELECT n.tenant_id, p.path, min(n.published_at)
  FROM crossfade_sentinels AS n CROSS JOIN (VALUES (1::int2), (2::int2)) AS p(path)
 WHERE n.published_at IS NOT NULL
   AND NOT EXISTS (SELECT FROM crossfade_sightings AS g WHERE g.nonce = n.nonce AND g.path = p.path)
   AND NOT EXISTS (SELECT FROM crossfade_path_latency AS l WHERE l.tenant_id = n.tenant_id AND l.path = p.path AND l.seen_at >= n.created_at)
 GROUP BY n.tenant_id, p.path`)
	if err != nil {
		return nil, fmt.Errorf("read sentinels that are out: %w", err)
	}
	all := make(map[string]Waiting)
	var tenant string
	var path int16
	var since time.Time
	_, err = pgx.ForEachRow(rows, []any{&tenant, &path, &since}, func() error {
		w, at := all[tenant], since
		if pipeline.Path(path) == pipeline.PathMQTT {
			w.MQTT = &at
		} else {
			w.JetStream = &at
		}
		all[tenant] = w
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read sentinels that are out: %w", err)
	}
	return all, nil
}

// lagBeat is how often a leader looks at the lag.
const lagBeat = 2 * time.Second

// followLag keeps the figures by which moves are refused, beside the rounds: nothing
// may hold up the ways back. When they cannot be read the last ones stay.
func (t *term) followLag(ctx context.Context) {
	troubled := false
	for ctx.Err() == nil {
		reading, cancel := context.WithTimeout(ctx, LagFresh)
		l, err := ReadLag(reading, t.c.o.Pool, t.c.o.Retention)
		cancel()
		switch {
		case ctx.Err() != nil:
		case err == nil:
			if t.lag.Swap(l).unread {
				signal(t.c.nudge)
			}
		case !troubled:
			t.c.log.Warn("tenants are moved by what was known before of undelivered messages", "error", err)
		}
		troubled = err != nil
		backoff.Sleep(ctx, lagBeat)
	}
}
