package store

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
)

// The status of a command that waits for its ack and of one that has got it, as
// device_commands has them.
const (
	commandQueued    = "queued"
	commandDelivered = "delivered"
)

// Why an ack is rejected, as docs/CONTRACT.md words it.
const (
	ackUnknown  = "unknown_command"
	ackExpired  = "expired"
	ackRepeated = "already_acknowledged"
	ackMissed   = "missed"
)

// longestCommandID is what MQTT can carry as correlation data, in bytes. No command
// of ours has a longer one, and nobody is answered about it.
const longestCommandID = 65_535

// ackCommands locks the commands in one order and returns what state each was in; who
// waited for the lock sees what its holder has made of it. Commands that the devices
// do not have are not returned.
const ackCommands = `
WITH acks AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS u(tenant_id, device_id, command_id, details, n)
), found AS (
    SELECT c.tenant_id, c.command_id, c.status, a.details, a.n
      FROM device_commands AS c
      JOIN acks AS a USING (tenant_id, device_id, command_id)
     ORDER BY c.tenant_id, c.command_id
       FOR UPDATE OF c
), moved AS (
    UPDATE device_commands AS c
       SET status = 'delivered', acked_at = now(), ack_details = f.details::jsonb
      FROM found AS f
     WHERE f.status = 'queued' AND c.tenant_id = f.tenant_id AND c.command_id = f.command_id
)
SELECT n, coalesce(status::text, '') FROM found`

// insertResponses numbers the responses in the order of the acks' arrival.
const insertResponses = `
INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind, command_id, body)
SELECT crossfade_lane(t, d), t, d, 'response', c,
       CASE WHEN reason = '' THEN jsonb_build_object('command_id', c, 'status', 'accepted')
            ELSE jsonb_build_object('command_id', c, 'status', 'rejected', 'reason', reason) END
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS u(t, d, c, reason, n)
 ORDER BY n`

// ackKey is a command as a device names it.
type ackKey struct{ tenant, device, command string }

func ackKeyOf(m *pipeline.Message) ackKey {
	command, _ := m.Fields.CommandID.Text()
	return ackKey{m.Tenant, m.Device, command}
}

// writeAcks moves queued commands to delivered. An ack of a command that is not
// queued, or not this device's, changes nothing; of several acks the first counts.
// Every ack gets a response, unless the store is to write none.
func (s *Store) writeAcks(ctx context.Context, tx pgx.Tx, entries []*Entry) error {
	first := make(map[ackKey]*Entry, len(entries))
	for _, e := range entries {
		if k := ackKeyOf(e.Msg); first[k] == nil {
			first[k] = e
		}
	}
	states, err := ackAll(ctx, tx, first)
	if err != nil || !s.responses {
		return err
	}
	var tenants, devices, commands, reasons []string
	for _, e := range entries {
		k := ackKeyOf(e.Msg)
		if len(k.command) > longestCommandID {
			continue
		}
		tenants, devices, commands = append(tenants, k.tenant), append(devices, k.device), append(commands, k.command)
		reasons = append(reasons, rejection(states[k], first[k] == e))
	}
	if _, err := tx.Exec(ctx, insertResponses, tenants, devices, commands, reasons); err != nil {
		return fmt.Errorf("insert responses into crossfade_downlink: %w", err)
	}
	return nil
}

// ackAll acknowledges each command once and returns the states in which they were;
// those that do not exist have none.
func ackAll(ctx context.Context, tx pgx.Tx, acks map[ackKey]*Entry) (map[ackKey]string, error) {
	keys := slices.SortedFunc(maps.Keys(acks), func(a, b ackKey) int {
		return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.command, b.command), cmp.Compare(a.device, b.device))
	})
	var tenants, devices, commands []string
	var details []*string
	for _, k := range keys {
		tenants, devices, commands = append(tenants, k.tenant), append(devices, k.device), append(commands, k.command)
		details = append(details, ackDetails(acks[k].Msg))
	}
	rows, err := tx.Query(ctx, ackCommands, tenants, devices, commands, details)
	if err != nil {
		return nil, err
	}
	states := make(map[ackKey]string, len(keys))
	var n int64
	var status string
	_, err = pgx.ForEachRow(rows, []any{&n, &status}, func() error {
		states[keys[n-1]] = status
		return nil
	})
	return states, err
}

// rejection is why an ack of a command that was in the given state is rejected, empty
// where it is accepted. first tells whether it is the first one of its batch.
func rejection(status string, first bool) string {
	switch {
	case status == commandQueued && first:
		return ""
	case status == commandQueued, status == commandDelivered:
		return ackRepeated
	case status == ackExpired, status == ackMissed:
		return status
	default: // there is none, or it is in a state of somebody else's making
		return ackUnknown
	}
}

// ackDetails is what the device said of the command: its details, or its status
// where it sent only that.
func ackDetails(m *pipeline.Message) *string {
	v := m.Fields.Details
	if v.IsNull() {
		status, storable := m.Fields.Status.AppendStorable(nil)
		if m.Fields.Status.IsNull() || !storable {
			return nil
		}
		s := `{"status":` + string(status) + `}`
		return &s
	}
	s := string(v.AppendCanonical(nil))
	return &s
}
