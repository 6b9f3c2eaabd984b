package downlink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// A writer whose snapshot is older than the deletion of a row (REPEATABLE READ) inserts
// it again without knowing its last version. The version is raised above that, with a
// mark of its own; the marks that were read go. Rows that somebody else holds are left
// for another try.
const raiseVersions = `
WITH wanted AS (
    SELECT t, d, v, f FROM unnest($1::text[], $2::text[], $3::int8[], $4::int8[]) AS u(t, d, v, f)
), locked AS (
    SELECT s.tenant_id, s.device_id, w.v, w.f FROM device_state AS s JOIN wanted AS w
        ON s.tenant_id = w.t COLLATE "default" AND s.device_id = w.d COLLATE "default" AND s.desired_version = w.v
     ORDER BY s.tenant_id, s.device_id
       FOR NO KEY UPDATE OF s SKIP LOCKED
), changed AS (
    UPDATE device_state AS s SET desired_version = l.f + 1 FROM locked AS l
     WHERE s.tenant_id = l.tenant_id AND s.device_id = l.device_id AND s.desired_version = l.v
    RETURNING s.tenant_id::text AS t, s.device_id::text AS d, s.desired_version > l.f AS raised
), marked AS (
    INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind)
    SELECT DISTINCT crossfade_lane(t, d), t, d, 'desired' FROM changed WHERE raised
)
SELECT w.t, w.d, coalesce((SELECT bool_and(c.raised) FROM changed AS c WHERE c.t = w.t AND c.d = w.d), false),
       EXISTS (SELECT FROM locked AS l WHERE l.tenant_id = w.t COLLATE "default" AND l.device_id = w.d COLLATE "default")
  FROM wanted AS w`

var errHeld = errors.New("its row of device_state is being changed")

// raise raises versions of desired states that are below an earlier one, and says in
// done what has become of it: those that do not let themselves be raised are parked.
func raise(ctx context.Context, tx pgx.Tx, done []outcome) error {
	low := make(map[commandKey]*outcome)
	var k keys
	var versions, floors []int64
	for i := range done {
		if o := &done[i]; o.action == tooLow {
			low[commandKey{tenant: o.Tenant, device: o.Device}] = o
			k.add(o.Lane, o.Tenant, o.Device)
			versions, floors = append(versions, o.Version), append(floors, o.floor())
		}
	}
	if len(low) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, raiseVersions, pgx.QueryExecModeCacheDescribe, k.tenants, k.devices, versions, floors)
	if err != nil {
		return fmt.Errorf("raise versions in device_state: %w", err)
	}
	var at commandKey
	var raised, locked bool
	if _, err := pgx.ForEachRow(rows, []any{&at.tenant, &at.device, &raised, &locked}, func() error {
		o := low[at]
		switch {
		case raised:
		case locked:
			o.action, o.err = park, errNever{fmt.Sprintf("desired_version is %d and was %d before, and does not let itself be raised; raise it", o.Version, o.floor())}
		default:
			o.err, o.again = errHeld, time.Second
		}
		return nil
	}); err != nil {
		return fmt.Errorf("raise versions in device_state: %w", err)
	}
	return nil
}

// floor is the highest version that the device's desired state is known to have had
// before: it was published, or the row that had it is gone.
func (r *row) floor() int64 {
	if r.Published != nil {
		return max(r.Gone, r.Published.Version)
	}
	return r.Gone
}
