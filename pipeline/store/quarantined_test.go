package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

func idsOf(rows []store.Quarantined) (ids []int64) {
	for _, r := range rows {
		ids = append(ids, r.ID)
	}
	return ids
}

// insertRows makes rows 1 to 8: tenants a and b in turn, then one without any;
// devices d0 to d2; two reasons; an hour apart from noon on.
func insertRows(t storeTest) {
	t.exec(`INSERT INTO quarantine_events (id, ingested_at, tenant_id, device_id, reason, raw) OVERRIDING SYSTEM VALUE
	 SELECT n, $1::timestamptz + n * interval '1 hour', CASE WHEN n < 8 THEN chr(97 + n % 2) END, 'd' || n % 3,
	        CASE WHEN n % 4 = 0 THEN 'TOKEN_INVALID' ELSE 'MISSING_SITE_ID' END, 'x'
	   FROM generate_series(1, 8) AS n`, noon)
}

func TestQuarantineFilter(tt *testing.T) {
	t := newStoreTest(tt)
	insertRows(t)
	for _, c := range []struct {
		name string
		f    store.QuarantineFilter
		want []int64
	}{
		{"all", store.QuarantineFilter{}, []int64{1, 2, 3, 4, 5, 6, 7, 8}},
		{"tenant", store.QuarantineFilter{Tenants: []string{"a"}}, []int64{2, 4, 6}},
		{"two tenants", store.QuarantineFilter{Tenants: []string{"a", "b"}}, []int64{1, 2, 3, 4, 5, 6, 7}},
		{"no tenant", store.QuarantineFilter{Tenants: []string{""}}, []int64{8}},
		{"device", store.QuarantineFilter{Devices: []string{"d0"}}, []int64{3, 6}},
		{"reason", store.QuarantineFilter{Reasons: []pipeline.Reason{pipeline.TokenInvalid}}, []int64{4, 8}},
		{"since", store.QuarantineFilter{Since: noon.Add(6 * time.Hour)}, []int64{6, 7, 8}},
		{"until", store.QuarantineFilter{Until: noon.Add(3 * time.Hour)}, []int64{1, 2}},
		{"IDs", store.QuarantineFilter{IDs: []int64{3, 5, 99}}, []int64{3, 5}},
		{"together", store.QuarantineFilter{Tenants: []string{"a"}, Reasons: []pipeline.Reason{pipeline.TokenInvalid}, Since: noon, Until: noon.Add(24 * time.Hour)}, []int64{4}},
		{"none", store.QuarantineFilter{Tenants: []string{"a"}, Devices: []string{"x"}}, nil},
	} {
		n, span, err := t.CountQuarantined(t.Context(), c.f)
		t.must(err)
		if int(n) != len(c.want) || len(c.want) > 0 && (span.After != c.want[0]-1 || span.Upto != c.want[len(c.want)-1]) {
			t.Errorf("%s: counted %d within %v, want %v", c.name, n, span, c.want)
		}
		if got := idsOf(t.page(c.f)); !slices.Equal(got, c.want) {
			t.Errorf("%s: page %v, want %v", c.name, got, c.want)
		}
		newest, err := t.NewestQuarantined(t.Context(), c.f, 100)
		t.must(err)
		got := idsOf(newest)
		slices.Reverse(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: newest %v, want %v", c.name, got, c.want)
		}
		groups, err := t.QuarantineCounts(t.Context(), c.f)
		t.must(err)
		sum := 0
		for _, g := range groups {
			sum += int(g.Messages)
		}
		if sum != len(c.want) {
			t.Errorf("%s: groups %v, want %d", c.name, groups, len(c.want))
		}
	}
}

// arrive adds a row after all of insertRows'.
func arrive(t storeTest) {
	t.exec(`INSERT INTO quarantine_events (id, reason) OVERRIDING SYSTEM VALUE VALUES (9, 'MISSING_SITE_ID')`)
}

// TestQuarantinePages: a walk goes on after the last page, past rows that are gone, and
// ends before those that arrived after it began.
func TestQuarantinePages(tt *testing.T) {
	t := newStoreTest(tt)
	insertRows(t)
	_, span, err := t.CountQuarantined(t.Context(), store.QuarantineFilter{})
	t.must(err)
	arrive(t)
	t.exec(`DELETE FROM quarantine_events WHERE id = 4`)
	for after, want := range map[int64][]int64{2: {3, 5, 6}, 6: {7, 8}, 8: nil} {
		span.After = after
		rows, err := t.QuarantinedPage(t.Context(), store.QuarantineFilter{}, span, 3)
		t.must(err)
		if got := idsOf(rows); !slices.Equal(got, want) {
			t.Errorf("page after %d: %v, want %v", after, got, want)
		}
	}
}

// TestQuarantinePagesAreBounded: large bodies come in short pages, none is skipped.
func TestQuarantinePagesAreBounded(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO quarantine_events (reason, raw, payload)
	 SELECT 'X', CASE WHEN n < 8 THEN decode(repeat('ab', 5000000), 'hex') END, '{"a":1}' FROM generate_series(1, 8) AS n`)
	span, seen := everything, 0
	for {
		rows, err := t.QuarantinedPage(t.Context(), store.QuarantineFilter{}, span, 100)
		t.must(err)
		if len(rows) == 0 {
			break
		}
		size := 0
		for _, r := range rows {
			size += len(r.Raw)
		}
		if size > 22<<20 {
			t.Errorf("a page of %d bytes", size)
		}
		seen += len(rows)
		span.After = rows[len(rows)-1].ID
	}
	if seen != 8 {
		t.Errorf("%d rows, want 8", seen)
	}
}

func TestPurge(tt *testing.T) {
	t := newStoreTest(tt)
	t.quarantine(timed(1))
	t.exec(`DELETE FROM quarantine_events`)
	insertRows(t)
	f := store.QuarantineFilter{Reasons: []pipeline.Reason{pipeline.MissingSiteID}}
	_, span, err := t.CountQuarantined(t.Context(), f)
	t.must(err)
	arrive(t) // nobody was asked about it
	var deleted []int64
	for {
		n, last, done, err := t.PurgeQuarantined(t.Context(), f, span, 4)
		t.must(err)
		if done {
			break
		}
		deleted, span.After = append(deleted, n), last
	}
	if !slices.Equal(deleted, []int64{4, 2}) {
		t.Errorf("deleted %v", deleted)
	}
	if got := t.row("id", "quarantine_events ORDER BY id"); got != "4\n8\n9" {
		t.Errorf("left: %s", got)
	}
	t.wantFresh("a late copy of what was purged", 0, telemetry(timed(1)))
}

func TestOneQuarantined(tt *testing.T) {
	t := newStoreTest(tt)
	rows := t.quarantine(timed(1))
	q, ledger, err := t.OneQuarantined(t.Context(), rows[0].ID)
	t.must(err)
	if q == nil || string(q.Raw) != timed(1) || q.Payload == nil || ledger == nil || ledger.Written || ledger.Path != pipeline.PathMQTT || *q.MessageID != *rows[0].MessageID {
		t.Errorf("row %+v, ledger %+v", q, ledger)
	}
	t.exec(`TRUNCATE crossfade_ledger`)
	if q, ledger, err = t.OneQuarantined(t.Context(), rows[0].ID); q == nil || ledger != nil || err != nil {
		t.Errorf("forgotten: row %+v, ledger %+v, %v", q, ledger, err)
	}
	if q, _, err = t.OneQuarantined(t.Context(), -1); q != nil || err != nil {
		t.Errorf("no such row: %+v, %v", q, err)
	}
}

// TestWholeNames: a name that was cut must not be taken for a whole one.
func TestWholeNames(tt *testing.T) {
	t := newStoreTest(tt)
	for _, c := range []struct {
		tenant         string
		bare           bool
		topic, tenant_ bool
	}{
		{"t1", false, true, true},
		{"t1", true, true, true},
		{strings.Repeat("t", 63), true, true, true},
		{strings.Repeat("t", 64), true, true, false},
		{strings.Repeat("t", 300), false, true, false},
		{strings.Repeat("t", 300), true, false, false},
		{strings.Repeat("ü", 300), true, false, false},
		{"t\x00", false, false, false},
		{"t\xff", false, false, false},
	} {
		t.exec(`TRUNCATE quarantine_events, crossfade_ledger`)
		e := refuse(entryOf(copyOf(fmt.Sprintf("tenant/%s/device/d/telemetry", c.tenant), timed(1), noon)), pipeline.UnregisteredDevice)
		if c.bare {
			e.Bare = true
			e.Detail += store.Shortened + "for the test"
		}
		t.wantFresh("quarantine", 1, e)
		q := t.page(store.QuarantineFilter{})[0]
		if q.WholeTopic() != c.topic || q.WholeTenant() != c.tenant_ {
			t.Errorf("tenant %.20q (bare %v): whole topic %v, whole tenant %v", c.tenant, c.bare, q.WholeTopic(), q.WholeTenant())
		}
	}
}
