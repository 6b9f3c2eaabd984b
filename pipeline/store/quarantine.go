package store

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
)

// maxIndexed bounds, in bytes, the texts of a quarantine row that stand in an
// index: a hostile topic is longer than an index entry may be. The whole is in
// the raw bytes.
const maxIndexed = 256

// bareText and bareType bound, in bytes, the texts of a bare quarantine row: what
// the columns of the predecessor's tables hold. Such a row has no payload and no user
// name either: the raw bytes have the one, and part of the other would name somebody else.
const (
	bareText = 64
	bareType = 32
)

// maxQuarantineBytes bounds, roughly, the bodies in one INSERT: a protocol message
// can't exceed 1 GB, and PostgreSQL holds several copies of it in memory.
const maxQuarantineBytes = 16 << 20

const insertQuarantine = `
INSERT INTO quarantine_events
       (event_ts, topic, tenant_id, site_id, device_id, msg_type, reason, payload, path, message_id, raw, detail, username, origin)
SELECT e, t, n, s, d, m, r, p::jsonb, h, i, b, x, u, o
  FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
              $8::text[], $9::int2[], $10::uuid[], $11::bytea[], $12::text[], $13::text[], $14::int2[])
       AS q(e, t, n, s, d, m, r, p, h, i, b, x, u, o)`

// countQuarantine sorts its rows, so that transactions lock counters in one order.
const countQuarantine = `
INSERT INTO quarantine_counters_minute AS c (bucket_minute, tenant_id, reason, cnt)
SELECT date_trunc('minute', now()), t, r, n
  FROM unnest($1::text[], $2::text[], $3::int8[]) AS u(t, r, n)
 ORDER BY t, r
    ON CONFLICT (bucket_minute, tenant_id, reason) DO UPDATE SET cnt = c.cnt + EXCLUDED.cnt`

// writeQuarantine inserts in portions: refused messages may be of any size.
func writeQuarantine(ctx context.Context, tx pgx.Tx, entries []*Entry) error {
	counts := make(map[[2]string]int64)
	for len(entries) > 0 {
		n, size := 1, len(entries[0].Msg.Delivery.Body)
		for n < len(entries) && size+len(entries[n].Msg.Delivery.Body) <= maxQuarantineBytes {
			size += len(entries[n].Msg.Delivery.Body)
			n++
		}
		if err := insertQuarantined(ctx, tx, entries[:n], counts); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return count(ctx, tx, counts)
}

// insertQuarantined adds to counts what it inserts, by tenant and reason.
func insertQuarantined(ctx context.Context, tx pgx.Tx, entries []*Entry, counts map[[2]string]int64) error {
	n := len(entries)
	times, paths, ids := make([]time.Time, n), make([]int16, n), make([][16]byte, n)
	topics, tenants, sites, devices := make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n)
	types, payloads, raws := make([]*string, n), make([]*string, n), make([][]byte, n)
	reasons, details := make([]string, n), make([]string, n)
	usernames, origins := make([]*string, n), make([]int16, n)
	for i, e := range entries {
		m := e.Msg
		site, _ := m.Fields.SiteID.Text()
		topic, text, msgType := pipeline.MaxTopic, maxIndexed, maxIndexed
		if e.Bare {
			topic, text, msgType = maxIndexed, bareText, bareType
		} else {
			payloads[i] = storablePayload(m)
			if usernames[i] = clean(m.Username, pipeline.MaxTopic); usernames[i] == nil {
				usernames[i] = new(string) // nobody, which is known
			}
		}
		times[i], paths[i], ids[i] = m.Time, int16(m.Delivery.Path), m.ID
		topics[i], tenants[i], sites[i] = clean(m.RawTopic, topic), clean(m.Tenant, text), clean(site, text)
		devices[i], types[i] = clean(m.Device, text), clean(m.MsgType, msgType)
		raws[i], reasons[i], details[i] = m.Delivery.Body, string(e.Reason), e.Detail
		origins[i] = int16(m.Delivery.Origin)
		if raws[i] == nil {
			raws[i] = []byte{} // an empty body, not an unknown one
		}
		tenant := ""
		if tenants[i] != nil {
			tenant = *tenants[i]
		}
		counts[[2]string{tenant, reasons[i]}]++
	}
	_, err := tx.Exec(ctx, insertQuarantine, times, topics, tenants, sites, devices, types, reasons,
		payloads, paths, ids, raws, details, usernames, origins)
	return err
}

func count(ctx context.Context, tx pgx.Tx, counts map[[2]string]int64) error {
	var tenants, reasons []string
	var numbers []int64
	keys := slices.SortedFunc(maps.Keys(counts), func(a, b [2]string) int {
		return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1]))
	})
	for _, k := range keys {
		tenants, reasons, numbers = append(tenants, k[0]), append(reasons, k[1]), append(numbers, counts[k])
	}
	_, err := tx.Exec(ctx, countQuarantine, tenants, reasons, numbers)
	return err
}

// maxPayload bounds, in bytes, the payloads that are kept as jsonb, too: PostgreSQL
// takes ten seconds and more over one of 100 MB, for which the next messages wait.
const maxPayload = 8 << 20

// storablePayload is the payload as jsonb where it can be held; the raw bytes are
// kept beside it in any case.
func storablePayload(m *pipeline.Message) *string {
	if m.Payload.IsNull() || m.Size > maxPayload || m.Payload.DeeperThan(pipeline.MaxDepth) {
		return nil
	}
	b, ok := m.Payload.AppendStorable(nil)
	if !ok {
		return nil
	}
	s := string(b)
	return &s
}

func storableText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// clean makes a text that a text column can hold, of at most limit bytes; nil for
// an empty one.
func clean(s string, limit int) *string {
	if s == "" {
		return nil
	}
	if len(s) > limit {
		s = s[:limit]
	}
	if !storableText(s) {
		s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	}
	return &s
}
