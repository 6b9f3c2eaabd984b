package api

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Statements on device_state. Triggers (migration 00011) decide on the version: it
// grows whenever the state changes. Every statement names the tenant.

// instant is the SQL for a time that JSON can hold, or NULL.
func instant(column string) string {
	return `CASE WHEN ` + column + ` BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59+00' THEN ` + column + ` END`
}

// desired is the SQL for a desired state; JSON null is none, as for the downlink.
const desired = `CASE WHEN coalesce(s.desired_state::text, 'null') = 'null' THEN '{}' ELSE s.desired_state::text END`

// shadow is what is wanted of a device, and what it says of itself.
type shadow struct {
	desired         json.RawMessage
	version         int64
	reported        json.RawMessage
	reportedVersion int64
	updated, seen   *time.Time
}

var selectShadow = `
SELECT ` + desired + `, coalesce(s.desired_version, 0), coalesce(s.reported_state::text, '{}'), coalesce(s.reported_version, 0),
       ` + instant("s.shadow_updated_at") + `, ` + instant("s.last_seen_at") + `
  FROM device_registry AS r
  LEFT JOIN device_state AS s ON s.tenant_id = r.tenant_id AND s.device_id = r.device_id
 WHERE r.tenant_id = $1 AND r.device_id = $2`

// readShadow returns errNotThere for a device that is not registered.
func (s *Server) readShadow(ctx context.Context, tenant, device string) (sh shadow, err error) {
	if !storable(tenant) || !storable(device) {
		return sh, errNotThere
	}
	var want, have string
	err = s.pool.QueryRow(ctx, selectShadow, tenant, device).Scan(&want, &sh.version, &have, &sh.reportedVersion, &sh.updated, &sh.seen)
	if errors.Is(err, pgx.ErrNoRows) || dataError(err) {
		err = errNotThere
	}
	sh.desired, sh.reported = json.RawMessage(want), json.RawMessage(have)
	return sh, err
}

// upsertDesired is for no condition, or one that a device without a row meets: its
// version is 0. The condition is weighed on the row as it is when it is locked.
const upsertDesired = `
INSERT INTO device_state AS s (tenant_id, device_id, site_id, desired_state, shadow_updated_at)
SELECT r.tenant_id, r.device_id, r.site_id, $3::jsonb, now()
  FROM device_registry AS r
 WHERE r.tenant_id = $1 AND r.device_id = $2 AND octet_length($3::jsonb::text) <= $5
    ON CONFLICT (tenant_id, device_id) DO UPDATE
   SET desired_state = EXCLUDED.desired_state,
       shadow_updated_at = CASE WHEN s.desired_state::text IS DISTINCT FROM EXCLUDED.desired_state::text THEN now() ELSE s.shadow_updated_at END
 WHERE $4::int8[] IS NULL OR coalesce(s.desired_version, 0) = ANY ($4)`

// updateDesired is for a condition that only a row can meet.
const updateDesired = `
UPDATE device_state AS s
   SET desired_state = $3::jsonb,
       shadow_updated_at = CASE WHEN s.desired_state::text IS DISTINCT FROM $3::jsonb::text THEN now() ELSE s.shadow_updated_at END
  FROM device_registry AS r
 WHERE r.tenant_id = $1 AND r.device_id = $2 AND s.tenant_id = $1 AND s.device_id = $2
   AND octet_length($3::jsonb::text) <= $5 AND s.desired_version = ANY ($4)`

// selectOutcome is read in the transaction of the write: what there is now. The
// version is not taken from the write itself, since a trigger may raise it afterwards.
const selectOutcome = `
SELECT coalesce(s.desired_version, 0), ` + desired + `, octet_length($3::jsonb::text)
  FROM device_registry AS r
  LEFT JOIN device_state AS s ON s.tenant_id = r.tenant_id AND s.device_id = r.device_id
 WHERE r.tenant_id = $1 AND r.device_id = $2`

// errStale: the desired state has another version than the writer expects.
var errStale = errors.New("another version")

// tooLargeError is how many bytes a value takes written out.
type tooLargeError struct{ size int }

func (e tooLargeError) Error() string {
	return "it takes " + strconv.Itoa(e.size) + " bytes written out, and may take " + strconv.Itoa(maxStored)
}

// writeDesired replaces a desired state, if it has one of the versions in match (nil
// for any), in one statement: of two writers that expect the same version one wins.
// It returns what holds afterwards; errNotThere, errStale with the version that
// holds, errRefused or a tooLargeError.
func (s *Server) writeDesired(ctx context.Context, tenant, device, state string, match []int64) (sh shadow, err error) {
	if !storable(tenant) || !storable(device) {
		return sh, errNotThere
	}
	write := upsertDesired
	if match != nil && !slices.Contains(match, 0) {
		write = updateDesired
	}
	var b pgx.Batch // one transaction, one way there and back
	b.Queue(write, tenant, device, state, match, maxStored)
	b.Queue(selectOutcome, tenant, device, state)
	results := s.pool.SendBatch(ctx, &b)
	defer func() {
		if e := results.Close(); err == nil && e != nil {
			err = e // it may not have been committed
		}
	}()
	written, err := results.Exec()
	if err != nil {
		if dataError(err) {
			err = errRefused
		}
		return sh, err
	}
	var want string
	size := 0
	err = results.QueryRow().Scan(&sh.version, &want, &size)
	sh.desired = json.RawMessage(want)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return sh, errNotThere
	case err != nil:
		return sh, err
	case size > maxStored:
		return sh, tooLargeError{size}
	case written.RowsAffected() == 0:
		return sh, errStale
	}
	return sh, nil
}
