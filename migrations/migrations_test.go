package migrations_test

import (
	"context"
	_ "embed"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(m)) }

// predecessor is a database to adopt; package store's tests use it as well.
//
//go:embed testdata/predecessor.sql
var predecessor string

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func query[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func all(t *testing.T) []migrations.Migration {
	t.Helper()
	all, err := migrations.All()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestNewDatabase(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	want := all(t)
	latest := want[len(want)-1].Version

	pending, err := migrations.Pending(t.Context(), conn)
	if err != nil || len(pending) != len(want) {
		t.Fatalf("pending in an empty database: %v, %v; want all %d", pending, err, len(want))
	}
	res, err := migrations.Apply(t.Context(), url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.From != 0 || res.To != latest || len(res.Applied) != len(want) {
		t.Errorf("result %+v, want 0 → %d with %d applied", res, latest, len(want))
	}
	pending, err = migrations.Pending(t.Context(), conn)
	if err != nil || len(pending) != 0 {
		t.Errorf("pending afterwards: %v, %v", pending, err)
	}
	if v, err := migrations.Version(t.Context(), conn); err != nil || v != latest {
		t.Errorf("version %d, %v; want %d", v, err, latest)
	}
	res, err = migrations.Apply(t.Context(), url, nil)
	if err != nil || len(res.Applied) != 0 || res.From != latest || res.To != latest {
		t.Errorf("second run: %+v, %v; want nothing to do", res, err)
	}
	for _, parent := range []string{"telemetry", "quarantine_events", "crossfade_ledger"} {
		if query[string](t, conn, `SELECT relkind::text FROM pg_class WHERE oid = $1::regclass`, parent) != "p" {
			t.Errorf("%s is not partitioned", parent)
		}
	}
}

// TestUntimedBoundary: an ID without a time goes to the untimed partition, the
// earliest one with a time does not.
func TestUntimedBoundary(t *testing.T) {
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, url)
	for id, want := range map[string]string{
		"00000000-0000-ffff-ffff-ffffffffffff": "crossfade_ledger_untimed",
		"00000000-0001-0000-0000-000000000000": "crossfade_ledger_other",
	} {
		got := query[string](t, conn, `INSERT INTO crossfade_ledger (message_id, path, outcome) VALUES ($1, 1, 1) RETURNING tableoid::regclass::text`, id)
		if got != want {
			t.Errorf("%s went to %s, want %s", id, got, want)
		}
	}
}

// down undoes all migrations.
func down(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	db := stdlib.OpenDB(*conn.Config())
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, os.DirFS("."), goose.WithTableName(migrations.VersionTable))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.DownTo(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

func TestConcurrentApply(t *testing.T) {
	t.Run("empty database", func(t *testing.T) { testConcurrentApply(t, devstack.TestDatabase(t)) })
	// With the version table there, nothing but the lock keeps the four apart.
	t.Run("version table exists", func(t *testing.T) {
		url := devstack.TestDatabase(t)
		if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
			t.Fatal(err)
		}
		down(t, connect(t, url))
		testConcurrentApply(t, url)
	})
}

func testConcurrentApply(t *testing.T, url string) {
	want := len(all(t))
	applied := make([]int, 4)
	var g errgroup.Group
	for i := range applied {
		g.Go(func() error {
			res, err := migrations.Apply(t.Context(), url, nil)
			applied[i] = len(res.Applied)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, n := range applied {
		sum += n
	}
	if sum != want {
		t.Errorf("four processes applied %v migrations, want %d in all", applied, want)
	}
	conn := connect(t, url)
	if n := query[int](t, conn, `SELECT count(*) FROM crossfade_migrations WHERE version_id > 0`); n != want {
		t.Errorf("%d rows in the version table, want %d", n, want)
	}
	if n := query[int](t, conn, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); n != 0 {
		t.Errorf("%d advisory locks left behind", n)
	}
}

func TestAdoptsPredecessor(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	exec(t, conn, predecessor)
	before := query[string](t, conn, `SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM telemetry t`)

	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	if after := query[string](t, conn, `SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM telemetry t`); after != before {
		t.Error("rows of telemetry changed")
	}
	checks := map[string]any{
		`SELECT relkind::text FROM pg_class WHERE oid = 'telemetry'::regclass`:                                                       "r",
		`SELECT count(*)::text FROM pg_index WHERE indrelid = 'telemetry'::regclass`:                                                 "1",
		`SELECT count(*)::text FROM pg_index WHERE indrelid = 'device_registry'::regclass AND indisunique`:                           "1",
		`SELECT count(*)::text FROM pg_index WHERE indrelid = 'quarantine_counters_minute'::regclass AND indisunique`:                "1",
		`SELECT count(*)::text FROM pg_index WHERE indrelid = 'device_state'::regclass AND indisunique`:                              "1",
		`SELECT firmware || coalesce(tier_id::text, '-') FROM device_registry`:                                                       "v7-",
		`SELECT format('%s %s %s', battery, status, reported_version) FROM device_state`:                                             "0.5 ONLINE 0",
		`SELECT value FROM app_settings WHERE key = 'RATE_LIMIT_RPS'`:                                                                "7",
		`SELECT reason || coalesce(detail, '-') FROM quarantine_events`:                                                              "BAD_TOPIC_FORMAT-",
		`SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'telemetry'::regclass AND attname = 'tenant_id'`: "character varying(64)",
	}
	for sql, want := range checks {
		if got := query[string](t, conn, sql); got != want {
			t.Errorf("%s\n got %q, want %q", sql, got, want)
		}
	}
}

// TestAdoptionLocksOnlyWhatItChanges: while somebody reads telemetry in a long
// transaction, adopting it goes through if telemetry lacks nothing.
func TestAdoptionLocksOnlyWhatItChanges(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	exec(t, conn, predecessor)
	reader := connect(t, url)
	exec(t, reader, `BEGIN`)
	exec(t, reader, `SELECT count(*) FROM telemetry`)
	o := migrations.DefaultOptions()
	o.LockTimeout = 100 * time.Millisecond
	if _, err := migrations.ApplyWith(t.Context(), url, o); err != nil {
		t.Fatal(err)
	}
}

func TestLockedTableIsNamed(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	exec(t, conn, predecessor)
	holder := connect(t, url)
	exec(t, holder, `SET application_name = 'nightly report'`)
	exec(t, holder, `BEGIN`)
	exec(t, holder, `SELECT count(*) FROM device_state`) // lacks columns, so it must be altered

	o := migrations.DefaultOptions()
	o.LockTimeout = 100 * time.Millisecond
	res, err := migrations.ApplyWith(t.Context(), url, o)
	var lockErr *migrations.LockError
	if !errors.As(err, &lockErr) {
		t.Fatalf("got %v, want a LockError", err)
	}
	if lockErr.Table != "device_state" || len(lockErr.Holders) != 1 {
		t.Errorf("table %q, holders %q; want device_state and one holder", lockErr.Table, lockErr.Holders)
	}
	for _, part := range []string{"00001_contract.sql", "device_state", "nightly report", "100ms", "crossfade migrate"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error lacks %q: %v", part, err)
		}
	}
	if len(res.Applied) != 0 || res.To != 0 {
		t.Errorf("result %+v after a failure in the first migration", res)
	}
	if query[bool](t, conn, `SELECT to_regclass('subscriptions') IS NOT NULL`) {
		t.Error("the failed migration left a table behind")
	}
	exec(t, holder, `COMMIT`)
	if _, err := migrations.ApplyWith(t.Context(), url, o); err != nil {
		t.Errorf("after the holder went: %v", err)
	}
}

func TestDuplicateKeysAreNamed(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	exec(t, conn, predecessor)
	exec(t, conn, `INSERT INTO device_state (tenant_id, device_id) VALUES ('t1', 'd1')`)
	_, err := migrations.Apply(t.Context(), url, nil)
	if err == nil || !strings.Contains(err.Error(), "device_state") || !strings.Contains(err.Error(), "(t1, d1)") {
		t.Errorf("got %v, want an error that names device_state and the key", err)
	}
}

func TestWaitsItsTurn(t *testing.T) {
	url := devstack.TestDatabase(t)
	holder := connect(t, url)
	exec(t, holder, `SELECT pg_advisory_lock($1)`, int64(0x63726f7373660001))
	o := migrations.DefaultOptions()
	o.TurnTimeout = 300 * time.Millisecond
	_, err := migrations.ApplyWith(t.Context(), url, o)
	if err == nil || !strings.Contains(err.Error(), "another process") || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want an error about another process", err)
	}
}

func TestStagesNotify(t *testing.T) {
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	listener, writer := connect(t, url), connect(t, url)
	exec(t, listener, `LISTEN crossfade_stages`)
	exec(t, writer, `INSERT INTO crossfade_stages (tenant_id, stage, revision) VALUES ('t1', 'shadow', 1), ('t2', 'live', 1)`)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := listener.WaitForNotification(ctx); err != nil {
		t.Fatalf("no notification: %v", err)
	}
	if _, err := writer.Exec(t.Context(), `UPDATE crossfade_stages SET stage = 'sideways'`); err == nil {
		t.Error("a stage that does not exist was accepted")
	}
}

func TestErrorsKeepSecrets(t *testing.T) {
	for _, url := range []string{
		"postgres://u:hunter2@127.0.0.1:1/db?connect_timeout=1",
		"postgres://u:hunter2@127.0.0.1:1/db?sslmode=nonsense",
	} {
		_, err := migrations.Apply(t.Context(), url, nil)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error %v: want one without the password", err)
		}
	}
}

func TestOptionsValidate(t *testing.T) {
	if err := migrations.DefaultOptions().Validate(); err != nil {
		t.Error(err)
	}
	for field, o := range map[string]migrations.Options{
		"LockTimeout": {TurnTimeout: time.Second},
		"TurnTimeout": {LockTimeout: time.Second},
	} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s unset: %v", field, err)
		}
	}
}

// TestDownKeepsContractTables: going down removes what is ours alone.
func TestDownKeepsContractTables(t *testing.T) {
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, url)
	exec(t, conn, `INSERT INTO telemetry (time, tenant_id, device_id, msg_type) VALUES (now(), 't1', 'd1', 'telemetry')`)

	down(t, conn)
	if n := query[int](t, conn, `SELECT count(*) FROM telemetry`); n != 1 {
		t.Errorf("telemetry holds %d rows after going down, want 1", n)
	}
	if n := query[int](t, conn, `SELECT count(*) FROM pg_class WHERE relname LIKE 'crossfade%' AND relkind IN ('r', 'p') AND relname <> 'crossfade_migrations'`); n != 0 {
		t.Errorf("%d of our tables are left", n)
	}
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Errorf("up again: %v", err)
	}
}
