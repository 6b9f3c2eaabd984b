package migrations_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
)

// changes are what a statement announces on crossfade_changes, sorted.
type changes struct {
	t                *testing.T
	listener, writer *pgx.Conn
}

func listenForChanges(t *testing.T, url string) *changes {
	t.Helper()
	c := &changes{t, connect(t, url), connect(t, url)}
	exec(t, c.listener, `LISTEN crossfade_changes`)
	exec(t, c.listener, `LISTEN crossfade_test_end`)
	return c
}

func (c *changes) of(sql string) []string {
	c.t.Helper()
	exec(c.t, c.writer, sql)
	return c.heard()
}

// heard returns what was announced since the last time.
func (c *changes) heard() []string {
	c.t.Helper()
	exec(c.t, c.writer, `NOTIFY crossfade_test_end`) // notifications keep their order
	var list []string
	for {
		n, err := c.listener.WaitForNotification(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		if n.Channel == "crossfade_test_end" {
			slices.Sort(list)
			return list
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, []byte(n.Payload)); err != nil {
			c.t.Fatalf("%q is not JSON: %v", n.Payload, err)
		}
		list = append(list, compact.String())
	}
}

func (c *changes) want(sql string, want ...string) {
	c.t.Helper()
	if got := c.of(sql); !slices.Equal(got, want) {
		c.t.Errorf("%s\n announces %v, want %v", sql, got, want)
	}
}

func TestChangesAreAnnounced(t *testing.T) {
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	c := listenForChanges(t, url)
	d1, d2, t1, t2, all, settings := `{"d":["t1","d1"]}`, `{"d":["t1","d2"]}`, `{"s":"t1"}`, `{"s":"t2"}`, `{"a":1}`, `{"c":1}`
	long := strings.Repeat("x", 600)

	c.want(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1'), ('t1', 'd2')`, d1, d2)
	c.want(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1') ON CONFLICT DO NOTHING`)
	for column, value := range map[string]string{
		"site_id": "'s'", "status": "'REVOKED'", "provision_token_hash": "'ab'", "subscription_id": "'s'", "sensor_limit": "4", "tier_id": "4", "location_source": "'manual'",
	} {
		c.want(`UPDATE device_registry SET `+column+` = `+value+` WHERE device_id = 'd1'`, d1)
		c.want(`UPDATE device_registry SET ` + column + ` = ` + value + ` WHERE device_id = 'd1'`)
	}
	c.want(`UPDATE device_registry SET latitude = 1, longitude = 2, updated_at = now()`)
	c.want(`UPDATE device_registry SET location_source = 'auto' WHERE device_id = 'd2'`) // as ingest does
	c.want(`UPDATE device_registry SET status = 'GONE'`, d1, d2)
	c.want(`UPDATE device_registry SET device_id = 'd3' WHERE device_id = 'd2'`, d2, `{"d":["t1","d3"]}`)
	c.want(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1') ON CONFLICT (tenant_id, device_id) DO UPDATE SET status = 'X'`, d1)
	c.want(`DELETE FROM device_registry WHERE device_id = 'd3'`, `{"d":["t1","d3"]}`)
	c.want(`DELETE FROM device_registry WHERE device_id = 'd3'`)
	c.want(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('t"1', E'é\n😀')`, `{"d":["t\"1","é\n😀"]}`)
	c.want(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('t2', '`+long+`')`, t2)
	c.want(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('`+long+`', 'd')`, all)

	c.want(`INSERT INTO subscriptions (subscription_id, tenant_id) VALUES ('a', 't1'), ('b', 't1'), ('c', 't2')`, t1, t2)
	c.want(`UPDATE subscriptions SET active_device_count = 7, device_limit = 9`)
	c.want(`UPDATE subscriptions SET status = 'SUSPENDED' WHERE subscription_id = 'a'`, t1)
	c.want(`UPDATE subscriptions SET tenant_id = 't2' WHERE subscription_id = 'a'`, t1, t2)
	c.want(`DELETE FROM subscriptions WHERE tenant_id = 't2'`, t2)

	c.want(`INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, common_name) VALUES ('t1', 'd1', 'f', 't1/d1')`, d1)
	c.want(`UPDATE device_certificates SET not_before = now()`)
	c.want(`UPDATE device_certificates SET not_after = now()`, d1)
	c.want(`UPDATE device_certificates SET status = 'REVOKED'`, d1)
	c.want(`DELETE FROM device_certificates`, d1)

	c.want(`INSERT INTO device_modules (tenant_id, device_id) VALUES ('t1', 'd1'), ('t1', 'd1'), ('t1', 'd2')`, d1, d2)
	c.want(`UPDATE device_modules SET metric_key_map = '{"a": "b"}' WHERE ctid = (SELECT max(ctid) FROM device_modules WHERE device_id = 'd1')`, d1)
	c.want(`UPDATE device_modules SET device_id = 'd2' WHERE device_id = 'd1'`, d1, d2)
	c.want(`DELETE FROM device_modules`, d2)

	c.want(`INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type) VALUES ('t1', 'n', '#', 'webhook')`, `{"r":"t1"}`)
	c.want(`UPDATE message_routes SET name = 'other'`)
	for column, value := range map[string]string{
		"topic_filter": "'x'", "destination_type": "'mqtt_republish'", "destination_config": `'{"a": 1}'`, "payload_filter": "'{}'", "is_enabled": "false",
	} {
		c.want(`UPDATE message_routes SET `+column+` = `+value, `{"r":"t1"}`)
	}
	c.want(`DELETE FROM message_routes`, `{"r":"t1"}`)

	c.want(`INSERT INTO device_tiers VALUES (1, 2)`, all)
	c.want(`INSERT INTO app_settings VALUES ('RATE_LIMIT_RPS', '7')`, settings)
	c.want(`UPDATE app_settings SET value = '8'`, settings)
	c.want(`TRUNCATE app_settings`, settings)
	for _, table := range []string{"device_registry", "subscriptions", "device_certificates", "device_modules", "message_routes", "device_tiers"} {
		c.want(`TRUNCATE `+table, all)
	}
}

// TestChangesByOtherWays: however the rows change, and whoever changes them.
func TestChangesByOtherWays(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	exec(t, conn, `CREATE TABLE device_modules (tenant_id text, device_id text, status text DEFAULT 'ACTIVE', metric_key_map jsonb DEFAULT '{}') PARTITION BY LIST (tenant_id);
		CREATE TABLE of_t1 PARTITION OF device_modules FOR VALUES IN ('t1');
		CREATE TABLE of_others PARTITION OF device_modules DEFAULT`)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, conn, `ALTER TABLE subscriptions ADD UNIQUE (tenant_id, subscription_id);
		ALTER TABLE device_registry ADD FOREIGN KEY (tenant_id, subscription_id) REFERENCES subscriptions (tenant_id, subscription_id) ON DELETE CASCADE ON UPDATE CASCADE;
		INSERT INTO subscriptions (subscription_id, tenant_id) VALUES ('s', 't1')`)
	c := listenForChanges(t, url)
	d1, d2, t1 := `{"d":["t1","d1"]}`, `{"d":["t1","d2"]}`, `{"s":"t1"}`
	if _, err := c.writer.PgConn().CopyFrom(t.Context(), strings.NewReader("t1\td1\ts\nt1\td2\ts\n"), `COPY device_registry (tenant_id, device_id, subscription_id) FROM STDIN`); err != nil {
		t.Fatal(err)
	}
	if got := c.heard(); !slices.Equal(got, []string{d1, d2}) {
		t.Errorf("COPY announces %v", got)
	}
	c.want(`UPDATE subscriptions SET subscription_id = 's2'`, d1, d2, t1)
	c.want(`BEGIN; UPDATE device_registry SET status = 'REVOKED' WHERE device_id = 'd1'; SAVEPOINT a; UPDATE device_registry SET status = 'REVOKED' WHERE device_id = 'd2'; ROLLBACK TO a; COMMIT`, d1)
	c.want(`BEGIN; UPDATE device_registry SET status = 'ACTIVE'; ROLLBACK`)
	c.want(`WITH gone AS (DELETE FROM device_registry WHERE device_id = 'd1' RETURNING *) INSERT INTO device_registry SELECT * FROM gone WHERE false`, d1)
	c.want(`DELETE FROM subscriptions`, d2, t1)

	c.want(`INSERT INTO device_modules (tenant_id, device_id) VALUES ('t1', 'd1'), ('t2', 'd1')`, d1, `{"d":["t2","d1"]}`)
	c.want(`UPDATE device_modules SET tenant_id = 't3' WHERE tenant_id = 't1'`, d1, `{"d":["t3","d1"]}`) // into another partition
	c.want(`TRUNCATE device_modules`, `{"a":1}`)

	// A tenant's role under row security, which sees and changes its own rows.
	exec(t, conn, `INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1'), ('t2', 'd1')`)
	c.heard()
	tenant := role(t, conn, "")
	exec(t, conn, `GRANT USAGE ON SCHEMA public TO `+tenant)
	exec(t, conn, `GRANT SELECT, UPDATE, DELETE ON device_registry TO `+tenant)
	asRole(t, c.writer, tenant, func() {
		exec(t, c.writer, `SET app.tenant_id = 't1'`)
		exec(t, c.writer, `UPDATE device_registry SET status = 'REVOKED'`)
		exec(t, c.writer, `DELETE FROM device_registry WHERE tenant_id = 't2'`)
	})
	if got := c.heard(); !slices.Equal(got, []string{d1}) {
		t.Errorf("a tenant's role announces %v", got)
	}
}

// TestChangesInBulk: many devices are told by tenant, many tenants as everything.
func TestChangesInBulk(t *testing.T) {
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	c := listenForChanges(t, url)
	c.want(`INSERT INTO device_registry (tenant_id, device_id) SELECT 't' || n % 3, 'd' || n FROM generate_series(1, 100000) AS n`, `{"s":"t0"}`, `{"s":"t1"}`, `{"s":"t2"}`)
	c.want(`UPDATE device_registry SET status = 'REVOKED'`, `{"s":"t0"}`, `{"s":"t1"}`, `{"s":"t2"}`)
	c.want(`UPDATE device_registry SET updated_at = now()`)
	c.want(`UPDATE device_registry SET tenant_id = device_id`, `{"a":1}`)
	if got := c.of(`DELETE FROM device_registry WHERE device_id IN (SELECT 'd' || n FROM generate_series(1, 500) AS n)`); len(got) != 500 {
		t.Errorf("500 devices: %d notifications", len(got))
	}
	if got := c.of(`DELETE FROM device_registry WHERE device_id IN (SELECT 'd' || n FROM generate_series(501, 1001) AS n)`); !slices.Equal(got, []string{`{"a":1}`}) {
		t.Errorf("501 devices of as many tenants: %.100v", got)
	}
}

// TestChangesNeverFail: whatever the owner makes of a table, and whoever writes to
// it, the statement goes through, and something is announced.
func TestChangesNeverFail(t *testing.T) {
	url := devstack.TestDatabase(t)
	conn := connect(t, url)
	exec(t, conn, `
		CREATE TABLE device_registry (tenant_id uuid, device_id integer, status integer, location_source jsonb, site_id json, PRIMARY KEY (tenant_id, device_id)) PARTITION BY LIST (tenant_id);
		CREATE TABLE one PARTITION OF device_registry DEFAULT;
		CREATE TABLE subscriptions (subscription_id uuid PRIMARY KEY, tenant_id uuid, status text);
		CREATE TABLE device_modules (tenant_id uuid, device_id integer, status text, metric_key_map json)`)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	const u = "00000000-0000-0000-0000-000000000001"
	d, all := `{"d":["`+u+`","7"]}`, `{"a":1}`
	c := listenForChanges(t, url)
	c.want(`INSERT INTO device_registry (tenant_id, device_id, status) VALUES ('`+u+`', 7, 1)`, d)
	c.want(`UPDATE device_registry SET site_id = '{}'`, d)
	c.want(`UPDATE device_registry SET location_source = '"auto"'`, d) // to jsonb's text it is not auto
	c.want(`UPDATE device_registry SET latitude = 1`)
	c.want(`INSERT INTO subscriptions VALUES ('`+u+`', '`+u+`', 'ACTIVE'), (gen_random_uuid(), NULL, 'ACTIVE')`, `{"s":"`+u+`"}`)
	c.want(`INSERT INTO device_modules VALUES ('`+u+`', 7, 'ACTIVE', '{}'), (NULL, 7, 'ACTIVE', '{}'), ('`+u+`', NULL, 'ACTIVE', '{}')`, `{"s":"`+u+`"}`)
	c.want(`UPDATE device_modules SET metric_key_map = '{"a": 1}' WHERE device_id = 7 AND tenant_id IS NOT NULL`, d)

	// In this session the triggers have been run with the columns as they were.
	c.want(`ALTER TABLE device_registry ALTER COLUMN status TYPE text, DROP COLUMN sensor_limit`)
	if got := c.of(`UPDATE device_registry SET status = 'REVOKED'`); !slices.Equal(got, []string{all}) && !slices.Equal(got, []string{d}) {
		t.Errorf("after a column was dropped: %v", got)
	}
	c.writer = connect(t, url)
	c.want(`UPDATE device_registry SET status = 'GONE'`, all)

	// Whoever writes may lack everything else: the schema on the path, and the right
	// to execute functions.
	writer := role(t, c.writer, "")
	exec(t, c.writer, `GRANT USAGE ON SCHEMA public TO `+writer)
	exec(t, c.writer, `GRANT SELECT, INSERT ON device_modules TO `+writer)
	for _, want := range []string{d, all} {
		asRole(t, c.writer, writer, func() {
			exec(t, c.writer, `SET search_path = ''`)
			exec(t, c.writer, `INSERT INTO public.device_modules (tenant_id, device_id) VALUES ('`+u+`', 7)`)
			exec(t, c.writer, `RESET search_path`)
		})
		if got := c.heard(); !slices.Equal(got, []string{want}) {
			t.Errorf("a role with few rights announces %v, want %s", got, want)
		}
		exec(t, c.writer, `REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC`)
	}
}

// TestChangesLendNoRights: who may write to a table gets no more than that by its
// triggers, whatever the names in them mean to him.
func TestChangesLendNoRights(t *testing.T) {
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, url)
	exec(t, conn, `CREATE TABLE seen (who text)`)
	writer := role(t, conn, "")
	exec(t, conn, `GRANT USAGE ON SCHEMA public TO `+writer)
	exec(t, conn, `GRANT INSERT ON seen TO `+writer)
	tables := []string{"subscriptions", "device_registry", "device_certificates", "device_modules", "message_routes", "device_tiers", "app_settings"}
	for _, table := range tables {
		exec(t, conn, `GRANT SELECT, INSERT, UPDATE, DELETE ON `+table+` TO `+writer)
	}
	session := connect(t, url)
	asRole(t, session, writer, func() {
		exec(t, session, `SET app.tenant_id = 't1'`)
		exec(t, session, `CREATE FUNCTION pg_temp.spy(pg_catalog.text) RETURNS boolean LANGUAGE sql AS 'INSERT INTO public.seen VALUES (current_user) RETURNING true'`)
		exec(t, session, `CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (pg_temp.spy(VALUE))`)
		exec(t, session, `INSERT INTO subscriptions (subscription_id, tenant_id) VALUES ('s', 't1')`)
		exec(t, session, `INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1')`)
		exec(t, session, `INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, common_name) VALUES ('t1', 'd1', 'f', 't1/d1')`)
		exec(t, session, `INSERT INTO device_modules (tenant_id, device_id) VALUES ('t1', 'd1')`)
		exec(t, session, `INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type) VALUES ('t1', 'n', '#', 'webhook')`)
		exec(t, session, `INSERT INTO device_tiers VALUES (1, 2)`)
		exec(t, session, `INSERT INTO app_settings VALUES ('RATE_LIMIT_RPS', '7')`)
		for _, table := range tables[:5] {
			exec(t, session, `UPDATE `+table+` SET tenant_id = 't1'`)
			exec(t, session, `DELETE FROM `+table)
		}
	})
	if who := query[string](t, conn, `SELECT coalesce(string_agg(DISTINCT who, ' '), '') FROM seen`); who != writer {
		t.Errorf("what a writer has planted ran as %q, want it to run as %s alone", who, writer)
	}
}

// TestAdoptedTablesWithoutTriggers: where none may be made the migration says so and
// goes on.
func TestAdoptedTablesWithoutTriggers(t *testing.T) {
	database := devstack.TestDatabase(t)
	conn := connect(t, database)
	newcomer := role(t, conn, "")
	t.Cleanup(func() { _, _ = conn.Exec(context.Background(), `DROP TRIGGER crossfade_changes ON device_tiers`) }) // it keeps the role's function
	exec(t, conn, `GRANT CREATE, USAGE ON SCHEMA public TO `+newcomer)
	exec(t, conn, `CREATE TABLE app_settings (key text PRIMARY KEY, value text)`) // not the newcomer's
	exec(t, conn, `CREATE TABLE device_tiers (tier_id integer PRIMARY KEY, default_sensor_limit integer)`)
	exec(t, conn, `GRANT SELECT ON app_settings TO `+newcomer)
	exec(t, conn, `GRANT SELECT, TRIGGER ON device_tiers TO `+newcomer)
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("options", "-c role="+newcomer)
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")

	var log bytes.Buffer
	if _, err := migrations.Apply(t.Context(), u.String(), slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	if strings.Count(log.String(), "are not announced") != 1 || !strings.Contains(log.String(), "changes of app_settings are not announced") || !strings.Contains(log.String(), "GRANT TRIGGER ON app_settings TO "+newcomer) {
		t.Errorf("the log does not say what to do about app_settings alone:\n%s", &log)
	}
	have := query[string](t, conn, `SELECT string_agg(DISTINCT tgrelid::regclass::text, ' ' ORDER BY tgrelid::regclass::text) FROM pg_trigger WHERE tgname LIKE 'crossfade_changes%'`)
	if want := "device_certificates device_modules device_registry device_tiers message_routes subscriptions"; have != want {
		t.Errorf("triggers on %s, want them on %s", have, want)
	}
}
