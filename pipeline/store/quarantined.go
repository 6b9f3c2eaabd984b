package store

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
)

// Quarantined is a row of quarantine_events. Rows that a service before this one
// wrote have neither Raw, MessageID nor Path.
type Quarantined struct {
	ID int64
	// IngestedAt is when the row was written, EventTS the message's own time; zero
	// where the row has none.
	IngestedAt, EventTS                  time.Time
	Topic, Tenant, Site, Device, MsgType string // empty where they could not be read
	Reason                               pipeline.Reason
	Detail                               string
	Path                                 pipeline.Path // 0 where the row has none
	Origin                               pipeline.Origin
	// Username is as whom the broker knew the sender, "" for nobody; nil where the row
	// does not tell: those from before version 19 of the schema.
	Username  *string
	MessageID *pipeline.ID
	// Raw is the body as it came, nil where the row has none; Payload is the device's
	// payload as JSON, nil where jsonb could not hold it. Only some queries read them.
	Raw, Payload []byte
}

// Shortened is what the detail of a row holds that was cut to the least, for a table
// that refused the whole one; what PostgreSQL said of that follows.
const Shortened = "; the row is shortened: "

// WholeTopic and WholeTenant report whether the row has the text as it came. A text
// that was cut may be another's beginning, and one with characters that a column
// cannot hold has U+FFFD in their place.
func (q *Quarantined) WholeTopic() bool {
	return !altered(q.Topic) && (!q.shortened() || len(q.Topic) < maxIndexed)
}

// WholeUsername: see WholeTopic. A name that the row does not tell is not whole.
func (q *Quarantined) WholeUsername() bool { return q.Username != nil && !altered(*q.Username) }

// WholeTenant: see WholeTopic.
func (q *Quarantined) WholeTenant() bool {
	limit := maxIndexed
	if q.shortened() {
		limit = bareText
	}
	return !altered(q.Tenant) && len(q.Tenant) < limit
}

func (q *Quarantined) shortened() bool { return strings.Contains(q.Detail, Shortened) }

func altered(s string) bool { return strings.ContainsRune(s, utf8.RuneError) }

// QuarantineFilter selects rows; the zero value selects them all. Within a list any
// value will do; "" stands for rows without a tenant, or device.
type QuarantineFilter struct {
	IDs              []int64
	Tenants, Devices []string
	Reasons          []pipeline.Reason
	// Since and Until bound the time of arrival: Since ≤ ingested_at < Until. Zero
	// leaves that end open.
	Since, Until time.Time
}

// Empty reports whether the filter selects every row.
func (f *QuarantineFilter) Empty() bool {
	return len(f.IDs)+len(f.Tenants)+len(f.Devices)+len(f.Reasons) == 0 && f.Since.IsZero() && f.Until.IsZero()
}

// QuarantineSpan bounds a walk through the rows, by row ID: After excluded, Upto
// included. A walk goes by ID, since every table has an index on it, on each
// partition, whatever the filter is; IDs follow the order of arrival but for rows
// that were written in the same moment.
type QuarantineSpan struct{ After, Upto int64 }

// condition collects the parts of a WHERE clause; only what is asked for is in it,
// which gives the planner more to go by than (… OR $1 IS NULL).
type condition struct {
	parts []string
	args  []any
}

func (c *condition) add(sql string, arg any) {
	c.args = append(c.args, arg)
	c.parts = append(c.parts, fmt.Sprintf(sql, len(c.args)))
}

func (c *condition) anyOf(column string, values []string) {
	if len(values) == 0 {
		return
	}
	for _, v := range values {
		if v == "" {
			c.add("("+column+" = ANY($%d::text[]) OR "+column+" IS NULL)", values)
			return
		}
	}
	c.add(column+" = ANY($%d::text[])", values)
}

func (c *condition) String() string {
	if len(c.parts) == 0 {
		return "true"
	}
	return strings.Join(c.parts, " AND ")
}

func (f *QuarantineFilter) condition() *condition {
	c := &condition{}
	if len(f.IDs) > 0 {
		c.add("id = ANY($%d::int8[])", f.IDs)
	}
	c.anyOf("tenant_id", f.Tenants)
	c.anyOf("device_id", f.Devices)
	reasons := make([]string, len(f.Reasons))
	for i, r := range f.Reasons {
		reasons[i] = string(r)
	}
	c.anyOf("reason", reasons)
	if !f.Since.IsZero() {
		c.add("ingested_at >= $%d", f.Since)
	}
	if !f.Until.IsZero() {
		c.add("ingested_at < $%d", f.Until)
	}
	return c
}

// CountQuarantined counts the rows that the filter selects, and returns the span
// that holds them: a walk through it does not meet rows that arrive later.
func (s *Store) CountQuarantined(ctx context.Context, f QuarantineFilter) (n int64, span QuarantineSpan, err error) {
	c := f.condition()
	err = s.pool.QueryRow(ctx, `SELECT count(*), coalesce(min(id) - 1, 0), coalesce(max(id), 0) FROM quarantine_events WHERE `+c.String(), c.args...).
		Scan(&n, &span.After, &span.Upto)
	return n, span, translate("count quarantined messages", err)
}

const quarantineColumns = `id, ingested_at, event_ts, coalesce(topic, ''), coalesce(tenant_id, ''), coalesce(site_id, ''),
       coalesce(device_id, ''), coalesce(msg_type, ''), reason, coalesce(detail, ''), coalesce(path, 0), message_id, coalesce(origin, 0), username`

// scan reads quarantineColumns, then extra.
func (q *Quarantined) scan(row pgx.Row, extra ...any) error {
	var ingested, event *time.Time
	var id *[16]byte
	var path, origin int16
	err := row.Scan(append([]any{&q.ID, &ingested, &event, &q.Topic, &q.Tenant, &q.Site,
		&q.Device, &q.MsgType, &q.Reason, &q.Detail, &path, &id, &origin, &q.Username}, extra...)...)
	if err != nil {
		return err
	}
	q.Path, q.Origin = pipeline.Path(path), pipeline.Origin(origin)
	if ingested != nil {
		q.IngestedAt = ingested.UTC()
	}
	if event != nil {
		q.EventTS = event.UTC()
	}
	if id != nil {
		q.MessageID = (*pipeline.ID)(id)
	}
	return nil
}

// NewestQuarantined lists what the filter selects, newest first, without bodies.
func (s *Store) NewestQuarantined(ctx context.Context, f QuarantineFilter, limit int) ([]Quarantined, error) {
	c := f.condition()
	rows, err := s.pool.Query(ctx, fmt.Sprintf(`SELECT %s FROM quarantine_events WHERE %s ORDER BY id DESC LIMIT %d`,
		quarantineColumns, c, limit), c.args...)
	if err != nil {
		return nil, translate("list quarantined messages", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (q Quarantined, err error) { return q, q.scan(row) })
	return list, translate("list quarantined messages", err)
}

// QuarantineCount is how many rows a tenant has of a reason.
type QuarantineCount struct {
	Tenant         string
	Reason         pipeline.Reason
	Messages       int64
	Oldest, Newest time.Time // of arrival; zero where no row has one
}

// QuarantineCounts groups what the filter selects by tenant and reason.
func (s *Store) QuarantineCounts(ctx context.Context, f QuarantineFilter) ([]QuarantineCount, error) {
	c := f.condition()
	rows, err := s.pool.Query(ctx, `SELECT coalesce(tenant_id, ''), reason, count(*), coalesce(min(ingested_at), '-infinity') > '-infinity',
       coalesce(min(ingested_at), now()), coalesce(max(ingested_at), now())
  FROM quarantine_events WHERE `+c.String()+` GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2`, c.args...)
	if err != nil {
		return nil, translate("count quarantined messages", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (g QuarantineCount, err error) {
		var timed bool
		if err := row.Scan(&g.Tenant, &g.Reason, &g.Messages, &timed, &g.Oldest, &g.Newest); err != nil {
			return g, err
		}
		if g.Oldest, g.Newest = g.Oldest.UTC(), g.Newest.UTC(); !timed {
			g.Oldest, g.Newest = time.Time{}, time.Time{}
		}
		return g, nil
	})
	return list, translate("count quarantined messages", err)
}

// LedgerEntry is what the ledger says of a message.
type LedgerEntry struct {
	Written     bool // otherwise it is quarantined
	Path        pipeline.Path
	CommittedAt time.Time
}

// OneQuarantined returns a row with its bodies, and what the ledger says of its
// message, nil where it does not remember. Of a row that is not there it returns
// nothing at all.
func (s *Store) OneQuarantined(ctx context.Context, id int64) (*Quarantined, *LedgerEntry, error) {
	q := new(Quarantined)
	var outcomeCode, path *int16
	var committed *time.Time
	err := q.scan(s.pool.QueryRow(ctx, `
SELECT `+quarantineColumns+`, raw, payload::text, known_outcome, known_path, known_at
  FROM quarantine_events
  LEFT JOIN (SELECT message_id AS known_id, outcome AS known_outcome, path AS known_path, committed_at AS known_at
               FROM crossfade_ledger) AS l ON known_id = message_id
 WHERE id = $1`, id), &q.Raw, &q.Payload, &outcomeCode, &path, &committed)
	switch {
	case err == pgx.ErrNoRows:
		return nil, nil, nil
	case err != nil:
		return nil, nil, translate("read a quarantined message", err)
	case outcomeCode == nil: // all three are NOT NULL
		return q, nil, nil
	}
	return q, &LedgerEntry{Written: outcome(*outcomeCode) == outcomeWritten, Path: pipeline.Path(*path), CommittedAt: committed.UTC()}, nil
}

// HasReason reports whether a row has the reason, known code or not.
func (s *Store) HasReason(ctx context.Context, r pipeline.Reason) (has bool, err error) {
	err = s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM quarantine_events WHERE reason = $1)`, string(r)).Scan(&has)
	return has, translate("look for a reason", err)
}

// readPage takes no more rows than hold maxQuarantineBytes, but one at least: bodies
// may be of any size. Sizes are known without reading the bodies.
const readPage = `
SELECT %s, raw, CASE WHEN raw IS NULL THEN payload::text END
  FROM (SELECT *, sum(size) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - size AS before
          FROM (SELECT *, coalesce(octet_length(raw), pg_column_size(payload), 0) AS size
                  FROM quarantine_events WHERE %s ORDER BY id LIMIT %d) AS page) AS sized
 WHERE before < %d
 ORDER BY id`

// QuarantinedPage returns the first rows of the span that the filter selects, at
// most limit of them, with what a replay needs. A page may be shorter for its size;
// only an empty one is the last. The next begins after its last ID.
func (s *Store) QuarantinedPage(ctx context.Context, f QuarantineFilter, span QuarantineSpan, limit int) ([]Quarantined, error) {
	c := f.condition()
	c.add("id > $%d", span.After)
	c.add("id <= $%d", span.Upto)
	rows, err := s.pool.Query(ctx, fmt.Sprintf(readPage, quarantineColumns, c, limit, maxQuarantineBytes), c.args...)
	if err != nil {
		return nil, translate("read quarantined messages", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (q Quarantined, err error) { return q, q.scan(row, &q.Raw, &q.Payload) })
	return list, translate("read quarantined messages", err)
}

// purgePage locks what it deletes by row ID, as a replay does: two that lock in
// different orders could each wait for the other. Against a row that a replay gave
// another reason meanwhile PostgreSQL holds the filter once more. In the DELETE it only
// spares a look into partitions that have none of the page.
const purgePage = `
WITH page AS (
    SELECT id FROM quarantine_events WHERE %[1]s ORDER BY id LIMIT %[2]d FOR UPDATE
), gone AS (
    DELETE FROM quarantine_events WHERE %[1]s AND id IN (SELECT id FROM page) RETURNING id
)
SELECT (SELECT max(id) FROM page), (SELECT count(*) FROM gone)`

// PurgeQuarantined deletes the first rows of the span that the filter selects, about
// limit of them, and returns how many and the ID where the next call goes on; done
// when nothing was left. The ledger keeps the messages' IDs.
func (s *Store) PurgeQuarantined(ctx context.Context, f QuarantineFilter, span QuarantineSpan, limit int) (deleted, last int64, done bool, err error) {
	c := f.condition()
	c.add("id > $%d", span.After)
	c.add("id <= $%d", span.Upto)
	var at *int64
	err = s.pool.QueryRow(ctx, fmt.Sprintf(purgePage, c, limit), c.args...).Scan(&at, &deleted)
	if err != nil || at == nil {
		return 0, span.After, err == nil, translate("delete quarantined messages", err)
	}
	return deleted, *at, false, nil
}
