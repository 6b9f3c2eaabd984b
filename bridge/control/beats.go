package control

import (
	"context"
	"fmt"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

// beats are the sentinels that measure paths. They prove nothing.
type beats struct {
	queue    []string             // tenants, in the order in which they get one
	last     map[string]time.Time // when each got one
	refilled time.Time
	looked   time.Time
	budget   float64
	missing  bool
}

// keepBeat sends beats that are due, at the pace that all share, and looks what has
// become of those before.
func (t *term) keepBeat(ctx context.Context) error {
	now := time.Now()
	if now.After(t.pruneAt) {
		t.pruneAt = now.Add(15 * time.Second)
		if err := t.prune(ctx); err != nil {
			return err
		}
	}
	o := &t.c.o
	if o.BeatEvery == 0 {
		return nil
	}
	if now.Sub(t.beats.looked) >= max(o.Round, 2*time.Second) {
		t.beats.looked = now
		if err := t.measure(ctx); err != nil {
			return err
		}
	}
	if !t.mail.idle() {
		return nil
	}
	return t.post(ctx, t.book.sessions(), t.beats.due(t, now))
}

// due takes from the queue who is to get a beat now.
func (b *beats) due(t *term, now time.Time) []letter {
	o := &t.c.o
	if b.refilled.IsZero() {
		b.refilled, b.last = now, make(map[string]time.Time)
	}
	b.budget = min(b.budget+now.Sub(b.refilled).Seconds()*o.BeatRate, max(o.BeatRate, 1))
	b.refilled = now
	var letters []letter
	if len(b.queue) == 0 {
		for tenant, f := range t.book.facts {
			if !f.Stage.Outer() && now.Sub(b.last[tenant]) >= o.BeatEvery {
				b.queue = append(b.queue, tenant)
			}
		}
	}
	for b.budget >= 1 && len(b.queue) > 0 {
		tenant := b.queue[0]
		b.queue = b.queue[1:]
		f, ok := t.book.facts[tenant]
		if !ok || f.Stage.Outer() {
			delete(b.last, tenant)
			continue
		}
		b.budget--
		b.last[tenant] = now
		letters = append(letters, letter{t.sentinel(tenant, 2*o.Missing), f.Revision, purposeBeat, 1})
	}
	return letters
}

// measure writes down how long sentinels took, and which have not come. Rows that
// somebody has locked are left as they are, for the next time.
func (t *term) measure(ctx context.Context) error {
	_, err := t.conn.Exec(ctx, `
WITH came AS (
    SELECT DISTINCT ON (n.tenant_id, g.path) n.tenant_id, g.path, greatest(extract(epoch FROM g.at - n.created_at), 0)::float8 AS seconds, g.at AS seen_at
      FROM crossfade_sentinels AS n
      JOIN (SELECT nonce, path, max(seen_at) AS at FROM crossfade_sightings GROUP BY nonce, path) AS g ON g.nonce = n.nonce
     ORDER BY n.tenant_id, g.path, n.created_at DESC
), mine AS (
    SELECT c.* FROM crossfade_path_latency AS l JOIN came AS c ON c.tenant_id = l.tenant_id AND c.path = l.path
     WHERE l.seen_at IS DISTINCT FROM c.seen_at
       FOR NO KEY UPDATE OF l SKIP LOCKED
), noted AS (
    UPDATE crossfade_path_latency AS l SET seconds = m.seconds, seen_at = m.seen_at, missing_since = NULL
      FROM mine AS m WHERE l.tenant_id = m.tenant_id AND l.path = m.path
)
INSERT INTO crossfade_path_latency (tenant_id, path, seconds, seen_at)
SELECT c.tenant_id, c.path, c.seconds, c.seen_at FROM came AS c
 WHERE NOT EXISTS (SELECT FROM crossfade_path_latency AS l WHERE l.tenant_id = c.tenant_id AND l.path = c.path)
    ON CONFLICT DO NOTHING`)
	if err != nil {
		return fmt.Errorf("note the latency of paths: %w", err)
	}
	// What has come later covers what has not.
	var missing [3]int
	err = t.conn.QueryRow(ctx, `
WITH late AS (
    SELECT n.tenant_id, p.path, min(n.published_at) AS since
      FROM crossfade_sentinels AS n CROSS JOIN (VALUES (1::int2), (2::int2)) AS p(path)
     WHERE n.published_at < now() - make_interval(secs => $1)
       AND NOT EXISTS (SELECT FROM crossfade_sightings AS g WHERE g.nonce = n.nonce AND g.path = p.path)
       AND NOT EXISTS (SELECT FROM crossfade_path_latency AS l WHERE l.tenant_id = n.tenant_id AND l.path = p.path AND l.seen_at >= n.created_at)
     GROUP BY n.tenant_id, p.path
), mine AS (
    SELECT late.* FROM crossfade_path_latency AS l JOIN late ON late.tenant_id = l.tenant_id AND late.path = l.path
     WHERE l.missing_since IS NULL
       FOR NO KEY UPDATE OF l SKIP LOCKED
), noted AS (
    UPDATE crossfade_path_latency AS l SET missing_since = m.since
      FROM mine AS m WHERE l.tenant_id = m.tenant_id AND l.path = m.path
), added AS (
    INSERT INTO crossfade_path_latency (tenant_id, path, missing_since)
    SELECT late.tenant_id, late.path, late.since FROM late
     WHERE NOT EXISTS (SELECT FROM crossfade_path_latency AS l WHERE l.tenant_id = late.tenant_id AND l.path = late.path)
        ON CONFLICT DO NOTHING
)
SELECT count(*) FILTER (WHERE path = 1), count(*) FILTER (WHERE path = 2) FROM late`, t.c.o.Missing.Seconds()).
		Scan(&missing[pipeline.PathMQTT], &missing[pipeline.PathJetStream])
	if err != nil {
		return fmt.Errorf("note sentinels that have not come: %w", err)
	}
	for _, p := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		t.c.beatMissing.WithLabelValues(p.String()).Set(float64(missing[p]))
	}
	any := missing[pipeline.PathMQTT]+missing[pipeline.PathJetStream] > 0
	if any && !t.beats.missing {
		t.c.log.Warn("sentinels do not come out of a path; is the mirror from MQTT to JetStream running?",
			"tenants_mqtt", missing[pipeline.PathMQTT], "tenants_jetstream", missing[pipeline.PathJetStream])
	}
	t.beats.missing = any
	return nil
}
