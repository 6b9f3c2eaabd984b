package api

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// Statements on device_commands. A trigger (migration 00011) puts what is queued into
// the downlink's outbox. Every statement names the tenant.

// Command is a command as back ends see it.
type Command struct {
	ID         string           `json:"command_id"`
	Device     string           `json:"device_id"`
	Type       string           `json:"type"`
	Params     json.RawMessage  `json:"params" doc:"An object."`
	Status     string           `json:"status" enum:"queued,delivered,missed,expired" doc:"queued until the device acknowledges it."`
	CreatedAt  *time.Time       `json:"created_at"`
	CreatedBy  string           `json:"created_by,omitempty"`
	ExpiresAt  *time.Time       `json:"expires_at,omitempty"`
	Published  *time.Time       `json:"published_at,omitempty" doc:"When the MQTT broker confirmed it."`
	Acked      *time.Time       `json:"acked_at,omitempty" doc:"When the device's acknowledgement took effect."`
	AckDetails *json.RawMessage `json:"ack_details,omitempty" doc:"What the device said of it."`
}

var commandColumns = `c.command_id, c.device_id, c.command_type, coalesce(c.command_params::text, '{}'), c.status, coalesce(c.created_by, ''), c.ack_details::text,
       ` + instant("c.created_at") + `, ` + instant("c.expires_at") + `, ` + instant("c.published_at") + `, ` + instant("c.acked_at")

// scanCommand reads a row of commandColumns, with more in front of it. All columns of
// a command may be NULL, which stands for none: then it returns nil.
func scanCommand(row pgx.Row, before ...any) (*Command, error) {
	var id, device, kind, params, status, by, details *string
	c := &Command{}
	err := row.Scan(append(before, &id, &device, &kind, &params, &status, &by, &details, &c.CreatedAt, &c.ExpiresAt, &c.Published, &c.Acked)...)
	if err != nil || id == nil {
		return nil, err
	}
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	c.ID, c.Device, c.Type, c.Status, c.CreatedBy = *id, text(device), text(kind), text(status), text(by)
	c.Params = json.RawMessage(text(params))
	if details != nil {
		raw := json.RawMessage(*details)
		c.AckDetails = &raw
	}
	return c, nil
}

// newCommand is a command to be queued. It expires at the time, or after the seconds,
// or never where both are nil.
type newCommand struct {
	id, kind, params, by string
	expires              *time.Time
	ttl                  *int64
}

var insertCommand = `
INSERT INTO device_commands AS c (tenant_id, command_id, device_id, command_type, command_params, status, expires_at, created_by, created_at)
SELECT r.tenant_id, $3, r.device_id, $4, $5::jsonb, 'queued', coalesce($6::timestamptz, now() + $7::int8 * interval '1 second'), $8, now()
  FROM device_registry AS r
 WHERE r.tenant_id = $1 AND r.device_id = $2 AND octet_length($5::jsonb::text) <= $9
   AND ($6::timestamptz IS NULL OR $6 > now())
    ON CONFLICT DO NOTHING`

// selectQueued is read in the transaction of the insert. Without a row the device is
// not registered.
var selectQueued = `
SELECT octet_length($5::jsonb::text),
       c.device_id = $2 AND c.command_type = $4 AND c.command_params::jsonb = $5::jsonb
       AND CASE WHEN $7::int8 IS NOT NULL THEN c.expires_at = c.created_at + $7::int8 * interval '1 second'
                ELSE c.expires_at IS NOT DISTINCT FROM $6::timestamptz END,
       ` + commandColumns + `
  FROM device_registry AS r
  LEFT JOIN device_commands AS c ON c.tenant_id = r.tenant_id AND c.command_id = $3
 WHERE r.tenant_id = $1 AND r.device_id = $2
 LIMIT 1`

// What can become of a new command, besides being queued.
var (
	errTaken = errors.New("the ID is another command's")
	errLate  = errors.New("it expires before it begins")
)

// queueCommand makes a command unless there is one of that ID. It returns the
// command that is there now, and whether it was made; errNotThere for a device that
// is not registered, errTaken where the ID belongs to a command of other content,
// errLate, errRefused or a tooLargeError.
func (s *Server) queueCommand(ctx context.Context, tenant, device string, n newCommand) (c *Command, made bool, err error) {
	if !storable(tenant) || !storable(device) {
		return nil, false, errNotThere
	}
	var b pgx.Batch
	b.Queue(insertCommand, tenant, device, n.id, n.kind, n.params, n.expires, n.ttl, n.by, maxStored)
	b.Queue(selectQueued, tenant, device, n.id, n.kind, n.params, n.expires, n.ttl)
	results := s.pool.SendBatch(ctx, &b)
	defer func() {
		if e := results.Close(); err == nil && e != nil {
			err = e
		}
	}()
	inserted, err := results.Exec()
	if err != nil {
		if dataError(err) {
			err = errRefused
		}
		return nil, false, err
	}
	size, same := 0, (*bool)(nil)
	c, err = scanCommand(results.QueryRow(), &size, &same)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, false, errNotThere
	case err != nil:
		return nil, false, err
	case inserted.RowsAffected() > 0:
		return c, true, nil
	case c != nil && same != nil && *same:
		return c, false, nil
	case c != nil:
		return nil, false, errTaken
	case size > maxStored:
		return nil, false, tooLargeError{size}
	case n.expires != nil:
		return nil, false, errLate
	}
	return nil, false, errTaken // by a key of an adopted table that is wider than the tenant
}

var selectCommand = `SELECT ` + commandColumns + ` FROM device_commands AS c WHERE c.tenant_id = $1 AND c.device_id = $2 AND c.command_id = $3 LIMIT 1`

// readCommand returns errNotThere where the device has no such command.
func (s *Server) readCommand(ctx context.Context, tenant, device, id string) (*Command, error) {
	if !storable(tenant) || !storable(device) || !storable(id) {
		return nil, errNotThere
	}
	c, err := scanCommand(s.pool.QueryRow(ctx, selectCommand, tenant, device, id))
	if errors.Is(err, pgx.ErrNoRows) || dataError(err) || err == nil && c == nil {
		return nil, errNotThere
	}
	return c, err
}

// maxListed bounds the JSON values in a list, in bytes: a client that reads slowly keeps
// an answer in memory. The first command is in it whatever its size.
const maxListed = 1 << 20

// list is the SQL for commands of a device, and how many there are without maxListed.
func list(which, order string) string {
	return `
SELECT c.listed_total, ` + commandColumns + `
  FROM device_registry AS r
  LEFT JOIN LATERAL (SELECT l.*, count(*) OVER () AS listed_total, row_number() OVER w AS listed_place,
                            sum(octet_length(coalesce(l.command_params::text, '')) + octet_length(coalesce(l.ack_details::text, ''))) OVER w AS listed_bytes
                       FROM (SELECT * FROM device_commands AS c
                              WHERE c.tenant_id = $1 AND c.device_id = $2 AND ` + which + `
                              ORDER BY c.created_at ` + order + `, c.command_id ` + order + ` LIMIT $4) AS l
                     WINDOW w AS (ORDER BY l.created_at ` + order + `, l.command_id ` + order + ` ROWS UNBOUNDED PRECEDING)) AS c
    ON c.listed_place = 1 OR c.listed_bytes <= $5
 WHERE r.tenant_id = $1 AND r.device_id = $2
 ORDER BY c.created_at ` + order + `, c.command_id ` + order
}

// Newest first for people, oldest first for the device that is to carry them out.
var (
	listCommands = list(`($3 = '' OR c.status = $3)`, `DESC`)
	listPending  = list(`c.status = $3 AND (c.expires_at IS NULL OR c.expires_at > now())`, `ASC`)
)

// commands runs one of the lists. cut says that fewer are returned than limit would
// allow, for their size. It returns errNotThere for a device that is not registered.
func (s *Server) commands(ctx context.Context, list, tenant, device, status string, limit int) (found []Command, cut bool, err error) {
	if !storable(tenant) || !storable(device) {
		return nil, false, errNotThere
	}
	rows, err := s.pool.Query(ctx, list, tenant, device, status, limit, maxListed)
	if err != nil {
		return nil, false, err
	}
	defer rows.Close()
	known, total := false, (*int)(nil)
	found = []Command{}
	for rows.Next() {
		known = true
		c, err := scanCommand(rows, &total)
		if err != nil {
			return nil, false, err
		}
		if c != nil {
			found = append(found, *c)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, false, err
	}
	if !known {
		return nil, false, errNotThere
	}
	return found, total != nil && len(found) < *total, nil
}
