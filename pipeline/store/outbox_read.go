package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/lanes"
)

// readOutbox takes a share of each lane's rows for every tenant that has any, and of
// each tenant's for every device, without looking at those that it leaves waiting:
// through the primary key it hops from one tenant to the next and from one device to
// the next. Both go round in a ring, from the one after which the turn before ended
// until they are back at the first or have found enough. A hop is one or two probes
// of the index, so that a turn costs what it returns and the tenants that it passes
// by, whatever waits behind.
//
// $1 are the lanes, $2 the tenants to begin after; $3 is how many rows a lane gives,
// $4 how many bytes, $5 how many tenants are passed; $6 are the tenants to leave out;
// $7 to $9 are the lanes, tenants and devices of the devices to begin after.
//
// Where bytes run out, every tenant has had a first row before any has a second, and
// likewise a tenant's devices. Sizes are summed up without reading the bodies that
// are left out. What comes back first is a matter of chance within these rounds, or
// turns that are cut short by time would always serve the same ones. Tenants that
// gave no row come back without one.
const readOutbox = `
WITH RECURSIVE
tenants (lane, first, tenant_id, n) AS (
    SELECT l.lane, f.tenant_id, f.tenant_id, 1
      FROM unnest($1::int2[], $2::text[]) AS l(lane, after)
     CROSS JOIN LATERAL (SELECT coalesce(
           (SELECT o.tenant_id FROM crossfade_outbox AS o WHERE o.lane = l.lane AND o.tenant_id > l.after ORDER BY o.tenant_id LIMIT 1),
           (SELECT o.tenant_id FROM crossfade_outbox AS o WHERE o.lane = l.lane ORDER BY o.tenant_id LIMIT 1)) AS tenant_id OFFSET 0) AS f
     WHERE f.tenant_id IS NOT NULL
    UNION ALL
    SELECT t.lane, t.first, f.tenant_id, t.n + 1
      FROM tenants AS t
     CROSS JOIN LATERAL (SELECT coalesce(
           (SELECT o.tenant_id FROM crossfade_outbox AS o WHERE o.lane = t.lane AND o.tenant_id > t.tenant_id ORDER BY o.tenant_id LIMIT 1),
           (SELECT o.tenant_id FROM crossfade_outbox AS o WHERE o.lane = t.lane ORDER BY o.tenant_id LIMIT 1)) AS tenant_id OFFSET 0) AS f
     WHERE t.n < $5 AND f.tenant_id <> t.first
),
shares AS (
    SELECT lane, tenant_id, n, greatest($3 / count(*) OVER (PARTITION BY lane), 1) AS share
      FROM tenants
     WHERE tenant_id <> ALL($6)
),
-- One more than the share, to know whether there are more.
devices (lane, tenant_id, n, share, first, device_id, m) AS (
    SELECT s.lane, s.tenant_id, s.n, s.share, f.device_id, f.device_id, 1
      FROM shares AS s
      LEFT JOIN unnest($7::int2[], $8::text[], $9::text[]) AS p(lane, tenant_id, after) ON p.lane = s.lane AND p.tenant_id = s.tenant_id
     CROSS JOIN LATERAL (SELECT coalesce(
           (SELECT o.device_id FROM crossfade_outbox AS o WHERE o.lane = s.lane AND o.tenant_id = s.tenant_id AND o.device_id > p.after ORDER BY o.device_id LIMIT 1),
           (SELECT o.device_id FROM crossfade_outbox AS o WHERE o.lane = s.lane AND o.tenant_id = s.tenant_id ORDER BY o.device_id LIMIT 1)) AS device_id OFFSET 0) AS f
    UNION ALL
    SELECT d.lane, d.tenant_id, d.n, d.share, d.first, f.device_id, d.m + 1
      FROM devices AS d
     CROSS JOIN LATERAL (SELECT coalesce(
           (SELECT o.device_id FROM crossfade_outbox AS o WHERE o.lane = d.lane AND o.tenant_id = d.tenant_id AND o.device_id > d.device_id ORDER BY o.device_id LIMIT 1),
           (SELECT o.device_id FROM crossfade_outbox AS o WHERE o.lane = d.lane AND o.tenant_id = d.tenant_id ORDER BY o.device_id LIMIT 1)) AS device_id OFFSET 0) AS f
     WHERE d.m <= d.share AND f.device_id <> d.first
),
found AS (
    SELECT d.lane, d.n, d.tenant_id, d.device_id, d.m, d.m < d.devices AS more, o.*,
           row_number() OVER (PARTITION BY d.lane, d.tenant_id ORDER BY o.k, d.m) AS round
      FROM (SELECT *, count(*) OVER (PARTITION BY lane, tenant_id) AS devices FROM devices) AS d
     CROSS JOIN LATERAL (
           SELECT id, route_id, message_id, body, row_number() OVER (ORDER BY id) AS k
             FROM crossfade_outbox
            WHERE lane = d.lane AND tenant_id = d.tenant_id AND device_id = d.device_id
            ORDER BY id
            LIMIT d.share / least(d.devices, d.share)) AS o
     WHERE d.m <= d.share
),
taken AS (
    SELECT *, row_number() OVER lane AS rank, sum(octet_length(body)) OVER lane - octet_length(body) AS before
      FROM found
    WINDOW lane AS (PARTITION BY lane ORDER BY round, n ROWS UNBOUNDED PRECEDING)
)
SELECT t.lane, t.tenant_id, t.n, t.tenant_id = ANY($6), coalesce(o.id, 0), coalesce(o.device_id, ''), coalesce(o.m, 0), coalesce(o.more, false),
       coalesce(o.route_id, ''), coalesce(o.message_id, '00000000-0000-0000-0000-000000000000'), o.body
  FROM tenants AS t
  LEFT JOIN taken AS o ON o.lane = t.lane AND o.n = t.n AND o.rank <= $3 AND o.before < $4
 ORDER BY o.round, random()`

// maxRestingPassed bounds how many resting tenants a turn passes by in a lane in
// search of others. Where more rest, others wait for several turns.
const maxRestingPassed = 256

// Read returns rows of the lanes held: at most perLane of each, and about maxBytes of
// bodies in all (a lane gives one row whatever its size). Tenants get equal shares of
// a lane, as do the devices of a tenant; whoever gets nothing, since there are too
// many, is among the first at the next Read. Of a device they are its first rows, in
// the order of their IDs. It leaves out the tenants in except, whose rows cost
// nothing, however many they are.
func (l *Lanes) Read(ctx context.Context, perLane, maxBytes int, except []string) ([]OutboxRow, error) {
	l.hold.Begin()
	held := l.hold.Held()
	if len(held) == 0 {
		return nil, nil
	}
	if except == nil {
		except = []string{}
	}
	after, positions := l.places.Arguments(held)
	rows, err := l.hold.Conn().Query(ctx, readOutbox, held, after, perLane, max(maxBytes/len(held), 1), perLane+min(len(except), maxRestingPassed),
		except, positions.Lanes, positions.Tenants, positions.Devices)
	if err != nil {
		return nil, translate("read crossfade_outbox", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r passed, err error) {
		err = row.Scan(&r.Lane, &r.Tenant, &r.n, &r.resting, &r.ID, &r.Device, &r.m, &r.more, &r.RouteID, (*[16]byte)(&r.MessageID), &r.Body)
		return r, err
	})
	if err != nil {
		return nil, translate("read crossfade_outbox", err)
	}
	l.places.move(found)
	var list []OutboxRow
	for i := range found {
		if found[i].m > 0 {
			list = append(list, found[i].OutboxRow)
		}
	}
	return list, nil
}

// passed is a row that was read, or a tenant that gave none.
type passed struct {
	OutboxRow
	n       int  // the tenant's number in its lane, from 1
	resting bool // it was to be left out
	m       int  // the device's number in its tenant, from 1; 0 without a row
	more    bool // there are devices after this one
}

// places moves on with what was read.
type places struct{ lanes.Places }

// move goes on to the last of each ring before the first that got nothing.
func (p *places) move(found []passed) {
	end := make(map[int16]int)             // the number of a lane's first tenant that got nothing
	last := make(map[lanes.Tenant]*passed) // the tenant's last device that was read
	for i := range found {
		r := &found[i]
		key := lanes.Tenant{Lane: r.Lane, Tenant: r.Tenant}
		switch {
		case r.m > 0:
			if l := last[key]; l == nil || r.m > l.m {
				last[key] = r
			}
		case !r.resting:
			if n, ok := end[r.Lane]; !ok || r.n < n {
				end[r.Lane] = r.n
			}
		}
	}
	for key, r := range last {
		if r.more {
			p.Devices[key] = r.Device
		} else {
			delete(p.Devices, key)
		}
	}
	p.Bound()
	clear(p.Tenants)
	reached := make(map[int16]int)
	for i := range found {
		r := &found[i]
		if n, ok := end[r.Lane]; (!ok || r.n < n) && r.n > reached[r.Lane] {
			reached[r.Lane], p.Tenants[r.Lane] = r.n, r.Tenant
		}
	}
}
