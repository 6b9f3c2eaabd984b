package store_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// farClocks are times that devices without a set clock send, and ones that only a
// broken clock does.
var farClocks = []string{"0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "2000-01-01T00:00:00Z", "2036-11-23T12:30:00Z", "9999-12-31T23:59:59Z"}

func farClockEntries() []store.Entry {
	var entries []store.Entry
	for n, ts := range farClocks {
		entries = append(entries, telemetry(fmt.Sprintf(`{"ts":%q,"site_id":"s1","seq":%d,"metrics":{}}`, ts, n)))
	}
	return entries
}

func (t storeTest) far() []string {
	t.Helper()
	return t.strings(`SELECT to_char(time, 'YYYY') || ' in ' || tableoid::regclass FROM telemetry ORDER BY time`)
}

// TestPartitionsAroundFarClocks: whatever a device's clock says, its row is written, once,
// and found again at the time it claims; a partition that is made around it takes
// it over.
func TestPartitionsAroundFarClocks(tt *testing.T) {
	t := newStoreTest(tt)
	t.wantFresh("far clocks", len(farClocks), farClockEntries()...)
	t.wantFresh("their second copies", 0, farClockEntries()...)
	want := []string{"0001 in telemetry_default", "1970 in telemetry_default", "2000 in telemetry_default", "2036 in telemetry_default", "9999 in telemetry_default"}
	if got := t.far(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	p := t.partitions(nil)
	t.must(p.Ensure(t.Context(), time.Date(1970, 1, 2, 0, 0, 0, 0, time.UTC)))
	t.must(p.Ensure(t.Context(), time.Date(2036, 11, 23, 0, 0, 0, 0, time.UTC)))
	t.must(p.Prune(t.Context(), noon))
	want = []string{"0001 in telemetry_default", "1970 in telemetry_19700101", "2000 in telemetry_default", "2036 in telemetry_20361123", "9999 in telemetry_default"}
	if got := t.far(); !slices.Equal(got, want) {
		t.Errorf("with partitions around them: got %q, want %q", got, want)
	}
	if off := t.strings(`SELECT i.inhrelid::regclass::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent IN ('telemetry'::regclass, 'quarantine_events'::regclass, 'crossfade_ledger'::regclass) AND NOT c.relrowsecurity`); len(off) != 0 {
		t.Errorf("partitions open to whoever has a privilege: %v", off)
	}
}

// TestRetentionOfFarClocks: what claims to be older than the retention goes, in
// chunks where it is in the DEFAULT partition; what claims to be of the future
// stays until its time has come and the retention has passed.
func TestRetentionOfFarClocks(tt *testing.T) {
	t := newStoreTest(tt)
	t.wantFresh("far clocks", len(farClocks), farClockEntries()...)
	for n := range 25 {
		t.exec(`INSERT INTO telemetry VALUES ($1, 't1', 'd1', 's1', 'telemetry', 1, '{}')`, noon.AddDate(-3, 0, n))
	}
	p := t.partitions(func(o *store.PartitionOptions) { o.TelemetryRetention, o.Chunk = 30*24*time.Hour, 10 })
	t.must(t.partitions(nil).Ensure(t.Context(), time.Date(1970, 1, 2, 0, 0, 0, 0, time.UTC)))
	t.must(p.Prune(t.Context(), noon))
	if got, want := t.far(), []string{"2036 in telemetry_default", "9999 in telemetry_default"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := t.children("telemetry"); slices.Contains(got, "telemetry_19700101") {
		t.Errorf("the partition of 1970 is still there: %v", got)
	}
	t.must(p.Prune(t.Context(), time.Date(2036, 12, 24, 0, 0, 0, 0, time.UTC)))
	if got, want := t.far(), []string{"9999 in telemetry_default"}; !slices.Equal(got, want) {
		t.Errorf("after 2036: got %q, want %q", got, want)
	}
}

// TestQuarantineRetention: the same by time of arrival, whatever the time of the
// message, and for the counters of minutes that are as old.
func TestQuarantineRetention(tt *testing.T) {
	t := newPartitionTest(tt, "")
	t.must(t.partitions(nil).Ensure(t.Context(), noon.AddDate(0, 0, -5)))
	for _, at := range []time.Time{noon.AddDate(-1, 0, 0), noon.AddDate(0, 0, -6), noon.AddDate(0, 0, -2), noon} {
		t.exec(`INSERT INTO quarantine_events (ingested_at, event_ts, reason) VALUES ($1, '0001-01-01', 'INVALID_JSON')`, at)
		t.exec(`INSERT INTO quarantine_counters_minute VALUES ($1, '', 'INVALID_JSON', 1)`, at)
	}
	t.must(t.partitions(nil).Prune(t.Context(), noon))
	for _, table := range []string{"quarantine_events", "quarantine_counters_minute"} {
		if n := t.strings(`SELECT count(*)::text FROM ` + table)[0]; n != "4" {
			t.Errorf("without a retention %s of 4 rows of %s are left", n, table)
		}
	}
	t.must(t.partitions(func(o *store.PartitionOptions) { o.QuarantineRetention = 72 * time.Hour }).Prune(t.Context(), noon))
	for table, column := range map[string]string{"quarantine_events": "ingested_at", "quarantine_counters_minute": "bucket_minute"} {
		if got := t.strings(`SELECT ` + column + `::date::text FROM ` + table + ` ORDER BY 1`); !slices.Equal(got, []string{"2026-11-21", "2026-11-23"}) {
			t.Errorf("left in %s: %v", table, got)
		}
	}
}

// TestRetentionKeepsTheDay in which it ends: a day's rows go together, once the last of
// them could be too old; the counters go by the minute. Telemetry and the quarantine
// have a retention each.
func TestRetentionKeepsTheDay(tt *testing.T) {
	t := newPartitionTest(tt, "")
	t.must(t.partitions(nil).Ensure(t.Context(), noon.AddDate(0, 0, -1)))
	const keep = 36 * time.Hour
	cutoff := noon.Add(-keep)                            // 00:30 on the 22nd
	end := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC) // of that day
	for _, at := range []time.Time{cutoff.Add(-time.Hour), cutoff.Add(-time.Minute), cutoff, noon} {
		t.exec(`INSERT INTO telemetry VALUES ($1, 't1', 'd1', 's1', 'telemetry', 1, '{}')`, at)
		t.exec(`INSERT INTO quarantine_events (ingested_at, reason) VALUES ($1, 'INVALID_JSON')`, at)
		t.exec(`INSERT INTO quarantine_counters_minute VALUES ($1, '', 'INVALID_JSON', 1)`, at)
	}
	for _, c := range []struct {
		name                  string
		now                   time.Time
		telemetry, quarantine time.Duration
		want                  string
	}{
		{"telemetry's", noon, keep, 0, "3 4 4"},
		{"the quarantine's", noon, 0, keep, "3 3 2"},
		{"at the end of the day", end.Add(keep), keep, keep, "3 3 1"},
		{"after it", end.Add(keep + time.Microsecond), keep, keep, "1 1 1"},
	} {
		p := t.partitions(func(o *store.PartitionOptions) {
			o.TelemetryRetention, o.QuarantineRetention = c.telemetry, c.quarantine
		})
		t.must(p.Prune(t.Context(), c.now))
		got := t.strings(`SELECT concat_ws(' ', (SELECT count(*) FROM telemetry), (SELECT count(*) FROM quarantine_events), (SELECT count(*) FROM quarantine_counters_minute))`)[0]
		if got != c.want {
			t.Errorf("%s: %s rows are left, want %s", c.name, got, c.want)
		}
	}
}

// TestRowSecurityLeavesOwnerAlone: a role that has no rights but to create tables
// migrates, passes VerifySchema, writes every kind of message for several tenants,
// and maintains partitions, with row security on.
func TestRowSecurityLeavesOwnerAlone(tt *testing.T) {
	server := devstack.TestPostgres(tt)
	database, err := server.CreateDatabase(tt.Context(), "owned")
	if err != nil {
		tt.Fatal(err)
	}
	admin := schemaConn(tt, database)
	schemaExec(tt, admin, `CREATE ROLE ingest LOGIN PASSWORD 'pw'; GRANT CREATE, USAGE ON SCHEMA public TO ingest`)
	schemaExec(tt, admin, `CREATE ROLE crossfade_tenant NOLOGIN; CREATE ROLE backend LOGIN IN ROLE crossfade_tenant`)
	u, err := url.Parse(database)
	if err != nil {
		tt.Fatal(err)
	}
	u.User = url.UserPassword("ingest", "pw")
	migrate(tt, u.String())
	t := openStoreTest(tt, u.String())
	t.must(store.VerifySchema(t.Context(), t.pool))
	t.wantCount(11, `SELECT count(*) FROM crossfade_row_security WHERE enabled`)
	t.wantCount(0, `SELECT count(*) FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolbypassrls OR rolcreaterole)`)

	old := noon.AddDate(0, -1, 0)
	for _, tenant := range []string{"t1", "t2"} {
		topic := "tenant/" + tenant + "/device/d1/"
		t.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ($1, 'c1', 'd1', 'reboot')`, tenant)
		t.wantFresh(tenant, 5,
			entryOf(copyOf(topic+"telemetry", `{"ts":"2026-11-23T12:30:00Z","site_id":"s1","metrics":{"a":1}}`, noon)),
			entryOf(copyOf(topic+"telemetry", fmt.Sprintf(`{"ts":%q,"site_id":"s1","metrics":{"a":2}}`, old.Format(time.RFC3339)), noon)),
			entryOf(copyOf(topic+"shadow/reported", `{"reported":{"a":1},"version":3}`, noon)),
			entryOf(copyOf(topic+"commands/ack", `{"command_id":"c1"}`, noon)),
			refuse(entryOf(copyOf(topic+"telemetry", `{"seq":9}`, noon)), pipeline.MissingSiteID))
	}
	t.wantCount(4, `SELECT count(*) FROM telemetry`)
	t.wantCount(2, `SELECT count(*) FROM device_state WHERE reported_version = 3`)
	t.wantCount(2, `SELECT count(*) FROM device_commands WHERE acked_at IS NOT NULL`)
	t.wantCount(2, `SELECT count(*) FROM quarantine_events`)

	p := t.partitions(func(o *store.PartitionOptions) {
		o.TelemetryRetention, o.QuarantineRetention = 7*24*time.Hour, 7*24*time.Hour
	})
	t.must(p.Ensure(t.Context(), noon.AddDate(0, 0, 8)))
	t.must(p.Prune(t.Context(), noon))
	t.wantCount(2, `SELECT count(*) FROM telemetry`)
	t.must(p.Prune(t.Context(), noon.AddDate(0, 0, 9)))
	t.wantCount(0, `SELECT count(*) FROM telemetry`)
	t.wantFresh("after it", 1, telemetry(`{"ts":"2026-11-25T00:00:00Z","site_id":"s1","metrics":{}}`))

	// A member that acts as the owner does as well, and what it makes is the owner's.
	schemaExec(tt, admin, `CREATE ROLE runner LOGIN PASSWORD 'pw' IN ROLE ingest; ALTER ROLE runner SET role = 'ingest'`)
	u.User = url.UserPassword("runner", "pw")
	member := openStoreTest(tt, u.String())
	member.must(store.VerifySchema(t.Context(), member.pool))
	member.wantFresh("a member", 1, telemetry(`{"ts":"2026-11-25T00:00:01Z","site_id":"s1","metrics":{}}`))
	member.must(member.partitions(nil).Ensure(t.Context(), noon.AddDate(0, 1, 0)))
	t.wantCount(0, `SELECT count(*) FROM pg_class WHERE relname LIKE 'telemetry%' AND relowner <> 'ingest'::regrole`)

	// And it is on: a backend sees one tenant's rows, through the parent alone.
	schemaExec(tt, admin, `SET ROLE backend; SET app.tenant_id = 't2'`)
	var seen int
	t.must(admin.QueryRow(t.Context(), `SELECT count(*) FROM telemetry`).Scan(&seen))
	if seen != 0 {
		t.Errorf("t2 sees %d rows of t1", seen)
	}
	for _, partition := range t.children("telemetry") {
		if _, err := admin.Exec(t.Context(), `SELECT FROM `+partition); err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("a tenant reading %s directly: %v", partition, err)
		}
	}
}
