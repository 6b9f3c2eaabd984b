package control

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
)

// book is what the leader knows of the tables. It alone writes most of what is in it,
// so it reads only what is new, and everything on the beat.
type book struct {
	facts   map[string]*Fact
	epoch   int64
	era     string    // as it is written
	same    bool      // it began on the timeline that PostgreSQL is on
	settles bool      // leases from before it may not be over
	readAt  time.Time // when everything was read; zero: it is to be

	now       time.Time
	holds     map[string]Held
	instances []peer
}

// peer is what the leader needs of a row of crossfade_instances.
type peer struct {
	id, run   string
	state     string
	confirmed int64
	era       string // in which it has confirmed that
	leased    bool   // its lease is not over by PostgreSQL's clock
	shared    bool   // another run is, or was lately, working under its name
	other     bool   // and says so
	session   bool   // its source's MQTT session may exist
	mirror    bool   // its mirror's MQTT session may exist
	prober    bool
	token     time.Time // changes with each renewal
}

// readAll reads everything again.
func (t *term) readAll(ctx context.Context) error {
	t.book.readAt = time.Time{}
	return t.readBook(ctx)
}

// readBook reads what a round begins with, in one round trip.
func (t *term) readBook(ctx context.Context) error {
	b := &t.book
	full := b.readAt.IsZero() || time.Since(b.readAt) > t.c.o.Beat
	since := b.epoch
	if full {
		since = -1
	}
	var batch pgx.Batch
	batch.Queue(`SELECT now()`)
	batch.Queue(`SELECT tenant_id, held_by, reason, at FROM crossfade_holds`)
	batch.Queue(`
SELECT i.instance_id, i.run, i.state, i.confirmed_revision, i.confirmed_era, coalesce(i.lease_until > now(), false), coalesce(i.other_until > now(), false),
       i.other IS NOT NULL, coalesce(i.session_until > now(), i.run = '' AND i.seen_at > now() - interval '1 day'),
       coalesce(i.mirror_until > now(), false), i.prober, i.seen_at
  FROM crossfade_instances AS i`)
	batch.Queue(`SELECT e.epoch, (SELECT count(*) FROM crossfade_stages), e.era, ` + sameHistory + `, e.settles_at > now() FROM crossfade_epoch AS e`)
	batch.Queue(`SELECT `+factColumns+` FROM crossfade_stages AS s WHERE s.epoch > $1`, since)
	results := t.conn.SendBatch(ctx, &batch)
	err := b.take(results, full)
	if closed := results.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("read what there is to decide by: %w", err)
	}
	if full {
		b.readAt = time.Now()
	}
	return nil
}

func (b *book) take(results pgx.BatchResults, full bool) error {
	if err := results.QueryRow().Scan(&b.now); err != nil {
		return err
	}
	rows, err := results.Query()
	if err != nil {
		return err
	}
	b.holds = make(map[string]Held)
	var h Held
	if _, err = pgx.ForEachRow(rows, []any{&h.Tenant, &h.By, &h.Reason, &h.At}, func() error { b.holds[h.Tenant] = h; return nil }); err != nil {
		return err
	}
	if rows, err = results.Query(); err != nil {
		return err
	}
	b.instances, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p peer, err error) {
		return p, row.Scan(&p.id, &p.run, &p.state, &p.confirmed, &p.era, &p.leased, &p.shared, &p.other, &p.session, &p.mirror, &p.prober, &p.token)
	})
	if err != nil {
		return err
	}
	var count int
	var epoch int64
	if err := results.QueryRow().Scan(&epoch, &count, &b.era, &b.same, &b.settles); err != nil {
		return err
	}
	if rows, err = results.Query(); err != nil {
		return err
	}
	facts, err := pgx.CollectRows(rows, pgx.RowToAddrOfStructByPos[Fact])
	if err != nil {
		return err
	}
	if full {
		b.facts = make(map[string]*Fact, len(facts))
	}
	for _, f := range facts {
		b.facts[f.Tenant] = f
	}
	if !full && (len(b.facts) != count || epoch < b.epoch) {
		b.readAt = time.Time{} // rows were removed, or an older state was brought back
	}
	b.epoch = epoch
	return nil
}

// watched is how long the leader has been looking at a row that does not change.
type watched struct {
	run   string
	token time.Time
	since time.Time
}

// sessions are those of the sources and of the mirrors that may exist.
func (b *book) sessions() sessions {
	s := sessions{MQTT: make(map[string]string), Mirrors: make(map[string]string)}
	for _, i := range b.instances {
		if i.session {
			s.MQTT[i.id] = i.run
		}
		if i.mirror {
			s.Mirrors[i.id] = i.run
		}
	}
	return s
}

// peers weighs what instances say. One is dead once its lease is over by PostgreSQL's
// clock and this leader has seen nothing of it for as long as a lease lasts: no clock
// that is set can make a living one look dead.
func (t *term) peers(now time.Time) peers {
	p := peers{confirmed: t.book.epoch, unconfirmed: make(map[string]int64), sessions: t.book.sessions(), dead: make(map[string]bool)}
	watching := make(map[string]watched, len(t.book.instances))
	for _, i := range t.book.instances {
		w, ok := t.watched[i.id]
		if !ok || w.run != i.run || !w.token.Equal(i.token) {
			w = watched{i.run, i.token, now}
		}
		watching[i.id] = w
		live := i.leased || i.state == "running" && i.run != "" && now.Sub(w.since) < t.c.o.LeaseTTL
		p.dead[i.id] = !live
		switch {
		case i.shared && i.other:
			p.blocked = fmt.Sprintf("two processes run as instance %q", i.id)
		case i.shared:
			p.blocked = fmt.Sprintf("an earlier run of %s may still be at work, until its lease is over", i.id)
		case live:
			if i.era != t.era {
				i.confirmed = -1 // of another history, perhaps
			}
			p.unconfirmed[i.id] = i.confirmed
			p.confirmed = min(p.confirmed, i.confirmed)
		}
	}
	t.watched = watching
	if len(p.unconfirmed) == 0 && p.blocked == "" {
		p.blocked = "no instance is running"
	}
	if t.book.settles {
		p.blocked = "PostgreSQL has another history than before, and leases of the one before may not be over"
	}
	return p
}

// readProofs returns the sentinels that are out for proofs, newest first, by tenant.
func (t *term) readProofs(ctx context.Context) (map[string][]proof, error) {
	rows, err := t.conn.Query(ctx, `
SELECT n.tenant_id, n.revision, n.nonce, n.attempt, extract(epoch FROM now() - coalesce(n.published_at, n.created_at))::float8, n.sessions,
       n.published_at IS NOT NULL OR count(g.nonce) > 0,
       coalesce(array_agg(DISTINCT g.instance_id) FILTER (WHERE g.path = $1), '{}'),
       coalesce(array_agg(DISTINCT g.kind) FILTER (WHERE g.path = $2), '{}'),
       coalesce(array_agg(DISTINCT g.instance_id) FILTER (WHERE g.path = $2 AND g.kind = '`+KindMirror+`'), '{}')
  FROM crossfade_sentinels AS n LEFT JOIN crossfade_sightings AS g ON g.nonce = n.nonce
 WHERE n.purpose = 'proof' AND n.counts_in = (SELECT anew FROM crossfade_epoch)
 GROUP BY n.nonce
 ORDER BY n.created_at DESC`, int16(pipeline.PathMQTT), int16(pipeline.PathJetStream))
	if err != nil {
		return nil, fmt.Errorf("read sentinels: %w", err)
	}
	proofs := make(map[string][]proof)
	var tenant string
	var revision int64
	var seconds float64
	var p proof
	_, err = pgx.ForEachRow(rows, []any{&tenant, &revision, &p.nonce, &p.attempt, &seconds, &p.sessions, &p.published, &p.mqtt, &p.jetstream, &p.mirrors}, func() error {
		if f, ok := t.book.facts[tenant]; ok && f.Revision == revision {
			p.age = time.Duration(seconds * float64(time.Second))
			proofs[tenant] = append(proofs[tenant], p)
		}
		p = proof{}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read sentinels: %w", err)
	}
	return proofs, nil
}
