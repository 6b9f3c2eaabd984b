package downlink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// outcome is what became of a row, and is to be written down.
type outcome struct {
	row
	action action        // what was planned; send for what was tried
	err    error         // of an attempt that failed, or why it is parked
	again  time.Duration // when a failed one is tried again

	clears bool // a desired state that is none

	refusals int       // by PostgreSQL
	due      time.Time // when a refused one is written again
}

// newOutcome lets go of what is not needed to settle: it may be long until PostgreSQL
// is back.
func newOutcome(r *row, a action, err error) outcome {
	o := outcome{row: *r, action: a, err: err, clears: r.cleared()}
	o.State, o.Params, o.Body = "", "", ""
	return o
}

// text is what is kept of an error.
func text(err error) string {
	s := err.Error()
	return strings.ReplaceAll(strings.ToValidUTF8(s[:min(len(s), 1000)], "\uFFFD"), "\x00", "")
}

// notePublished remembers versions of desired states. A later one stands: this may be
// the late word of a sender that has lost its lanes meanwhile.
const notePublished = `
INSERT INTO crossfade_desired_published AS p (tenant_id, device_id, version, cleared)
SELECT t, d, v, c FROM unnest($1::text[], $2::text[], $3::int8[], $4::bool[]) AS u(t, d, v, c)
 ORDER BY t, d
    ON CONFLICT (tenant_id, device_id) DO UPDATE
   SET version = EXCLUDED.version, cleared = EXCLUDED.cleared, published_at = now()
 WHERE p.version <= EXCLUDED.version`

// lockCommands does not wait for rows that somebody else holds: the statement
// is for many devices. It returns the commands that could not be written.
const lockCommands = `
WITH wanted AS (
    SELECT DISTINCT t, d, c FROM unnest($1::text[], $2::text[], $3::text[]) AS u(t, d, c)
), locked AS (
    SELECT k.tenant_id, k.device_id, k.command_id FROM device_commands AS k JOIN wanted AS w
        ON k.tenant_id = w.t COLLATE "default" AND k.command_id = w.c COLLATE "default" AND k.device_id = w.d COLLATE "default"
     ORDER BY k.tenant_id, k.command_id
       FOR NO KEY UPDATE OF k SKIP LOCKED
), changed AS (
    UPDATE device_commands AS k SET %s FROM locked AS l
     WHERE k.tenant_id = l.tenant_id AND k.command_id = l.command_id AND k.device_id = l.device_id AND %s
)
SELECT w.t, w.d, w.c FROM wanted AS w
 WHERE EXISTS (SELECT FROM device_commands AS k WHERE k.tenant_id = w.t COLLATE "default" AND k.command_id = w.c COLLATE "default" AND k.device_id = w.d COLLATE "default")
   AND NOT EXISTS (SELECT FROM locked AS l WHERE l.tenant_id = w.t COLLATE "default" AND l.command_id = w.c COLLATE "default" AND l.device_id = w.d COLLATE "default")`

var (
	noteSent    = fmt.Sprintf(lockCommands, `published_at = least(now(), k.acked_at)`, `k.published_at IS NULL`)
	noteExpired = fmt.Sprintf(lockCommands, `status = 'expired'`, `k.status = 'queued' AND k.expires_at <= now()`)
)

const deleteRows = `
DELETE FROM crossfade_downlink AS o
 USING unnest($1::int2[], $2::text[], $3::text[], $4::int8[]) AS p(lane, tenant_id, device_id, id)
 WHERE o.lane = p.lane AND o.tenant_id = p.tenant_id AND o.device_id = p.device_id AND o.id = p.id`

const delayRows = `
UPDATE crossfade_downlink AS o
   SET attempts = o.attempts + 1, next_try = clock_timestamp() + make_interval(secs => p.again), last_error = p.error
  FROM unnest($1::int2[], $2::text[], $3::text[], $4::int8[], $5::float8[], $6::text[]) AS p(lane, tenant_id, device_id, id, again, error)
 WHERE o.lane = p.lane AND o.tenant_id = p.tenant_id AND o.device_id = p.device_id AND o.id = p.id`

// unpark removes parked marks of desired states that have been published since: what
// they stood for is out.
const unpark = `
DELETE FROM crossfade_downlink_parked AS o
 USING unnest($1::text[], $2::text[]) AS p(tenant_id, device_id)
 WHERE o.tenant_id = p.tenant_id AND o.device_id = p.device_id AND o.kind = 'desired'`

// parkRows keeps one parked mark for a device's desired state.
const parkRows = `
WITH gone AS (
    DELETE FROM crossfade_downlink AS o
     USING unnest($1::int2[], $2::text[], $3::text[], $4::int8[], $5::text[]) AS p(lane, tenant_id, device_id, id, reason)
     WHERE o.lane = p.lane AND o.tenant_id = p.tenant_id AND o.device_id = p.device_id AND o.id = p.id
    RETURNING o.*, p.reason
), before AS (
    DELETE FROM crossfade_downlink_parked AS o USING gone AS g
     WHERE g.kind = 'desired' AND o.kind = 'desired' AND o.tenant_id = g.tenant_id AND o.device_id = g.device_id
)
INSERT INTO crossfade_downlink_parked (id, lane, tenant_id, device_id, kind, command_id, body, created_at, attempts, reason)
SELECT id, lane, tenant_id, device_id, kind, command_id, body, created_at, attempts, reason FROM gone AS g
 WHERE kind <> 'desired' OR id = (SELECT max(id) FROM gone AS o WHERE o.kind = 'desired' AND o.tenant_id = g.tenant_id AND o.device_id = g.device_id)
    ON CONFLICT (id) DO NOTHING`

type commandKey struct{ tenant, device, command string }

// database is a pool, or the session that holds the lanes. Within a session it is the
// latter: the locks of a sender that is frozen then end together with its lanes, and
// keep nobody waiting who takes them over.
type database interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// mostRefusals is how many transactions one call of settle has PostgreSQL refuse.
const mostRefusals = 100

// settle writes down what became of rows and returns those that it has to come back to.
// It may be repeated. Where PostgreSQL refuses a row (a trigger of somebody's raises an
// error, say) the others are written all the same; refused is the first that it said.
// Outcomes that it may still refuse after mostRefusals are left with those that it does
// refuse: one tenant's trouble bounds what a turn costs the others.
func settle(ctx context.Context, db database, outcomes []outcome) (left []outcome, refused, err error) {
	if len(outcomes) == 0 {
		return nil, nil, nil
	}
	// Halves of one tenant's are refused together; the others' are written first.
	slices.SortStableFunc(outcomes, func(a, b outcome) int { return strings.Compare(a.Tenant, b.Tenant) })
	parts := [][]outcome{outcomes}
	for refusals := 0; len(parts) > 0; parts = parts[1:] {
		part := parts[0]
		if refusals >= mostRefusals {
			left = append(left, markRefused(part)...)
			continue
		}
		rest, err := settleTogether(ctx, db, part)
		for try := 1; unlucky(err) && try < mostUnlucky; try++ {
			rest, err = settleTogether(ctx, db, part)
		}
		pg, ok := errors.AsType[*pgconn.PgError](err)
		switch {
		case err == nil:
			left = append(left, rest...)
			continue
		case !ok || !aboutRows(pg.Code):
			return append(left, slices.Concat(parts...)...), refused, err
		}
		refusals++
		if refused == nil {
			refused = err
		}
		if len(part) == 1 {
			left = append(left, markRefused(part)...)
			continue
		}
		half := middle(part)
		parts = append(parts, part[:half:half], part[half:])
	}
	return left, refused, nil
}

// middle is where outcomes, sorted by tenant, are split: between tenants as long as there
// are several, so that those beside a tenant that is refused are soon apart from it.
func middle(part []outcome) int {
	half := len(part) / 2
	if part[0].Tenant == part[len(part)-1].Tenant {
		return half
	}
	same := func(o outcome) bool { return o.Tenant == part[half].Tenant }
	if first := slices.IndexFunc(part, same); first > 0 {
		return first
	}
	return slices.IndexFunc(part, func(o outcome) bool { return !same(o) })
}

// mostUnlucky is how often a transaction is made that collides with others.
const mostUnlucky = 5

// unlucky reports whether PostgreSQL has ended a transaction for the sake of another
// (class 40: a deadlock, say); the same may go through at once.
func unlucky(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && strings.HasPrefix(pg.Code, "40")
}

// markRefused counts a refusal more.
func markRefused(part []outcome) []outcome {
	for i := range part {
		part[i].refusals++
	}
	return part
}

// aboutRows reports whether an SQLSTATE may be one row's fault, as whatever a trigger of
// somebody's raises may: it is, unless it tells of the connection, the transaction, the
// server or its means. A statement that fails for every row costs mostRefusals tries.
func aboutRows(code string) bool {
	switch code[:min(2, len(code))] {
	case "08", "25", "28", "40", "53", "57", "58", "XX", "":
		return false
	}
	return true
}

// settleTogether does so in one transaction, and leaves commands that somebody else
// holds.
func settleTogether(ctx context.Context, db database, outcomes []outcome) (left []outcome, err error) {
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		left = left[:0]
		held, err := noteCommands(ctx, tx, outcomes)
		if err != nil {
			return err
		}
		var done []outcome
		for _, o := range outcomes {
			if o.Kind == Command && held[commandKey{o.Tenant, o.Device, o.CommandID}] {
				left = append(left, o)
			} else {
				done = append(done, o)
			}
		}
		if err := raise(ctx, tx, done); err != nil {
			return err
		}
		if err := noteDesired(ctx, tx, done); err != nil {
			return err
		}
		return endRows(ctx, tx, done)
	})
	if err != nil {
		return outcomes, fmt.Errorf("settle crossfade_downlink: %w", err)
	}
	return left, nil
}

// noteCommands writes published_at and the status of expired ones. Of a command that
// was sent and is held by somebody, the row must stay until it is written.
func noteCommands(ctx context.Context, tx pgx.Tx, outcomes []outcome) (held map[commandKey]bool, err error) {
	held = make(map[commandKey]bool)
	for _, step := range []struct {
		sql     string
		actions []action
	}{{noteSent, []action{send, arrived}}, {noteExpired, []action{expire}}} {
		var tenants, devices, commands []string
		for i := range outcomes {
			if o := &outcomes[i]; o.Kind == Command && slices.Contains(step.actions, o.action) && o.err == nil {
				tenants, devices, commands = append(tenants, o.Tenant), append(devices, o.Device), append(commands, o.CommandID)
			}
		}
		if len(tenants) == 0 {
			continue
		}
		rows, err := tx.Query(ctx, step.sql, pgx.QueryExecModeCacheDescribe, tenants, devices, commands)
		if err != nil {
			return nil, fmt.Errorf("update device_commands: %w", err)
		}
		var k commandKey
		if _, err := pgx.ForEachRow(rows, []any{&k.tenant, &k.device, &k.command}, func() error {
			held[k] = step.sql == noteSent // the sweep finds what has expired
			return nil
		}); err != nil {
			return nil, fmt.Errorf("update device_commands: %w", err)
		}
	}
	return held, nil
}

func noteDesired(ctx context.Context, tx pgx.Tx, done []outcome) error {
	var k, sent keys
	var versions []int64
	var cleared []bool
	for i := range done {
		o := &done[i]
		if o.Kind != Desired || o.err != nil || o.action != send && o.action != skip {
			continue
		}
		k.add(o.Lane, o.Tenant, o.Device)
		if o.action == skip {
			continue
		}
		version := o.Version
		if o.Published != nil {
			version = max(version, o.Published.Version)
		}
		sent.add(o.Lane, o.Tenant, o.Device)
		versions, cleared = append(versions, version), append(cleared, o.clears)
	}
	if len(k.lanes) == 0 {
		return nil
	}
	if len(versions) > 0 {
		if _, err := tx.Exec(ctx, notePublished, pgx.QueryExecModeCacheDescribe, sent.tenants, sent.devices, versions, cleared); err != nil {
			return fmt.Errorf("note what is published: %w", err)
		}
	}
	if _, err := tx.Exec(ctx, unpark, pgx.QueryExecModeCacheDescribe, k.tenants, k.devices); err != nil {
		return fmt.Errorf("remove parked marks: %w", err)
	}
	return nil
}

// endRows deletes, delays or parks the rows themselves.
func endRows(ctx context.Context, tx pgx.Tx, done []outcome) error {
	var gone, parked, late keys
	var goneIDs, parkedIDs, lateIDs []int64
	var reasons, causes []string
	var again []float64
	for i := range done {
		o := &done[i]
		switch {
		case o.action == park:
			for _, id := range o.ids() {
				parked.add(o.Lane, o.Tenant, o.Device)
				parkedIDs, reasons = append(parkedIDs, id), append(reasons, text(o.err))
			}
		case o.err != nil:
			late.add(o.Lane, o.Tenant, o.Device)
			lateIDs, again, causes = append(lateIDs, o.ID), append(again, o.again.Seconds()), append(causes, text(o.err))
		default:
			for _, id := range o.ids() {
				gone.add(o.Lane, o.Tenant, o.Device)
				goneIDs = append(goneIDs, id)
			}
		}
	}
	// Planned anew each time: a plan that was made while the table was small would read
	// all of it once it is large.
	const mode = pgx.QueryExecModeCacheDescribe
	for _, step := range []struct {
		name, sql string
		n         int
		arguments []any
	}{
		{"park rows", parkRows, len(parkedIDs), []any{mode, parked.lanes, parked.tenants, parked.devices, parkedIDs, reasons}},
		{"delay rows", delayRows, len(lateIDs), []any{mode, late.lanes, late.tenants, late.devices, lateIDs, again, causes}},
		{"delete rows", deleteRows, len(goneIDs), []any{mode, gone.lanes, gone.tenants, gone.devices, goneIDs}},
	} {
		if step.n == 0 {
			continue
		}
		if _, err := tx.Exec(ctx, step.sql, step.arguments...); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// ids are the rows that one message stood for.
func (r *row) ids() []int64 {
	if r.Kind == Desired && len(r.Marks) > 0 {
		return r.Marks
	}
	return []int64{r.ID}
}
