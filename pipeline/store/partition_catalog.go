package store

import (
	"context"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// keyKind is the type of a partition key, which decides how bounds are written.
// Within this package every bound is in microseconds since 1970.
type keyKind string

const (
	keyTime keyKind = "timestamptz"
	keyID   keyKind = "uuid" // a message ID: its first 6 bytes are milliseconds
)

const (
	minBound = math.MinInt64 // MINVALUE
	maxBound = math.MaxInt64 // MAXVALUE
)

// span is a range of keys, lo included, hi excluded.
type span struct{ lo, hi int64 }

// partition is one attached partition.
type partition struct {
	ident string // quoted, ready for SQL
	span
}

// partitioned is a range-partitioned table as the catalogue has it.
type partitioned struct {
	name, schema string // unquoted
	ident        string // quoted
	key          string // unquoted column name
	kind         keyKind
	defaultIdent string // quoted; empty where there is no DEFAULT partition
	columns      string // quoted list of all columns that can be written
	rowSecurity  bool
	parts        []partition
}

// loadPartitioned reads the catalogue. It returns nil for a table that is not
// ours to partition: a plain table, a hypertable, one partitioned by other
// columns or types, or none at all.
func loadPartitioned(ctx context.Context, conn *pgx.Conn, name, key string, kind keyKind) (*partitioned, error) {
	t := &partitioned{name: name, key: key, kind: kind}
	err := conn.QueryRow(ctx, `
		SELECT n.nspname, c.oid::regclass::text, coalesce(nullif(p.partdefid, 0)::regclass::text, ''),
		       (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
		        FROM pg_attribute a
		        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
		       c.relrowsecurity
		FROM pg_partitioned_table p
		JOIN pg_class c ON c.oid = p.partrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = p.partattrs[0]
		WHERE c.oid = to_regclass(quote_ident($1)) AND p.partstrat = 'r' AND p.partnatts = 1
		  AND k.attname = $2 AND k.atttypid = $3::regtype`, name, key, string(kind)).
		Scan(&t.schema, &t.ident, &t.defaultIdent, &t.columns, &t.rowSecurity)
	if err == pgx.ErrNoRows {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, `
		SELECT c.oid::regclass::text, pg_get_expr(c.relpartbound, c.oid)
		FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = to_regclass(quote_ident($1)) AND NOT i.inhdetachpending
		ORDER BY c.relname`, name)
	if err != nil {
		return nil, err
	}
	var ident, bounds string
	_, err = pgx.ForEachRow(rows, []any{&ident, &bounds}, func() error {
		if bounds == "DEFAULT" {
			return nil
		}
		s, err := kind.parseSpan(bounds)
		if err != nil {
			return fmt.Errorf("partition %s: %w", ident, err)
		}
		t.parts = append(t.parts, partition{ident, s})
		return nil
	})
	return t, err
}

// partitionBounds is how PostgreSQL prints the bounds of a range partition.
var partitionBounds = regexp.MustCompile(`^FOR VALUES FROM \(([^,()]+)\) TO \(([^,()]+)\)$`)

func (k keyKind) parseSpan(bounds string) (span, error) {
	m := partitionBounds.FindStringSubmatch(bounds)
	if m == nil {
		return span{}, fmt.Errorf("bounds %q cannot be read", bounds)
	}
	lo, err := k.parseBound(m[1])
	if err != nil {
		return span{}, err
	}
	hi, err := k.parseBound(m[2])
	return span{lo, hi}, err
}

func (k keyKind) parseBound(text string) (int64, error) {
	switch text {
	case "MINVALUE":
		return minBound, nil
	case "MAXVALUE":
		return maxBound, nil
	}
	text = strings.Trim(text, "'")
	if k == keyTime {
		switch text {
		case "-infinity":
			return minBound, nil
		case "infinity":
			return maxBound, nil
		}
		// Beyond the years 1 to 9999, which no message has, it does not matter where. Such
		// a bound is one in another time zone's first or last year.
		switch {
		case strings.HasSuffix(text, " BC"):
			return minBound, nil
		case strings.IndexByte(text, '-') > 4:
			return maxBound, nil
		}
		// The session's time zone is UTC and its date style ISO.
		t, err := time.Parse("2006-01-02 15:04:05.999999-07", text)
		return t.UnixMicro(), err
	}
	hex := strings.ReplaceAll(text, "-", "")
	if len(hex) != 32 || strings.Trim(hex[12:], "0") != "" {
		return 0, fmt.Errorf("bound %q is not a whole millisecond", text)
	}
	ms, err := strconv.ParseInt(hex[:12], 16, 64)
	return ms * 1000, err
}

// literal writes a finite bound or key for SQL.
func (k keyKind) literal(bound int64) string {
	if k == keyTime {
		return time.UnixMicro(bound).UTC().Format("'2006-01-02 15:04:05.000000+00'")
	}
	hex := fmt.Sprintf("%012x", max(bound/1000, 0))
	return fmt.Sprintf("'%s-%s-0000-0000-000000000000'", hex[:8], hex[8:])
}

// partitionName is the name of the partition that begins at lo: by the day where
// that is exact, otherwise to the second.
func partitionName(table string, lo int64) string {
	t := time.UnixMicro(lo).UTC()
	if t.Equal(t.Truncate(24 * time.Hour)) {
		return table + t.Format("_20060102")
	}
	return partitionNameExact(table, lo)
}

func partitionNameExact(table string, lo int64) string {
	return table + time.UnixMicro(lo).UTC().Format("_20060102t150405")
}

// missing returns the ranges of [from, to), cut at multiples of width, that no
// partition covers yet. Existing ones may have any bounds: of another width, or
// made by someone else.
func (t *partitioned) missing(from, to time.Time, width time.Duration) []span {
	var gaps []span
	for lo := from.Truncate(width); lo.Before(to); lo = lo.Add(width) {
		gaps = append(gaps, uncovered(span{lo.UnixMicro(), lo.Add(width).UnixMicro()}, t.parts)...)
	}
	return gaps
}

// uncovered returns what is left of s without the parts.
func uncovered(s span, parts []partition) []span {
	sorted := slices.Clone(parts)
	slices.SortFunc(sorted, func(a, b partition) int {
		if a.lo < b.lo {
			return -1
		}
		return 1
	})
	var left []span
	for _, p := range sorted {
		if p.hi <= s.lo || p.lo >= s.hi {
			continue
		}
		if p.lo > s.lo {
			left = append(left, span{s.lo, p.lo})
		}
		s.lo = max(s.lo, p.hi)
	}
	if s.lo < s.hi {
		left = append(left, s)
	}
	return left
}
