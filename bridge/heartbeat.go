package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// heartbeatEvery is how often an instance says that it is there; it is also how
// PostgreSQL is found to be away when no traffic shows it.
const heartbeatEvery = time.Second

// InstanceTimeout is how old the last heartbeat of a running instance can be.
const InstanceTimeout = 10 * heartbeatEvery

// Instance is a row of crossfade_instances.
type Instance struct {
	ID        string            `json:"instance"`
	StartedAt time.Time         `json:"started_at"`
	SeenAt    time.Time         `json:"seen_at"`
	Version   string            `json:"version"`
	Alive     bool              `json:"alive"`
	Checks    map[string]Status `json:"checks"`
}

// Instances returns what the instances last said of themselves, by name.
func Instances(ctx context.Context, pool *pgxpool.Pool) ([]Instance, error) {
	rows, err := pool.Query(ctx, `
SELECT instance_id, started_at, seen_at, coalesce(version, ''), seen_at > now() - make_interval(secs => $1), details
  FROM crossfade_instances
 ORDER BY instance_id`, InstanceTimeout.Seconds())
	if err != nil {
		return nil, fmt.Errorf("read crossfade_instances: %w", err)
	}
	instances, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Instance, error) {
		var i Instance
		var details []byte
		if err := row.Scan(&i.ID, &i.StartedAt, &i.SeenAt, &i.Version, &i.Alive, &details); err != nil {
			return i, err
		}
		var said struct {
			Checks map[string]Status `json:"checks"`
		}
		err := json.Unmarshal(details, &said)
		i.Checks = said.Checks
		return i, err
	})
	if err != nil {
		return nil, fmt.Errorf("read crossfade_instances: %w", err)
	}
	return instances, nil
}

// signOn enters this instance, as started now.
func (b *Bridge) signOn(ctx context.Context) error {
	_, err := b.store.Pool().Exec(ctx, `
INSERT INTO crossfade_instances (instance_id, version) VALUES ($1, $2)
    ON CONFLICT (instance_id) DO UPDATE SET version = EXCLUDED.version, started_at = now(), seen_at = now(), details = '{}'`,
		b.config.Instance, b.config.Version)
	if err != nil {
		return fmt.Errorf("enter %s into crossfade_instances: %w", b.config.Instance, err)
	}
	return nil
}

// signOff takes this instance out, after a stop that left nothing in hand.
func (b *Bridge) signOff(ctx context.Context) error {
	_, err := b.store.Pool().Exec(ctx, `DELETE FROM crossfade_instances WHERE instance_id = $1`, b.config.Instance)
	if err != nil {
		return fmt.Errorf("take %s out of crossfade_instances: %w", b.config.Instance, err)
	}
	return nil
}

func (b *Bridge) heartbeat(ctx context.Context) {
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := b.beat(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			b.health.postgres.Store(nil)
		} else if b.health.postgres.Swap(&err) == nil {
			b.log.Warn("PostgreSQL does not answer", "error", err)
		}
	}
}

func (b *Bridge) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*heartbeatEvery)
	defer cancel()
	details, err := json.Marshal(b.health.readiness(b.config.Instance))
	if err != nil {
		return err
	}
	_, err = b.store.Pool().Exec(ctx, `
UPDATE crossfade_instances SET seen_at = now(), details = $2::jsonb WHERE instance_id = $1`, b.config.Instance, string(details))
	if err != nil {
		return fmt.Errorf("PostgreSQL: write the heartbeat: %w", err)
	}
	return nil
}
