package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/pipeline"
)

// NewDevice is one that is to be registered because it has sent telemetry.
type NewDevice struct {
	pipeline.DeviceKey
	Site string
}

// lockPlans locks the plans that may take devices in, in the order of their IDs:
// who waits for them then counts what the one before has added. The lock is the
// one that does not hold up who registers a device under a foreign key.
const lockPlans = `
SELECT subscription_id::text
  FROM subscriptions
 WHERE tenant_id::text = ANY ($1) AND status = 'ACTIVE' AND subscription_type = 'MAIN'
 ORDER BY subscription_id
   FOR NO KEY UPDATE`

// provision is a statement of its own, so that it sees what was committed while
// lockPlans waited. A plan is as full as the greater of what its counter says and
// how many ACTIVE devices there are under it: the counter is kept by others too.
// The count is left out where it makes no difference.
const provision = `
WITH plans AS (
    SELECT DISTINCT ON (tenant_id) tenant_id, subscription_id,
           CASE WHEN device_limit IS NULL THEN NULL
                WHEN active_device_count >= device_limit THEN 0
                ELSE device_limit - greatest(coalesce(active_device_count, 0), (
                     SELECT count(*) FROM device_registry AS r
                      WHERE r.tenant_id = s.tenant_id AND r.subscription_id::text = s.subscription_id::text AND r.status = 'ACTIVE'))
           END AS room
      FROM subscriptions AS s
     WHERE tenant_id::text = ANY ($1) AND subscription_id::text = ANY ($4) AND status = 'ACTIVE' AND subscription_type = 'MAIN'
     ORDER BY tenant_id, created_at, subscription_id
), wanted AS (
    SELECT u.t, u.d, u.site, row_number() OVER (PARTITION BY u.t ORDER BY u.n) AS place
      FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS u(t, d, site, n)
     WHERE NOT EXISTS (SELECT FROM device_registry AS r WHERE r.tenant_id = u.t AND r.device_id = u.d)
), taken AS (
    SELECT w.t, w.d, w.site, p.subscription_id
      FROM wanted AS w JOIN plans AS p ON p.tenant_id = w.t
     WHERE p.room IS NULL OR w.place <= p.room
), inserted AS (
    INSERT INTO device_registry (tenant_id, device_id, site_id, status, subscription_id)
    SELECT t, d, site, 'ACTIVE', subscription_id FROM taken ORDER BY t COLLATE "C", d COLLATE "C"
        ON CONFLICT (tenant_id, device_id) DO NOTHING
    RETURNING subscription_id
), counted AS (
    UPDATE subscriptions AS s
       SET active_device_count = coalesce(s.active_device_count, 0) + i.n
      FROM (SELECT subscription_id::text AS id, count(*) AS n FROM inserted GROUP BY 1) AS i
     WHERE s.subscription_id::text = i.id
)
SELECT t, d FROM wanted EXCEPT SELECT t, d FROM taken`

// Provision registers devices, ACTIVE and without a token, under their tenant's
// active MAIN subscription (the oldest), as far as that has room. It returns those
// for which there is none. All others are in the registry afterwards, whoever
// registered them, except what PostgreSQL refuses, and of a tenant of which it
// refuses many at once some that it might not: refused says what and why, in no more
// than a few words, and is nil in general.
func (s *Store) Provision(ctx context.Context, devices []NewDevice) (noRoom []pipeline.DeviceKey, refused, err error) {
	wanted := make([]NewDevice, 0, len(devices))
	for _, d := range devices {
		if storableText(d.Tenant) && storableText(d.Device) && storableText(d.Site) {
			wanted = append(wanted, d)
		}
	}
	slices.SortFunc(wanted, func(a, b NewDevice) int {
		return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Device, b.Device))
	})
	return s.provision(ctx, wanted, nil)
}

// maxRefusals bounds how often a call asks on behalf of a tenant after PostgreSQL has
// refused one of its devices: whoever may publish can invent any number of names that
// a table does not take, and other tenants wait.
const maxRefusals = 200

// provision halves what PostgreSQL refuses, by tenants and then by devices, until the
// culprit stands alone, or maxRefusals is reached.
func (s *Store) provision(ctx context.Context, devices []NewDevice, tries *int) (noRoom []pipeline.DeviceKey, refused, err error) {
	if len(devices) == 0 {
		return nil, nil, nil
	}
	half := middle(devices)
	if half == 0 && tries == nil {
		tries = new(int)
	}
	noRoom, err = s.provisionAll(ctx, devices)
	err = translate("register devices by themselves", err)
	switch {
	case !errors.Is(err, ErrData) && !errors.Is(err, ErrSchema):
		return noRoom, nil, err
	case len(devices) == 1 || concernsAll(err) || tries != nil && *tries >= maxRefusals:
		return nil, fmt.Errorf("%d of tenant %q: %w", len(devices), devices[0].Tenant, err), nil
	}
	if tries != nil {
		half = len(devices) / 2
		*tries += 2
	}
	noRoom, refused, err = s.provision(ctx, devices[:half], tries)
	if err != nil {
		return nil, nil, err
	}
	more, refusedMore, err := s.provision(ctx, devices[half:], tries)
	return append(noRoom, more...), cmp.Or(refused, refusedMore), err
}

// middle is where the tenant begins that is nearest to the middle of devices, which
// are sorted, and 0 where there is only one tenant.
func middle(devices []NewDevice) int {
	best, distance := 0, len(devices)
	for i := 1; i < len(devices); i++ {
		if d := max(2*i-len(devices), len(devices)-2*i); d < distance && devices[i].Tenant != devices[i-1].Tenant {
			best, distance = i, d
		}
	}
	return best
}

// concernsAll reports whether PostgreSQL would refuse any device alike: the table
// is not as needed, or demands a column that ingest knows nothing of.
func concernsAll(err error) bool {
	const notNullViolation = "23502"
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return errors.Is(err, ErrSchema) || ok && pg.Code == notNullViolation
}

func (s *Store) provisionAll(ctx context.Context, devices []NewDevice) ([]pipeline.DeviceKey, error) {
	tenants, ids, sites := make([]string, len(devices)), make([]string, len(devices)), make([]string, len(devices))
	for i, d := range devices {
		tenants[i], ids[i], sites[i] = d.Tenant, d.Device, d.Site
	}
	tx, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer rollback(tx)
	rows, err := tx.Query(ctx, lockPlans, slices.Compact(slices.Clone(tenants)))
	if err != nil {
		return nil, err
	}
	plans, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	rows, err = tx.Query(ctx, provision, tenants, ids, sites, plans)
	if err != nil {
		return nil, err
	}
	noRoom, err := pgx.CollectRows(rows, pgx.RowToStructByPos[pipeline.DeviceKey])
	if err != nil {
		return nil, err
	}
	return noRoom, commit(ctx, tx)
}
