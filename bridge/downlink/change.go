package downlink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// changeKind is a change of many commands, in small transactions: what to set, where,
// and by which time they are gone through. $1 stands for seconds in the condition.
type changeKind struct{ set, where, at, from string }

var (
	// Of a command that is past its expiry it does not matter whether it was published.
	endExpired = changeKind{`status = 'expired'`, `k.status = 'queued' AND k.expires_at <= now() - make_interval(secs => 0 * $1)`, `k.expires_at`, ``}
	endMissed  = changeKind{`status = 'missed'`, `k.status = 'queued' AND k.expires_at IS NULL
	     AND k.created_at <= now() - make_interval(secs => $1) AND k.published_at <= now() - make_interval(secs => $1)`, `k.created_at`, ``}
	// The ack of a command that nobody has noted as published proves that it was.
	noteAcked = changeKind{`published_at = least(now(), acked_at)`, `k.status = 'delivered' AND k.published_at IS NULL AND $1 >= 0::float8`, `o.created_at`,
		`JOIN crossfade_downlink AS o ON o.kind = 'command' AND k.tenant_id = o.tenant_id COLLATE "default" AND k.command_id = o.command_id COLLATE "default" AND k.device_id = o.device_id COLLATE "default"`}
)

// change goes through the commands of a changeKind. What PostgreSQL refuses (a trigger
// of somebody's raises an error, say) it passes by, and where there is much of that it
// goes on behind it the next time.
type change struct {
	find, apply string

	after command // the last that was looked at, to go on behind it
}

// command is a row of device_commands, at a place in an order by time.
type command struct {
	tenant, id string
	at         string // as PostgreSQL writes it
}

// before is before every command.
var before = command{at: "-infinity"}

func newChange(k changeKind) *change {
	return &change{
		after: before,
		find: fmt.Sprintf(`
SELECT k.tenant_id::text, k.command_id::text, %[1]s::text FROM device_commands AS k %[3]s
 WHERE %[2]s AND k.tenant_id IS NOT NULL AND k.command_id IS NOT NULL
   AND (%[1]s, k.tenant_id::text COLLATE "C", k.command_id::text COLLATE "C") > ($3::text::timestamptz, $4::text COLLATE "C", $5::text COLLATE "C")
 ORDER BY %[1]s, k.tenant_id::text COLLATE "C", k.command_id::text COLLATE "C" LIMIT $2`, k.at, k.where, k.from),
		apply: fmt.Sprintf(`
UPDATE device_commands AS k SET %[1]s
  FROM (SELECT k.tenant_id, k.command_id FROM device_commands AS k JOIN unnest($2::text[], $3::text[]) AS u(t, c)
            ON k.tenant_id = u.t COLLATE "default" AND k.command_id = u.c COLLATE "default"
         WHERE %[2]s ORDER BY k.tenant_id, k.command_id FOR NO KEY UPDATE OF k SKIP LOCKED) AS e
 WHERE k.tenant_id = e.tenant_id AND k.command_id = e.command_id AND %[2]s`, k.set, k.where),
	}
}

const (
	// changeAtOnce is how many commands one transaction changes.
	changeAtOnce = 1000
	// enoughRefused is how many commands may be refused before the rest waits for the
	// next time: each costs some statements.
	enoughRefused = 200
)

// run changes what there is to change and returns how much that was. Commands that
// somebody else holds are left for the next time. Its error names one of those that
// were refused.
func (c *change) run(ctx context.Context, pool *pgxpool.Pool, since time.Duration) (n int64, err error) {
	refused := 0
	var first error
	for refused < enoughRefused {
		found, err := c.next(ctx, pool, since)
		if err != nil {
			return n, errors.Join(err, first)
		}
		changed, bad, reason, err := c.change(ctx, pool, since, found)
		n, refused = n+changed, refused+bad
		if first == nil && reason != nil {
			first = fmt.Errorf("some are refused, and the others go on; one of them: %w", reason)
		}
		if err != nil {
			c.after = before
			return n, errors.Join(err, first)
		}
		if len(found) < changeAtOnce {
			c.after = before
			break
		}
		c.after = found[len(found)-1]
	}
	return n, first
}

func (c *change) next(ctx context.Context, pool *pgxpool.Pool, since time.Duration) ([]command, error) {
	rows, err := pool.Query(ctx, c.find, pgx.QueryExecModeCacheDescribe, since.Seconds(), changeAtOnce, c.after.at, c.after.tenant, c.after.id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (k command, err error) {
		return k, r.Scan(&k.tenant, &k.id, &k.at)
	})
}

// change changes the commands, without those that are refused.
func (c *change) change(ctx context.Context, pool *pgxpool.Pool, since time.Duration, commands []command) (n int64, refused int, reason, err error) {
	if len(commands) == 0 {
		return 0, 0, nil, nil
	}
	tenants, ids := make([]string, len(commands)), make([]string, len(commands))
	for i, k := range commands {
		tenants[i], ids[i] = k.tenant, k.id
	}
	tag, err := pool.Exec(ctx, c.apply, pgx.QueryExecModeCacheDescribe, since.Seconds(), tenants, ids)
	if err == nil {
		return tag.RowsAffected(), 0, nil, nil
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || !aboutRows(pg.Code) {
		return 0, 0, nil, err
	}
	if len(commands) == 1 {
		return 0, 1, err, nil
	}
	half := len(commands) / 2
	n, refused, reason, err = c.change(ctx, pool, since, commands[:half])
	if err != nil {
		return n, refused, reason, err
	}
	more, also, second, err := c.change(ctx, pool, since, commands[half:])
	if reason == nil {
		reason = second
	}
	return n + more, refused + also, reason, err
}
