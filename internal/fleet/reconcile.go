package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Reconcile compares the record with a database. It reads each tenant's rows of
// telemetry once, as a stream, and keeps one bit per message: millions of
// messages take seconds and no sorting. All is read from one snapshot.
//
// What the fleet sends meanwhile is not held against the database, but what is
// on its way is: stop the fleet and let the pipeline finish first, or use
// AwaitReconciled. The database user must see all tenants' rows; one whom
// row-level security restricts gets an error, not a false verdict.
func Reconcile(ctx context.Context, db DB, record *Record) (Report, error) {
	rec := newReconciliation(record)
	err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL row_security = off"); err != nil {
			return err
		}
		for _, tenant := range rec.tenants {
			if err := rec.readTelemetry(ctx, tx, tenant); err != nil {
				return fmt.Errorf("telemetry of %s: %w", tenant, err)
			}
		}
		if err := rec.readShadows(ctx, tx); err != nil {
			return fmt.Errorf("device_state: %w", err)
		}
		if err := rec.readQuarantine(ctx, tx); err != nil {
			return fmt.Errorf("quarantine_events: %w", err)
		}
		return nil
	})
	if err != nil {
		return Report{}, fmt.Errorf("fleet: reconcile: %w", err)
	}
	return rec.report(), nil
}

// AwaitReconciled repeats Reconcile until its report is OK, until patience has
// passed without more messages stored, or until ctx ends; it returns the last
// report. A report that is not OK is no error.
func AwaitReconciled(ctx context.Context, db DB, record *Record, patience time.Duration) (Report, error) {
	pause := 100 * time.Millisecond
	var progress time.Time
	var last Report
	for {
		report, err := Reconcile(ctx, db, record)
		if err != nil && !progress.IsZero() && ctx.Err() != nil {
			return last, nil
		}
		if err != nil {
			return Report{}, err
		}
		if progress.IsZero() || report.Stored > last.Stored || report.ShadowBehind < last.ShadowBehind {
			progress = time.Now()
		}
		// Neither duplicates nor unexpected rows go away by waiting.
		last = report
		if report.OK() || report.Duplicated > 0 || report.Unexpected > 0 || time.Since(progress) >= patience {
			return report, nil
		}
		select {
		case <-ctx.Done():
			return report, nil
		case <-time.After(pause):
		}
		pause = min(pause*2, 2*time.Second)
	}
}

type reconciliation struct {
	tenants []string                      // in order of appearance
	devices map[string]map[string]*stored // by tenant and device
	order   []*stored

	quarantined map[string]int64
	examples    examples
}

// stored is what the database holds of one device, beside its record.
type stored struct {
	record *deviceRecord
	acked  Set // as of the start: what is acknowledged later may be stored too late
	found  Set

	rows, duplicated, unexpected int64
	shadowDue, shadow            int64
}

func newReconciliation(record *Record) *reconciliation {
	rec := &reconciliation{devices: map[string]map[string]*stored{}, quarantined: map[string]int64{}}
	for _, d := range record.devices {
		d.mu.Lock()
		s := &stored{record: d, acked: d.acked.Clone(), shadowDue: d.shadowAcked}
		d.mu.Unlock()
		byID := rec.devices[d.device.Tenant]
		if byID == nil {
			byID = map[string]*stored{}
			rec.devices[d.device.Tenant] = byID
			rec.tenants = append(rec.tenants, d.device.Tenant)
		}
		byID[d.device.ID] = s
		rec.order = append(rec.order, s)
	}
	return rec
}

func (rec *reconciliation) readTelemetry(ctx context.Context, tx pgx.Tx, tenant string) error {
	rows, err := tx.Query(ctx, `SELECT device_id::text, seq::bigint FROM telemetry WHERE tenant_id = $1`, tenant)
	if err != nil {
		return err
	}
	defer rows.Close()
	byID := rec.devices[tenant]
	var id []byte // valid until the next row: no string is made per row
	var seq *int64
	for rows.Next() {
		if err := rows.Scan((*pgxBytes)(&id), &seq); err != nil {
			return err
		}
		if s := byID[string(id)]; s != nil {
			rec.row(s, seq)
		}
	}
	return rows.Err()
}

// row judges one row of telemetry.
func (rec *reconciliation) row(s *stored, seq *int64) {
	s.rows++
	if seq == nil {
		s.unexpected++
		rec.examples.add("unexpected", s.record.device.String(), "without seq")
		return
	}
	s.record.mu.Lock()
	known := s.record.attempted.Has(*seq) && !s.record.bad.Has(*seq)
	s.record.mu.Unlock()
	switch {
	case !known:
		s.unexpected++
		rec.examples.add("unexpected", s.record.device.String(), fmt.Sprintf("seq %d", *seq))
	case !s.found.Add(*seq):
		s.duplicated++
		rec.examples.add("duplicated", s.record.device.String(), fmt.Sprintf("seq %d", *seq))
	}
}

func (rec *reconciliation) readShadows(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT tenant_id::text, device_id::text, coalesce(reported_version, 0)::bigint
		FROM device_state WHERE tenant_id = ANY($1)`, rec.tenants)
	if err != nil {
		return err
	}
	var tenant, device string
	var version int64
	_, err = pgx.ForEachRow(rows, []any{&tenant, &device, &version}, func() error {
		if s := rec.devices[tenant][device]; s != nil {
			s.shadow = version
		}
		return nil
	})
	return err
}

func (rec *reconciliation) readQuarantine(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT reason::text, count(*) FROM quarantine_events
		WHERE tenant_id = ANY($1) GROUP BY reason`, rec.tenants)
	if err != nil {
		return err
	}
	var reason string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&reason, &n}, func() error {
		rec.quarantined[reason] = n
		return nil
	})
	return err
}

func (rec *reconciliation) report() Report {
	r := Report{Tenants: map[string]Tally{}, Quarantined: rec.quarantined}
	for _, s := range rec.order {
		t := rec.tally(s)
		r.add(t)
		sum := r.Tenants[s.record.device.Tenant]
		sum.add(t)
		r.Tenants[s.record.device.Tenant] = sum
	}
	r.Examples = rec.examples.list
	return r
}

// tally sums up one device.
func (rec *reconciliation) tally(s *stored) Tally {
	d := s.record
	d.mu.Lock()
	defer d.mu.Unlock()
	t := Tally{
		Rows: s.rows, Duplicated: s.duplicated, Unexpected: s.unexpected,
		Stored: s.found.Len(), Attempted: d.attempted.Len() - d.bad.Len(),
	}
	for seq := range s.acked.All() {
		if d.bad.Has(seq) {
			t.BadSent++
			continue
		}
		t.Sent++
		unrouted := d.unrouted.Has(seq)
		if unrouted {
			t.Unrouted++
		}
		if s.found.Has(seq) {
			continue
		}
		t.Lost++
		if unrouted {
			t.LostUnrouted++
		}
		rec.examples.add("lost", d.device.String(), fmt.Sprintf("seq %d", seq))
	}
	t.Uncertain = t.Attempted - t.Sent
	t.UncertainStored = t.Stored - (t.Sent - t.Lost)
	if s.shadowDue > 0 {
		t.ShadowDevices = 1
	}
	if s.shadow < s.shadowDue || s.shadow > d.shadowAttempted {
		t.ShadowBehind = 1
		rec.examples.add("shadow", d.device.String(), fmt.Sprintf("version %d, want %d", s.shadow, s.shadowDue))
	}
	return t
}

// pgxBytes receives text without copying it.
type pgxBytes []byte

// ScanText would copy; ScanBytes is pgx's way to lend the driver's buffer.
func (b *pgxBytes) ScanBytes(v []byte) error {
	if v == nil {
		return errors.New("device_id is NULL")
	}
	*b = v
	return nil
}
