package parity

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/pipeline"
)

// DB is a pool, a connection or a transaction.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// rowsAtOnce is how many rows one statement writes, each in a transaction of its
// own: another instance waits no longer than for that many.
const rowsAtOnce = 2000

// addCounts adds its rows in the order in which they are given. All instances give
// them in the same, or they would wait for each other in a circle.
var addCounts = `
INSERT INTO crossfade_parity AS p
       (tenant_id, minute, matched, rescued, rescued_full, mismatched, skew_ms_buckets)
SELECT t, to_timestamp(60 * m), a, r, f, x, ($7::int8[])[(i - 1) * $8 + 1 : i * $8]
  FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::int8[]) WITH ORDINALITY AS u(t, m, a, r, f, x, i)
 ORDER BY i
    ON CONFLICT (tenant_id, minute) DO UPDATE SET
       matched = p.matched + EXCLUDED.matched,
       rescued = p.rescued + EXCLUDED.rescued,
       rescued_full = p.rescued_full + EXCLUDED.rescued_full,
       mismatched = p.mismatched + EXCLUDED.mismatched,
       skew_ms_buckets = ARRAY[` + addSkew() + `]`

// addSkew spells the sum of two arrays out: twice as fast as an aggregate.
func addSkew() string {
	sums := make([]string, Buckets)
	for i := range sums {
		sums[i] = fmt.Sprintf("p.skew_ms_buckets[%[1]d] + EXCLUDED.skew_ms_buckets[%[1]d]", i+1)
	}
	return strings.Join(sums, ", ")
}

// addSamples leaves out what exceeds a tenant's number for the hour, whichever
// instances the others came from, and copies that were delivered again.
const addSamples = `
INSERT INTO crossfade_parity_samples (tenant_id, at, message_id, what, path, digest, other_digest, sample)
SELECT t, at, m, 'mismatched', p, d, o, s::jsonb
  FROM (SELECT u.*, row_number() OVER (PARTITION BY t ORDER BY i) AS nth
          FROM (SELECT DISTINCT ON (t, m, d) *
                  FROM unnest($1::text[], $2::timestamptz[], $3::uuid[], $4::int2[], $5::int8[], $6::int8[], $7::text[])
                       WITH ORDINALITY AS a(t, at, m, p, d, o, s, i)
                 ORDER BY t, m, d, i) AS u
         WHERE NOT EXISTS (SELECT FROM crossfade_parity_samples AS k
                            WHERE k.tenant_id = t AND k.at > u.at - interval '1 hour' AND k.message_id = m AND k.digest = d)) AS v
 WHERE nth + (SELECT count(*) FROM crossfade_parity_samples AS k
               WHERE k.tenant_id = t AND k.at > v.at - interval '1 hour') <= $8
 ORDER BY t, nth`

// row is one minute of one tenant to be added.
type row struct {
	cell
	*Counts
}

func sortedRows(counts map[cell]*Counts) []row {
	keys := slices.SortedFunc(maps.Keys(counts), func(a, b cell) int {
		return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.minute, b.minute))
	})
	rows := make([]row, len(keys))
	for i, key := range keys {
		rows[i] = row{key, counts[key]}
	}
	return rows
}

func writeRows(ctx context.Context, db DB, rows []row) error {
	n := len(rows)
	tenants, minutes := make([]string, n), make([]int64, n)
	matched, rescued, full, mismatched := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	skews := make([]int64, 0, n*Buckets)
	for i, r := range rows {
		tenants[i], minutes[i] = r.tenant, r.minute
		matched[i], rescued[i], full[i], mismatched[i] = r.Matched, r.Rescued, r.RescuedFull, r.Mismatched
		skews = append(skews, r.Skew[:]...)
	}
	if _, err := db.Exec(ctx, addCounts, tenants, minutes, matched, rescued, full, mismatched, skews, Buckets); err != nil {
		return fmt.Errorf("write the parity of %d tenants' minutes: %w", n, err)
	}
	return nil
}

// stored is a sample's jsonb.
type stored struct {
	Topic   string `json:"topic"`
	Payload string `json:"payload"` // text, since it may be cut
	Size    int    `json:"size"`
}

func writeSamples(ctx context.Context, db DB, samples []Sample) error {
	n := len(samples)
	tenants, times, ids := make([]string, n), make([]time.Time, n), make([][16]byte, n)
	paths, digests, others, texts := make([]int16, n), make([]int64, n), make([]int64, n), make([]string, n)
	for i, s := range samples {
		text, err := json.Marshal(stored{s.Topic, s.Payload, s.Size})
		if err != nil {
			return fmt.Errorf("encode a parity sample of tenant %q: %w", s.Tenant, err)
		}
		tenants[i], times[i], ids[i], texts[i] = s.Tenant, s.At, s.ID, string(text)
		paths[i], digests[i], others[i] = int16(s.Path), s.Digest, s.Other
	}
	if _, err := db.Exec(ctx, addSamples, tenants, times, ids, paths, digests, others, texts, MaxPerHour); err != nil {
		return fmt.Errorf("write %d parity samples: %w", n, err)
	}
	return nil
}

// refused reports whether PostgreSQL will refuse the same rows again.
func refused(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && len(pg.Code) == 5 && slices.Contains([]string{"22", "23", "54"}, pg.Code[:2])
}

// Windows reads what was counted for tenants, in the minutes that begin at since or
// later, over all instances. Each tenant has a window, in the order given, empty
// where nothing was counted. Counts are some seconds old (Options.Interval).
//
// A minute in which a tenant's stage changed holds both: for a verdict on the new
// stage alone, let since be the first full minute after the change.
func Windows(ctx context.Context, db DB, tenants []string, since time.Time) ([]Window, error) {
	rows, err := db.Query(ctx, `SELECT tenant_id, matched, rescued, rescued_full, mismatched, skew_ms_buckets
		FROM crossfade_parity WHERE tenant_id = ANY($1) AND minute >= $2`, tenants, since)
	if err != nil {
		return nil, fmt.Errorf("read the parity of %d tenants: %w", len(tenants), err)
	}
	sums := make(map[string]*Counts, len(tenants))
	var tenant string
	var c Counts
	var skew []int64
	_, err = pgx.ForEachRow(rows, []any{&tenant, &c.Matched, &c.Rescued, &c.RescuedFull, &c.Mismatched, &skew}, func() error {
		c.Skew = Skew{}
		copy(c.Skew[:], skew)
		if sums[tenant] == nil {
			sums[tenant] = new(Counts)
		}
		sums[tenant].add(&c)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the parity of %d tenants: %w", len(tenants), err)
	}
	windows := make([]Window, len(tenants))
	for i, tenant := range tenants {
		var c Counts
		if sum := sums[tenant]; sum != nil {
			c = *sum
		}
		windows[i] = newWindow(tenant, c)
	}
	return windows, nil
}

// Samples reads the newest samples of a tenant, newest first; n at most, 1 or more.
func Samples(ctx context.Context, db DB, tenant string, n int) ([]Sample, error) {
	rows, err := db.Query(ctx, `SELECT at, message_id, path, digest, other_digest, sample
		FROM crossfade_parity_samples WHERE tenant_id = $1 ORDER BY at DESC, id DESC LIMIT $2`, tenant, n)
	if err != nil {
		return nil, fmt.Errorf("read the parity samples of tenant %q: %w", tenant, err)
	}
	samples, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (Sample, error) {
		s := Sample{Tenant: tenant}
		var id [16]byte
		var path int16
		var text stored
		err := r.Scan(&s.At, &id, &path, &s.Digest, &s.Other, &text)
		s.ID, s.Path = id, pipeline.Path(path)
		s.Topic, s.Payload, s.Size = text.Topic, text.Payload, text.Size
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the parity samples of tenant %q: %w", tenant, err)
	}
	return samples, nil
}
