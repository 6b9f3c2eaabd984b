package downlink

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/lanes"
)

// readLanes takes the first row of devices, with all that is needed to send it, in one
// snapshot: a desired state is hence as new as every mark that comes with it. As
// pipeline/store reads its outbox, it hops through the primary key from tenant to
// tenant and from device to device, so that a turn costs what it looks at, whatever
// waits behind; tenants get equal shares of a lane. A device whose first row is to be
// tried later comes without contents, and so does what is over the bytes.
//
// $1 are the lanes, $2 the tenants to begin after; $3 is how many devices a lane
// gives, $4 how many bytes all of them, $5 how many tenants a lane shows; $6 to $8 are
// the lanes, tenants and devices of the devices to begin after.
const readLanes = `
WITH RECURSIVE
tenants (lane, first, tenant_id, n) AS (
    SELECT l.lane, f.tenant_id, f.tenant_id, 1
      FROM unnest($1::int2[], $2::text[]) AS l(lane, after)
     CROSS JOIN LATERAL (SELECT coalesce(
           (SELECT o.tenant_id FROM crossfade_downlink AS o WHERE o.lane = l.lane AND o.tenant_id > l.after ORDER BY o.tenant_id LIMIT 1),
           (SELECT o.tenant_id FROM crossfade_downlink AS o WHERE o.lane = l.lane ORDER BY o.tenant_id LIMIT 1)) AS tenant_id OFFSET 0) AS f
     WHERE f.tenant_id IS NOT NULL
    UNION ALL
    SELECT t.lane, t.first, f.tenant_id, t.n + 1
      FROM tenants AS t
     CROSS JOIN LATERAL (SELECT coalesce(
           (SELECT o.tenant_id FROM crossfade_downlink AS o WHERE o.lane = t.lane AND o.tenant_id > t.tenant_id ORDER BY o.tenant_id LIMIT 1),
           (SELECT o.tenant_id FROM crossfade_downlink AS o WHERE o.lane = t.lane ORDER BY o.tenant_id LIMIT 1)) AS tenant_id OFFSET 0) AS f
     WHERE t.n <= $5 AND f.tenant_id <> t.first
),
shares AS (
    SELECT lane, tenant_id, n, greatest($3 / count(*) OVER (PARTITION BY lane), 1) AS share,
           count(*) OVER (PARTITION BY lane) > $5 AS cut
      FROM tenants
),
-- One more than the share, to know whether there are more.
devices (lane, tenant_id, n, share, cut, first, device_id, m) AS (
    SELECT s.lane, s.tenant_id, s.n, s.share, s.cut, f.device_id, f.device_id, 1
      FROM shares AS s
      LEFT JOIN unnest($6::int2[], $7::text[], $8::text[]) AS p(lane, tenant_id, after) ON p.lane = s.lane AND p.tenant_id = s.tenant_id
     CROSS JOIN LATERAL (SELECT coalesce(
           (SELECT o.device_id FROM crossfade_downlink AS o WHERE o.lane = s.lane AND o.tenant_id = s.tenant_id AND o.device_id > p.after ORDER BY o.device_id LIMIT 1),
           (SELECT o.device_id FROM crossfade_downlink AS o WHERE o.lane = s.lane AND o.tenant_id = s.tenant_id ORDER BY o.device_id LIMIT 1)) AS device_id OFFSET 0) AS f
     WHERE s.n <= $5
    UNION ALL
    SELECT d.lane, d.tenant_id, d.n, d.share, d.cut, d.first, f.device_id, d.m + 1
      FROM devices AS d
     CROSS JOIN LATERAL (SELECT coalesce(
           (SELECT o.device_id FROM crossfade_downlink AS o WHERE o.lane = d.lane AND o.tenant_id = d.tenant_id AND o.device_id > d.device_id ORDER BY o.device_id LIMIT 1),
           (SELECT o.device_id FROM crossfade_downlink AS o WHERE o.lane = d.lane AND o.tenant_id = d.tenant_id ORDER BY o.device_id LIMIT 1)) AS device_id OFFSET 0) AS f
     WHERE d.m <= d.share AND f.device_id <> d.first
),
heads AS (
    SELECT d.lane, d.tenant_id, d.n, d.cut, d.device_id, d.m, d.more, o.*, o.next_try IS NULL OR o.next_try <= clock_timestamp() AS due
      FROM (SELECT *, count(*) OVER (PARTITION BY lane, tenant_id) > share AS more FROM devices) AS d
     CROSS JOIN LATERAL (
           SELECT id, kind, command_id, body, created_at, attempts, next_try
             FROM crossfade_downlink
            WHERE lane = d.lane AND tenant_id = d.tenant_id AND device_id = d.device_id
            ORDER BY id LIMIT 1) AS o
     WHERE d.m <= d.share
),
contents AS (
    SELECT h.*, s.state, s.version, p.version AS published_version, p.cleared, coalesce(g.version, 0) AS gone, k.marks, k.changed,
           c.status, c.type, c.params, c.sent, c.expires, CASE WHEN h.due THEN h.body::text END AS answer
      FROM heads AS h
      LEFT JOIN LATERAL (
           SELECT desired_state::text AS state, desired_version::int8 AS version FROM device_state
            WHERE tenant_id = h.tenant_id COLLATE "default" AND device_id = h.device_id COLLATE "default") AS s ON h.due AND h.kind = 'desired'
      LEFT JOIN crossfade_desired_published AS p ON h.due AND h.kind = 'desired' AND p.tenant_id = h.tenant_id AND p.device_id = h.device_id
      LEFT JOIN crossfade_desired_versions AS g ON h.due AND h.kind = 'desired' AND g.tenant_id = h.tenant_id AND g.device_id = h.device_id
      LEFT JOIN LATERAL (
           SELECT array_agg(id) AS marks, max(created_at) AS changed
             FROM (SELECT id, created_at FROM crossfade_downlink
                    WHERE lane = h.lane AND tenant_id = h.tenant_id AND device_id = h.device_id AND kind = 'desired' ORDER BY id LIMIT 1000) AS m) AS k ON h.due AND h.kind = 'desired'
      LEFT JOIN LATERAL (
           SELECT status::text, command_type::text AS type, command_params::text AS params, published_at IS NOT NULL AS sent, expires_at AS expires FROM device_commands
            WHERE tenant_id = h.tenant_id COLLATE "default" AND command_id = h.command_id COLLATE "default" AND device_id = h.device_id COLLATE "default"
            LIMIT 1) AS c ON h.due AND h.kind = 'command'
),
taken AS (
    SELECT *, due AND sum(size) OVER (ORDER BY m, n, lane ROWS UNBOUNDED PRECEDING) - size < $4 AS taken
      FROM (SELECT *, coalesce(octet_length(state), 0) + coalesce(octet_length(params), 0) + coalesce(octet_length(answer), 0) AS size FROM contents) AS c
)
SELECT lane, tenant_id, n, cut, device_id, m, more, taken, id, kind, attempts, coalesce(command_id, ''), created_at, clock_timestamp(),
       marks, changed, CASE WHEN taken THEN coalesce(state, '') ELSE '' END, coalesce(version, 0), published_version, cleared, gone,
       coalesce(status, ''), coalesce(type, ''), CASE WHEN taken THEN coalesce(params, '') ELSE '' END, coalesce(sent, false),
       CASE WHEN isfinite(expires) THEN least(expires, now() + interval '200 years') END,
       coalesce(expires = '-infinity', false),
       CASE WHEN taken THEN coalesce(answer, '') ELSE '' END
  FROM taken
 ORDER BY m, n, lane`

// found is a device that the rings came by.
type found struct {
	row
	n     int  // the tenant's number in its lane, from 1
	cut   bool // there are more tenants
	m     int  // the device's number in its tenant, from 1
	more  bool // there are more devices
	taken bool // it is due
}

func scanFound(r pgx.CollectableRow) (f found, err error) {
	var changed, expires *time.Time
	var version *int64
	var cleared *bool
	var past bool
	err = r.Scan(&f.Lane, &f.Tenant, &f.n, &f.cut, &f.Device, &f.m, &f.more, &f.taken, &f.ID, &f.Kind, &f.Attempts, &f.CommandID, &f.Created, &f.Now,
		&f.Marks, &changed, &f.State, &f.Version, &version, &cleared, &f.Gone,
		&f.Status, &f.Type, &f.Params, &f.Sent, &expires, &past, &f.Body)
	if changed != nil {
		f.Changed = *changed
	}
	if version != nil && cleared != nil {
		f.Published = &published{*version, *cleared}
	}
	switch {
	case past:
		f.Expires = time.Unix(0, 0)
	case expires != nil:
		f.Expires = *expires
	}
	return f, err
}

// read returns the first due rows of devices in the lanes: at most perLane of each
// lane, and about maxBytes of contents in all, one row at least. more tells that there
// are devices behind those that were looked at.
func (p *places) read(ctx context.Context, conn *pgx.Conn, lanes []int16, perLane, maxBytes int) (rows []row, more bool, err error) {
	if len(lanes) == 0 {
		return nil, false, nil
	}
	after, positions := p.Arguments(lanes)
	began := time.Now()
	result, err := conn.Query(ctx, readLanes, lanes, after, perLane, maxBytes, perLane, positions.Lanes, positions.Tenants, positions.Devices)
	if err != nil {
		return nil, false, fmt.Errorf("read crossfade_downlink: %w", err)
	}
	all, err := pgx.CollectRows(result, scanFound)
	if err != nil {
		return nil, false, fmt.Errorf("read crossfade_downlink: %w", err)
	}
	for i := range all {
		all[i].Read = began
		if all[i].taken {
			rows = append(rows, all[i].row)
		}
	}
	return rows, p.move(all), nil
}

// places moves on with what was read. A lane's tenant is kept only where there are
// more tenants than one turn shows.
type places struct{ lanes.Places }

// keys are rows or devices, column by column.
type keys struct {
	lanes            []int16
	tenants, devices []string
}

func (k *keys) add(lane int16, tenant, device string) {
	k.lanes, k.tenants, k.devices = append(k.lanes, lane), append(k.tenants, tenant), append(k.devices, device)
}

// move goes on to the last of each ring, and tells whether any goes on.
func (p *places) move(all []found) (more bool) {
	clear(p.Tenants)
	lastTenant := make(map[int16]int)
	lastDevice := make(map[lanes.Tenant]int)
	for i := range all {
		f := &all[i]
		if f.cut && f.n > lastTenant[f.Lane] {
			lastTenant[f.Lane], p.Tenants[f.Lane] = f.n, f.Tenant
		}
		key := lanes.Tenant{Lane: f.Lane, Tenant: f.Tenant}
		switch {
		case !f.more:
			delete(p.Devices, key)
		case f.m > lastDevice[key]:
			lastDevice[key], p.Devices[key] = f.m, f.Device
		}
		more = more || f.more || f.cut
	}
	p.Bound()
	return more
}
