package flags_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/flags"
)

// locked runs a statement in a transaction that stays open until release.
func locked(t *testing.T, url, sql string, args ...any) (release func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	_, err = conn.Exec(t.Context(), "BEGIN")
	must(t, err)
	_, err = conn.Exec(t.Context(), sql, args...)
	must(t, err)
	return func() {
		t.Helper()
		_, err := conn.Exec(t.Context(), "COMMIT")
		must(t, err)
	}
}

func manyTenants(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("t%06d", i)
	}
	return names
}

// What another session has locked, is inserting, or is deleting, holds up nobody else,
// however many there are.
func TestUrgentWishesGoPastLocks(t *testing.T) {
	const insert = `INSERT INTO crossfade_flag_targets (flag_key, tenant_id, variant) SELECT 'ingest-source', unnest($1::text[]), 'live'`
	url := migrated(t)
	store := flags.OpenStore(openPool(t, url))
	tenants := manyTenants(25_000)
	_, err := store.SetTargets(t.Context(), tenants[:12_000], flags.JetStream, "ann", "")
	must(t, err)
	update, remove, fresh := tenants[100:103], tenants[11_000:11_001], []string{tenants[12_500], tenants[12_501], tenants[24_999]}
	busy := slices.Concat(update, remove, fresh)
	releases := []func(){
		locked(t, url, `UPDATE crossfade_flag_targets SET variant = 'live' WHERE tenant_id = ANY ($1)`, update),
		locked(t, url, `DELETE FROM crossfade_flag_targets WHERE tenant_id = ANY ($1)`, remove),
		locked(t, url, insert, fresh),
	}
	done, left, err := store.SetTargetsUrgently(t.Context(), append([]string{tenants[0]}, tenants...), flags.MQTT, "bob", "incident", 0)
	must(t, err)
	if !slices.Equal(left, busy) {
		t.Errorf("%d left: %.20v, want %v", len(left), left, busy)
	}
	if len(done) != len(tenants)-len(busy) || done[0] != (flags.Previous{Tenant: tenants[0], Variant: flags.JetStream}) || done[len(done)-1].Variant != "" {
		t.Errorf("%d are set: %v … %v", len(done), done[0], done[len(done)-1])
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		done, left, err = store.SetTargetsUrgently(t.Context(), append(busy, "one more"), flags.MQTT, "bob", "incident", 10*time.Minute)
	}()
	awaitTarget(t, url, "one more")
	for _, release := range releases {
		release()
	}
	<-ended
	must(t, err)
	if len(left) > 0 || len(done) != len(busy)+1 {
		t.Errorf("once they are free: %v, left %v", done, left)
	}
	w, err := store.List(t.Context())
	must(t, err)
	if slices.ContainsFunc(w.Targets, func(x flags.Target) bool { return x.Variant != flags.MQTT || x.UpdatedBy != "bob" }) || len(w.Targets) != len(tenants)+1 {
		t.Errorf("%d wishes, not all of them set", len(w.Targets))
	}
}

// awaitTarget waits until others see a tenant's wish.
func awaitTarget(t *testing.T, url, tenant string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	defer conn.Close(t.Context())
	for n, deadline := 0, time.Now().Add(time.Minute); n == 0; time.Sleep(5 * time.Millisecond) {
		must(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM crossfade_flag_targets WHERE tenant_id = $1`, tenant).Scan(&n))
		if time.Now().After(deadline) {
			t.Fatalf("%s is not wished for while others are locked", tenant)
		}
	}
}

// However many rows are locked, they are not waited for one by one.
func TestUrgentWishesGoPastManyLocks(t *testing.T) {
	url := migrated(t)
	store := flags.OpenStore(openPool(t, url))
	tenants := manyTenants(8_000)
	_, err := store.SetTargets(t.Context(), tenants, flags.JetStream, "ann", "")
	must(t, err)
	locked(t, url, `SELECT FROM crossfade_flag_targets WHERE tenant_id ~ '[02468]$' FOR UPDATE`)
	done, left, err := store.SetTargetsUrgently(t.Context(), tenants, flags.MQTT, "bob", "incident", 0)
	must(t, err)
	if len(done) != 4_000 || len(left) != 4_000 || left[0] != tenants[0] || done[0].Tenant != tenants[1] {
		t.Errorf("%d are set, %d are left", len(done), len(left))
	}
}

// A lock of the whole table is waited for, without taking the tenants apart.
func TestUrgentWishesWaitForTheTable(t *testing.T) {
	url := migrated(t)
	store := flags.OpenStore(openPool(t, url))
	tenants := manyTenants(1_000)
	release := locked(t, url, `LOCK TABLE crossfade_flag_targets IN SHARE MODE`)
	done, left, err := store.SetTargetsUrgently(t.Context(), tenants, flags.MQTT, "bob", "", 0)
	must(t, err)
	if len(done) != 0 || !slices.Equal(left, tenants) {
		t.Errorf("%d are set, %d are left", len(done), len(left))
	}
	release()
	done, left, err = store.SetTargetsUrgently(t.Context(), tenants, flags.MQTT, "bob", "", time.Minute)
	must(t, err)
	if len(done) != len(tenants) || len(left) != 0 {
		t.Errorf("once it is free: %d are set, %d are left", len(done), len(left))
	}
}

// What is wrong with a name or a table is an error, and not a lock.
func TestUrgentWishesThatCannotBe(t *testing.T) {
	url := migrated(t)
	pool := openPool(t, url)
	store := flags.OpenStore(pool)
	if done, left, err := store.SetTargetsUrgently(t.Context(), []string{"a", ""}, flags.MQTT, "", "", 0); err == nil || len(done) != 0 || len(left) != 2 {
		t.Errorf("an empty name: %v, %v, %v", done, left, err)
	}
	if done, left, err := store.SetTargetsUrgently(t.Context(), nil, flags.MQTT, "", "", time.Minute); err != nil || len(done)+len(left) != 0 {
		t.Errorf("nobody: %v, %v, %v", done, left, err)
	}
	_, err := pool.Exec(t.Context(), `DROP TABLE crossfade_flag_targets`)
	must(t, err)
	if done, left, err := store.SetTargetsUrgently(t.Context(), []string{"a"}, flags.MQTT, "", "", time.Minute); err == nil || len(done) != 0 || len(left) != 1 {
		t.Errorf("no table: %v, %v, %v", done, left, err)
	}
}
