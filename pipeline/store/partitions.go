package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// partitionLock is the advisory lock under which one instance maintains
// partitions. It is the same in every release.
const partitionLock int64 = 0x63726f7373660002 // "crossf", 2

// partitionTurn is how long Ensure and Prune wait for another instance that is
// at it, and partitionPoll how often they ask. They ask rather than wait inside
// the server: a waiting statement holds a snapshot, for whose end the other's
// CREATE INDEX CONCURRENTLY would wait in turn.
const (
	partitionTurn = 2 * time.Minute
	partitionPoll = 100 * time.Millisecond
)

// pruneMargin is added to every retention of the ledger: committed_at is the
// start of the committing transaction, which ends a little later.
const pruneMargin = 5 * time.Minute

// PartitionOptions say which partitions there shall be. Take
// DefaultPartitionOptions and change what you need. All retentions count from
// the time given to Prune.
type PartitionOptions struct {
	// LedgerRetention is how long an ID is remembered after its commit, 1 h at
	// least: the longest time for which a broker or stream may keep a copy.
	LedgerRetention time.Duration
	// LedgerWidth is the message time that one ledger partition spans, from 1
	// minute to 24 h, in whole minutes. It may change between runs.
	LedgerWidth time.Duration
	// LedgerAhead is how far into the future ledger partitions are made.
	LedgerAhead time.Duration
	// TelemetryAhead is how far into the future daily partitions of telemetry and
	// quarantine_events are made.
	TelemetryAhead time.Duration
	// TelemetryRetention and QuarantineRetention are how long rows are kept, by
	// message time and by time of arrival; 0 keeps them for ever, otherwise 1 h at
	// least. They apply to natively partitioned tables, whoever made the
	// partitions; plain tables and hypertables are left alone. The counters per
	// minute go with the quarantine.
	TelemetryRetention, QuarantineRetention time.Duration
	// Chunk is how many rows one transaction deletes at most, 1 or more.
	Chunk int
	// LockTimeout bounds each wait for a table, during which ingest waits too: from
	// 1 ms to 10 s. After Attempts waits the rest is left for the next time.
	LockTimeout time.Duration
	Attempts    int
	// Interval is the time between two rounds of Run, give or take a tenth.
	Interval time.Duration
	// Logger receives what was made and dropped; nil for none.
	Logger *slog.Logger
}

// DefaultPartitionOptions remembers IDs for 24 h in partitions of 4 h and keeps
// telemetry and quarantine for ever.
func DefaultPartitionOptions() PartitionOptions {
	return PartitionOptions{
		LedgerRetention: 24 * time.Hour,
		LedgerWidth:     4 * time.Hour,
		LedgerAhead:     48 * time.Hour,
		TelemetryAhead:  3 * day,
		Chunk:           10_000,
		LockTimeout:     time.Second,
		Attempts:        8,
		Interval:        10 * time.Minute,
	}
}

const day = 24 * time.Hour

// telemetryBehind is how far back daily partitions are made: rows of devices that
// were offline for a while.
const telemetryBehind = 2 * day

// Validate names the first field that is out of range, and what would be in it.
func (o PartitionOptions) Validate() error {
	for _, f := range []struct {
		name     string
		value    time.Duration
		ok       bool
		expected string
	}{
		{"LedgerRetention", o.LedgerRetention, o.LedgerRetention >= time.Hour, "1h or more, and not less than the longest time a broker or stream keeps a message"},
		{"LedgerWidth", o.LedgerWidth, o.LedgerWidth >= time.Minute && o.LedgerWidth <= day && o.LedgerWidth%time.Minute == 0, "whole minutes from 1m to 24h"},
		{"LedgerAhead", o.LedgerAhead, o.LedgerAhead >= 0 && o.LedgerAhead <= 365*day, "0 to 365 days"},
		{"TelemetryAhead", o.TelemetryAhead, o.TelemetryAhead >= 0 && o.TelemetryAhead <= 365*day, "0 to 365 days"},
		{"TelemetryRetention", o.TelemetryRetention, o.TelemetryRetention == 0 || o.TelemetryRetention >= time.Hour, "1h or more, or 0 to keep for ever"},
		{"QuarantineRetention", o.QuarantineRetention, o.QuarantineRetention == 0 || o.QuarantineRetention >= time.Hour, "1h or more, or 0 to keep for ever"},
		{"LockTimeout", o.LockTimeout, o.LockTimeout >= time.Millisecond && o.LockTimeout <= 10*time.Second, "1ms to 10s (ingest waits as long)"},
		{"Interval", o.Interval, o.Interval >= time.Second, "1s or more"},
	} {
		if !f.ok {
			return fmt.Errorf("partitions: %s is %v: set %s", f.name, f.value, f.expected)
		}
	}
	if o.Chunk < 1 {
		return fmt.Errorf("partitions: Chunk is %d: set 1 or more (10000 is the default)", o.Chunk)
	}
	if o.Attempts < 1 {
		return fmt.Errorf("partitions: Attempts is %d: set 1 or more (8 is the default)", o.Attempts)
	}
	return nil
}

// Partitions makes partitions before they are needed and drops them when their
// retention is over, while ingest runs. Ingest works without it, only worse: rows
// that have no partition go to the DEFAULT one, and move once theirs is made.
//
// Any number of instances may run one; an advisory lock lets one at a time work.
type Partitions struct {
	pool *pgxpool.Pool
	o    PartitionOptions
	// indexFrom is the size, in bytes, from which an expiring ledger partition is
	// indexed before its young rows are looked for under a lock.
	indexFrom int64
}

// NewPartitions checks the options and does nothing else. Every round takes one
// connection out of the pool and closes it afterwards.
func NewPartitions(pool *pgxpool.Pool, o PartitionOptions) (*Partitions, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Partitions{pool: pool, o: o, indexFrom: 32 << 20}, nil
}

// Ensure makes the partitions that are missing around now: of the ledger for
// every message time that is within the retention, and LedgerAhead; of telemetry
// and quarantine_events for two days back, and TelemetryAhead. One table's trouble
// does not keep the others from theirs; the errors are joined. What was made
// stays; calling it again continues.
func (p *Partitions) Ensure(ctx context.Context, now time.Time) error {
	return p.session(ctx, partitionTurn, func(conn *pgx.Conn) error { return p.ensure(ctx, conn, now) })
}

// Prune drops what is older than its retention at now. No ID is forgotten before
// LedgerRetention has passed since its commit, whatever its message's time: rows
// of an expired partition that were committed later than that stay in the ledger's
// DEFAULT partition. Errors are joined as Ensure's are.
func (p *Partitions) Prune(ctx context.Context, now time.Time) error {
	return p.session(ctx, partitionTurn, func(conn *pgx.Conn) error { return p.prune(ctx, conn, now) })
}

// Run maintains partitions until ctx ends, by the database's clock. It logs what
// goes wrong and tries again at the next round. If another instance is at it, a
// round is skipped.
func (p *Partitions) Run(ctx context.Context) {
	for {
		err := p.session(ctx, 0, func(conn *pgx.Conn) error {
			var now time.Time
			if err := conn.QueryRow(ctx, `SELECT now()`).Scan(&now); err != nil {
				return translate("read the database's clock", err)
			}
			return errors.Join(p.ensure(ctx, conn, now), p.prune(ctx, conn, now))
		})
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errNotOurTurn):
			p.o.Logger.DebugContext(ctx, "partition maintenance skipped", "reason", err)
		case err != nil:
			p.o.Logger.ErrorContext(ctx, "partition maintenance failed; ingest goes on in the default partitions", "error", err)
		}
		pause := time.NewTimer(time.Duration(float64(p.o.Interval) * (0.9 + 0.2*rand.Float64())))
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
	}
}

var errNotOurTurn = errors.New("another instance is maintaining partitions")

// session runs f with the advisory lock, on a connection that is taken out of the
// pool: closing it frees the lock and undoes its settings, whatever happened.
func (p *Partitions) session(ctx context.Context, patience time.Duration, f func(*pgx.Conn) error) error {
	pooled, err := p.pool.Acquire(ctx)
	if err != nil {
		return translate("connect for partition maintenance", err)
	}
	conn := pooled.Hijack()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the server ends the session all the same
	}()
	// Bounds are read and written in UTC, in ISO notation. Moving rows may take
	// longer than a statement of ingest.
	if _, err := conn.Exec(ctx, `SET timezone = 'UTC'; SET datestyle = 'ISO'; SET statement_timeout = 0`); err != nil {
		return translate("prepare a session for partition maintenance", err)
	}
	deadline := time.Now().Add(patience)
	for {
		var ours bool
		if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, partitionLock).Scan(&ours); err != nil {
			return translate("take the lock of partition maintenance", err)
		}
		if ours {
			return f(conn)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %w for more than %v", ErrUnavailable, errNotOurTurn, patience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(partitionPoll):
		}
	}
}

// maintained is a table with the partitions it shall have.
type maintained struct {
	table, key string
	kind       keyKind
	width      time.Duration
	from, to   time.Time
	retention  time.Duration // 0: keep
	with       string        // storage parameters
}

func (p *Partitions) plan(now time.Time) []maintained {
	return []maintained{
		{
			table: "crossfade_ledger", key: "message_id", kind: keyID, width: p.o.LedgerWidth,
			from: now.Add(-p.o.LedgerRetention - pruneMargin), to: now.Add(p.o.LedgerAhead), retention: p.o.LedgerRetention + pruneMargin,
			// Rows only come, and all go at once: a vacuum for their sake is
			// wasted.
			with: ` WITH (autovacuum_vacuum_insert_threshold = -1)`,
		},
		daily("telemetry", "time", now, p.o.TelemetryAhead, p.o.TelemetryRetention),
		daily("quarantine_events", "ingested_at", now, p.o.TelemetryAhead, p.o.QuarantineRetention),
	}
}

func daily(table, key string, now time.Time, ahead, retention time.Duration) maintained {
	behind := telemetryBehind
	if retention > 0 {
		behind = min(behind, retention) // what Prune would drop again is not made
	}
	return maintained{table: table, key: key, kind: keyTime, width: day, from: now.Add(-behind), to: now.Add(ahead), retention: retention}
}

func (p *Partitions) ensure(ctx context.Context, conn *pgx.Conn, now time.Time) error {
	var errs []error
	for _, m := range p.plan(now) {
		t, err := loadPartitioned(ctx, conn, m.table, m.key, m.kind)
		if err != nil {
			errs = append(errs, translate("read the partitions of "+m.table, err))
			continue
		}
		if t == nil {
			continue // a plain table or a hypertable
		}
		made, err := p.complete(ctx, conn, t, m)
		if err != nil {
			errs = append(errs, err)
		}
		if made > 0 {
			p.o.Logger.InfoContext(ctx, "partitions made", "table", m.table, "count", made)
		}
	}
	return errors.Join(errs...)
}

// complete makes what the table lacks. One partition's trouble, of which the first is
// returned, does not keep the others from being made; a busy table is left for later.
func (p *Partitions) complete(ctx context.Context, conn *pgx.Conn, t *partitioned, m maintained) (made int, first error) {
	if t.defaultIdent == "" {
		switch err := p.createDefault(ctx, conn, t); {
		case err == nil:
			made++
		case lockTrouble(err) || ctx.Err() != nil:
			return made, err
		default: // without the days' partitions nothing could be written at all
			first = err
		}
	}
	for _, s := range t.missing(m.from, m.to, m.width) {
		switch err := p.create(ctx, conn, t, s, m.with); {
		case err == nil:
			made++
		case lockTrouble(err) || ctx.Err() != nil:
			return made, errors.Join(first, err)
		case first == nil:
			first = err
		}
	}
	return made, first
}

func (p *Partitions) prune(ctx context.Context, conn *pgx.Conn, now time.Time) error {
	var errs []error
	for _, m := range p.plan(now) {
		if m.retention == 0 {
			continue
		}
		t, err := loadPartitioned(ctx, conn, m.table, m.key, m.kind)
		if err != nil {
			errs = append(errs, translate("read the partitions of "+m.table, err))
			continue
		}
		if t == nil {
			continue
		}
		if err := p.pruneTable(ctx, conn, t, now.Add(-m.retention)); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, p.pruneRows(ctx, conn, "crossfade_parity", "minute", now.Add(-parityRetention)),
		p.pruneRows(ctx, conn, "crossfade_parity_samples", "at", now.Add(-parityRetention)))
	if p.o.QuarantineRetention > 0 {
		errs = append(errs, p.pruneRows(ctx, conn, "quarantine_counters_minute", "bucket_minute", now.Add(-p.o.QuarantineRetention)))
	}
	return errors.Join(errs...)
}

// parityRetention is how long it is kept how well the two paths agreed.
const parityRetention = 7 * day

// pruneRows deletes from a table that is small and not partitioned.
func (p *Partitions) pruneRows(ctx context.Context, conn *pgx.Conn, table, column string, cutoff time.Time) error {
	deleted, err := p.deleteOlder(ctx, conn, table, column, cutoff)
	if deleted > 0 {
		p.o.Logger.DebugContext(ctx, "old rows deleted", "table", table, "count", deleted)
	}
	return err
}

// pruneTable drops the partitions that end before cutoff, and deletes row by row
// where old and new are mixed. A partition that cannot be dropped (a view of somebody's
// may hang on it) does not keep the others; the first such error is returned.
func (p *Partitions) pruneTable(ctx context.Context, conn *pgx.Conn, t *partitioned, cutoff time.Time) error {
	ledger := t.kind == keyID
	mixed := map[string]string{} // partition → the column that tells a row's age
	if t.defaultIdent != "" {
		mixed[t.defaultIdent] = t.key
	}
	var first error
	for _, part := range t.parts {
		var kept int64
		var err error
		switch {
		case ledger && part.lo == minBound: // messages without a time
			mixed[part.ident] = "committed_at"
			continue
		case part.hi >= cutoff.UnixMicro():
			continue
		case ledger:
			kept, err = p.dropLedger(ctx, conn, t, part, cutoff)
		default:
			err = p.drop(ctx, conn, t, part)
		}
		switch {
		case err == nil:
			p.o.Logger.InfoContext(ctx, "partition dropped", "table", t.name, "partition", part.ident, "late_rows_kept", kept)
		case lockTrouble(err) || ctx.Err() != nil:
			return errors.Join(first, err)
		case first == nil:
			first = err
		}
	}
	for ident, column := range mixed {
		if ledger {
			column = "committed_at"
		}
		deleted, err := p.deleteOlder(ctx, conn, ident, column, cutoff)
		if err != nil {
			return errors.Join(first, err)
		}
		if deleted > 0 {
			p.o.Logger.InfoContext(ctx, "old rows deleted", "table", t.name, "partition", ident, "count", deleted)
		}
	}
	return first
}
