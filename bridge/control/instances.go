package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Instance is a row of crossfade_instances.
type Instance struct {
	ID        string          `json:"instance"`
	Run       string          `json:"run"`
	State     string          `json:"state"` // running or stopped
	Version   string          `json:"version"`
	StartedAt time.Time       `json:"started_at"`
	SeenAt    time.Time       `json:"seen_at"`
	Details   json.RawMessage `json:"details,omitempty"`
	// Confirmed is the epoch by which it decides.
	Confirmed int64 `json:"confirmed_epoch"`
	// Live: steps wait for its confirmation.
	Live bool `json:"live"`
	// Session is the client ID of its MQTT session, and SessionExists whether the
	// broker may still have that, with copies in it: sentinels must come out of it.
	Session       string `json:"session,omitempty"`
	SessionExists bool   `json:"session_exists"`
	// SessionUntil is when that ends without the instance; nil: never, or no session.
	SessionUntil *time.Time `json:"session_until,omitempty"`
	// The same of its mirror's.
	Mirror       string     `json:"mirror,omitempty"`
	MirrorExists bool       `json:"mirror_exists"`
	MirrorUntil  *time.Time `json:"mirror_until,omitempty"`
	// Prober: it can send sentinels.
	Prober bool `json:"prober"`
}

// An instance of an older release has no lease and tells nothing of its session: it is
// taken to exist for a day. One that ran within the last minute cannot be missed.
const instanceColumns = `i.instance_id, i.run, i.state, coalesce(i.version, ''), i.started_at, i.seen_at, i.details,
       i.confirmed_revision, coalesce(i.lease_until > now(), false) OR coalesce(i.other_until > now(), false),
       coalesce(i.session, ''), coalesce(i.session_until > now(), i.run = '' AND i.seen_at > now() - interval '1 day'),
       i.session_until, coalesce(i.mirror_session, ''), coalesce(i.mirror_until > now(), false), i.mirror_until, i.prober`

// Instances returns what instances have last said of themselves, by name; those that
// have gone are among them for as long as their MQTT session may exist.
func Instances(ctx context.Context, pool *pgxpool.Pool) ([]Instance, error) {
	rows, err := pool.Query(ctx, `SELECT `+instanceColumns+` FROM crossfade_instances AS i ORDER BY i.instance_id`)
	if err != nil {
		return nil, fmt.Errorf("read crossfade_instances: %w", err)
	}
	instances, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Instance, error) {
		var i Instance
		var until, mirror pgtype.Timestamptz
		err := row.Scan(&i.ID, &i.Run, &i.State, &i.Version, &i.StartedAt, &i.SeenAt, &i.Details,
			&i.Confirmed, &i.Live, &i.Session, &i.SessionExists, &until, &i.Mirror, &i.MirrorExists, &mirror, &i.Prober)
		i.SessionUntil, i.MirrorUntil = finite(until), finite(mirror)
		return i, err
	})
	if err != nil {
		return nil, fmt.Errorf("read crossfade_instances: %w", err)
	}
	return instances, nil
}

// finite is nil for no time and for infinity.
func finite(t pgtype.Timestamptz) *time.Time {
	if !t.Valid || t.InfinityModifier != pgtype.Finite {
		return nil
	}
	return &t.Time
}

// ErrLive is what Forget returns for an instance that runs.
var ErrLive = errors.New("the instance is running: stop it first")

// ErrNoInstance is what Forget returns where there is no such instance.
var ErrNoInstance = errors.New("there is no such instance")

// Forget removes an instance that has gone and will not come back, so that no
// sentinel is awaited from its MQTT sessions any more, its source's and its mirror's.
// Whoever calls it answers for them: what is queued there is lost if the broker discards
// it. If the instance comes back after all it drops none of that, and nobody drops what
// its mirror then brings.
func Forget(ctx context.Context, pool *pgxpool.Pool, instance string) error {
	var there, gone bool
	err := pool.QueryRow(ctx, `
WITH gone AS (
    DELETE FROM crossfade_instances
     WHERE instance_id = $1
       AND NOT (coalesce(lease_until > now(), false) OR coalesce(other_until > now(), false) OR run = '' AND seen_at > now() - interval '1 minute')
 RETURNING 1
), told AS (
    SELECT pg_notify('crossfade_control', '') FROM gone
)
SELECT EXISTS (SELECT FROM crossfade_instances WHERE instance_id = $1), EXISTS (SELECT FROM gone) FROM (SELECT count(*) FROM told) AS t`,
		instance).Scan(&there, &gone)
	switch {
	case err != nil:
		return fmt.Errorf("forget instance %s: %w", instance, err)
	case !there:
		return fmt.Errorf("forget instance %q: %w", instance, ErrNoInstance)
	case !gone:
		return fmt.Errorf("forget instance %q: %w", instance, ErrLive)
	}
	return nil
}
