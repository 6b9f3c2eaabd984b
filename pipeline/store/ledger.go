package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
)

// outcome is what the ledger says became of a message. Stored: never renumber.
type outcome int16

const (
	outcomeWritten     outcome = 1
	outcomeQuarantined outcome = 2
)

// The stripes over which anonymous messages are serialized by advisory locks:
// uniqueness within a time window is beyond an index. Few, since the lock table
// is small and only batches that hold such messages take them.
const (
	anonymousLockClass   = 0x78666164 // "xfad"
	anonymousLockStripes = 64
)

const lockAnonymous = `
SELECT pg_advisory_xact_lock($1, stripe) FROM unnest($2::int4[]) AS stripe`

// findInLedger looks IDs up one by one, so that each look-up touches only the
// partition of its ID.
const findInLedger = `
SELECT i.id, l.occurred_at, l.digest, (extract(epoch FROM now() - l.committed_at) * 1000000)::int8
  FROM unnest($1::uuid[]) AS i(id)
 CROSS JOIN LATERAL (SELECT occurred_at, digest, committed_at FROM crossfade_ledger WHERE message_id = i.id) AS l`

// The inserts return no rows. Nearly always every ID is new, which their count
// tells, and a row for each costs both sides more than the look-up of findOwn now
// and then. insertLedgerAlike is for batches of one path and outcome.
const insertLedgerAlike = `
INSERT INTO crossfade_ledger (message_id, path, outcome)
SELECT i.id, $2::int2, $3::int2 FROM unnest($1::uuid[]) AS i(id)
    ON CONFLICT DO NOTHING`

const insertLedger = `
INSERT INTO crossfade_ledger (message_id, path, outcome)
SELECT * FROM unnest($1::uuid[], $2::int2[], $3::int2[])
    ON CONFLICT DO NOTHING`

const insertLedgerWide = `
INSERT INTO crossfade_ledger (message_id, path, outcome, digest, occurred_at)
SELECT * FROM unnest($1::uuid[], $2::int2[], $3::int2[], $4::int8[], $5::timestamptz[])
    ON CONFLICT DO NOTHING`

// findOwn tells which IDs this very transaction has inserted. A transaction's
// 32-bit number comes round again, its start (the default of committed_at) does not.
const findOwn = `
SELECT i.id
  FROM unnest($1::uuid[]) AS i(id)
 CROSS JOIN LATERAL (SELECT FROM crossfade_ledger AS l
                      WHERE l.message_id = i.id
                        AND l.xmin = pg_current_xact_id()::xid AND l.committed_at = now()) AS own`

// correctLedger follows entries whose outcome changed after they were claimed.
const correctLedger = `UPDATE crossfade_ledger SET outcome = $2 WHERE message_id = ANY($1::uuid[])`

// meter charges the fresh entries. The ledger has those over the limit as written.
func meter(ctx context.Context, tx pgx.Tx, entries []Entry, charge func(*Entry)) error {
	if charge == nil {
		return nil
	}
	var limited [][16]byte
	for i := range entries {
		e := &entries[i]
		if !e.Fresh || !e.Metered || e.Rate != RateOpen {
			continue
		}
		before := e.outcome()
		if charge(e); e.outcome() != before {
			limited = append(limited, e.Msg.ID)
		}
	}
	if len(limited) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, correctLedger, limited, int16(outcomeQuarantined))
	return err
}

// Known tells, for each copy, whether the ledger has its message, since when, and
// whether the copy that counted says the same.
func (s *Store) Known(ctx context.Context, copies []pipeline.Identity) ([]pipeline.Known, error) {
	known := make([]pipeline.Known, len(copies))
	if len(copies) == 0 {
		return known, nil
	}
	rows, err := findIDs(ctx, s.pool, candidates(copies))
	if err != nil {
		return nil, translate("look up the ledger", err)
	}
	for i, c := range copies {
		r, ok := rows.find(c)
		if !ok {
			continue
		}
		known[i] = pipeline.Known{Durable: true, Age: r.age}
		if c.Explicit && r.digest != nil {
			known[i].Differs, known[i].Digest = *r.digest != c.Digest, *r.digest
		}
	}
	return known, nil
}

// candidates lists the IDs under which the copies may stand in the ledger.
func candidates(copies []pipeline.Identity) []pipeline.ID {
	ids := make([]pipeline.ID, 0, len(copies))
	for _, c := range copies {
		if c.Anonymous {
			n := c.ID.Neighbours()
			ids = append(ids, n[:]...)
		} else {
			ids = append(ids, c.ID)
		}
	}
	slices.SortFunc(ids, compareIDs)
	return slices.Compact(ids)
}

// found are ledger rows by ID.
type found map[pipeline.ID]foundRow

type foundRow struct {
	occurred time.Time     // of anonymous messages
	digest   *int64        // of explicit ones
	age      time.Duration // since the commit
}

func (f found) find(c pipeline.Identity) (foundRow, bool) {
	if !c.Anonymous {
		r, ok := f[c.ID]
		return r, ok
	}
	for _, id := range c.ID.Neighbours() {
		if r, ok := f[id]; ok && pipeline.SameOccurrence(r.occurred, c.Occurred) {
			return r, true
		}
	}
	return foundRow{}, false
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func findIDs(ctx context.Context, q querier, ids []pipeline.ID) (found, error) {
	rows, err := q.Query(ctx, findInLedger, uuids(ids))
	if err != nil {
		return nil, err
	}
	f := make(found)
	var id [16]byte
	var at *time.Time
	var digest *int64
	var age int64
	_, err = pgx.ForEachRow(rows, []any{&id, &at, &digest, &age}, func() error {
		r := foundRow{digest: digest, age: time.Duration(max(age, 0)) * time.Microsecond}
		if at != nil {
			r.occurred = *at
		}
		f[id] = r
		return nil
	})
	return f, err
}

func uuids(ids []pipeline.ID) [][16]byte {
	out := make([][16]byte, len(ids))
	for i, id := range ids {
		out[i] = id
	}
	return out
}

func compareIDs(a, b pipeline.ID) int { return bytes.Compare(a[:], b[:]) }

// claim inserts the batch's IDs into the ledger and marks the entries that were
// new: exactly those may take effect. entries are in ID order, without those that
// the batch itself repeats, except for anonymous ones.
func claim(ctx context.Context, tx pgx.Tx, entries []*Entry) error {
	entries, err := settleAnonymous(ctx, tx, entries)
	if err != nil || len(entries) == 0 {
		return err
	}
	inserted, err := insertIDs(ctx, tx, entries)
	switch {
	case err != nil:
		return err
	case inserted == int64(len(entries)):
		for _, e := range entries {
			e.Fresh = true
		}
		return nil
	case inserted == 0:
		return nil
	}
	fresh, err := markOwn(ctx, tx, entries)
	if err == nil && fresh != inserted {
		err = fmt.Errorf("the ledger took %d IDs, of which %d can be told: does a trigger change crossfade_ledger?", inserted, fresh)
	}
	return err
}

// markOwn marks the entries whose IDs the transaction has inserted, and counts them.
func markOwn(ctx context.Context, tx pgx.Tx, entries []*Entry) (n int64, err error) {
	ids := make([][16]byte, len(entries))
	for i, e := range entries {
		ids[i] = e.Msg.ID
	}
	rows, err := tx.Query(ctx, findOwn, ids)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		id := pipeline.ID(rows.RawValues()[0]) // in binary: NewPool refuses other modes
		i, ok := slices.BinarySearchFunc(entries, id, func(e *Entry, id pipeline.ID) int { return compareIDs(e.Msg.ID, id) })
		if !ok {
			return 0, fmt.Errorf("the ledger took an ID that it was not given: %s", id)
		}
		entries[i].Fresh = true
		n++
	}
	return n, rows.Err()
}

func insertIDs(ctx context.Context, tx pgx.Tx, entries []*Entry) (int64, error) {
	ids := make([][16]byte, len(entries))
	paths := make([]int16, len(entries))
	outcomes := make([]int16, len(entries))
	wide, alike := false, true
	for i, e := range entries {
		ids[i], paths[i], outcomes[i] = e.Msg.ID, int16(e.Msg.Delivery.Path), int16(e.outcome())
		wide = wide || e.Msg.Explicit || e.Msg.Anonymous
		alike = alike && paths[i] == paths[0] && outcomes[i] == outcomes[0]
	}
	switch {
	case !wide && alike:
		tag, err := tx.Exec(ctx, insertLedgerAlike, ids, paths[0], outcomes[0])
		return tag.RowsAffected(), err
	case !wide:
		tag, err := tx.Exec(ctx, insertLedger, ids, paths, outcomes)
		return tag.RowsAffected(), err
	}
	digests := make([]*int64, len(entries))
	occurred := make([]*time.Time, len(entries))
	for i, e := range entries {
		if e.Msg.Explicit {
			digests[i] = &e.Msg.Digest
		}
		if e.Msg.Anonymous {
			occurred[i] = &e.Msg.Occurred
		}
	}
	tag, err := tx.Exec(ctx, insertLedgerWide, ids, paths, outcomes, digests, occurred)
	return tag.RowsAffected(), err
}

// settleAnonymous takes out the anonymous messages that the ledger, or the batch
// itself, has within their window. The stripes stay locked until the transaction
// ends, so that no other can decide about the same content meanwhile.
func settleAnonymous(ctx context.Context, tx pgx.Tx, entries []*Entry) ([]*Entry, error) {
	var copies []pipeline.Identity
	var stripes []int32
	for _, e := range entries {
		if e.Msg.Anonymous {
			copies = append(copies, e.Msg.Identity)
			stripes = append(stripes, int32(e.Msg.ID[15])%anonymousLockStripes)
		}
	}
	if len(copies) == 0 {
		return entries, nil
	}
	slices.Sort(stripes)
	if _, err := tx.Exec(ctx, lockAnonymous, int32(anonymousLockClass), slices.Compact(stripes)); err != nil {
		return nil, err
	}
	seen, err := findIDs(ctx, tx, candidates(copies))
	if err != nil {
		return nil, err
	}
	// Earlier slots first (the entries are in ID order), and within a slot in order of
	// arrival, so that a batch decides as single messages would. One of a slot is
	// kept at most: all others are within its window.
	kept := make([]*Entry, 0, len(entries))
	for _, e := range entries {
		if e.Msg.Anonymous {
			if _, ok := seen.find(e.Msg.Identity); ok {
				continue
			}
			seen[e.Msg.ID] = foundRow{occurred: e.Msg.Occurred}
		}
		kept = append(kept, e)
	}
	return kept, nil
}
