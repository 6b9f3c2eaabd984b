package control

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// Fact is what stage a tenant is in, as crossfade_stages has it, and what the leader
// has noted of its way on.
type Fact struct {
	Tenant    string      `json:"tenant"`
	Stage     stage.Stage `json:"stage"`
	Revision  int64       `json:"revision"`
	Since     time.Time   `json:"since"`
	ChangedBy string      `json:"changed_by"`
	Reason    string      `json:"reason"`
	// Epoch numbers the change that made this revision, among those of all tenants.
	Epoch int64 `json:"epoch"`
	// ConfirmedAt is when every live instance had confirmed it; nil before.
	ConfirmedAt *time.Time `json:"confirmed_at,omitempty"`
	// Wanted is the wish as the leader saw it last; empty without a clean answer, and
	// WantedWhy then says so.
	Wanted    stage.Stage `json:"wanted,omitempty"`
	WantedWhy string      `json:"wanted_why,omitempty"`
	// WaitsFor is why the tenant is not on its way; empty if it is, or has arrived.
	WaitsFor   string     `json:"waits_for,omitempty"`
	WaitsSince *time.Time `json:"waits_since,omitempty"`
	// Undecided: everything has begun anew, and somebody keeps the tenant's row locked. It
	// counts as being in Stage, but stays there until the leader can write that.
	Undecided bool `json:"undecided,omitempty"`
}

const factColumns = `s.tenant_id, ` + inside + `, s.revision, s.since, coalesce(s.changed_by, ''), coalesce(s.reason, ''),
       s.epoch, CASE WHEN ` + countsNow + ` THEN s.confirmed_at END, coalesce(s.wanted, ''), coalesce(s.wanted_why, ''), coalesce(s.waits_for, ''), s.waits_since,
       NOT (` + countsNow + `)`

// Facts returns the stages of all tenants that have one, by name.
func Facts(ctx context.Context, pool *pgxpool.Pool) ([]Fact, error) {
	rows, err := pool.Query(ctx, `SELECT `+factColumns+` FROM crossfade_stages AS s ORDER BY s.tenant_id COLLATE "C"`)
	if err != nil {
		return nil, fmt.Errorf("read crossfade_stages: %w", err)
	}
	facts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Fact])
	if err != nil {
		return nil, fmt.Errorf("read crossfade_stages: %w", err)
	}
	return facts, nil
}

// Tenants returns the tenants that have a device, by name. It hops from
// tenant to tenant through the primary key, so its cost does not depend on how
// many devices there are.
func Tenants(ctx context.Context, db querier) ([]string, error) {
	rows, err := db.Query(ctx, `
WITH RECURSIVE t(tenant_id) AS (
    (SELECT tenant_id FROM device_registry ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT r.tenant_id FROM device_registry AS r WHERE r.tenant_id > t.tenant_id ORDER BY r.tenant_id LIMIT 1)
      FROM t
     WHERE t.tenant_id IS NOT NULL
)
SELECT tenant_id FROM t WHERE tenant_id IS NOT NULL`)
	if err != nil {
		return nil, fmt.Errorf("read the tenants of device_registry: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the tenants of device_registry: %w", err)
	}
	return names, nil
}

// Change is one line of a tenant's history.
type Change struct {
	Tenant    string      `json:"tenant"`
	Revision  int64       `json:"revision"`
	From      stage.Stage `json:"from,omitempty"` // empty: the tenant's first
	To        stage.Stage `json:"to"`
	ChangedBy string      `json:"changed_by"`
	Reason    string      `json:"reason"`
	At        time.Time   `json:"at"`
	// Evidence is what allowed the step, as JSON; nil where it needed nothing.
	Evidence json.RawMessage `json:"evidence,omitempty"`
}

// HistoryQuery says which changes to return.
type HistoryQuery struct {
	Tenants []string  // empty: all
	Since   time.Time // zero: from the beginning
	Limit   int       // at most; 0: 100
}

// History returns changes of stages, newest first.
func History(ctx context.Context, pool *pgxpool.Pool, q HistoryQuery) ([]Change, error) {
	if q.Limit <= 0 {
		q.Limit = 100
	}
	rows, err := pool.Query(ctx, `
SELECT tenant_id, revision, coalesce(from_stage, ''), to_stage, coalesce(changed_by, ''), coalesce(reason, ''), at, evidence
  FROM crossfade_stage_history
 WHERE (cardinality($1::text[]) = 0 OR tenant_id = ANY($1)) AND at >= $2
 ORDER BY at DESC, tenant_id, revision DESC
 LIMIT $3`, append([]string{}, q.Tenants...), q.Since, q.Limit)
	if err != nil {
		return nil, fmt.Errorf("read crossfade_stage_history: %w", err)
	}
	changes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Change])
	if err != nil {
		return nil, fmt.Errorf("read crossfade_stage_history: %w", err)
	}
	return changes, nil
}

// Latency is how long the last beat took on its way to us by each path.
type Latency struct {
	Tenant string `json:"tenant"`
	// MQTT and JetStream are how long the last beat that came took; nil: none has.
	MQTT      *time.Duration `json:"mqtt,omitempty"`
	JetStream *time.Duration `json:"jetstream,omitempty"`
	// When those came.
	MQTTSeen      *time.Time `json:"mqtt_seen_at,omitempty"`
	JetStreamSeen *time.Time `json:"jetstream_seen_at,omitempty"`
	// The times since when a beat has been out that should have come; nil: all is well.
	MQTTMissing      *time.Time `json:"mqtt_missing_since,omitempty"`
	JetStreamMissing *time.Time `json:"jetstream_missing_since,omitempty"`
}

// Latencies returns what beats have measured, by tenant. Tenants for whom none was
// sent are not among them.
func Latencies(ctx context.Context, pool *pgxpool.Pool) (map[string]Latency, error) {
	rows, err := pool.Query(ctx, `SELECT tenant_id, path, seconds, seen_at, missing_since FROM crossfade_path_latency`)
	if err != nil {
		return nil, fmt.Errorf("read crossfade_path_latency: %w", err)
	}
	all := make(map[string]Latency)
	var tenant string
	var path int
	var seconds *float64
	var seen, missing *time.Time
	_, err = pgx.ForEachRow(rows, []any{&tenant, &path, &seconds, &seen, &missing}, func() error {
		l := all[tenant]
		l.Tenant = tenant
		var took *time.Duration
		if seconds != nil {
			d := time.Duration(*seconds * float64(time.Second))
			took = &d
		}
		if path == 1 {
			l.MQTT, l.MQTTSeen, l.MQTTMissing = took, seen, missing
		} else {
			l.JetStream, l.JetStreamSeen, l.JetStreamMissing = took, seen, missing
		}
		all[tenant] = l
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read crossfade_path_latency: %w", err)
	}
	return all, nil
}
