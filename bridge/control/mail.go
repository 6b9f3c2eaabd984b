package control

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Purposes of sentinels.
const (
	purposeProof = "proof"
	purposeBeat  = "beat"
)

// letter is a sentinel to be written down and sent.
type letter struct {
	Sentinel
	revision int64
	purpose  string
	attempt  int
}

// proofExpiry is for how long a sentinel that is to prove something is kept for sessions
// that are away: until prune has it forgotten. One that only measures is reported as
// missing long before, and must not pile up in the session of an instance that is
// stopped, where it would take room from messages.
const proofExpiry = time.Hour

// sentinel makes one that may be sent.
func (t *term) sentinel(tenant string, expiry time.Duration) Sentinel {
	return Sentinel{tenant, t.c.seal.Load().Nonce(tenant), expiry}
}

// mail hands sentinels to the Prober beside the rounds, one lot at a time: rounds must
// go on, and a rollback be taken, however long a broker takes.
type mail struct {
	c         *Control
	out       chan []Sentinel
	delivered chan struct{} // there is something in sent, or an error

	mu     sync.Mutex
	busy   bool
	sent   []string  // nonces that the broker has confirmed and the table does not show yet
	failed []string  // nonces of a lot that failed, which the table still shows
	err    error     // of the last lot
	since  time.Time // when the first of those in a row that failed did
	pause  time.Duration
	next   time.Time // after an error: not before
}

func newMail(c *Control) *mail {
	return &mail{c: c, out: make(chan []Sentinel, 1), delivered: make(chan struct{}, 1)}
}

const (
	sendTime  = 30 * time.Second // for one lot
	sendPause = time.Second      // after an error; doubles up to sendTime
)

// run sends until ctx ends.
func (m *mail) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case lot := <-m.out:
			bounded, cancel := context.WithTimeout(ctx, sendTime)
			err := m.c.o.Prober.Send(bounded, lot)
			cancel()
			if ctx.Err() == nil {
				m.done(lot, err)
			}
		}
	}
}

func (m *mail) done(lot []Sentinel, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil && m.err == nil {
		m.since = time.Now()
		m.c.log.Warn("sentinels could not be sent; steps that need proof wait", "sentinels", len(lot), "error", err)
	}
	into := &m.sent
	m.busy, m.err = false, err
	if err == nil {
		m.pause = 0
	} else {
		into = &m.failed
		m.pause = min(max(2*m.pause, sendPause), sendTime)
		m.next = time.Now().Add(m.pause)
	}
	for _, s := range lot {
		*into = append(*into, s.Nonce)
	}
	signal(m.delivered)
}

// trouble is why no sentinel can be sent, or the last ones could not; empty: all is well.
func (m *mail) trouble() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.c.o.Prober == nil:
		return fmt.Sprintf("the leader, instance %s, has no MQTT connection to send it by", m.c.o.Instance)
	case m.err != nil:
		return m.err.Error()
	}
	return ""
}

// hopeless reports whether nothing could be sent for so long that another instance
// should try.
func (m *mail) hopeless() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.c.o.Prober == nil || m.err != nil && time.Since(m.since) > m.c.o.ResendMax
}

// idle reports whether a lot can be handed over.
func (m *mail) idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.c.o.Prober != nil && !m.busy && !time.Now().Before(m.next)
}

// post writes sentinels down, with the MQTT sessions there are now, and then has them
// sent. Those that are too many now are due again in the next round.
func (t *term) post(ctx context.Context, sessions sessions, letters []letter) error {
	if len(letters) == 0 || !t.mail.idle() {
		return nil
	}
	letters = letters[:min(len(letters), mostSent)]
	n := len(letters)
	nonces, tenants, purposes := make([]string, n), make([]string, n), make([]string, n)
	revisions, attempts := make([]int64, n), make([]int32, n)
	lot := make([]Sentinel, n)
	for i, l := range letters {
		nonces[i], tenants[i], purposes[i], revisions[i], attempts[i], lot[i] = l.Nonce, l.Tenant, l.purpose, l.revision, int32(l.attempt), l.Sentinel
	}
	_, err := t.conn.Exec(ctx, `
INSERT INTO crossfade_sentinels (nonce, tenant_id, revision, purpose, attempt, sessions, counts_in)
SELECT u.nonce, u.tenant_id, u.revision, u.purpose, u.attempt, $6::jsonb, (SELECT anew FROM crossfade_epoch)
  FROM unnest($1::text[], $2::text[], $3::int8[], $4::text[], $5::int4[]) AS u(nonce, tenant_id, revision, purpose, attempt)`,
		nonces, tenants, revisions, purposes, attempts, sessions)
	if err != nil {
		return fmt.Errorf("write %d sentinels down: %w", n, err)
	}
	t.mail.mu.Lock()
	t.mail.busy = true
	t.mail.mu.Unlock()
	t.mail.out <- lot // has room, since it was idle
	return nil
}

// markDelivered notes which sentinels the broker has confirmed, and strikes out those
// that could not be sent. Rows that somebody has locked are left for the next round.
func (t *term) markDelivered(ctx context.Context) error {
	t.mail.mu.Lock()
	sent, failed := t.mail.sent, t.mail.failed
	t.mail.sent, t.mail.failed = nil, nil
	t.mail.mu.Unlock()
	if len(sent)+len(failed) == 0 {
		return nil
	}
	rows, err := t.conn.Query(ctx, `
WITH mine AS (
    SELECT nonce FROM crossfade_sentinels WHERE nonce = ANY($1::text[] || $2::text[]) FOR UPDATE SKIP LOCKED
), unsent AS (
    DELETE FROM crossfade_sentinels AS n USING mine
     WHERE n.nonce = mine.nonce AND n.nonce = ANY($2) AND NOT EXISTS (SELECT FROM crossfade_sightings AS g WHERE g.nonce = n.nonce)
), sent AS (
    UPDATE crossfade_sentinels AS n SET published_at = now() FROM mine WHERE n.nonce = mine.nonce AND n.nonce = ANY($1)
)
SELECT n.nonce, n.nonce = ANY($1) FROM crossfade_sentinels AS n
 WHERE n.nonce = ANY($1::text[] || $2::text[]) AND n.nonce NOT IN (SELECT nonce FROM mine)`, sent, failed)
	var locked struct {
		nonce string
		sent  bool
	}
	var sentLater, failedLater []string
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&locked.nonce, &locked.sent}, func() error {
			if locked.sent {
				sentLater = append(sentLater, locked.nonce)
			} else {
				failedLater = append(failedLater, locked.nonce)
			}
			return nil
		})
	}
	if err != nil { // of use in the next round, if this term has one
		sentLater, failedLater = sent, failed
	}
	t.mail.mu.Lock()
	t.mail.sent, t.mail.failed = append(sentLater, t.mail.sent...), append(failedLater, t.mail.failed...)
	t.mail.mu.Unlock()
	if err != nil {
		return fmt.Errorf("note %d sentinels as sent: %w", len(sent)+len(failed), err)
	}
	return nil
}

// Saw records sentinels that came out of a path of this instance's, with everything
// before them settled. Nonces that nobody waits for are left out. Sightings that could
// not be recorded may be recorded later, or be forgotten: the sentinel is sent again.
func (c *Control) Saw(ctx context.Context, sightings []Sighting) error {
	if sightings = c.anew.take(sightings); len(sightings) == 0 {
		return nil
	}
	n := len(sightings)
	nonces, kinds, paths, ages := make([]string, n), make([]string, n), make([]int16, n), make([]float64, n)
	for i, s := range sightings {
		nonces[i], kinds[i], paths[i], ages[i] = s.Nonce, s.Kind, int16(s.Path), max(time.Since(s.At), 0).Seconds()
	}
	_, err := c.o.Pool.Exec(ctx, `
WITH seen AS (
    INSERT INTO crossfade_sightings (nonce, path, instance_id, kind, seen_at)
    SELECT DISTINCT ON (u.nonce, u.path, u.kind) u.nonce, u.path, i.instance_id, u.kind, now() - make_interval(secs => u.age)
      FROM unnest($3::text[], $4::int2[], $5::text[], $6::float8[]) AS u(nonce, path, kind, age)
      JOIN crossfade_sentinels AS n ON n.nonce = u.nonce
      JOIN crossfade_instances AS i ON i.instance_id = $1 AND i.run = $2
     ORDER BY u.nonce, u.path, u.kind, u.age DESC
        ON CONFLICT DO NOTHING
 RETURNING nonce
)
SELECT pg_notify('`+controlNotifications+`', '')
 WHERE EXISTS (SELECT FROM seen JOIN crossfade_sentinels AS n ON n.nonce = seen.nonce WHERE n.purpose = 'proof')`,
		c.o.Instance, c.run, nonces, paths, kinds, ages)
	if err != nil {
		return fmt.Errorf("record %d sightings of sentinels: %w", n, err)
	}
	return nil
}

// prune removes sentinels and sightings that no proof counts on any more, and
// instances whose session cannot exist. What somebody has locked is left for later.
func (t *term) prune(ctx context.Context) error {
	var batch pgx.Batch
	batch.Queue(`
DELETE FROM crossfade_sentinels WHERE nonce IN (
    SELECT n.nonce FROM crossfade_sentinels AS n
     WHERE n.purpose = 'beat' AND n.created_at < now() - make_interval(secs => $1)
        OR n.purpose = 'proof' AND n.created_at < now() - interval '1 minute'
           AND NOT EXISTS (SELECT FROM crossfade_stages AS s WHERE s.tenant_id = n.tenant_id AND s.revision = n.revision)
        OR n.created_at < now() - interval '1 hour'
       FOR UPDATE SKIP LOCKED)`, (5 * t.c.o.Missing).Seconds())
	batch.Queue(`
DELETE FROM crossfade_sightings WHERE (nonce, path, instance_id, kind) IN (
    SELECT g.nonce, g.path, g.instance_id, g.kind FROM crossfade_sightings AS g
     WHERE g.seen_at < now() - interval '1 minute' AND NOT EXISTS (SELECT FROM crossfade_sentinels AS n WHERE n.nonce = g.nonce)
       FOR UPDATE SKIP LOCKED)`)
	batch.Queue(`
DELETE FROM crossfade_instances WHERE instance_id IN (
    SELECT instance_id FROM crossfade_instances
     WHERE greatest(session_until, mirror_until, lease_until, other_until, CASE WHEN run = '' THEN seen_at + interval '1 day' ELSE seen_at END) < now() - interval '1 hour'
       FOR UPDATE SKIP LOCKED)`)
	batch.Queue(`
DELETE FROM crossfade_path_latency WHERE (tenant_id, path) IN (
    SELECT l.tenant_id, l.path FROM crossfade_path_latency AS l
     WHERE NOT EXISTS (SELECT FROM crossfade_stages AS s WHERE s.tenant_id = l.tenant_id AND s.stage IN ('shadow', 'live'))
       FOR UPDATE SKIP LOCKED)`)
	if t.c.o.BeatEvery == 0 { // nothing would ever say that those of before are missing no more
		batch.Queue(`
UPDATE crossfade_path_latency SET missing_since = NULL WHERE (tenant_id, path) IN (
    SELECT tenant_id, path FROM crossfade_path_latency WHERE missing_since IS NOT NULL FOR NO KEY UPDATE SKIP LOCKED)`)
	}
	if err := t.conn.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("prune sentinels: %w", err)
	}
	return nil
}
