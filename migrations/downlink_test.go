package migrations_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
)

// TestBackEndsWriteMarks: whoever may write device_state or device_commands, itself or
// through a view, writes into the downlink without any privilege of its own on it or on
// the schema; nobody else does, and nobody reads it or forges what is sent.
func TestBackEndsWriteMarks(t *testing.T) {
	conn := applied(t)
	backend := role(t, conn, "IN ROLE crossfade_tenant")
	exec(t, conn, `GRANT INSERT, UPDATE, DELETE ON device_state TO `+backend)
	exec(t, conn, `GRANT INSERT ON device_commands TO `+backend)
	exec(t, conn, `INSERT INTO crossfade_desired_versions (tenant_id, device_id, version) VALUES ('t1', 'd9', 5), ('t2', 'd9', 7)`)
	asRole(t, conn, backend, func() {
		exec(t, conn, `SET app.tenant_id = 't1'`)
		exec(t, conn, `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t1', 'd1', '{"a": 1}'), ('t1', 'd9', '{"a": 1}')`)
		exec(t, conn, `UPDATE device_state SET desired_state = '{"a": 2}' WHERE device_id = 'd1'`)
		exec(t, conn, `DELETE FROM device_state WHERE device_id = 'd1'`)
		exec(t, conn, `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t1', 'd1', '{"a": 3}')`)
		exec(t, conn, `INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'x'), ('t1', 'c2', 'd2', 'x')`)
		refused(t, conn, `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t2', 'd9', '{"a": 1}')`)
		refused(t, conn, `INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind) VALUES (0, 't1', 'd1', 'desired')`)
		refused(t, conn, `INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind, command_id, body) VALUES (0, 't1', 'd1', 'response', 'c', '{}')`)
		refused(t, conn, `INSERT INTO crossfade_desired_versions (tenant_id, device_id, version) VALUES ('t1', 'd1', 9)`)
	})
	if got := strings.Join(marks(t, conn), ", "); got != "t1 d1 desired, t1 d9 desired, t1 d1 desired, t1 d1 desired, t1 d1 desired, t1 d1 command c1, t1 d2 command c2" {
		t.Errorf("marks: %s", got)
	}
	if got := column(t, conn, `SELECT device_id || ' ' || desired_version FROM device_state ORDER BY 1`); strings.Join(got, ", ") != "d1 3, d9 6" {
		t.Errorf("versions: %q", got)
	}
}

func marks(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	return column(t, conn, `SELECT tenant_id || ' ' || device_id || ' ' || kind || coalesce(' ' || command_id, '') FROM crossfade_downlink ORDER BY id`)
}

// TestWritesThroughAView: a service that may use nothing but views of a schema of its
// own needs no more than before.
func TestWritesThroughAView(t *testing.T) {
	conn := applied(t)
	backend := role(t, conn, "")
	exec(t, conn, `REVOKE ALL ON SCHEMA public FROM PUBLIC`)
	exec(t, conn, `CREATE SCHEMA api; GRANT USAGE ON SCHEMA api TO `+backend)
	exec(t, conn, `CREATE VIEW api.commands AS SELECT tenant_id, command_id, device_id, command_type FROM device_commands`)
	exec(t, conn, `CREATE VIEW api.states AS SELECT tenant_id, device_id, desired_state FROM device_state`)
	exec(t, conn, `GRANT SELECT, INSERT, UPDATE, DELETE ON api.commands, api.states TO `+backend)
	asRole(t, conn, backend, func() {
		exec(t, conn, `INSERT INTO api.commands VALUES ('t1', 'c1', 'd1', 'x')`)
		exec(t, conn, `INSERT INTO api.states VALUES ('t1', 'd1', '{"a": 1}')`)
		exec(t, conn, `UPDATE api.states SET desired_state = '{"a": 2}'`)
		exec(t, conn, `DELETE FROM api.states`)
	})
	if got := strings.Join(marks(t, conn), ", "); got != "t1 d1 command c1, t1 d1 desired, t1 d1 desired, t1 d1 desired" {
		t.Errorf("marks: %s", got)
	}
}

// TestTriggersTrustNoPath: they run as their owner, so that names in them must mean the
// same whatever the writer has made and put first on its path.
func TestTriggersTrustNoPath(t *testing.T) {
	conn := applied(t)
	backend := role(t, conn, "")
	exec(t, conn, `CREATE SCHEMA theirs; GRANT ALL ON SCHEMA theirs, public TO `+backend)
	exec(t, conn, `ALTER TABLE device_state DISABLE ROW LEVEL SECURITY; ALTER TABLE device_commands DISABLE ROW LEVEL SECURITY`)
	exec(t, conn, `GRANT SELECT, INSERT, UPDATE, DELETE ON device_state, device_commands TO `+backend)
	asRole(t, conn, backend, func() {
		for _, schema := range []string{"theirs", "public"} { // which also our own names are in
			exec(t, conn, `CREATE FUNCTION `+schema+`.trap(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'run as %', current_user; END $$`)
			for _, operator := range []string{"=", "<>"} {
				exec(t, conn, `CREATE OPERATOR `+schema+`.`+operator+` (LEFTARG = text, RIGHTARG = text, FUNCTION = `+schema+`.trap)`)
			}
			exec(t, conn, `CREATE FUNCTION `+schema+`.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT '\xff'::bytea $$`)
			exec(t, conn, `CREATE FUNCTION `+schema+`.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'run as %', current_user; END $$`)
		}
		exec(t, conn, `CREATE TEMP TABLE crossfade_downlink (lane int, tenant_id text, device_id text, kind text, command_id text)`)
		exec(t, conn, `CREATE TEMP TABLE crossfade_desired_versions (tenant_id text, device_id text, version bigint)`)
		exec(t, conn, `CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (theirs.trap(VALUE, VALUE))`)
		exec(t, conn, `SET search_path = theirs, pg_temp, pg_catalog, public`)
		exec(t, conn, `INSERT INTO public.device_state (tenant_id, device_id, desired_state) VALUES ('t1', 'd1', '{"a": 1}')`)
		exec(t, conn, `UPDATE public.device_state SET desired_state = '{"a": 2}'`)
		exec(t, conn, `UPDATE public.device_state SET device_id = 'd2'`)
		exec(t, conn, `DELETE FROM public.device_state`)
		exec(t, conn, `INSERT INTO public.device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'x')`)
		if got := query[int](t, conn, `SELECT public.crossfade_lane('t1', 'd1')`); got != 53 {
			t.Errorf("lane %d, want 53", got)
		}
	})
	exec(t, conn, `RESET search_path; DROP TABLE pg_temp.crossfade_downlink, pg_temp.crossfade_desired_versions`)
	exec(t, conn, `DROP OPERATOR public.= (pg_catalog.text, pg_catalog.text); DROP OPERATOR public.<> (pg_catalog.text, pg_catalog.text); DROP DOMAIN pg_temp.text`)
	if got := strings.Join(marks(t, conn), ", "); got != "t1 d1 desired, t1 d1 desired, t1 d1 desired, t1 d2 desired, t1 d2 desired, t1 d1 command c1" {
		t.Errorf("marks: %s", got)
	}
	if n := query[int](t, conn, `SELECT count(*) FROM crossfade_downlink WHERE device_id = 'd1' AND lane <> 53`); n != 0 {
		t.Errorf("%d marks are in a wrong lane", n)
	}
}

// TestTriggerFunctionsAreNobodys: whoever attached them to a table of his own could
// write marks of any tenant.
func TestTriggerFunctionsAreNobodys(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	backend := role(t, conn, "")
	exec(t, conn, `ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO `+backend)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	functions := column(t, conn, `SELECT proname::text FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace AND proname LIKE 'crossfade\_%' ORDER BY 1`)
	if len(functions) != 4 {
		t.Errorf("functions that run as their owner: %q, want 4", functions)
	}
	asRole(t, conn, backend, func() {
		exec(t, conn, `CREATE TEMP TABLE device_commands (tenant_id text, device_id text, command_id text, status text, published_at timestamptz, created_at timestamptz)`)
		for _, f := range functions {
			refused(t, conn, `CREATE TRIGGER forge AFTER DELETE ON pg_temp.device_commands FOR EACH ROW EXECUTE FUNCTION public.`+f+`()`)
		}
	})
}

// TestAnothersTableWritesMarks: the tables may belong to somebody else, who keeps rows
// from us by row security; then we do what we can, and no statement fails.
func TestAnothersTableWritesMarks(t *testing.T) {
	url := devstack.TestDatabase(t)
	admin := connect(t, url)
	theirs, ours := role(t, admin, ""), role(t, admin, "")
	t.Cleanup(func() {
		if _, err := admin.Exec(context.Background(), `RESET ROLE; REASSIGN OWNED BY `+ours+`, `+theirs+` TO CURRENT_USER`); err != nil {
			t.Error(err)
		}
	})
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"crossfade_desired_version()", "crossfade_desired_changed()", "crossfade_desired_truncated()", "crossfade_commands_queued()", "crossfade_lane(text, text)"} {
		exec(t, admin, `ALTER FUNCTION `+f+` OWNER TO `+ours)
	}
	for _, table := range []string{"crossfade_downlink", "crossfade_desired_versions", "crossfade_desired_published"} {
		exec(t, admin, `ALTER TABLE `+table+` OWNER TO `+ours)
	}
	exec(t, admin, `GRANT USAGE ON SCHEMA public TO `+ours+`, `+theirs)
	exec(t, admin, `ALTER TABLE device_state OWNER TO `+theirs)
	exec(t, admin, `ALTER TABLE device_state FORCE ROW LEVEL SECURITY`)
	exec(t, admin, `INSERT INTO crossfade_desired_published (tenant_id, device_id, version, cleared) VALUES ('t1', 'd1', 2, false)`)
	for _, grant := range []string{``, `GRANT SELECT, INSERT, UPDATE, DELETE ON device_state TO ` + ours} {
		exec(t, admin, grant)
		exec(t, admin, `TRUNCATE crossfade_downlink, crossfade_desired_versions`)
		asRole(t, admin, theirs, func() {
			exec(t, admin, `SET app.tenant_id = 't1'`)
			exec(t, admin, `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t1', 'd1', '{"a": 1}')`)
			exec(t, admin, `UPDATE device_state SET desired_state = '{"a": 2}'`)
			exec(t, admin, `RESET app.tenant_id; TRUNCATE device_state; SET app.tenant_id = 't1'`)
			exec(t, admin, `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t1', 'd1', '{"a": 3}')`)
			if v := query[int](t, admin, `SELECT desired_version FROM device_state`); v != 3 {
				t.Errorf("version %d, want 3", v)
			}
			exec(t, admin, `DELETE FROM device_state`)
		})
		if got := marks(t, admin); len(got) != 5 {
			t.Errorf("marks: %q", got)
		}
	}
}

// TestRowsOfNoDevice: an adopted table may take rows without a tenant, a device or a
// command; they are nobody's to send.
func TestRowsOfNoDevice(t *testing.T) {
	conn := applied(t)
	exec(t, conn, `ALTER TABLE device_state DROP CONSTRAINT device_state_pkey, ALTER tenant_id DROP NOT NULL, ALTER device_id DROP NOT NULL`)
	exec(t, conn, `ALTER TABLE device_commands DROP CONSTRAINT device_commands_pkey, ALTER tenant_id DROP NOT NULL, ALTER command_id DROP NOT NULL, ALTER device_id DROP NOT NULL`)
	exec(t, conn, `INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES (NULL, 'c1', 'd1', 'x'), ('t1', NULL, 'd1', 'x'), ('t1', 'c1', NULL, 'x'), ('t1', 'c2', 'd1', 'x')`)
	exec(t, conn, `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES (NULL, 'd1', '{"a": 1}'), ('t1', NULL, '{"a": 1}')`)
	exec(t, conn, `UPDATE device_state SET desired_state = '{"a": 2}'`)
	if got := strings.Join(marks(t, conn), ", "); got != "t1 d1 command c2" {
		t.Errorf("marks: %s", got)
	}
	exec(t, conn, `UPDATE device_state SET tenant_id = 't1', device_id = 'd2' WHERE tenant_id IS NULL`)
	exec(t, conn, `UPDATE device_state SET device_id = NULL WHERE device_id = 'd2'`)
	if got := strings.Join(marks(t, conn), ", "); got != "t1 d1 command c2, t1 d2 desired, t1 d2 desired" {
		t.Errorf("marks: %s", got)
	}
	exec(t, conn, `TRUNCATE device_state`)
	exec(t, conn, `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES (NULL, 'd1', '{"a": 1}')`)
	exec(t, conn, `DELETE FROM device_state`)
	if got := marks(t, conn); len(got) != 3 {
		t.Errorf("marks: %q", got)
	}
}

// TestAdoptedTablesWriteMarks: a service that writes the predecessor's tables goes on
// doing so, without any setting, and its rows go down.
func TestAdoptedTablesWriteMarks(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	exec(t, conn, predecessor)
	service := role(t, conn, "")
	exec(t, conn, `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO `+service)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	if n := query[int](t, conn, `SELECT count(*) FROM crossfade_downlink`); n != 0 {
		t.Errorf("adopting a database wrote %d rows", n)
	}
	exec(t, conn, `GRANT SELECT, INSERT ON device_commands TO `+service) // which the predecessor did not have
	asRole(t, conn, service, func() {
		exec(t, conn, `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('new', 'd1', '{"a": 1}')`)
		exec(t, conn, `DELETE FROM device_state WHERE tenant_id = 'new'`)
		exec(t, conn, `SET app.tenant_id = 'new'`)
		exec(t, conn, `INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('new', gen_random_uuid()::text, 'd1', 'x')`)
	})
	if n := query[int](t, conn, `SELECT count(*) FROM crossfade_downlink WHERE tenant_id = 'new'`); n != 3 {
		t.Errorf("%d marks, want 3", n)
	}
}

// TestDesiredVersionOverADelete: a row that is inserted while the transaction that
// deletes the one before is not committed goes on counting all the same.
func TestDesiredVersionOverADelete(t *testing.T) {
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	a, b, look := connect(t, url), connect(t, url), connect(t, url)
	exec(t, a, `INSERT INTO device_state (tenant_id, device_id, desired_state, desired_version) VALUES ('t1', 'd1', '{"a": 1}', 7)`)
	exec(t, a, `BEGIN`)
	exec(t, a, `DELETE FROM device_state`)
	inserted := make(chan error, 1)
	go func() {
		_, err := b.Exec(context.Background(), `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t1', 'd1', '{"a": 2}')`)
		inserted <- err
	}()
	for query[int](t, look, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'`, int32(b.PgConn().PID())) == 0 {
		continue
	}
	exec(t, a, `COMMIT`)
	if err := <-inserted; err != nil {
		t.Fatal(err)
	}
	if v := query[int](t, look, `SELECT desired_version FROM device_state`); v != 8 {
		t.Errorf("version %d, want 8", v)
	}
}

// TestIngestWritesNoMarks: what ingest writes of device_state costs the downlink nothing.
func TestIngestWritesNoMarks(t *testing.T) {
	conn := applied(t)
	for range 2 {
		exec(t, conn, `INSERT INTO device_state AS s (tenant_id, device_id, site_id, last_seen_at) VALUES ('t1', 'd1', 's1', now())
			ON CONFLICT (tenant_id, device_id) DO UPDATE SET last_seen_at = EXCLUDED.last_seen_at, reported_state = '{"a": 1}', reported_version = 3`)
	}
	if n := query[int](t, conn, `SELECT count(*) FROM crossfade_downlink`); n != 0 {
		t.Errorf("%d marks, want none", n)
	}
}

// TestCommandsThatAreOverWriteNoMarks: a service may insert them too, to keep a history.
func TestCommandsThatAreOverWriteNoMarks(t *testing.T) {
	conn := applied(t)
	exec(t, conn, `INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, status, published_at) VALUES
		('t1', 'c1', 'd1', 'x', 'expired', NULL), ('t1', 'c2', 'd1', 'x', 'delivered', now()), ('t1', 'c3', 'd1', 'x', 'queued', now()), ('t1', 'c4', 'd1', 'x', 'queued', NULL)`)
	if got := strings.Join(marks(t, conn), ", "); got != "t1 d1 command c4" {
		t.Errorf("marks: %s", got)
	}
}

// TestDownlinkLaneStays: rows wait in lanes, and releases share them.
func TestDownlinkLaneStays(t *testing.T) {
	conn := applied(t)
	if got := query[string](t, conn, `SELECT string_agg(crossfade_lane('t' || n, 'd' || n)::text, ' ' ORDER BY n) FROM generate_series(1, 8) AS n`); got != lanesOfEight {
		t.Errorf("lanes %q, want %q", got, lanesOfEight)
	}
	if n := query[int](t, conn, `SELECT count(DISTINCT crossfade_lane('t', n::text)) FROM generate_series(1, 2000) AS n`); n != 64 {
		t.Errorf("%d lanes, want 64", n)
	}
	_, err := conn.Exec(t.Context(), `INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind, body) VALUES (0, 't', 'd', 'desired', '{}')`)
	if pg, ok := err.(*pgconn.PgError); !ok || pg.Code != "23514" {
		t.Errorf("a mark with a body: %v", err)
	}
}

const lanesOfEight = "53 46 37 49 5 26 36 7"
