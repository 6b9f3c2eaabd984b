package migrations_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
)

// TestBackEndsWriteMarks: whoever may write device_state or device_commands writes
// into the downlink without any privilege of its own on it, with row security and
// without; nobody else does, and nobody reads it or forges what is sent.
func TestBackEndsWriteMarks(t *testing.T) {
	conn := applied(t)
	backend := role(t, conn, "IN ROLE crossfade_tenant")
	stranger := role(t, conn, "IN ROLE crossfade_tenant")
	exec(t, conn, `GRANT INSERT, UPDATE, DELETE ON device_state TO `+backend)
	exec(t, conn, `GRANT INSERT ON device_commands TO `+backend)
	exec(t, conn, `INSERT INTO crossfade_desired_versions (tenant_id, device_id, version) VALUES ('t1', 'd9', 5), ('t2', 'd9', 7)`)
	marks := func() []string {
		return column(t, conn, `SELECT tenant_id || ' ' || device_id || ' ' || kind || coalesce(' ' || command_id, '') FROM crossfade_downlink ORDER BY id`)
	}
	asRole(t, conn, backend, func() {
		exec(t, conn, `SET app.tenant_id = 't1'`)
		exec(t, conn, `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t1', 'd1', '{"a": 1}'), ('t1', 'd9', '{"a": 1}')`)
		exec(t, conn, `UPDATE device_state SET desired_state = '{"a": 2}' WHERE device_id = 'd1'`)
		exec(t, conn, `DELETE FROM device_state WHERE device_id = 'd1'`)
		exec(t, conn, `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t1', 'd1', '{"a": 3}')`)
		exec(t, conn, `INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'x'), ('t1', 'c2', 'd2', 'x')`)
		refused(t, conn, `SELECT FROM crossfade_downlink`)
		refused(t, conn, `DELETE FROM crossfade_downlink`)
		refused(t, conn, `INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind, command_id, body) VALUES (crossfade_lane('t1', 'd1'), 't1', 'd1', 'response', 'c', '{}')`)
		refused(t, conn, `INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind) VALUES ((crossfade_lane('t1', 'd1') + 1) % 64, 't1', 'd1', 'desired')`)
		refused(t, conn, `INSERT INTO crossfade_desired_versions (tenant_id, device_id, version) VALUES ('t2', 'd1', 9)`)
		if got := column(t, conn, `SELECT tenant_id || ' ' || device_id || ' ' || version FROM crossfade_desired_versions ORDER BY 1`); strings.Join(got, ", ") != "t1 d1 2, t1 d9 5" {
			t.Errorf("the back end of t1 sees the versions %q", got)
		}
	})
	if got := strings.Join(marks(), ", "); got != "t1 d1 desired, t1 d9 desired, t1 d1 desired, t1 d1 desired, t1 d1 desired, t1 d1 command c1, t1 d2 command c2" {
		t.Errorf("marks: %s", got)
	}
	if got := column(t, conn, `SELECT device_id || ' ' || desired_version FROM device_state ORDER BY 1`); strings.Join(got, ", ") != "d1 3, d9 6" {
		t.Errorf("versions: %q", got)
	}
	asRole(t, conn, stranger, func() {
		exec(t, conn, `SET app.tenant_id = 't1'`)
		refused(t, conn, `INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind) VALUES (crossfade_lane('t1', 'd1'), 't1', 'd1', 'desired')`)
		refused(t, conn, `INSERT INTO crossfade_desired_versions (tenant_id, device_id, version) VALUES ('t1', 'd1', 9)`)
		if got := column(t, conn, `SELECT device_id FROM crossfade_desired_versions`); len(got) != 0 {
			t.Errorf("a role that may not write sees %q", got)
		}
	})
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
