package store_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

func schemaConn(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func schemaExec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func migrate(t *testing.T, url string) {
	t.Helper()
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
}

func TestVerifySchemaOfNewDatabase(t *testing.T) {
	url := devstack.TestDatabase(t)
	migrate(t, url)
	if err := store.VerifySchema(t.Context(), schemaConn(t, url)); err != nil {
		t.Error(err)
	}
}

func TestVerifySchemaOfAdoptedDatabase(t *testing.T) {
	predecessor, err := os.ReadFile("../../migrations/testdata/predecessor.sql")
	if err != nil {
		t.Fatal(err)
	}
	url := devstack.TestDatabase(t)
	conn := schemaConn(t, url)
	schemaExec(t, conn, string(predecessor))

	var before *store.SchemaError
	if err := store.VerifySchema(t.Context(), conn); !errors.As(err, &before) {
		t.Fatalf("before migrating: %v, want a SchemaError", err)
	}
	if !slices.ContainsFunc(before.Problems, func(p store.SchemaProblem) bool {
		return p.Subject == "migrations" && strings.Contains(p.Have, "00001_contract.sql")
	}) {
		t.Errorf("pending migrations are not named: %v", before)
	}
	migrate(t, url)
	if err := store.VerifySchema(t.Context(), conn); err != nil {
		t.Error(err)
	}
}

// dropDesired drops the triggers that depend on columns of device_state.
const dropDesired = `DO $$ DECLARE t name; BEGIN
	FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'device_state'::regclass AND tgname LIKE 'crossfade_desired%'
	LOOP EXECUTE format('DROP TRIGGER %I ON device_state', t); END LOOP; END $$`

// TestVerifySchemaNamesWhatIsBroken: each broken schema makes exactly one problem,
// and its remedy, where it is a statement, mends it.
func TestVerifySchemaNamesWhatIsBroken(t *testing.T) {
	cases := []struct{ name, breakage, subject, have string }{
		{"table missing", `DROP TABLE device_state`, "device_state", "no such table"},
		{"column missing", `ALTER TABLE quarantine_events DROP COLUMN raw`, "quarantine_events.raw", "no such column"},
		{"seq too narrow", `ALTER TABLE telemetry ALTER COLUMN seq TYPE integer`, "telemetry.seq", "integer"},
		{"seq not null", `ALTER TABLE telemetry ALTER COLUMN seq SET NOT NULL`, "telemetry.seq", "NOT NULL"},
		{"metrics as json", `ALTER TABLE telemetry ALTER COLUMN metrics DROP DEFAULT, ALTER COLUMN metrics TYPE json`, "telemetry.metrics", "json"},
		{"time without zone", `DROP TABLE telemetry; CREATE TABLE telemetry (time timestamp NOT NULL, tenant_id text, device_id text, site_id text, msg_type text, seq bigint, metrics jsonb)`,
			"telemetry.time", "timestamp without time zone"},
		{"device as uuid", dropDesired + `; ALTER TABLE device_state ALTER COLUMN device_id TYPE uuid USING device_id::uuid`, "device_state.device_id", "uuid"},
		{"foreign column", `ALTER TABLE telemetry ADD COLUMN "Plant" text NOT NULL`, "telemetry.Plant", "NOT NULL without a default"},
		{"key missing", `ALTER TABLE device_state DROP CONSTRAINT device_state_pkey`, "device_state", "no unique index"},
		{"command status as int", `DROP INDEX crossfade_commands_queued; ALTER TABLE device_commands DROP CONSTRAINT device_commands_status_check, ALTER COLUMN status DROP DEFAULT, ALTER COLUMN status TYPE integer USING 0`,
			"device_commands.status", "integer"},
		{"migration undone", `DELETE FROM crossfade_migrations WHERE version_id = 2`, "migrations", "00002_ledger.sql"},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			url := devstack.TestDatabase(t)
			migrate(t, url)
			conn := schemaConn(t, url)
			schemaExec(t, conn, tt.breakage)

			var broken *store.SchemaError
			if err := store.VerifySchema(t.Context(), conn); !errors.As(err, &broken) {
				t.Fatalf("got %v, want a SchemaError", err)
			}
			if len(broken.Problems) != 1 {
				t.Fatalf("want one problem, got %v", broken)
			}
			p := broken.Problems[0]
			if p.Subject != tt.subject || !strings.Contains(p.Have, tt.have) || p.Want == "" {
				t.Errorf("got %v, want subject %q, have %q", p, tt.subject, tt.have)
			}
			_, statement, ok := strings.Cut("\n"+p.Remedy, "ALTER TABLE")
			if !ok {
				return
			}
			schemaExec(t, conn, "ALTER TABLE"+statement)
			if err := store.VerifySchema(t.Context(), conn); err != nil {
				t.Errorf("after the remedy %q: %v", p.Remedy, err)
			}
		})
	}
}

func TestVerifySchemaNamesRowSecurityAndPrivileges(t *testing.T) {
	url := devstack.TestDatabase(t)
	migrate(t, url)
	conn := schemaConn(t, url)
	// Roles belong to the server: the transaction takes this one away again.
	schemaExec(t, conn, `BEGIN`)
	schemaExec(t, conn, `CREATE ROLE crossfade_test_narrow`)
	schemaExec(t, conn, `GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO crossfade_test_narrow`)
	schemaExec(t, conn, `REVOKE INSERT ON crossfade_ledger FROM crossfade_test_narrow`)
	schemaExec(t, conn, `REVOKE SELECT ON device_registry, device_tiers, message_routes FROM crossfade_test_narrow`)
	// Of the tenants' tables two are left under row security, and one of all comes under it.
	schemaExec(t, conn, `DO $$ DECLARE t regclass; BEGIN
		FOR t IN SELECT table_name FROM crossfade_row_security WHERE table_name::text NOT IN ('telemetry', 'device_modules') LOOP
			EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', t);
		END LOOP; END $$`)
	schemaExec(t, conn, `ALTER TABLE app_settings ENABLE ROW LEVEL SECURITY`)
	schemaExec(t, conn, `SET LOCAL ROLE crossfade_test_narrow`)
	var broken *store.SchemaError
	if err := store.VerifySchema(t.Context(), conn); !errors.As(err, &broken) {
		t.Fatalf("got %v, want a SchemaError", err)
	}
	schemaExec(t, conn, `ROLLBACK`)
	got := make([]string, len(broken.Problems))
	for i, p := range broken.Problems {
		got[i] = p.Subject + ": " + p.Have
	}
	want := []string{"telemetry: row-level security", "crossfade_ledger: row-level security", "crossfade_ledger: no privilege to read and write", "crossfade_outbox: row-level security",
		"device_registry: no privilege to read and write", "device_tiers: no privilege to read", "device_modules: row-level security", "message_routes: no privilege to read", "app_settings: row-level security"}
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("got %q", got)
	}
}
