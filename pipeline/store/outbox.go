package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/route"
)

// OutboxLanes is how many lanes the outbox has, and how many instances can share
// its work at most. The table's rows are in lanes of that number: it never changes.
const OutboxLanes = 64

// outboxLane is the lane of a device's rows.
func outboxLane(tenant, device string) int16 {
	h := fnv.New32a()
	h.Write([]byte(tenant))
	h.Write([]byte{0})
	h.Write([]byte(device))
	return int16(h.Sum32() % OutboxLanes)
}

const copyOutbox = `COPY crossfade_outbox (lane, tenant_id, device_id, route_id, message_id, body) FROM STDIN (FORMAT binary)`

// maxOutboxBytes is how much of the outbox is encoded at a time: a batch may hold
// large payloads, each of which may match many routes.
const maxOutboxBytes = 8 << 20

// Publishes is about how many bytes the entry adds to the outbox, if it takes effect.
// body is how long the message's body is.
func (e *Entry) Publishes(body int) int {
	n := len(e.Routes) * (body + outboxRowBytes)
	for _, r := range e.Routes {
		n += r.Size()
	}
	return n
}

// outboxRowBytes is about what a row takes besides its body.
const outboxRowBytes = 200

// writeOutbox adds a row for every route that an entry matches, in order of arrival.
func writeOutbox(ctx context.Context, tx pgx.Tx, entries []*Entry) error {
	var buf, payload []byte
	rows := 0
	flush := func() error {
		if rows == 0 {
			return nil
		}
		rows = 0
		buf = binary.BigEndian.AppendUint16(buf, 0xFFFF) // the end
		_, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(buf), copyOutbox)
		return err
	}
	for _, e := range entries {
		if len(e.Routes) == 0 {
			continue
		}
		payload = e.Msg.AppendPayload(payload[:0])
		for _, r := range e.Routes {
			if rows == 0 {
				buf = append(buf[:0], copySignature...)
			}
			buf = appendOutbox(buf, e.Msg, r, payload)
			rows++
			if len(buf) >= maxOutboxBytes {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

func appendOutbox(buf []byte, m *pipeline.Message, r *route.Route, payload []byte) []byte {
	buf = binary.BigEndian.AppendUint16(buf, 6)
	buf = binary.BigEndian.AppendUint32(buf, 2)
	buf = binary.BigEndian.AppendUint16(buf, uint16(outboxLane(m.Tenant, m.Device)))
	buf = appendText(buf, m.Tenant)
	buf = appendText(buf, m.Device)
	buf = appendText(buf, r.ID)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(m.ID)))
	buf = append(buf, m.ID[:]...)
	length := len(buf)
	buf = binary.BigEndian.AppendUint32(buf, 0)
	buf = r.AppendBody(buf, m.RawTopic, payload)
	binary.BigEndian.PutUint32(buf[length:], uint32(len(buf)-length-4))
	return buf
}

// OutboxRow is a message for one route that has not been published for good.
type OutboxRow struct {
	ID             int64
	Lane           int16
	Tenant, Device string
	RouteID        string
	MessageID      pipeline.ID
	Body           []byte // what is published
}

// PublishID is what a repeat of the publication is known by: the same for every
// instance and every attempt.
func (r *OutboxRow) PublishID() string { return r.MessageID.String() + "." + r.RouteID }

// Parked is a row that can never be published as it is, and why.
type Parked struct {
	OutboxRow
	Reason string
}

const deletePublished = `
DELETE FROM crossfade_outbox AS o
 USING unnest($1::int2[], $2::text[], $3::text[], $4::int8[]) AS p(lane, tenant_id, device_id, id)
 WHERE o.lane = p.lane AND o.tenant_id = p.tenant_id AND o.device_id = p.device_id AND o.id = p.id`

const parkRows = `
WITH gone AS (
    DELETE FROM crossfade_outbox AS o
     USING unnest($1::int2[], $2::text[], $3::text[], $4::int8[], $5::text[]) AS p(lane, tenant_id, device_id, id, reason)
     WHERE o.lane = p.lane AND o.tenant_id = p.tenant_id AND o.device_id = p.device_id AND o.id = p.id
    RETURNING o.*, p.reason
)
INSERT INTO crossfade_outbox_parked (id, tenant_id, device_id, route_id, message_id, body, lane, created_at, reason)
SELECT id, tenant_id, device_id, route_id, message_id, body, lane, created_at, reason FROM gone
    ON CONFLICT (id) DO NOTHING`

// SettleOutbox deletes rows whose publication the server has confirmed and parks
// those that it refuses for good, all in one transaction. It may be repeated, and
// rows that are gone are no error. Of published rows ID, Lane, Tenant and Device are
// looked at.
func (s *Store) SettleOutbox(ctx context.Context, published []OutboxRow, parked []Parked) error {
	if len(published)+len(parked) == 0 {
		return nil
	}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var keys outboxKeys
		var reasons []string
		for i := range parked {
			keys.add(&parked[i].OutboxRow)
			reasons = append(reasons, parked[i].Reason)
		}
		if len(parked) > 0 {
			if _, err := tx.Exec(ctx, parkRows, append(keys.arguments(), reasons)...); err != nil {
				return fmt.Errorf("park rows: %w", err)
			}
		}
		keys = outboxKeys{}
		for i := range published {
			keys.add(&published[i])
		}
		if len(published) > 0 {
			if _, err := tx.Exec(ctx, deletePublished, keys.arguments()...); err != nil {
				return fmt.Errorf("delete published rows: %w", err)
			}
		}
		return nil
	})
	return translate("settle crossfade_outbox", err)
}

// outboxKeys are the primary keys of rows, column by column.
type outboxKeys struct {
	lanes            []int16
	tenants, devices []string
	ids              []int64
}

func (k *outboxKeys) add(r *OutboxRow) {
	k.lanes, k.tenants, k.devices, k.ids = append(k.lanes, r.Lane), append(k.tenants, r.Tenant), append(k.devices, r.Device), append(k.ids, r.ID)
}

// arguments are for a statement that is planned anew each time: a plan that was made
// while the table was small would read all of it once it is large.
func (k *outboxKeys) arguments() []any {
	return []any{pgx.QueryExecModeCacheDescribe, k.lanes, k.tenants, k.devices, k.ids}
}

// OutboxBacklog is how much waits to be published.
type OutboxBacklog struct {
	// Rows is exact up to 100,000; beyond that it is PostgreSQL's estimate.
	Rows int64
	// Parked is exact up to 100,000 and stays there.
	Parked int64
	// Oldest is how long the oldest row has waited; zero for none.
	Oldest time.Duration
}

const findBacklog = `
SELECT CASE WHEN c.n > 100000 THEN greatest(c.n, pg_stat_get_live_tuples('crossfade_outbox'::regclass)) ELSE c.n END,
       (SELECT count(*) FROM (SELECT FROM crossfade_outbox_parked LIMIT 100000) AS p),
       coalesce(extract(epoch FROM greatest(clock_timestamp() - (SELECT min(created_at) FROM crossfade_outbox), '0')), 0)::float8
  FROM (SELECT count(*) AS n FROM (SELECT FROM crossfade_outbox LIMIT 100001) AS o) AS c`

// OutboxBacklog looks at the outbox of all instances.
func (s *Store) OutboxBacklog(ctx context.Context) (OutboxBacklog, error) {
	var b OutboxBacklog
	var seconds float64
	err := s.pool.QueryRow(ctx, findBacklog).Scan(&b.Rows, &b.Parked, &seconds)
	b.Oldest = time.Duration(seconds * float64(time.Second))
	return b, translate("look at crossfade_outbox", err)
}

// ParkedRetention is how long parked rows are kept.
const ParkedRetention = 7 * 24 * time.Hour

// pruneAtOnce is how many parked rows one transaction deletes.
const pruneAtOnce = 5000

// PruneParked deletes what was parked longer than ParkedRetention ago.
func (s *Store) PruneParked(ctx context.Context) error {
	for {
		tag, err := s.pool.Exec(ctx, `
DELETE FROM crossfade_outbox_parked
 WHERE id IN (SELECT id FROM crossfade_outbox_parked WHERE parked_at < now() - make_interval(secs => $1) ORDER BY parked_at LIMIT $2)`,
			ParkedRetention.Seconds(), pruneAtOnce)
		// Where instances are at it together each meets rows that another has deleted.
		if err != nil || tag.RowsAffected() == 0 {
			return translate("prune crossfade_outbox_parked", err)
		}
	}
}
