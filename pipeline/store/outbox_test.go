package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline/route"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// outbox commits one message of each device, for one route.
func (t storeTest) outbox(devices int) {
	t.Helper()
	r := testRoute(t.T, "1")
	var entries []store.Entry
	for i := range devices {
		e := entryOf(copyOf(fmt.Sprintf("tenant/t1/device/d%d/telemetry", i), fmt.Sprintf(`{"site_id":"s1","seq":%d}`, time.Now().UnixNano()), noon))
		e.Routes = []*route.Route{r}
		entries = append(entries, e)
	}
	t.wantFresh("messages", devices, entries...)
}

// eventually waits for a condition.
func (t storeTest) eventually(what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline.C:
			t.Fatalf("in vain: %s", what)
		case <-tick.C:
		}
	}
}

func (t storeTest) lanes() *store.Lanes {
	t.Helper()
	l, err := t.OpenLanes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func (t storeTest) read(l *store.Lanes, perLane, maxBytes int, except ...string) []store.OutboxRow {
	t.Helper()
	rows, err := l.Read(t.Context(), perLane, maxBytes, except)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// TestLanesAreShared: whoever comes gets its share, whoever goes leaves it, and no
// lane has two owners.
func TestLanesAreShared(tt *testing.T) {
	t := newStoreTest(tt)
	publishers := []*store.Lanes{t.lanes()}
	settle := func() (sizes []int) {
		t.Helper()
		for range len(publishers) + 2 {
			for _, l := range publishers {
				t.must(l.Balance(t.Context()))
			}
		}
		var all []int16
		for _, l := range publishers {
			all = append(all, l.Held()...)
			sizes = append(sizes, len(l.Held()))
		}
		slices.Sort(all)
		if len(slices.Compact(all)) != store.OutboxLanes {
			t.Errorf("lanes %v are held, want every one once", all)
		}
		return sizes
	}
	if sizes := settle(); fmt.Sprint(sizes) != "[64]" {
		t.Errorf("one publisher holds %v", sizes)
	}
	publishers = append(publishers, t.lanes(), t.lanes())
	if sizes := settle(); fmt.Sprint(sizes) != "[22 22 20]" && fmt.Sprint(sizes) != "[22 20 22]" && fmt.Sprint(sizes) != "[22 21 21]" {
		t.Errorf("three publishers hold %v", sizes)
	}
	publishers[0].Close()
	publishers = publishers[1:]
	t.eventually("the closed session's locks are gone", func() bool {
		return t.count(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid::int8 = 2019979106 AND granted
			AND pid NOT IN (SELECT pid FROM pg_stat_activity)`) == 0 &&
			t.count(`SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crossfade routes' AND datname = current_database()`) == 2
	})
	if sizes := settle(); fmt.Sprint(sizes) != "[32 32]" {
		t.Errorf("two publishers hold %v", sizes)
	}
}

func TestReadLanes(tt *testing.T) {
	t := newStoreTest(tt)
	t.outbox(200)
	t.outbox(200)
	l, other := t.lanes(), t.lanes()
	if rows := t.read(l, 100, 1<<20); len(rows) != 0 {
		t.Fatalf("read %d rows and holds no lane", len(rows))
	}
	for range 3 {
		t.must(l.Balance(t.Context()))
		t.must(other.Balance(t.Context()))
	}
	mine, theirs := t.read(l, 1000, 1<<30), t.read(other, 1000, 1<<30)
	seen := make(map[int64]bool)
	order := make(map[string]int64)
	for _, r := range slices.Concat(mine, theirs) {
		if seen[r.ID] || r.ID <= order[r.Device] {
			t.Errorf("row %d of %s comes twice or out of order", r.ID, r.Device)
		}
		seen[r.ID], order[r.Device] = true, r.ID
	}
	if len(seen) != 400 || len(mine) < 100 || len(theirs) < 100 {
		t.Errorf("read %d and %d rows, want 400 in all", len(mine), len(theirs))
	}
	if rows := t.read(l, 1, 1<<30); len(rows) > 32 {
		t.Errorf("read %d rows of 32 lanes, one of each", len(rows))
	}
	if rows := t.read(l, 1000, 1); len(rows) > 32 || len(rows) == 0 {
		t.Errorf("read %d rows within one byte, want one of each lane", len(rows))
	}
	if rows := t.read(l, 1000, 1<<30, "t1"); len(rows) != 0 {
		t.Errorf("read %d rows of a tenant that is to be left out", len(rows))
	}
}

func TestSettleOutbox(tt *testing.T) {
	t := newStoreTest(tt)
	t.outbox(10)
	l := t.lanes()
	t.must(l.Balance(t.Context()))
	rows := t.read(l, 100, 1<<20)
	parked := []store.Parked{{OutboxRow: rows[3], Reason: "too large"}}
	for range 2 { // it may be repeated
		t.must(t.SettleOutbox(t.Context(), rows[:3], parked))
		t.wantCount(6, `SELECT count(*) FROM crossfade_outbox`)
		t.wantCount(1, `SELECT count(*) FROM crossfade_outbox_parked WHERE reason = 'too large' AND id = $1`, rows[3].ID)
	}
	b, err := t.OutboxBacklog(t.Context())
	t.must(err)
	if b.Rows != 6 || b.Parked != 1 || b.Oldest <= 0 {
		t.Errorf("backlog is %+v", b)
	}
	t.must(t.PruneParked(t.Context()))
	t.wantCount(1, `SELECT count(*) FROM crossfade_outbox_parked`)
	t.exec(`UPDATE crossfade_outbox_parked SET parked_at = now() - interval '8 days'`)
	t.exec(`INSERT INTO crossfade_outbox_parked (id, tenant_id, device_id, route_id, message_id, body, lane, created_at, parked_at, reason)
	SELECT -n, 't', 'd', '1', gen_random_uuid(), '', 0, now(), now() - interval '8 days', 'x' FROM generate_series(1, 12000) AS n`)
	t.must(t.PruneParked(t.Context()))
	t.wantCount(0, `SELECT count(*) FROM crossfade_outbox_parked`)
}

// TestParkedRowsComeBack is the statement in docs/routes.md.
func TestParkedRowsComeBack(tt *testing.T) {
	t := newStoreTest(tt)
	t.outbox(1)
	l := t.lanes()
	t.must(l.Balance(t.Context()))
	rows := t.read(l, 100, 1<<20)
	t.must(t.SettleOutbox(t.Context(), nil, []store.Parked{{OutboxRow: rows[0], Reason: "x"}}))
	t.exec(`WITH back AS (DELETE FROM crossfade_outbox_parked WHERE tenant_id = 't1' RETURNING *)
INSERT INTO crossfade_outbox (lane, tenant_id, device_id, route_id, message_id, body, created_at)
SELECT lane, tenant_id, device_id, route_id, message_id, body, created_at FROM back ORDER BY id`)
	again := t.read(l, 100, 1<<20)
	if len(again) != 1 || again[0].PublishID() != rows[0].PublishID() || string(again[0].Body) != string(rows[0].Body) {
		t.Errorf("%+v came back as %+v", rows, again)
	}
}

// TestWaitIsTold: a commit wakes a publisher, also one that came since the last read.
func TestWaitIsTold(tt *testing.T) {
	t := newStoreTest(tt)
	l := t.lanes()
	t.must(l.Balance(t.Context()))
	t.read(l, 100, 1<<20)
	t.outbox(1)
	began := time.Now()
	t.must(l.Wait(t.Context(), time.Minute))
	if time.Since(began) > 30*time.Second {
		t.Error("the commit did not wake the publisher")
	}
	t.read(l, 100, 1<<20)
	t.must(l.Wait(t.Context(), 10*time.Millisecond)) // nothing came, and that is no error
	t.outbox(1)
	t.must(l.Balance(t.Context())) // takes the notification in
	t.must(l.Wait(t.Context(), time.Minute))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	t.read(l, 100, 1<<20)
	if err := l.Wait(ctx, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
	if rows := t.read(l, 100, 1<<20); len(rows) != 2 {
		t.Errorf("%d rows after an ended wait, want 2: the connection should be as good as before", len(rows))
	}
}

// TestLostSessionLosesItsLanes: what the lock depends on.
func TestLostSessionLosesItsLanes(tt *testing.T) {
	t := newStoreTest(tt)
	l, other := t.lanes(), t.lanes()
	t.must(l.Balance(t.Context()))
	t.exec(`SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid::int8 = 2019979106 AND granted`)
	if err := l.Wait(t.Context(), time.Minute); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Wait on a lost session: %v", err)
	}
	if _, err := l.Read(t.Context(), 1, 1, nil); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Read on a lost session: %v", err)
	}
	t.eventually("the other has every lane", func() bool {
		t.must(other.Balance(t.Context()))
		return len(other.Held()) == store.OutboxLanes
	})
}

// TestAFrozenHolderLosesItsLanes: the machine of one that is stopped still answers for
// its connection, and only PostgreSQL's patience frees its lanes. That is longer than a
// turn of publishing can last, or two would publish at once.
func TestAFrozenHolderLosesItsLanes(tt *testing.T) {
	t := newStoreTest(tt)
	value, err := t.lanes().Setting(t.Context(), "idle_session_timeout")
	t.must(err)
	if value != "1min" {
		t.Errorf("idle_session_timeout is %s, want 1min", value)
	}
}
