package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// DB is what Register and Reconcile need: *pgx.Conn and *pgxpool.Pool have it.
type DB interface {
	BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error)
}

// Register makes the devices known to a database with CONTRACT.md's tables: an
// ACTIVE MAIN subscription for each tenant that has none, and a row in
// device_registry for each device that has none, in one transaction. Rows that
// exist are left as they are; if one of them would have the device's messages
// rejected (another site or token, not ACTIVE), that is an error and nothing is
// changed.
func Register(ctx context.Context, db DB, devices []Device) error {
	err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{}, func(tx pgx.Tx) error {
		perTenant := map[string]int{}
		for _, d := range devices {
			perTenant[d.Tenant]++
		}
		subscriptions := make(map[string]string, len(perTenant))
		for tenant, n := range perTenant {
			id, err := subscribe(ctx, tx, tenant, n)
			if err != nil {
				return fmt.Errorf("subscription of %s: %w", tenant, err)
			}
			subscriptions[tenant] = id
		}
		var batch pgx.Batch
		for _, d := range devices {
			batch.Queue(`INSERT INTO device_registry
				(tenant_id, device_id, site_id, status, provision_token_hash, subscription_id)
				VALUES ($1, $2, $3, 'ACTIVE', $4, $5) ON CONFLICT DO NOTHING`,
				d.Tenant, d.ID, d.Site, d.TokenHash(), subscriptions[d.Tenant])
		}
		if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
			return fmt.Errorf("device_registry: %w", err)
		}
		return checkRegistered(ctx, tx, devices)
	})
	if err != nil {
		return fmt.Errorf("fleet: register %d devices: %w", len(devices), err)
	}
	return nil
}

// subscribe returns the tenant's ACTIVE MAIN subscription, made if there is none.
func subscribe(ctx context.Context, tx pgx.Tx, tenant string, devices int) (id string, err error) {
	const find = `SELECT subscription_id::text FROM subscriptions
		WHERE tenant_id = $1 AND subscription_type = 'MAIN' AND status = 'ACTIVE'
		ORDER BY created_at LIMIT 1`
	err = tx.QueryRow(ctx, find, tenant).Scan(&id)
	if !errors.Is(err, pgx.ErrNoRows) {
		return id, err
	}
	// The ID is the same in every run, so two runs at once make one subscription;
	// it reads as a UUID, whether the column is text or uuid.
	sum := sha256.Sum256([]byte("fleet subscription of " + tenant))
	h := hex.EncodeToString(sum[:16])
	id = fmt.Sprintf("%s-%s-4%s-8%s-%s", h[:8], h[8:12], h[13:16], h[17:20], h[20:])
	if _, err := tx.Exec(ctx, `INSERT INTO subscriptions
		(subscription_id, tenant_id, subscription_type, status, device_limit, active_device_count, created_at)
		VALUES ($1, $2, 'MAIN', 'ACTIVE', $3, $4, now()) ON CONFLICT DO NOTHING`,
		id, tenant, max(1000, 2*devices), devices); err != nil {
		return "", err
	}
	if err := tx.QueryRow(ctx, find, tenant).Scan(&id); errors.Is(err, pgx.ErrNoRows) {
		return "", errors.New("the one that an earlier fleet made is no longer ACTIVE: set its status to ACTIVE or remove it")
	} else if err != nil {
		return "", err
	}
	return id, nil
}

func checkRegistered(ctx context.Context, tx pgx.Tx, devices []Device) error {
	tenants, ids := make([]string, len(devices)), make([]string, len(devices))
	sites, hashes := make([]string, len(devices)), make([]string, len(devices))
	for i, d := range devices {
		tenants[i], ids[i], sites[i], hashes[i] = d.Tenant, d.ID, d.Site, d.TokenHash()
	}
	var wrong int
	var example *string
	err := tx.QueryRow(ctx, `SELECT count(*), min(d.tenant_id || '/' || d.device_id)
		FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS d (tenant_id, device_id, site_id, hash)
		JOIN device_registry r ON r.tenant_id = d.tenant_id AND r.device_id = d.device_id
		WHERE (r.site_id, r.provision_token_hash, r.status) IS DISTINCT FROM (d.site_id, d.hash, 'ACTIVE')`,
		tenants, ids, sites, hashes).Scan(&wrong, &example)
	if err != nil {
		return fmt.Errorf("check device_registry: %w", err)
	}
	if wrong > 0 {
		return fmt.Errorf("%d devices (%s for one) are in device_registry with another site, token or status: use the seed they were registered with, or remove them", wrong, *example)
	}
	return nil
}
