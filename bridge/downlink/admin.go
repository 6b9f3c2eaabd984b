package downlink

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Filter selects rows; what is empty selects all.
type Filter struct {
	IDs              []int64
	Tenants, Devices []string
	Kinds            []Kind
}

// Empty reports whether the filter selects everything.
func (f Filter) Empty() bool {
	return len(f.IDs)+len(f.Tenants)+len(f.Devices)+len(f.Kinds) == 0
}

// arguments are $1 to $4 of matches.
func (f Filter) arguments() []any {
	return []any{pgx.QueryExecModeCacheDescribe, f.IDs, f.Tenants, f.Devices, kindNames(f.Kinds)}
}

func kindNames(kinds []Kind) (names []string) {
	for _, k := range kinds {
		names = append(names, string(k))
	}
	return names
}

const matches = `(coalesce(cardinality($1::int8[]), 0) = 0 OR id = ANY ($1))
   AND (coalesce(cardinality($2::text[]), 0) = 0 OR tenant_id = ANY ($2))
   AND (coalesce(cardinality($3::text[]), 0) = 0 OR device_id = ANY ($3))
   AND (coalesce(cardinality($4::text[]), 0) = 0 OR kind = ANY ($4))`

// Entry is a row that waits or is parked.
type Entry struct {
	ID        int64
	Tenant    string
	Device    string
	Kind      Kind
	CommandID string // "" for a desired state
	Created   time.Time
	Attempts  int
	// Parked is when it was parked, NextTry when a waiting one is tried again; the zero
	// Time for neither.
	Parked, NextTry time.Time
	// Why is the reason why it is parked, or the last error of one that waits; "" for none.
	Why  string
	Body json.RawMessage // of a response; the others have none
}

// Side is where rows are.
type Side bool

// Waiting rows are sent in time, Parked ones only when an operator has them retried.
const (
	Waiting Side = false
	Parked  Side = true
)

func (s Side) table() string {
	if s == Parked {
		return "crossfade_downlink_parked"
	}
	return "crossfade_downlink"
}

// List returns the newest of the parked rows, or the oldest of those that wait, limit
// at most.
func List(ctx context.Context, pool *pgxpool.Pool, side Side, f Filter, limit int) ([]Entry, error) {
	columns, order := `NULL::timestamptz, next_try, coalesce(last_error, '')`, `created_at, id`
	if side == Parked {
		columns, order = `parked_at, NULL::timestamptz, reason`, `parked_at DESC, id DESC`
	}
	rows, err := pool.Query(ctx, `
SELECT id, tenant_id, device_id, kind, coalesce(command_id, ''), created_at, attempts, `+columns+`, body
  FROM `+side.table()+` WHERE `+matches+` ORDER BY `+order+` LIMIT $5`, append(f.arguments(), limit)...)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", side.table(), err)
	}
	list, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (e Entry, err error) {
		var parked, next *time.Time
		var body []byte
		err = r.Scan(&e.ID, &e.Tenant, &e.Device, &e.Kind, &e.CommandID, &e.Created, &e.Attempts, &parked, &next, &e.Why, &body)
		if parked != nil {
			e.Parked = *parked
		}
		if next != nil {
			e.NextTry = *next
		}
		e.Body = body
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", side.table(), err)
	}
	return list, nil
}

// Count is how many rows the filter selects.
func Count(ctx context.Context, pool *pgxpool.Pool, side Side, f Filter) (n int64, err error) {
	err = pool.QueryRow(ctx, `SELECT count(*) FROM `+side.table()+` WHERE `+matches, f.arguments()...).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count %s: %w", side.table(), err)
	}
	return n, nil
}

// retryWaiting is for the sender to look at rows now. The row is all that changes, so
// somebody has to be told by hand.
const retryWaiting = `
WITH changed AS (UPDATE crossfade_downlink SET next_try = NULL WHERE next_try IS NOT NULL AND ` + matches + ` RETURNING id)
SELECT count(*), pg_notify('crossfade_downlink', '')::text FROM changed`

// retryParked puts rows back behind what has come since.
const retryParked = `
WITH back AS (DELETE FROM crossfade_downlink_parked WHERE ` + matches + ` RETURNING *),
     put AS (INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind, command_id, body, created_at)
             SELECT lane, tenant_id, device_id, kind, command_id, body, created_at FROM back ORDER BY id RETURNING id)
SELECT count(*), '' FROM put`

// Retry has rows sent again: parked ones go back into the queue, and those that wait
// for another try are tried at once. It returns how many.
func Retry(ctx context.Context, pool *pgxpool.Pool, side Side, f Filter) (n int64, err error) {
	statement := retryWaiting
	if side == Parked {
		statement = retryParked
	}
	var told string
	if err := pool.QueryRow(ctx, statement, f.arguments()...).Scan(&n, &told); err != nil {
		return 0, fmt.Errorf("retry rows of %s: %w", side.table(), err)
	}
	return n, nil
}

// Drop deletes rows for good and returns how many. Commands themselves stay queued,
// and the desired state is sent with its next change.
func Drop(ctx context.Context, pool *pgxpool.Pool, side Side, f Filter) (int64, error) {
	tag, err := pool.Exec(ctx, `DELETE FROM `+side.table()+` WHERE `+matches, f.arguments()...)
	if err != nil {
		return 0, fmt.Errorf("drop rows of %s: %w", side.table(), err)
	}
	return tag.RowsAffected(), nil
}
