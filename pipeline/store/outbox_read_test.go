package store_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline/store"
)

// fill adds n rows to a lane, of as many devices as are named; lane -1 is all of them
// in turn.
func (t storeTest) fill(lane int, tenant string, devices, n, bytes int) {
	t.Helper()
	t.exec(`INSERT INTO crossfade_outbox (lane, tenant_id, device_id, route_id, message_id, body)
	SELECT CASE WHEN $1 < 0 THEN i % 64 ELSE $1 END, $2, 'd' || i % $3::int, '1', gen_random_uuid(), convert_to(repeat('x', $5), 'UTF8')
	  FROM generate_series(0, $4::int - 1) AS i`, lane, tenant, devices, n, bytes)
}

// all is a publisher that holds every lane.
func (t storeTest) all() *store.Lanes {
	t.Helper()
	l := t.lanes()
	t.must(l.Balance(t.Context()))
	return l
}

// visited is how many rows and index entries of the outbox the sessions of an
// application look at while f runs, which ends them.
func (t storeTest) visited(application string, f func()) int {
	t.Helper()
	const so = `SELECT sum(pg_stat_get_tuples_returned(c) + pg_stat_get_tuples_fetched(c))
		FROM unnest(ARRAY['crossfade_outbox', 'crossfade_outbox_pkey', 'crossfade_outbox_created_at']::regclass[]) AS c`
	t.exec(`SELECT pg_stat_force_next_flush()`)
	before := t.count(so)
	f()
	t.eventually("the sessions have ended", func() bool { // they tell the statistics before that
		return t.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1 AND pid <> pg_backend_pid()`, application) == 0
	})
	return t.count(so) - before
}

// TestBacklogsCostNothing: a turn looks at what it returns, and not at what rests or
// waits behind it, however much that is (P6).
func TestBacklogsCostNothing(tt *testing.T) {
	t := newStoreTest(tt)
	const reads = 10
	t.exec(`ALTER TABLE crossfade_outbox SET (autovacuum_enabled = off)`) // it would count, too
	t.fill(-1, "bad", 20_000, 100_000, 10)
	t.fill(-1, "good", 64, 64, 10)
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			t.exec(`ANALYZE crossfade_outbox`)
		}
		l := t.all()
		n := t.visited("crossfade routes", func() {
			for range reads {
				if rows := t.read(l, 64, 1<<20, "bad"); len(rows) != 64 || rows[0].Tenant != "good" {
					t.Fatalf("read %d rows, want those of the other tenant", len(rows))
				}
			}
			l.Close()
		})
		if n > reads*64*25 {
			t.Errorf("analyzed %v: to find one row in each of 64 lanes, %d rows and index entries were visited", analyzed, n/reads)
		}
		l = t.all()
		n = t.visited("crossfade routes", func() {
			for range reads {
				if rows := t.read(l, 10, 1<<20); len(rows) != 6*64 { // five of ten, and one
					t.Fatalf("read %d rows, want 384", len(rows))
				}
			}
			l.Close()
		})
		if n > reads*6*64*25 {
			t.Errorf("analyzed %v: to read 384 rows, %d rows and index entries were visited", analyzed, n/reads)
		}
	}
}

// TestSettlingABacklogReadsWhatItDeletes: also with statements that were first used
// when the table was small.
func TestSettlingABacklogReadsWhatItDeletes(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`ALTER TABLE crossfade_outbox SET (autovacuum_enabled = off)`)
	c := store.DefaultConfig(t.url)
	c.MaxConns = 2
	s, err := store.Open(t.Context(), c)
	t.must(err)
	l := t.all()
	settled := 0
	n := t.visited("crossfade", func() {
		defer s.Close()
		for i := range 20 {
			if i == 10 {
				t.fill(-1, "t1", 1000, 50_000, 10)
			}
			t.fill(-1, "t1", 10, 10, 10)
			rows := t.read(l, 1, 1<<20)
			settled += len(rows)
			t.must(s.SettleOutbox(t.Context(), rows[1:], []store.Parked{{OutboxRow: rows[0], Reason: "x"}}))
		}
	})
	l.Close()
	t.wantCount(50_000+200-settled, `SELECT count(*) FROM crossfade_outbox`)
	if n > 20*settled {
		t.Errorf("to delete %d rows, %d rows and index entries were visited", settled, n)
	}
}

// devicesOf counts the rows of each tenant and device.
func devicesOf(rows []store.OutboxRow) map[string]int {
	m := make(map[string]int)
	for _, r := range rows {
		m[r.Tenant+"/"+r.Device]++
	}
	return m
}

// TestTenantsShareALane: one that floods a lane leaves the others their shares of each
// turn, in rows and in bytes.
func TestTenantsShareALane(tt *testing.T) {
	t := newStoreTest(tt)
	t.fill(7, "flood", 1, 1000, 1000)
	t.fill(7, "a", 1, 5, 10)
	t.fill(7, "z", 1, 5, 10)
	l := t.all()
	if got := fmt.Sprint(devicesOf(t.read(l, 9, 64<<20))); got != "map[a/d0:3 flood/d0:3 z/d0:3]" {
		t.Errorf("three tenants get %s", got)
	}
	for range 10 { // the lane's ring begins at another each time
		if got := devicesOf(t.read(l, 9, 64*1100)); got["a/d0"] == 0 || got["z/d0"] == 0 || got["flood/d0"] == 0 || got["flood/d0"] > 2 {
			t.Errorf("with bytes for about one large row, three tenants get %v", got)
		}
	}
	if got := fmt.Sprint(devicesOf(t.read(l, 9, 64<<20, "flood", "a"))); got != "map[z/d0:5]" {
		t.Errorf("alone, z gets %s", got)
	}
}

// TestEverybodysTurnComes, though a turn has room for few: tenants, devices of a
// tenant, and both behind more resting tenants than a turn passes by.
func TestEverybodysTurnComes(tt *testing.T) {
	t := newStoreTest(tt)
	var resting []string
	for i := range 300 {
		resting = append(resting, fmt.Sprintf("r%03d", i))
		t.fill(0, resting[i], 1, 1, 10)
	}
	for i := range 30 {
		t.fill(0, fmt.Sprintf("a%d", i), 1, 2, 10)
		t.fill(1, fmt.Sprintf("b%d", i), 3, 6, 1000)
	}
	t.fill(2, "t1", 1, 500, 10) // all of device d0
	t.fill(2, "t1", 40, 40, 10)
	l := t.all()
	seen := make(map[string]int)
	for range 40 {
		for device, n := range devicesOf(t.read(l, 4, 64*2500, resting...)) {
			seen[device] += n
		}
	}
	want := 30 + 90 + 40
	if len(seen) != want {
		t.Errorf("%d of %d devices had their turn", len(seen), want)
	}
	most := slices.MaxFunc(slices.Collect(values(seen)), cmp.Compare[int])
	if most > 40 {
		t.Errorf("a device had %d rows in 40 turns: %v", most, seen)
	}
}

func values(m map[string]int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for _, n := range m {
			if !yield(n) {
				return
			}
		}
	}
}

// TestMessagesDoNotWaitBehindTheResting: one turn reaches a tenant that comes after
// more resting ones than it has room for.
func TestMessagesDoNotWaitBehindTheResting(tt *testing.T) {
	t := newStoreTest(tt)
	var resting []string
	for i := range 200 {
		resting = append(resting, fmt.Sprintf("r%03d", i))
		t.fill(0, resting[i], 1, 1, 10)
	}
	t.fill(0, "z", 1, 1, 10)
	if rows := t.read(t.all(), 4, 1<<20, resting...); len(rows) != 1 || rows[0].Tenant != "z" {
		t.Errorf("read %+v, want the row of z", rows)
	}
}

// TestOutboxDrainsInOrder: whatever part of a turn is published, a device's rows come
// in order, none comes again and none is left.
func TestOutboxDrainsInOrder(tt *testing.T) {
	t := newStoreTest(tt)
	for i := range 12 {
		t.fill(i%3, fmt.Sprintf("t%d", i), 1+i, 20*(1+i%4), 100)
	}
	left := t.count(`SELECT count(*) FROM crossfade_outbox`)
	l := t.all()
	random := rand.New(rand.NewPCG(1, 2))
	order := make(map[string]int64)
	for turn := 0; left > 0; turn++ {
		if turn > 2000 {
			t.Fatalf("%d rows are left", left)
		}
		var except []string
		for i := range 12 {
			if random.IntN(4) == 0 {
				except = append(except, fmt.Sprintf("t%d", i))
			}
		}
		var published []store.OutboxRow
		failed := make(map[string]bool)
		for _, r := range t.read(l, 1+random.IntN(20), 64*(1+random.IntN(1000)), except...) {
			key := r.Tenant + "/" + r.Device
			failed[key] = failed[key] || random.IntN(5) == 0
			if slices.Contains(except, r.Tenant) {
				t.Fatalf("row of %s, which rests", r.Tenant)
			}
			if failed[key] {
				continue
			}
			if next := t.count(`SELECT min(id) FROM crossfade_outbox WHERE tenant_id = $1 AND device_id = $2 AND id > $3`, r.Tenant, r.Device, order[key]); int64(next) != r.ID {
				t.Fatalf("%s: row %d comes after %d, want %d", key, r.ID, order[key], next)
			}
			order[key] = r.ID
			published = append(published, r)
		}
		t.must(t.SettleOutbox(t.Context(), published, nil))
		left -= len(published)
	}
	t.wantCount(0, `SELECT count(*) FROM crossfade_outbox`)
}
