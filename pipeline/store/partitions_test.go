package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// noon is the time at which these tests play, unless they need the database's.
var noon = time.Date(2026, 11, 23, 12, 30, 0, 0, time.UTC)

type partitionTest struct {
	*testing.T
	pool *pgxpool.Pool
}

// newPartitionTest returns a migrated database; before, if not empty, is run
// first.
func newPartitionTest(t *testing.T, before string) partitionTest {
	t.Helper()
	url := devstack.TestDatabase(t)
	if before != "" {
		schemaExec(t, schemaConn(t, url), before)
	}
	migrate(t, url)
	c := store.DefaultConfig(url)
	c.MaxConns = 10
	pool, err := store.NewPool(t.Context(), c, "partition test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return partitionTest{t, pool}
}

func (t partitionTest) partitions(change func(*store.PartitionOptions)) *store.Partitions {
	t.Helper()
	o := store.DefaultPartitionOptions()
	if change != nil {
		change(&o)
	}
	p, err := store.NewPartitions(t.pool, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (t partitionTest) exec(sql string, args ...any) {
	t.Helper()
	if _, err := t.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (t partitionTest) strings(sql string, args ...any) []string {
	t.Helper()
	rows, err := t.pool.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return all
}

func (t partitionTest) children(table string) []string {
	t.Helper()
	return t.strings(`SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass ORDER BY 1`, table)
}

// must fails the test on an error.
func (t partitionTest) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// id is a message ID of the given time, with n in its last bytes.
func id(at time.Time, n int) string {
	hex := "000000000000"
	if !at.IsZero() {
		hex = fmt.Sprintf("%012x", at.UnixMilli())
	}
	return fmt.Sprintf("%s-%s-0000-0000-%012x", hex[:8], hex[8:], n)
}

// remember plants a ledger row.
func (t partitionTest) remember(id string, committed time.Time) {
	t.Helper()
	t.exec(`INSERT INTO crossfade_ledger (message_id, path, outcome, digest, occurred_at, committed_at) VALUES ($1, 2, 1, 42, $2, $2)`, id, committed)
}

// home is the partition that holds an ID, "" for none.
func (t partitionTest) home(id string) string {
	t.Helper()
	return strings.Join(t.strings(`SELECT tableoid::regclass::text FROM crossfade_ledger WHERE message_id = $1`, id), " and ")
}

func TestEnsureMakesPartitionsAhead(tt *testing.T) {
	t := newPartitionTest(tt, "")
	p := t.partitions(nil)
	t.must(p.Ensure(t.Context(), noon))
	ledger := t.children("crossfade_ledger")
	// From noon - 24 h 05 min, cut to 4 h, up to noon + 48 h; and two that are always there.
	if len(ledger) != 19+2 || ledger[0] != "crossfade_ledger_20261122t120000" || ledger[len(ledger)-3] != "crossfade_ledger_20261125t120000" {
		t.Errorf("%d ledger partitions: %v", len(ledger), ledger)
	}
	want := []string{"telemetry_20261121", "telemetry_20261122", "telemetry_20261123", "telemetry_20261124", "telemetry_20261125", "telemetry_20261126", "telemetry_default"}
	if got := t.children("telemetry"); !slices.Equal(got, want) {
		t.Errorf("telemetry: %v", got)
	}
	for i := range want {
		want[i] = strings.Replace(want[i], "telemetry", "quarantine_events", 1)
	}
	if got := t.children("quarantine_events"); !slices.Equal(got, want) {
		t.Errorf("quarantine_events: %v", got)
	}
	t.must(p.Ensure(t.Context(), noon))
	if again := t.children("crossfade_ledger"); !slices.Equal(again, ledger) {
		t.Errorf("a second run changed the ledger's partitions: %v", again)
	}
	t.must(p.Prune(t.Context(), noon))
	if again := t.children("crossfade_ledger"); !slices.Equal(again, ledger) {
		t.Errorf("Prune dropped what Ensure had made: %v", again)
	}

	for at, want := range map[time.Time]string{
		noon: "crossfade_ledger_20261123t120000",
		time.Date(2026, 11, 23, 16, 0, 0, 0, time.UTC):             "crossfade_ledger_20261123t160000",
		time.Date(2026, 11, 23, 15, 59, 59, 999_000_000, time.UTC): "crossfade_ledger_20261123t120000",
		noon.AddDate(0, 0, 9):                                      "crossfade_ledger_other",
		{}:                                                         "crossfade_ledger_untimed",
	} {
		t.remember(id(at, 1), noon)
		if got := t.home(id(at, 1)); got != want {
			t.Errorf("ID of %v is in %s, want %s", at, got, want)
		}
	}
	// Every partition has the keys that keep messages from taking effect twice.
	if n := t.strings(`SELECT count(*)::text FROM pg_index x JOIN pg_inherits i ON i.inhrelid = x.indrelid
		WHERE i.inhparent = 'crossfade_ledger'::regclass AND x.indisunique AND x.indisvalid`)[0]; n != "21" {
		t.Errorf("%s of 21 ledger partitions have their unique key", n)
	}
}

// TestEnsureMovesRowsOutOfDefault: rows that came before their partition was there
// move with it, unchanged; the rest stays.
func TestEnsureMovesRowsOutOfDefault(tt *testing.T) {
	t := newPartitionTest(tt, "")
	far := noon.AddDate(1, 0, 0)
	for n, at := range []time.Time{noon, noon.Add(time.Hour), noon.Add(4 * time.Hour), far} {
		t.remember(id(at, n), noon)
		t.exec(`INSERT INTO telemetry VALUES ($1, 't1', 'd1', 's1', 'telemetry', $2, '{"a": 1}')`, at, n)
		t.exec(`INSERT INTO quarantine_events (ingested_at, topic, reason, payload, raw) VALUES ($1, 'x', 'INVALID_JSON', '{}', '\x00ff')`, at)
	}
	// A column dropped in the middle makes positions differ between parent and child.
	t.exec(`ALTER TABLE quarantine_events ADD COLUMN gone text, ADD COLUMN later text`)
	t.exec(`ALTER TABLE quarantine_events DROP COLUMN gone`)
	t.exec(`UPDATE quarantine_events SET later = 'kept'`)
	digest := func(table string) string {
		return t.strings(fmt.Sprintf(`SELECT md5(string_agg(r::text, '|' ORDER BY r::text)) FROM %s r`, table))[0]
	}
	tables := map[string]string{"crossfade_ledger": "crossfade_ledger_other", "telemetry": "telemetry_default", "quarantine_events": "quarantine_events_default"}
	before := map[string]string{}
	for table := range tables {
		before[table] = digest(table)
	}

	t.must(t.partitions(nil).Ensure(t.Context(), noon))

	for table, rest := range tables {
		if digest(table) != before[table] {
			t.Errorf("rows of %s changed", table)
		}
		if n := t.strings(`SELECT count(*)::text FROM ` + rest)[0]; n != "1" {
			t.Errorf("%s holds %s rows, want the one that is a year ahead", rest, n)
		}
	}
	if got := t.home(id(noon.Add(4*time.Hour), 2)); got != "crossfade_ledger_20261123t160000" {
		t.Errorf("a moved ID is in %q", got)
	}
	t.exec(`INSERT INTO quarantine_events (ingested_at, reason) VALUES ($1, 'INVALID_JSON')`, noon)
	if n := t.strings(`SELECT count(DISTINCT id)::text FROM quarantine_events`)[0]; n != "5" {
		t.Errorf("%s distinct quarantine IDs, want 5", n)
	}
}

// TestPruneForgetsNoIDBeforeItsTime: what an expired partition holds is dropped,
// except for late messages that were committed within the retention.
func TestPruneForgetsNoIDBeforeItsTime(tt *testing.T) {
	for _, indexed := range []bool{false, true} {
		tt.Run(fmt.Sprintf("indexed=%v", indexed), func(tt *testing.T) {
			t := newPartitionTest(tt, "")
			p := t.partitions(nil)
			if indexed {
				p.IndexYoungFrom(0)
			}
			t.must(p.Ensure(t.Context(), noon.AddDate(0, 0, -1)))
			t.must(p.Ensure(t.Context(), noon))
			lo := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC) // its partition ends 28.5 h before noon
			old, late := id(lo, 1), id(lo, 2)
			t.remember(old, noon.Add(-24*time.Hour-6*time.Minute))
			t.remember(late, noon.Add(-24*time.Hour))
			edge := id(time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC), 3) // ends 24.5 h before noon
			t.remember(edge, noon.Add(-25*time.Hour))
			fresh := id(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), 4) // ends 20.5 h before noon
			t.remember(fresh, noon.Add(-25*time.Hour))

			t.must(p.Prune(t.Context(), noon))
			for id, want := range map[string]string{
				old: "", late: "crossfade_ledger_other", edge: "", fresh: "crossfade_ledger_20261122t120000",
			} {
				if got := t.home(id); got != want {
					t.Errorf("ID %s is in %q, want %q", id, got, want)
				}
			}
			if got := t.children("crossfade_ledger")[0]; got != "crossfade_ledger_20261122t120000" {
				t.Errorf("first partition left is %s", got)
			}
			row := t.strings(`SELECT format('%s %s %s %s', path, outcome, digest, occurred_at) FROM crossfade_ledger WHERE message_id = $1`, late)
			if row[0] != "2 1 42 2026-11-22 12:30:00+00" {
				t.Errorf("the late row became %q", row[0])
			}
			// Its retention over, the late one goes as well.
			t.must(p.Prune(t.Context(), noon.Add(6*time.Minute)))
			if got := t.home(late); got != "" {
				t.Errorf("the late ID is still in %q", got)
			}
		})
	}
}

// TestPruneKeepsPartitionUntilRetention: one microsecond decides.
func TestPruneKeepsPartitionUntilRetention(tt *testing.T) {
	t := newPartitionTest(tt, "")
	p := t.partitions(nil)
	t.must(p.Ensure(t.Context(), noon))
	hi := time.Date(2026, 11, 22, 16, 0, 0, 0, time.UTC) // of the first one
	expiry := hi.Add(24*time.Hour + 5*time.Minute)       // retention and margin
	t.must(p.Prune(t.Context(), expiry))
	if got := t.children("crossfade_ledger")[0]; got != "crossfade_ledger_20261122t120000" {
		t.Errorf("at the end of its retention the first partition is %s", got)
	}
	t.must(p.Prune(t.Context(), expiry.Add(time.Microsecond)))
	if got := t.children("crossfade_ledger")[0]; got != "crossfade_ledger_20261122t160000" {
		t.Errorf("after its retention the first partition is %s", got)
	}
}

func TestPruneDeletesMixedPartitionsInChunks(tt *testing.T) {
	t := newPartitionTest(tt, "")
	for n := range 35 {
		t.remember(id(time.Time{}, n), noon.Add(-25*time.Hour))
		t.remember(id(noon.AddDate(2, 0, 0), n), noon.Add(-25*time.Hour))
	}
	for n := 35; n < 40; n++ {
		t.remember(id(time.Time{}, n), noon.Add(-24*time.Hour))
		t.remember(id(noon.AddDate(2, 0, 0), n), noon.Add(-24*time.Hour))
	}
	t.must(t.partitions(func(o *store.PartitionOptions) { o.Chunk = 10 }).Prune(t.Context(), noon))
	left := t.strings(`SELECT tableoid::regclass::text || ' ' || count(*) FROM crossfade_ledger GROUP BY tableoid ORDER BY 1`)
	if !slices.Equal(left, []string{"crossfade_ledger_other 5", "crossfade_ledger_untimed 5"}) {
		t.Errorf("left: %v", left)
	}
}

func TestTelemetryRetention(tt *testing.T) {
	t := newPartitionTest(tt, "")
	keep := t.partitions(nil)
	t.must(keep.Ensure(t.Context(), noon.AddDate(0, 0, -5)))
	ages := []time.Time{noon.AddDate(0, 0, -6), noon.AddDate(-3, 0, 0), noon.AddDate(0, 0, -2), noon}
	for _, at := range ages {
		t.exec(`INSERT INTO telemetry VALUES ($1, 't1', 'd1', 's1', 'telemetry', 1, '{}')`, at)
	}
	t.must(keep.Prune(t.Context(), noon))
	if n := t.strings(`SELECT count(*)::text FROM telemetry`)[0]; n != "4" {
		t.Errorf("without a retention %s of 4 rows are left", n)
	}
	drop := t.partitions(func(o *store.PartitionOptions) { o.TelemetryRetention = 72 * time.Hour })
	t.must(drop.Prune(t.Context(), noon))
	if got := t.strings(`SELECT time::date::text FROM telemetry ORDER BY 1`); !slices.Equal(got, []string{"2026-11-21", "2026-11-23"}) {
		t.Errorf("left: %v", got)
	}
	short := t.partitions(func(o *store.PartitionOptions) { o.TelemetryRetention = time.Hour })
	t.must(short.Ensure(t.Context(), noon))
	made := t.children("telemetry")
	t.must(short.Prune(t.Context(), noon))
	t.must(short.Ensure(t.Context(), noon))
	if slices.Contains(t.children("telemetry"), "telemetry_20261122") {
		t.Errorf("Ensure makes what Prune drops: %v, first %v", t.children("telemetry"), made)
	}
}

// TestBusyTableIsLeftForLater: somebody reads the DEFAULT partition in a long
// transaction. Maintenance gives up in bounded time, says so, and leaves the
// tables as they were; ingest goes on.
func TestBusyTableIsLeftForLater(tt *testing.T) {
	t := newPartitionTest(tt, "")
	p := t.partitions(func(o *store.PartitionOptions) { o.LockTimeout, o.Attempts = 20*time.Millisecond, 2 })
	reader, err := t.pool.Begin(t.Context())
	t.must(err)
	defer func() { _ = reader.Rollback(context.Background()) }()
	_, err = reader.Exec(t.Context(), `SELECT count(*) FROM telemetry`)
	t.must(err)

	err = p.Ensure(t.Context(), noon)
	if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "telemetry_20261121") {
		t.Errorf("got %v, want one that names the partition", err)
	}
	if len(t.children("telemetry")) != 1 || len(t.children("crossfade_ledger")) != 21 {
		t.Errorf("telemetry %v, ledger %v", t.children("telemetry"), t.children("crossfade_ledger"))
	}
	t.exec(`INSERT INTO telemetry VALUES ($1, 't1', 'd1', 's1', 'telemetry', 1, '{}')`, noon)
	t.must(reader.Commit(t.Context()))
	t.must(p.Ensure(t.Context(), noon))
}

// TestRunMaintainsAndEnds: it makes what is missing, drops what is too old, and ends
// with its context.
func TestRunMaintainsAndEnds(tt *testing.T) {
	t := newPartitionTest(tt, "")
	p := t.partitions(func(o *store.PartitionOptions) { o.TelemetryRetention = time.Hour })
	t.exec(`INSERT INTO telemetry VALUES ('2020-01-01', 't1', 'd1', 's1', 'telemetry', 1, '{}')`)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	for len(t.children("quarantine_events")) < 7 || t.strings(`SELECT count(*)::text FROM telemetry`)[0] != "0" {
		if ctx.Err() != nil {
			t.Fatalf("quarantine_events %v, telemetry %v", t.children("quarantine_events"), t.strings(`SELECT time::text FROM telemetry`))
		}
	}
	cancel()
	<-done
}

func TestPartitionOptionsValidate(tt *testing.T) {
	t := partitionTest{T: tt}
	t.must(store.DefaultPartitionOptions().Validate())
	for field, change := range map[string]func(*store.PartitionOptions){
		"LedgerRetention":     func(o *store.PartitionOptions) { o.LedgerRetention = 59 * time.Minute },
		"LedgerWidth":         func(o *store.PartitionOptions) { o.LedgerWidth = 90 * time.Second },
		"LedgerAhead":         func(o *store.PartitionOptions) { o.LedgerAhead = -1 },
		"TelemetryAhead":      func(o *store.PartitionOptions) { o.TelemetryAhead = -1 },
		"TelemetryRetention":  func(o *store.PartitionOptions) { o.TelemetryRetention = time.Minute },
		"QuarantineRetention": func(o *store.PartitionOptions) { o.QuarantineRetention = -1 },
		"Chunk":               func(o *store.PartitionOptions) { o.Chunk = 0 },
		"LockTimeout":         func(o *store.PartitionOptions) { o.LockTimeout = time.Minute },
		"Attempts":            func(o *store.PartitionOptions) { o.Attempts = 0 },
		"Interval":            func(o *store.PartitionOptions) { o.Interval = 0 },
	} {
		o := store.DefaultPartitionOptions()
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), field+" is ") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestPruneForgetsParity after seven days, in any number of steps.
func TestPruneForgetsParity(tt *testing.T) {
	t := newPartitionTest(tt, "")
	t.exec(`INSERT INTO crossfade_parity (tenant_id, minute, matched, skew_ms_buckets)
		SELECT 't' || n, $1::timestamptz - make_interval(days => n), 1, '{}' FROM generate_series(0, 14) AS n`, noon)
	t.exec(`INSERT INTO crossfade_parity_samples (tenant_id, at, message_id, what, path, digest, other_digest, sample)
		SELECT 't' || n, $1::timestamptz - make_interval(days => n), gen_random_uuid(), 'mismatched', 2, 1, 2, '{}' FROM generate_series(0, 14) AS n`, noon)
	t.must(t.partitions(func(o *store.PartitionOptions) { o.Chunk = 3 }).Prune(t.Context(), noon))
	for _, table := range []string{"crossfade_parity", "crossfade_parity_samples"} {
		if left := t.strings(`SELECT tenant_id FROM ` + table + ` ORDER BY length(tenant_id), tenant_id`); strings.Join(left, " ") != "t0 t1 t2 t3 t4 t5 t6 t7" {
			t.Errorf("%s keeps %v", table, left)
		}
	}
}
