package migrations_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
)

// role makes a role of the server's and takes it away again at the end; the
// databases of other tests do not see it. It returns its name.
func role(t *testing.T, conn *pgx.Conn, attributes string) string {
	t.Helper()
	name := fmt.Sprintf("row_security_%d", time.Now().UnixNano())
	exec(t, conn, `CREATE ROLE `+name+` `+attributes)
	t.Cleanup(func() {
		if _, err := conn.Exec(context.Background(), `RESET ROLE; DROP OWNED BY `+name+`; DROP ROLE `+name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// asRole runs f as somebody else.
func asRole(t *testing.T, conn *pgx.Conn, role string, f func()) {
	t.Helper()
	exec(t, conn, `SET ROLE `+role)
	f()
	exec(t, conn, `RESET ROLE; RESET app.tenant_id`)
}

func column(t *testing.T, conn *pgx.Conn, sql string, args ...any) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return all
}

// applied is a new, migrated database.
func applied(t *testing.T) *pgx.Conn {
	t.Helper()
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	return connect(t, url)
}

// tenantTables are the tables with a tenant's rows that are not ours alone, by the
// catalogue: one that a later migration adds is among them, with or without a
// policy.
const tenantTables = `SELECT c.relname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
	WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
	  AND a.attname = 'tenant_id' AND NOT a.attisdropped AND c.relname NOT LIKE 'crossfade\_%' ORDER BY 1`

// plant puts one row of the tenant into a table: every column that needs a value
// gets one.
func plant(t *testing.T, conn *pgx.Conn, table, tenant string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), planted(t, conn, table, tenant)); err != nil {
		t.Fatalf("plant a row in %s: %v", table, err)
	}
}

func planted(t *testing.T, conn *pgx.Conn, table, tenant string) string {
	t.Helper()
	return query[string](t, conn, `
		SELECT format('INSERT INTO %I (%s) VALUES (%s)', $1::text, string_agg(quote_ident(attname), ', '), string_agg(CASE
		         WHEN attname = 'tenant_id' THEN quote_literal($2::text)
		         WHEN attname = 'destination_type' THEN $q$'webhook'$q$
		         WHEN atttypid = 'timestamptz'::regtype THEN 'now()'
		         WHEN atttypid = 'text'::regtype THEN quote_literal($2::text || '-x')
		         ELSE '1' END, ', '))
		FROM pg_attribute
		WHERE attrelid = ($1::text)::regclass AND attnum > 0 AND NOT attisdropped
		  AND (attname = 'tenant_id' OR attnotnull AND NOT atthasdef AND attidentity = '')`, table, tenant)
}

func refused(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql)
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "42501" { // insufficient_privilege
		t.Errorf("%s: %v, want it refused for want of privilege", sql, err)
	}
}

// TestTenantsAreKeptApart: in every table that holds tenants' rows, a role that
// serves tenants sees, changes and adds rows of the tenant that it names, and no
// others, even where it was given more privileges than crossfade_tenant has.
func TestTenantsAreKeptApart(t *testing.T) {
	conn := applied(t)
	tables := column(t, conn, tenantTables)
	if len(tables) < 11 {
		t.Fatalf("only %d tables found: %v", len(tables), tables)
	}
	backend := role(t, conn, "IN ROLE crossfade_tenant")
	writer := role(t, conn, "")
	for _, table := range tables {
		for _, tenant := range []string{"t1", "t2", ""} {
			plant(t, conn, table, tenant)
		}
		exec(t, conn, `GRANT SELECT, INSERT, UPDATE, DELETE ON `+table+` TO `+writer)
	}
	for _, table := range tables {
		t.Run(table, func(t *testing.T) {
			sees := func(setting string) string {
				if setting != "unset" {
					exec(t, conn, `SELECT set_config('app.tenant_id', $1, false)`, setting)
				}
				return strings.Join(column(t, conn, `SELECT quote_literal(tenant_id) FROM `+table), " ")
			}
			for _, who := range []string{backend, writer} {
				asRole(t, conn, who, func() {
					for _, c := range [][2]string{{"unset", ""}, {"t1", "'t1'"}, {"t2", "'t2'"}, {"", ""}, {"t", ""}, {"%", ""}} {
						if got := sees(c[0]); got != c[1] {
							t.Errorf("%s with app.tenant_id = %q sees %q, want %q", who, c[0], got, c[1])
						}
					}
				})
			}
			foreign, own := planted(t, conn, table, "t2"), planted(t, conn, table, "t1")
			asRole(t, conn, backend, func() {
				exec(t, conn, `SET app.tenant_id = 't1'`)
				refused(t, conn, own)
				refused(t, conn, `UPDATE `+table+` SET tenant_id = tenant_id`)
				refused(t, conn, `DELETE FROM `+table)
				refused(t, conn, `TRUNCATE `+table)
			})
			asRole(t, conn, writer, func() {
				refused(t, conn, foreign)
				exec(t, conn, `SET app.tenant_id = 't1'`)
				refused(t, conn, foreign)
				refused(t, conn, `UPDATE `+table+` SET tenant_id = 't2'`)
				tag, err := conn.Exec(t.Context(), `DELETE FROM `+table)
				if err != nil || tag.RowsAffected() != 1 {
					t.Errorf("deleted %d rows (%v), want t1's own", tag.RowsAffected(), err)
				}
				exec(t, conn, own)
			})
			if got := column(t, conn, `SELECT tenant_id::text FROM `+table+` ORDER BY 1`); !slices.Equal(got, []string{"", "t1", "t2"}) {
				t.Errorf("left: %q", got)
			}
		})
	}
}

// TestTenantsReachNothingElse: what a tenant's role may use at all is the list of
// contract tables; neither partitions nor what is ours alone.
func TestTenantsReachNothingElse(t *testing.T) {
	conn := applied(t)
	// As a careless administrator would have it: everything new is open to a role.
	careless := role(t, conn, "")
	got := column(t, conn, `SELECT relname || ' ' || p FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) p
		WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f') AND has_table_privilege('crossfade_tenant', c.oid, p) ORDER BY 1`)
	want := []string{"device_tiers SELECT"}
	for _, table := range column(t, conn, tenantTables) {
		want = append(want, table+" SELECT")
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("crossfade_tenant may\n %q, want\n %q", got, want)
	}
	if query[bool](t, conn, `SELECT has_function_privilege('crossfade_tenant', 'crossfade_enable_row_security(boolean)', 'EXECUTE')`) {
		t.Error("crossfade_tenant may switch row security on")
	}
	plant(t, conn, "telemetry", "t1")
	plant(t, conn, "quarantine_events", "t1")
	exec(t, conn, `INSERT INTO crossfade_outbox (lane, tenant_id, device_id, route_id, message_id, body) VALUES (0, 't1', 'd1', '1', gen_random_uuid(), '{}')`)
	exec(t, conn, `INSERT INTO crossfade_outbox_parked SELECT id, tenant_id, device_id, route_id, message_id, body, lane, created_at, now(), 'x' FROM crossfade_outbox`)
	exec(t, conn, `INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind) VALUES (0, 't1', 'd1', 'desired')`)
	exec(t, conn, `INSERT INTO crossfade_downlink_parked (id, lane, tenant_id, device_id, kind, created_at, attempts, reason) VALUES (1, 0, 't1', 'd1', 'desired', now(), 1, 'x')`)
	exec(t, conn, `INSERT INTO crossfade_downlink_lanes (lane, client_id) VALUES (0, 'x')`)
	exec(t, conn, `INSERT INTO crossfade_desired_published (tenant_id, device_id, version, cleared) VALUES ('t1', 'd1', 1, false)`)
	exec(t, conn, `INSERT INTO crossfade_desired_versions (tenant_id, device_id, version) VALUES ('t1', 'd1', 1)`)
	exec(t, conn, `INSERT INTO crossfade_seal (key) VALUES (sha256('x'))`)
	exec(t, conn, `INSERT INTO crossfade_api_tokens (name, sha256, tenant_id, scopes) VALUES ('x', sha256('x'), 't1', '{read}')`)
	exec(t, conn, `INSERT INTO crossfade_parity (tenant_id, minute, skew_ms_buckets) VALUES ('t1', now(), '{}')`)
	exec(t, conn, `INSERT INTO crossfade_parity_samples (tenant_id, at, message_id, what, path, digest, other_digest, sample) VALUES ('t1', now(), gen_random_uuid(), 'mismatched', 1, 1, 2, '{}')`)
	exec(t, conn, `INSERT INTO crossfade_flag_targets (flag_key, tenant_id, variant) VALUES ('ingest-source', 't1', 'mqtt')`)
	exec(t, conn, `INSERT INTO crossfade_stages (tenant_id, stage, revision) VALUES ('t1', 'shadow', 1)`)
	exec(t, conn, `INSERT INTO crossfade_ledger (message_id, path, outcome) VALUES (gen_random_uuid(), 1, 1), ('00000000-0000-ffff-ffff-ffffffffffff', 1, 1)`)
	exec(t, conn, `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO `+careless)
	closed := column(t, conn, openTo+` AND c.relrowsecurity AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid) ORDER BY 1`)
	for _, who := range []string{"crossfade_tenant", careless} {
		asRole(t, conn, who, func() {
			exec(t, conn, `SET app.tenant_id = 't1'`)
			for _, table := range closed {
				if who == "crossfade_tenant" {
					refused(t, conn, `SELECT FROM `+table)
				} else if n := query[int](t, conn, `SELECT count(*) FROM `+table); n != 0 {
					t.Errorf("%s reads %d rows of %s directly", who, n, table)
				}
			}
			refused(t, conn, `INSERT INTO crossfade_flag_targets (flag_key, tenant_id, variant) VALUES ('ingest-source', 't2', 'jetstream')`)
			refused(t, conn, `INSERT INTO crossfade_ledger (message_id, path, outcome) VALUES (gen_random_uuid(), 1, 1)`)
			refused(t, conn, `INSERT INTO telemetry_default (time, tenant_id, device_id, msg_type) VALUES (now(), 't2', 'd', 'telemetry')`)
		})
	}
}

// openTo are all tables there are, partitions too; more conditions may follow.
const openTo = `SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'f', 'm')`

// TestNothingIsLeftOpen goes by the catalogue, so that whatever a later migration adds has
// to be closed, or named here.
func TestNothingIsLeftOpen(t *testing.T) {
	conn := applied(t)
	for what, c := range map[string]struct {
		sql  string
		want []string
	}{
		"tables without row security":     {openTo + ` AND NOT c.relrowsecurity ORDER BY 1`, []string{"app_settings", "crossfade_migrations", "device_tiers"}},
		"tables whose policies bind none": {openTo + ` AND NOT c.relrowsecurity AND EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid)`, nil},
		"tables with a policy":            {openTo + ` AND EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid) ORDER BY 1`, column(t, conn, tenantTables)},
		// One shows what its owner may see.
		"views": {`SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'v'`, []string{"crossfade_row_security"}},
		"sequences that tenants may use": {`SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
			AND CASE relkind WHEN 'S' THEN has_sequence_privilege('crossfade_tenant', oid, 'USAGE, SELECT, UPDATE') END`, nil},
		"functions that run as their owner, on a path of others or for everybody": {`SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef
			AND (NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false) OR has_function_privilege('crossfade_tenant', oid, 'EXECUTE'))`, nil},
		"keys by which one tenant's row refers to another's": {`SELECT conrelid::regclass::text FROM pg_constraint WHERE contype = 'f' AND confrelid IN (` +
			strings.Replace(tenantTables, "c.relname::text", "c.oid", 1) + `)`, nil},
	} {
		if got := column(t, conn, c.sql); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}

// TestTenantsSeeNothingByOtherMeans than a query: neither by COPY nor in what ANALYZE has
// noted down.
func TestTenantsSeeNothingByOtherMeans(t *testing.T) {
	conn := applied(t)
	backend := role(t, conn, "IN ROLE crossfade_tenant")
	tables := column(t, conn, tenantTables)
	for _, table := range tables {
		plant(t, conn, table, "t1")
		plant(t, conn, table, "t2")
	}
	exec(t, conn, `ANALYZE`)
	if n := query[int](t, conn, `SELECT count(*) FROM pg_stats WHERE schemaname = 'public' AND tablename = 'device_state' AND attname = 'tenant_id'`); n != 1 {
		t.Fatal("ANALYZE has noted nothing down")
	}
	asRole(t, conn, backend, func() {
		exec(t, conn, `SET app.tenant_id = 't1'`)
		if got := column(t, conn, `SELECT DISTINCT tablename::text FROM pg_stats WHERE schemaname = 'public'`); len(got) != 0 {
			t.Errorf("a tenant reads the statistics of %v", got)
		}
		for _, table := range tables {
			var copied bytes.Buffer
			if _, err := conn.PgConn().CopyTo(t.Context(), &copied, `COPY (TABLE `+table+`) TO STDOUT`); err != nil || strings.Count(copied.String(), "\n") != 1 || strings.Contains(copied.String(), "t2") {
				t.Errorf("COPY of %s: %q (%v), want t1's row", table, &copied, err)
			}
		}
		refused(t, conn, `COPY telemetry FROM STDIN`)
	})
}

// TestOursAloneSaysWhoIsCutOff: who was let at our tables is named.
func TestOursAloneSaysWhoIsCutOff(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	service := role(t, conn, "")
	exec(t, conn, `ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO `+service)
	var log bytes.Buffer
	if _, err := migrations.Apply(t.Context(), url, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	if want := "are their owner's alone now: " + service + " had a privilege"; !strings.Contains(log.String(), want) {
		t.Errorf("the log lacks %q:\n%s", want, &log)
	}
}

// TestAnothersTable: an adopted table that lacks nothing is not altered, which only its
// owner might.
func TestAnothersTable(t *testing.T) {
	database := devstack.TestDatabase(t)
	admin := connect(t, database)
	owner := role(t, admin, "")
	exec(t, admin, `GRANT CREATE, USAGE ON SCHEMA public TO `+owner)
	exec(t, admin, `CREATE TABLE quarantine_events (id bigint, ingested_at timestamptz NOT NULL DEFAULT now(), event_ts timestamptz, topic text, tenant_id text, site_id text,
		device_id text, msg_type text, reason text NOT NULL, payload jsonb, path smallint, message_id uuid, raw bytea, detail text, username text, origin smallint)`)
	t.Setenv("PGOPTIONS", "-c role="+owner)
	exec(t, admin, `ALTER TABLE quarantine_events DROP COLUMN origin`)
	if _, err := migrations.Apply(t.Context(), database, nil); err == nil || !strings.Contains(err.Error(), "as the owner of the tables, or a member of it") {
		t.Errorf("got %v, want one that says who may", err)
	}
	exec(t, admin, `ALTER TABLE quarantine_events ADD COLUMN origin smallint`)
	if _, err := migrations.Apply(t.Context(), database, nil); err != nil {
		t.Error(err)
	}
}

// TestOwnerWithoutRights: a role without any special right, who owns the tables,
// migrates and reads and writes for every tenant. It may not make roles, and is
// told who must be made. On a server of its own: roles belong to the server.
func TestOwnerWithoutRights(t *testing.T) {
	server := devstack.TestPostgres(t)
	database, err := server.CreateDatabase(t.Context(), "owned")
	if err != nil {
		t.Fatal(err)
	}
	admin := connect(t, database)
	exec(t, admin, `CREATE ROLE owner LOGIN PASSWORD 'pw'`)
	exec(t, admin, `GRANT CREATE, USAGE ON SCHEMA public TO owner`)
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("owner", "pw")

	var log bytes.Buffer
	if _, err := migrations.Apply(t.Context(), u.String(), slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "CREATE ROLE crossfade_tenant NOLOGIN") {
		t.Errorf("the log does not say what to do:\n%s", &log)
	}
	conn := connect(t, u.String())
	for _, table := range column(t, conn, tenantTables) {
		plant(t, conn, table, "t1")
		plant(t, conn, table, "t2")
		if n := query[int](t, conn, `SELECT count(*) FROM `+table); n != 2 {
			t.Errorf("the owner sees %d of 2 rows of %s", n, table)
		}
	}
	off := column(t, conn, `SELECT table_name::text FROM crossfade_row_security WHERE NOT enabled`)
	if len(off) != 0 {
		t.Errorf("row security is off on %v", off)
	}
	exec(t, admin, `CREATE ROLE crossfade_tenant NOLOGIN`)
	for range 2 { // a second time changes nothing
		for _, outcome := range column(t, conn, `SELECT outcome FROM crossfade_enable_row_security()`) {
			if outcome != "enabled" {
				t.Errorf("with the role there: %s", outcome)
			}
		}
	}
	asRole(t, admin, "crossfade_tenant", func() {
		exec(t, admin, `SET app.tenant_id = 't2'`)
		if got := column(t, admin, `SELECT tenant_id FROM telemetry`); !slices.Equal(got, []string{"t2"}) {
			t.Errorf("a tenant sees %v", got)
		}
	})
}

// TestAdoptedTablesStayOpen: services that read an adopted table go on reading;
// the operator switches over when they are ready.
func TestAdoptedTablesStayOpen(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	exec(t, conn, predecessor)
	service := role(t, conn, "")
	exec(t, conn, `GRANT SELECT ON telemetry, device_state TO `+service)
	// Two tables whose owner has decided already.
	exec(t, conn, `CREATE POLICY theirs ON device_registry USING (tenant_id = current_setting('their.tenant', true))`)
	exec(t, conn, `ALTER TABLE quarantine_events ENABLE ROW LEVEL SECURITY`)

	var log bytes.Buffer
	if _, err := migrations.Apply(t.Context(), url, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"level=WARN", "telemetry (not enabled: the table was there before Crossfade)", "crossfade_enable_row_security()"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("the log lacks %q:\n%s", part, &log)
		}
	}
	state := func() []string {
		return column(t, conn, `SELECT format('%s %s %s', table_name, enabled, policies) FROM crossfade_row_security
			WHERE table_name::text IN ('telemetry', 'device_state', 'device_registry', 'quarantine_events', 'subscriptions') ORDER BY table_name::text`)
	}
	want := []string{"device_registry f {theirs}", "device_state f {}", "quarantine_events t {}", "subscriptions t {crossfade_tenant_isolation}", "telemetry f {}"}
	if got := state(); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	asRole(t, conn, service, func() {
		if n := query[int](t, conn, `SELECT count(*) FROM telemetry`); n != 500 {
			t.Errorf("the service reads %d rows", n)
		}
	})
	if query[bool](t, conn, `SELECT has_table_privilege('crossfade_tenant', 'telemetry', 'SELECT')`) {
		t.Error("crossfade_tenant may read a table without row security")
	}

	exec(t, conn, `SELECT * FROM crossfade_enable_row_security()`)
	want = []string{"device_registry f {theirs}", "device_state t {crossfade_tenant_isolation}", "quarantine_events t {}", "subscriptions t {crossfade_tenant_isolation}", "telemetry t {crossfade_tenant_isolation}"}
	if got := state(); !slices.Equal(got, want) {
		t.Errorf("switched on: got %q\nwant %q", got, want)
	}
	asRole(t, conn, service, func() {
		if n := query[int](t, conn, `SELECT count(*) FROM telemetry`); n != 0 {
			t.Errorf("without the setting the service reads %d rows", n)
		}
		exec(t, conn, `SET app.tenant_id = 't1'`)
		if n := query[int](t, conn, `SELECT count(*) FROM telemetry`); n != 500 {
			t.Errorf("with the setting the service reads %d rows", n)
		}
	})
}

// TestRowSecurityCutsNobodyOff: on a table that migrations made, but that somebody was let
// at before row security came, it stays off, and the warning names them.
func TestRowSecurityCutsNobodyOff(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	service := role(t, conn, "")
	exec(t, conn, `ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO `+service)
	var log bytes.Buffer
	if _, err := migrations.Apply(t.Context(), url, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	if want := "telemetry (not enabled: it would cut off " + service + ")"; !strings.Contains(log.String(), want) {
		t.Errorf("the log lacks %q:\n%s", want, &log)
	}
	if n := query[int](t, conn, `SELECT count(*) FROM crossfade_row_security WHERE enabled OR policies <> '{}'`); n != 0 {
		t.Errorf("row security is on for %d tables", n)
	}
}

// TestRowSecurityDownLeavesNoPrivilege: without the policies crossfade_tenant would see all.
func TestRowSecurityDownLeavesNoPrivilege(t *testing.T) {
	conn := applied(t)
	down(t, conn)
	for _, table := range column(t, conn, tenantTables) {
		if query[bool](t, conn, `SELECT has_table_privilege('crossfade_tenant', $1::text, 'SELECT')`, table) {
			t.Errorf("crossfade_tenant may still read %s", table)
		}
	}
}
