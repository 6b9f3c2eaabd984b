package store_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline/store"
)

// TestAdoptedTablesKeepTheirShape: a plain telemetry stays plain, one that is
// partitioned in another way gets what it lacks.
func TestAdoptedTablesKeepTheirShape(tt *testing.T) {
	tt.Run("plain", func(tt *testing.T) {
		t := newPartitionTest(tt, `CREATE TABLE telemetry (time timestamptz NOT NULL, tenant_id text NOT NULL, device_id text NOT NULL)`)
		p := t.partitions(func(o *store.PartitionOptions) { o.TelemetryRetention = time.Hour })
		t.exec(`INSERT INTO telemetry (time, tenant_id, device_id) VALUES ('2020-01-01', 't1', 'd1')`)
		t.must(p.Ensure(t.Context(), noon))
		t.must(p.Prune(t.Context(), noon))
		if n := t.strings(`SELECT count(*)::text FROM telemetry`)[0]; n != "1" || len(t.children("telemetry")) != 0 {
			t.Errorf("%s rows and partitions %v", n, t.children("telemetry"))
		}
		if len(t.children("crossfade_ledger")) != 21 {
			t.Errorf("ledger: %v", t.children("crossfade_ledger"))
		}
	})
	tt.Run("partitioned by someone else", func(tt *testing.T) {
		t := newPartitionTest(tt, `
			SET timezone = 'America/New_York';
			CREATE TABLE telemetry (time timestamptz NOT NULL, tenant_id text NOT NULL, device_id text NOT NULL) PARTITION BY RANGE (time);
			CREATE TABLE telemetry_november PARTITION OF telemetry FOR VALUES FROM ('2026-11-01') TO ('2026-11-25')`)
		p := t.partitions(nil)
		t.must(p.Ensure(t.Context(), noon))
		want := []string{"telemetry_20261125t050000", "telemetry_20261126", "telemetry_default", "telemetry_november"}
		if got := t.children("telemetry"); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		for _, far := range []string{"0001-01-01", "1970-01-01", "9999-12-31"} {
			t.exec(`INSERT INTO telemetry (time, tenant_id, device_id) VALUES ($1, 't1', 'd1')`, far)
		}
	})
	tt.Run("by their days, under our names, and to the ends of time", func(tt *testing.T) {
		t := newPartitionTest(tt, `
			CREATE TABLE telemetry (time timestamptz NOT NULL, tenant_id text NOT NULL, device_id text NOT NULL) PARTITION BY RANGE (time);
			CREATE TABLE telemetry_old PARTITION OF telemetry FOR VALUES FROM ('0001-01-01 00:00+01') TO ('2001-01-01Z');
			CREATE TABLE telemetry_20261122 PARTITION OF telemetry FOR VALUES FROM ('2026-11-22 05:00Z') TO ('2026-11-23 05:00Z');
			CREATE TABLE telemetry_new PARTITION OF telemetry FOR VALUES FROM ('2099-01-01Z') TO ('9999-12-31 23:59-01')`)
		p := t.partitions(func(o *store.PartitionOptions) { o.TelemetryRetention = 100 * 24 * time.Hour })
		t.must(p.Ensure(t.Context(), noon))
		t.must(p.Prune(t.Context(), noon))
		want := []string{"telemetry_20261121", "telemetry_20261122", "telemetry_20261122t000000", "telemetry_20261123t050000", "telemetry_20261124",
			"telemetry_20261125", "telemetry_20261126", "telemetry_default", "telemetry_new"}
		if got := t.children("telemetry"); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	tt.Run("whose default cannot be made", func(tt *testing.T) {
		t := newPartitionTest(tt, `
			CREATE TABLE telemetry (time timestamptz NOT NULL, tenant_id text NOT NULL, device_id text NOT NULL) PARTITION BY RANGE (time);
			CREATE TABLE telemetry_default PARTITION OF telemetry FOR VALUES FROM ('2020-01-01Z') TO ('2026-11-24Z')`)
		if err := t.partitions(nil).Ensure(t.Context(), noon); err == nil || !strings.Contains(err.Error(), "telemetry_default") {
			t.Errorf("got %v, want one that names the default partition", err)
		}
		want := []string{"telemetry_20261124", "telemetry_20261125", "telemetry_20261126", "telemetry_default"}
		if got := t.children("telemetry"); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	tt.Run("another width", func(tt *testing.T) {
		t := newPartitionTest(tt, "")
		t.must(t.partitions(nil).Ensure(t.Context(), noon))
		before := len(t.children("crossfade_ledger"))
		t.must(t.partitions(func(o *store.PartitionOptions) { o.LedgerWidth = 3 * time.Hour }).Ensure(t.Context(), noon.Add(13*time.Hour)))
		if got := len(t.children("crossfade_ledger")); got <= before {
			t.Errorf("%d partitions before and %d after", before, got)
		}
		// Width 4 h ended at 16:00 on the 25th, in the middle of a width of 3 h.
		if got := t.children("crossfade_ledger"); !slices.Contains(got, "crossfade_ledger_20261125t160000") || slices.Contains(got, "crossfade_ledger_20261125t150000") {
			t.Errorf("got %v", got)
		}
	})
}

// TestPartitionsAnywhere: days are UTC's, whatever the server's time zone and date style.
func TestPartitionsAnywhere(tt *testing.T) {
	t := newPartitionTest(tt, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Kolkata''', current_database());
		EXECUTE format('ALTER DATABASE %I SET datestyle = ''SQL, DMY''', current_database()); END $$`)
	p := t.partitions(func(o *store.PartitionOptions) { o.TelemetryRetention = 24 * time.Hour })
	for range 2 {
		t.must(p.Ensure(t.Context(), noon))
		t.must(p.Prune(t.Context(), noon))
	}
	want := []string{"telemetry_20261122", "telemetry_20261123", "telemetry_20261124", "telemetry_20261125", "telemetry_20261126", "telemetry_default"}
	if got := t.children("telemetry"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	t.exec(`INSERT INTO telemetry VALUES ('2026-11-24 00:00Z', 't1', 'd1', 's1', 'telemetry', 1, '{}'), ('2026-11-23 23:59:59.999999Z', 't1', 'd1', 's1', 'telemetry', 2, '{}')`)
	if got := t.strings(`SELECT tableoid::regclass::text FROM telemetry ORDER BY seq`); !slices.Equal(got, []string{"telemetry_20261124", "telemetry_20261123"}) {
		t.Errorf("midnight is in %v", got)
	}
}

// TestOnePartitionsTroubleIsItsOwn: a partition that cannot be made, or dropped, is
// named, and keeps no other from its turn.
func TestOnePartitionsTroubleIsItsOwn(tt *testing.T) {
	t := newPartitionTest(tt, "")
	p := t.partitions(func(o *store.PartitionOptions) { o.TelemetryRetention = 24 * time.Hour })
	t.exec(`CREATE TABLE telemetry_20261121 (); CREATE TABLE telemetry_20261121t000000 ()`)
	early := noon.AddDate(0, 0, -2)
	if err := p.Ensure(t.Context(), early.AddDate(0, 0, 1)); err == nil || !strings.Contains(err.Error(), "telemetry_20261121t000000") {
		t.Errorf("got %v, want one that names the partition", err)
	}
	t.exec(`DROP TABLE telemetry_20261121; ALTER TABLE telemetry_20261121t000000 RENAME TO telemetry_20261121`) // as one that was detached
	t.must(p.Ensure(t.Context(), early))
	want := []string{"telemetry_20261120", "telemetry_20261121t000000", "telemetry_20261122", "telemetry_20261123", "telemetry_20261124", "telemetry_20261125", "telemetry_default"}
	if got := t.children("telemetry"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	t.exec(`CREATE VIEW theirs AS SELECT * FROM telemetry_20261120`)
	t.exec(`INSERT INTO telemetry VALUES ('1970-01-01', 't1', 'd1', 's1', 'telemetry', 1, '{}')`)
	if err := p.Prune(t.Context(), noon.AddDate(0, 0, 1)); err == nil || !strings.Contains(err.Error(), "telemetry_20261120") || strings.Contains(err.Error(), "telemetry_20261121") {
		t.Errorf("got %v, want one that names the partition", err)
	}
	if got := t.children("telemetry"); !slices.Equal(got, append(want[:1:1], want[3:]...)) {
		t.Errorf("after it: %v", got)
	}
	if n := t.strings(`SELECT count(*)::text FROM telemetry`)[0]; n != "0" {
		t.Errorf("%s rows are left in the default partition", n)
	}
}
