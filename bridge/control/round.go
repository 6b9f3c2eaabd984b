package control

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// mostSent bounds how many sentinels go to the Prober at once; others follow when
// those are delivered.
const mostSent = 2500

// mostMoved bounds how many tenants one statement moves or notes something about, apart
// from those on their way back to MQTT.
const mostMoved = 2500

// round looks once at everything and does what is due. It may end at any point: all
// that counts is in the tables, and what it writes is written by one statement each.
func (t *term) round(ctx context.Context) error {
	if err := t.readBook(ctx); err != nil {
		return err
	}
	if t.book.era != t.era || !t.book.same {
		return errEraOver
	}
	if t.resigns() {
		return errResigned
	}
	t.locked = t.locked[:0]
	if err := t.takeRest(ctx); err != nil {
		return err
	}
	k := &known{
		now: t.book.now, facts: t.book.facts, wishes: t.wishes.all(), holds: t.book.holds, peers: t.peers(time.Now()),
		dwell: t.c.o.Dwell, resend: t.c.o.Resend, resendMax: t.c.o.ResendMax, unable: t.mail.trouble(), lag: t.lag.Load(),
	}
	// The ways back to MQTT go first, all of them; then what needs nothing either.
	back, free := t.free(k)
	if err := t.moveAll(ctx, back); err != nil {
		return err
	}
	if err := t.moveAll(ctx, t.some(append(free, t.added(k)...))); err != nil {
		return err
	}
	if err := t.confirm(ctx, k); err != nil {
		return err
	}
	if err := t.markDelivered(ctx); err != nil {
		return err
	}
	if err := t.weighAll(ctx, k); err != nil {
		return err
	}
	t.noteLocked()
	return t.keepBeat(ctx)
}

// resigns reports whether somebody else should lead, who can send sentinels.
func (t *term) resigns() bool {
	if !t.mail.hopeless() {
		return false
	}
	for _, i := range t.book.instances {
		if i.prober && i.leased && i.id != t.c.o.Instance {
			return true
		}
	}
	return false
}

// free returns the steps that need nothing, and apart those that lead back to MQTT.
func (t *term) free(k *known) (back, others []move) {
	for _, f := range k.facts {
		a, ok := k.wishes[f.Tenant]
		if !ok || a.err != nil {
			continue
		}
		if step, more := stage.Next(f.Stage, a.wish.Stage); more && step.Needs == stage.NeedsNothing {
			v := k.weigh(f)
			switch {
			case v.move == nil:
			case returns(step):
				back = append(back, *v.move)
			default:
				others = append(others, *v.move)
			}
		}
	}
	return back, others
}

// some returns as many moves as one round may take on, and has another round follow
// for the rest: a way back that comes up meanwhile must not wait for thousands of others.
func (t *term) some(moves []move) []move {
	if len(moves) <= mostMoved {
		return moves
	}
	signal(t.c.nudge)
	return moves[:mostMoved]
}

// added returns the first rows of tenants that have none: in the inner stage beside
// the wish, which is safe whatever instances took their stage to be.
func (t *term) added(k *known) []move {
	var moves []move
	for tenant, a := range k.wishes {
		if _, known := k.facts[tenant]; known || a.err != nil {
			continue
		}
		if _, held := k.held(tenant); !held {
			moves = append(moves, move{tenant: tenant, to: stage.Toward(a.wish.Stage), wish: a.wish})
		}
	}
	return moves
}

// confirm notes for which rows every live instance has confirmed the revision: their
// dwell begins.
func (t *term) confirm(ctx context.Context, k *known) error {
	due := false
	for _, f := range k.facts {
		if due = f.ConfirmedAt == nil && f.Epoch <= k.peers.confirmed; due {
			break
		}
	}
	if !due || k.peers.blocked != "" {
		return nil
	}
	rows, err := t.conn.Query(ctx, `
WITH mine AS (
    SELECT tenant_id FROM crossfade_stages WHERE confirmed_at IS NULL AND epoch <= $1 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE crossfade_stages AS s SET confirmed_at = now() FROM mine
 WHERE s.tenant_id = mine.tenant_id AND s.confirmed_at IS NULL AND s.epoch <= $1
RETURNING s.tenant_id, s.revision, s.confirmed_at`, k.peers.confirmed)
	if err != nil {
		return fmt.Errorf("note confirmations: %w", err)
	}
	var tenant string
	var revision int64
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&tenant, &revision, &at}, func() error {
		if f := k.facts[tenant]; f != nil && f.Revision == revision {
			when := at
			f.ConfirmedAt = &when
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note confirmations: %w", err)
	}
	return nil
}

// weighAll decides about everybody, moves whom there is enough evidence for, notes
// what the others wait for, and sends sentinels.
func (t *term) weighAll(ctx context.Context, k *known) error {
	if err := t.addProofs(ctx, k); err != nil {
		return err
	}
	var moves []move
	var sends []letter
	waits := make(map[string]string)
	for _, f := range k.facts {
		v := k.weigh(f)
		switch {
		case v.move != nil:
			moves = append(moves, *v.move)
		case v.waits != "":
			waits[f.Tenant] = v.waits
		}
		if v.send {
			sends = append(sends, letter{t.sentinel(f.Tenant, proofExpiry), f.Revision, purposeProof, v.tries + 1})
		}
	}
	if err := t.moveAll(ctx, t.some(moves)); err != nil {
		return err
	}
	if err := t.post(ctx, k.peers.sessions, sends); err != nil {
		return err
	}
	return t.noteAll(ctx, k, waits)
}

// addProofs reads sentinels and sightings if somebody is waiting for them.
func (t *term) addProofs(ctx context.Context, k *known) (err error) {
	for _, f := range k.facts {
		a, ok := k.wishes[f.Tenant]
		if !ok || a.err != nil || f.ConfirmedAt == nil {
			continue
		}
		if step, more := stage.Next(f.Stage, a.wish.Stage); more && step.Needs == stage.NeedsProof {
			k.proofs, err = t.readProofs(ctx)
			return err
		}
	}
	return nil
}

// waiting is what a tenant waits for, and since when.
type waiting struct {
	what  string
	since time.Time
}

// noteAll writes what has changed of wishes and waits, in one statement. A wait is
// worth writing once it has lasted for a round.
func (t *term) noteAll(ctx context.Context, k *known, waits map[string]string) error {
	var notes notes
	pending := make(map[string]waiting, len(waits))
	now := time.Now()
	for _, f := range k.facts {
		what := waits[f.Tenant]
		if what != "" {
			w, ok := t.pending[f.Tenant]
			if !ok || w.what != what {
				w = waiting{what, now}
			}
			pending[f.Tenant] = w
			if now.Sub(w.since) < t.c.o.Round {
				what = f.WaitsFor // not yet
			}
		}
		wanted, why := f.Wanted, f.WantedWhy
		if a, ok := k.wishes[f.Tenant]; ok {
			wanted, why = a.noted()
		}
		if len(notes.facts) < mostMoved && (wanted != f.Wanted || why != f.WantedWhy || what != f.WaitsFor) {
			notes.add(f, wanted, why, what, now.Sub(pending[f.Tenant].since))
		}
	}
	t.pending = pending
	return notes.write(ctx, t.conn)
}

// noted is what status shows of an answer.
func (a answer) noted() (wanted stage.Stage, why string) {
	if a.err != nil {
		return "", noAnswer
	}
	return a.wish.Stage, a.wish.Why
}

// notes are changes of what is noted about tenants.
type notes struct {
	facts                    []*Fact
	tenants                  []string
	revisions                []int64
	wanted, wantedWhy, waits []string
	seconds                  []float64
}

func (n *notes) add(f *Fact, wanted stage.Stage, why, waits string, waited time.Duration) {
	n.facts = append(n.facts, f)
	n.tenants, n.revisions = append(n.tenants, f.Tenant), append(n.revisions, f.Revision)
	n.wanted, n.wantedWhy, n.waits = append(n.wanted, string(wanted)), append(n.wantedWhy, why), append(n.waits, waits)
	n.seconds = append(n.seconds, waited.Seconds())
}

func (n *notes) write(ctx context.Context, conn *pgx.Conn) error {
	if len(n.facts) == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, `
WITH u AS (
    SELECT * FROM unnest($1::text[], $2::int8[], $3::text[], $4::text[], $5::text[], $6::float8[]) AS u(tenant_id, revision, wanted, why, waits, seconds)
), mine AS (
    SELECT u.* FROM crossfade_stages AS s JOIN u ON s.tenant_id = u.tenant_id AND s.revision = u.revision FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE crossfade_stages AS s
   SET wanted = nullif(u.wanted, ''), wanted_why = u.why, waits_for = nullif(u.waits, ''),
       waits_since = CASE WHEN u.waits = '' THEN NULL WHEN u.waits = s.waits_for THEN s.waits_since ELSE now() - make_interval(secs => u.seconds) END
  FROM mine AS u
 WHERE s.tenant_id = u.tenant_id AND s.revision = u.revision
RETURNING s.tenant_id`,
		n.tenants, n.revisions, n.wanted, n.wantedWhy, n.waits, n.seconds)
	if err != nil {
		return fmt.Errorf("note what %d tenants wait for: %w", len(n.facts), err)
	}
	noted, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("note what %d tenants wait for: %w", len(n.facts), err)
	}
	written := make(map[string]bool, len(noted))
	for _, tenant := range noted {
		written[tenant] = true
	}
	for i, f := range n.facts {
		if written[f.Tenant] { // or else it is due again
			f.Wanted, f.WantedWhy, f.WaitsFor = stage.Stage(n.wanted[i]), n.wantedWhy[i], n.waits[i]
		}
	}
	return nil
}
