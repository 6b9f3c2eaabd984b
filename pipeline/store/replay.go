package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
)

// Fate is what became of a quarantined message that was run again.
type Fate string

// The fates.
const (
	// Written: it took effect just now, and its quarantine row is gone.
	Written Fate = "written"
	// AlreadyWritten: it had taken effect before, by another copy, replay or row; its
	// quarantine row is gone.
	AlreadyWritten Fate = "already_written"
	// StillQuarantined: it is where it was, with the reason of now.
	StillQuarantined Fate = "quarantined"
	// Vanished: its row was purged, or its partition dropped, before its turn came.
	Vanished Fate = "vanished"
)

// Replayed is a quarantined message on its second way through the pipeline.
type Replayed struct {
	Row Quarantined
	// Entry is the message with the verdict of the checks. Replay gives it its old ID,
	// Row.MessageID, where the row has one.
	Entry Entry
	// Unreadable says why the row cannot be made a message again; Entry is then unset
	// and the row stays as it is.
	Unreadable string
	// Fate is set by Replay.
	Fate Fate
}

// Verdict is the reason and detail of a row that stays in the quarantine.
func (r *Replayed) Verdict() (pipeline.Reason, string) {
	if r.Entry.Msg == nil {
		return r.Row.Reason, r.Row.Detail
	}
	detail := r.Entry.Detail
	if _, mark, ok := strings.Cut(r.Row.Detail, Shortened); ok {
		detail += Shortened + mark // the row is no longer than it was
	}
	return r.Entry.Reason, detail
}

// Replay gives each message its Fate, in one transaction: those whose Entry has
// passed the checks take effect as in Commit, except that the ledger's entry, which
// says "quarantined", is what they claim, and that they leave the quarantine; the
// others get their new reason. It may be run again after any error, beside others
// of its kind and beside Commit: a message takes effect once.
//
// With rehearse set everything is done and rolled back. The errors are Commit's.
//
//	BEGIN
//	  lock the quarantine rows                (by row ID)
//	  INSERT INTO crossfade_ledger            (IDs that it has forgotten, as quarantined, in ID order)
//	  lock the ledger's rows                  (in ID order)
//	  UPDATE crossfade_ledger                 (quarantined → written)
//	  … effects, as in Commit …
//	  DELETE and UPDATE quarantine_events     (the rows locked before)
//	COMMIT
//
// It changes no ledger row before it has inserted all that it inserts: Commit waits
// for changed rows and for inserted ones, so that the other order could deadlock.
func (s *Store) Replay(ctx context.Context, batch []Replayed, rehearse bool) error {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return translate("begin", err)
	}
	defer rollback(tx)
	if err := s.replay(ctx, tx, batch); err != nil || rehearse {
		return err
	}
	return commit(ctx, tx)
}

func (s *Store) replay(ctx context.Context, tx pgx.Tx, batch []Replayed) error {
	for i := range batch {
		batch[i].Fate, batch[i].Entry.Fresh = "", false
	}
	present, err := lockRows(ctx, tx, batch)
	if err != nil {
		return translate("lock quarantine_events", err)
	}
	ledger, err := lockLedger(ctx, tx, batch, present)
	if err != nil {
		return translate("lock the ledger", err)
	}
	claimed, err := decide(batch, present, ledger)
	if err != nil {
		return err
	}
	if err := unclaimWritten(ctx, tx, claimed, ledger); err != nil {
		return translate("look for the messages in telemetry", err)
	}
	if err := markWritten(ctx, tx, batch); err != nil {
		return translate("update the ledger", err)
	}
	entries := make([]Entry, 0, len(claimed))
	for _, r := range claimed {
		if r.Fate == Written {
			entries = append(entries, r.Entry)
		}
	}
	if err := s.writeEffects(ctx, tx, entries); err != nil {
		return err
	}
	return translate("update quarantine_events", settleRows(ctx, tx, batch))
}

// lockQuarantine takes at once what DELETE takes later. Maintenance of partitions
// would otherwise get hold of the table in between, and both would wait in vain.
const lockQuarantine = `LOCK TABLE ONLY quarantine_events IN ROW EXCLUSIVE MODE`

const lockQuarantined = `
SELECT id FROM quarantine_events
 WHERE id = ANY($1::int8[]) AND (ingested_at BETWEEN $2 AND $3 OR ingested_at IS NULL)
 ORDER BY id FOR UPDATE`

// lockRows returns the IDs of the rows that are still there. Others of its kind
// wait here until this transaction has ended.
func lockRows(ctx context.Context, tx pgx.Tx, batch []Replayed) (map[int64]bool, error) {
	ids := make([]int64, len(batch))
	for i := range batch {
		ids[i] = batch[i].Row.ID
	}
	if _, err := tx.Exec(ctx, lockQuarantine); err != nil {
		return nil, err
	}
	from, to := arrivals(batch)
	rows, err := tx.Query(ctx, lockQuarantined, ids, from, to)
	if err != nil {
		return nil, err
	}
	present := make(map[int64]bool, len(batch))
	var id int64
	_, err = pgx.ForEachRow(rows, []any{&id}, func() error { present[id] = true; return nil })
	return present, err
}

// arrivals is the range of the rows' times of arrival, which spares a look into
// every partition.
func arrivals(batch []Replayed) (from, to time.Time) {
	for i := range batch {
		at := batch[i].Row.IngestedAt
		if at.IsZero() {
			continue
		}
		if from.IsZero() || at.Before(from) {
			from = at
		}
		if at.After(to) {
			to = at
		}
	}
	return from, to
}

// replayedID is the ID under which the message is in the ledger.
func (r *Replayed) replayedID() (pipeline.ID, bool) {
	switch {
	case r.Row.MessageID != nil:
		return *r.Row.MessageID, true
	case r.Entry.Msg != nil:
		return r.Entry.Msg.ID, true
	}
	return pipeline.ID{}, false
}

// remembered is what the ledger says of an ID.
type remembered struct {
	outcome outcome
	// forgotten: it was this transaction that inserted the ID. The message may have
	// been written all the same, longer ago than the ledger remembers.
	forgotten bool
}

const rememberIDs = `
INSERT INTO crossfade_ledger (message_id, path, outcome, digest, occurred_at)
SELECT * FROM unnest($1::uuid[], $2::int2[], $3::int2[], $4::int8[], $5::timestamptz[])
    ON CONFLICT DO NOTHING
 RETURNING message_id`

// lockIDs locks look-up by look-up, in the order of the array: each touches only
// the partition of its ID.
const lockIDs = `
SELECT l.message_id, l.outcome
  FROM unnest($1::uuid[]) AS i(id)
 CROSS JOIN LATERAL (SELECT message_id, outcome FROM crossfade_ledger WHERE message_id = i.id FOR UPDATE) AS l`

// lockLedger locks the ledger's entries for the batch. For messages that passed the
// checks and that it has forgotten it makes new ones, which say "quarantined" as the
// old ones did.
func lockLedger(ctx context.Context, tx pgx.Tx, batch []Replayed, present map[int64]bool) (map[pipeline.ID]remembered, error) {
	var ids, missing []pipeline.ID
	by := make(map[pipeline.ID]*Replayed, len(batch))
	for i := range batch {
		r := &batch[i]
		id, ok := r.replayedID()
		if !ok {
			continue
		}
		ids = append(ids, id)
		if r.passed() && present[r.Row.ID] {
			by[id] = r
		}
	}
	for id := range by {
		missing = append(missing, id)
	}
	slices.SortFunc(ids, compareIDs)
	slices.SortFunc(missing, compareIDs)
	forgotten, err := remember(ctx, tx, missing, by)
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, lockIDs, uuids(slices.Compact(ids)))
	if err != nil {
		return nil, err
	}
	ledger := make(map[pipeline.ID]remembered, len(batch))
	var id [16]byte
	var o int16
	_, err = pgx.ForEachRow(rows, []any{&id, &o}, func() error {
		ledger[id] = remembered{outcome(o), forgotten[id]}
		return nil
	})
	return ledger, err
}

// remember inserts the IDs that the ledger lacks and returns them. It waits for
// whoever is inserting one of them just now.
func remember(ctx context.Context, tx pgx.Tx, ids []pipeline.ID, by map[pipeline.ID]*Replayed) (map[pipeline.ID]bool, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	paths, outcomes := make([]int16, len(ids)), make([]int16, len(ids))
	digests, occurred := make([]*int64, len(ids)), make([]*time.Time, len(ids))
	for i, id := range ids {
		m := by[id].Entry.Msg
		paths[i], outcomes[i] = int16(m.Delivery.Path), int16(outcomeQuarantined)
		if m.Explicit {
			digests[i] = &m.Digest
		}
		if m.Anonymous {
			occurred[i] = &m.Occurred
		}
	}
	rows, err := tx.Query(ctx, rememberIDs, uuids(ids), paths, outcomes, digests, occurred)
	if err != nil {
		return nil, err
	}
	forgotten := make(map[pipeline.ID]bool)
	var id [16]byte
	_, err = pgx.ForEachRow(rows, []any{&id}, func() error { forgotten[id] = true; return nil })
	return forgotten, err
}

func (r *Replayed) passed() bool { return r.Entry.Msg != nil && r.Entry.Reason == pipeline.Accepted }

// decide gives every message its fate, and returns those that are to be written.
// Of several rows of one message the first is written, if it passes.
func decide(batch []Replayed, present map[int64]bool, ledger map[pipeline.ID]remembered) (claimed []*Replayed, err error) {
	taken := make(map[pipeline.ID]bool, len(batch))
	for i := range batch {
		r := &batch[i]
		id, _ := r.replayedID()
		switch written := ledger[id].outcome == outcomeWritten || taken[id]; {
		case written:
			r.Fate = AlreadyWritten // also where another replay was faster
		case !present[r.Row.ID]:
			r.Fate = Vanished
		case !r.passed():
			r.Fate = StillQuarantined
		case ledger[id].outcome == 0:
			return nil, fmt.Errorf("%w: the ledger forgot %s while it was being looked up", ErrUnavailable, id)
		default:
			r.Fate, r.Entry.Fresh = Written, true
			r.Entry.Msg.ID, taken[id] = id, true
			claimed = append(claimed, r)
		}
	}
	return claimed, nil
}

const findTelemetry = `
SELECT n
  FROM unnest($1::int4[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::int8[], $7::text[])
       AS u(n, at, tenant, device, type, seq, metrics)
 WHERE EXISTS (SELECT FROM telemetry AS t
                WHERE t.tenant_id = u.tenant AND t.device_id = u.device AND t.time = u.at AND t.msg_type = u.type
                  AND t.seq IS NOT DISTINCT FROM u.seq AND t.metrics = u.metrics::jsonb)`

// unclaimWritten finds, for messages that the ledger had forgotten, the telemetry
// row that shows that one of their copies came late and was written.
func unclaimWritten(ctx context.Context, tx pgx.Tx, claimed []*Replayed, ledger map[pipeline.ID]remembered) error {
	var numbers []int32
	var times []time.Time
	var tenants, devices, types, metrics []string
	var seqs []*int64
	for n, r := range claimed {
		m := r.Entry.Msg
		if !ledger[m.ID].forgotten || m.Kind != pipeline.KindTelemetry {
			continue
		}
		numbers, times = append(numbers, int32(n)), append(times, m.Time)
		tenants, devices, types = append(tenants, m.Tenant), append(devices, m.Device), append(types, m.MsgType)
		metrics = append(metrics, string(storedMetrics(&r.Entry)))
		if seq, null, _ := m.Seq(); null {
			seqs = append(seqs, nil)
		} else {
			seqs = append(seqs, &seq)
		}
	}
	if len(numbers) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, findTelemetry, numbers, times, tenants, devices, types, seqs, metrics)
	if err != nil {
		return err
	}
	var n int32
	_, err = pgx.ForEachRow(rows, []any{&n}, func() error {
		claimed[n].Fate, claimed[n].Entry.Fresh = AlreadyWritten, false
		return nil
	})
	return err
}

// markWritten changes the ledger's entries of all that is written, now or before.
func markWritten(ctx context.Context, tx pgx.Tx, batch []Replayed) error {
	var ids []pipeline.ID
	for i := range batch {
		if r := &batch[i]; r.Fate == Written || r.Fate == AlreadyWritten {
			id, _ := r.replayedID()
			ids = append(ids, id)
		}
	}
	_, err := tx.Exec(ctx, `UPDATE crossfade_ledger SET outcome = $2 WHERE message_id = ANY($1::uuid[]) AND outcome <> $2`,
		uuids(ids), int16(outcomeWritten))
	return err
}

const deleteQuarantined = `
DELETE FROM quarantine_events
 WHERE id = ANY($1::int8[]) AND (ingested_at BETWEEN $2 AND $3 OR ingested_at IS NULL)`

const updateQuarantined = `
UPDATE quarantine_events AS q
   SET reason = u.reason, detail = u.detail
  FROM unnest($1::int8[], $2::text[], $3::text[]) AS u(id, reason, detail)
 WHERE q.id = u.id AND (q.ingested_at BETWEEN $4 AND $5 OR q.ingested_at IS NULL)`

// settleRows takes what is written out of the quarantine, and tells the others'
// reason where it is a new one.
func settleRows(ctx context.Context, tx pgx.Tx, batch []Replayed) error {
	var gone, changed []int64
	var reasons, details []string
	for i := range batch {
		switch r := &batch[i]; r.Fate {
		case Written, AlreadyWritten:
			gone = append(gone, r.Row.ID)
		case StillQuarantined:
			if reason, detail := r.Verdict(); reason != r.Row.Reason || detail != r.Row.Detail {
				changed = append(changed, r.Row.ID)
				reasons, details = append(reasons, string(reason)), append(details, detail)
			}
		}
	}
	from, to := arrivals(batch)
	if len(gone) > 0 {
		if _, err := tx.Exec(ctx, deleteQuarantined, gone, from, to); err != nil {
			return err
		}
	}
	if len(changed) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, updateQuarantined, changed, reasons, details, from, to)
	return err
}
