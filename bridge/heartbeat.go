package bridge

import (
	"context"
	"crypto/rand"
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

// identity tells this run of an instance from others under the same name: two at
// once would throw each other out at the broker and confirm stages for each other.
type identity struct {
	run     string
	quiet   int // beats since another run was found under our name; only the heartbeat's
	trouble trouble
}

// quietBeats is for how many beats no other run must show before it counts as gone.
const quietBeats = 5

func newIdentity() identity { return identity{run: rand.Text()} }

// met notes which run was found under our name, before each beat.
func (b *Bridge) met(run string) {
	i := &b.self
	if run == "" || run == i.run {
		if i.quiet++; i.quiet >= quietBeats {
			i.trouble.Store(nil)
		}
		return
	}
	i.quiet = 0
	err := fmt.Errorf("another process runs as instance %q at the same time: give each a name and an MQTT client ID of its own", b.config.Instance)
	if i.trouble.Swap(&err) == nil {
		b.log.Error("two processes under one name", "instance", b.config.Instance, "error", err)
	}
}

// signOn enters this instance, as started now. A row that a crashed run has left is
// taken over.
func (b *Bridge) signOn(ctx context.Context) error {
	_, err := b.store.Pool().Exec(ctx, `
INSERT INTO crossfade_instances (instance_id, version, details) VALUES ($1, $2, jsonb_build_object('run', $3::text))
    ON CONFLICT (instance_id) DO UPDATE SET version = EXCLUDED.version, started_at = now(), seen_at = now(), details = EXCLUDED.details`,
		b.config.Instance, b.config.Version, b.self.run)
	if err != nil {
		return fmt.Errorf("enter %s into crossfade_instances: %w", b.config.Instance, err)
	}
	return nil
}

// signOff takes this instance out, after a stop that left nothing in hand.
func (b *Bridge) signOff(ctx context.Context) error {
	_, err := b.store.Pool().Exec(ctx, `DELETE FROM crossfade_instances WHERE instance_id = $1 AND details->>'run' = $2`, b.config.Instance, b.self.run)
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

// writeHeartbeat also mends a row that somebody removed, and returns whose it was.
const writeHeartbeat = `
WITH before AS (SELECT details->>'run' AS run FROM crossfade_instances WHERE instance_id = $1)
INSERT INTO crossfade_instances (instance_id, version, details) VALUES ($1, $2, $3::jsonb)
    ON CONFLICT (instance_id) DO UPDATE SET version = EXCLUDED.version, seen_at = now(), details = EXCLUDED.details
RETURNING coalesce((SELECT run FROM before), '')`

func (b *Bridge) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*heartbeatEvery)
	defer cancel()
	details, err := json.Marshal(struct {
		Run string `json:"run"`
		Readiness
	}{b.self.run, b.health.readiness(b.config.Instance)})
	if err != nil {
		return err
	}
	var run string
	err = b.store.Pool().QueryRow(ctx, writeHeartbeat, b.config.Instance, b.config.Version, string(details)).Scan(&run)
	if err != nil {
		return fmt.Errorf("PostgreSQL: write the heartbeat: %w", err)
	}
	b.met(run)
	return nil
}
