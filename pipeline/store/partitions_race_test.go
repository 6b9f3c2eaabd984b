package store_test

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/crossfade-io/crossfade/pipeline/store"
)

// raceWriter writes batches the way ingest does: IDs into the ledger, in order,
// then a telemetry row for each that was new, in one transaction. Every ID is
// offered by two writers.
type raceWriter struct {
	t     partitionTest
	now   time.Time
	seed  uint64
	fresh atomic.Int64
}

const raceBatch = 40

// times are all over the place: within partitions, ahead of them, behind them, and
// none at all.
func (w *raceWriter) batch(n int) (ids []string, times []time.Time) {
	random := rand.New(rand.NewPCG(w.seed, uint64(n)))
	for i := range raceBatch {
		at := w.now.Add(time.Duration(random.Int64N(int64(8*24*time.Hour))) - 4*24*time.Hour).Truncate(time.Millisecond)
		key := at
		if i%10 == 0 {
			key = time.Time{}
		}
		ids, times = append(ids, id(key, n*raceBatch+i)), append(times, at)
	}
	return ids, times
}

const raceLedger = `
	INSERT INTO crossfade_ledger (message_id, path, outcome)
	SELECT i, 1, 1 FROM unnest($1::uuid[]) AS i ORDER BY i ON CONFLICT DO NOTHING RETURNING message_id::text`

func (w *raceWriter) write(ctx context.Context, n int) error {
	ids, times := w.batch(n)
	return pgx.BeginFunc(ctx, w.t.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT count(*) FROM crossfade_ledger WHERE message_id = ANY ($1::uuid[])`, ids); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, raceLedger, ids)
		if err != nil {
			return err
		}
		fresh, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		at := make(map[string]time.Time, len(ids))
		for i, id := range ids {
			at[id] = times[i]
		}
		_, err = tx.CopyFrom(ctx, pgx.Identifier{"telemetry"}, []string{"time", "tenant_id", "device_id", "msg_type", "metrics"},
			pgx.CopyFromSlice(len(fresh), func(i int) ([]any, error) {
				return []any{at[fresh[i]], "t1", fresh[i], "telemetry", []byte(`{}`)}, nil
			}))
		if err == nil {
			w.fresh.Add(int64(len(fresh)))
		}
		return err
	})
}

// TestMaintenanceUnderLoad: while writers offer every ID twice, partitions are
// made under the rows they have written and dropped from under them, by two
// instances. No writer sees an error, no row is lost, no ID is forgotten.
func TestMaintenanceUnderLoad(tt *testing.T) {
	t := newPartitionTest(tt, "")
	var now time.Time
	t.must(t.pool.QueryRow(t.Context(), `SELECT now()`).Scan(&now))
	w := &raceWriter{t: t, now: now, seed: rand.Uint64()}
	t.Logf("seed %d", w.seed)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	writers, _ := errgroup.WithContext(t.Context())
	var next [2]atomic.Int64 // two groups offer the same batches
	for i := range 4 {
		writers.Go(func() error {
			for ctx.Err() == nil {
				if err := w.write(t.Context(), int(next[i%2].Add(1))); err != nil {
					return err
				}
			}
			return nil
		})
	}
	instances, ictx := errgroup.WithContext(t.Context())
	for i := range 2 {
		p := t.partitions(func(o *store.PartitionOptions) { o.Attempts = 50; o.LedgerWidth = time.Duration(i+2) * 6 * time.Hour })
		p.IndexYoungFrom(int64(i) << 40) // one indexes, one scans
		instances.Go(func() error {
			for hours := -72; hours <= 48; hours += 12 {
				if err := p.Ensure(ictx, now.Add(time.Duration(hours)*time.Hour)); err != nil {
					return err
				}
				if err := p.Prune(ictx, now); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := instances.Wait(); err != nil {
		t.Errorf("maintenance: %v", err)
	}
	stop()
	if err := writers.Wait(); err != nil {
		t.Errorf("a writer: %v", err)
	}

	// Both groups have offered at least so many whole batches.
	offered := (min(next[0].Load(), next[1].Load()) - 4) * raceBatch
	var ledger, distinct, telemetry, rows int64
	t.must(t.pool.QueryRow(t.Context(), `SELECT count(*), count(DISTINCT message_id) FROM crossfade_ledger`).Scan(&ledger, &distinct))
	t.must(t.pool.QueryRow(t.Context(), `SELECT count(DISTINCT device_id), count(*) FROM telemetry`).Scan(&telemetry, &rows))
	t.Logf("%d IDs, partitions: %d of the ledger, %d of telemetry", ledger, len(t.children("crossfade_ledger")), len(t.children("telemetry")))
	if ledger != distinct || telemetry != rows || ledger != rows || rows != w.fresh.Load() {
		t.Errorf("%d ledger rows of %d IDs, %d telemetry rows of %d IDs, %d taken as new; want all equal", ledger, distinct, rows, telemetry, w.fresh.Load())
	}
	if ledger < offered || offered <= 0 {
		t.Errorf("%d IDs of at least %d", ledger, offered)
	}
}
