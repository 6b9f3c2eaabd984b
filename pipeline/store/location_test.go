package store_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// TestLocation: a payload's location moves the device's forward, unless an
// operator has set it.
func TestLocation(tt *testing.T) {
	t := newStoreTest(tt)
	at := func(n int, place string) store.Entry { return news("d1", "telemetry", n, place) }
	pinned := at(1, `,"lat":1,"lng":2`)
	pinned.Device.LocationPinned = true
	for _, c := range []struct {
		name    string
		source  any // with 8, 9 as the location; nil for none
		batches [][]store.Entry
		want    string
	}{
		{"short names", nil, [][]store.Entry{{at(1, `,"lat":52.1,"lng":4.3`)}}, "52.1 | 4.3 | auto"},
		{"long names", nil, [][]store.Entry{{at(1, `,"latitude":-90,"longitude":180`)}}, "-90 | 180 | auto"},
		{"mixed names", nil, [][]store.Entry{{at(1, `,"latitude":7,"lat":null,"lng":0`)}}, "7 | 0 | auto"},
		{"both names", nil, [][]store.Entry{{at(1, `,"latitude":7,"lat":6,"longitude":5,"lng":4`)}}, "6 | 4 | auto"},
		{"half", nil, [][]store.Entry{{at(1, `,"lat":52.1`)}}, "- | - | -"},
		{"not on Earth", nil, [][]store.Entry{{at(1, `,"lat":90.1,"lng":1`), at(2, `,"lat":9,"lng":-180.5`)}}, "- | - | -"},
		{"infinite", nil, [][]store.Entry{{at(1, `,"lat":1e999,"lng":1`)}}, "- | - | -"},
		{"text", nil, [][]store.Entry{{at(1, `,"lat":"1","lng":"1"`)}}, "- | - | -"},
		{"moves", "auto", [][]store.Entry{{at(1, `,"lat":1,"lng":2`)}, {at(2, `,"lat":3,"lng":4`)}}, "3 | 4 | auto"},
		{"out of order", nil, [][]store.Entry{{at(2, `,"lat":3,"lng":4`)}, {at(1, `,"lat":1,"lng":2`)}}, "3 | 4 | auto"},
		{"out of order in a batch", nil, [][]store.Entry{{at(2, `,"lat":3,"lng":4`), at(1, `,"lat":1,"lng":2`)}}, "3 | 4 | auto"},
		{"before a message without one", nil, [][]store.Entry{{at(1, `,"lat":1,"lng":2`), at(2, ``)}, {at(3, `,"lat":3,"lng":4`), at(4, ``)}}, "3 | 4 | auto"},
		{"the first, late", nil, [][]store.Entry{{at(2, ``)}, {at(1, `,"lat":1,"lng":2`)}}, "1 | 2 | auto"},
		{"a heartbeat is no news of it", nil, [][]store.Entry{{at(1, `,"lat":1,"lng":2`)}, {news("d1", "heartbeat", 3, ``)}, {at(2, `,"lat":3,"lng":4`)}}, "3 | 4 | auto"},
		{"late, beside a later one without", nil, [][]store.Entry{{at(5, `,"lat":3,"lng":4`)}, {at(1, `,"lat":1,"lng":2`), at(9, ``)}}, "3 | 4 | auto"},
		{"late, by another type", nil, [][]store.Entry{{at(9, `,"lat":3,"lng":4`)}, {news("d1", "heartbeat", 5, `,"lat":1,"lng":2`)}}, "3 | 4 | auto"},
		{"overtaken by one without", nil, [][]store.Entry{{at(1, `,"lat":1,"lng":2`)}, {at(9, ``)}, {at(8, `,"lat":3,"lng":4`)}}, "3 | 4 | auto"},
		{"overtaken, of another type", nil, [][]store.Entry{{at(1, `,"lat":1,"lng":2`)}, {at(9, ``)}, {news("d1", "position", 8, `,"lat":3,"lng":4`)}}, "3 | 4 | auto"},
		{"equally late: the last", nil, [][]store.Entry{{at(1, `,"lat":1,"lng":2`), at(1, `,"lat":5,"lng":6`)}, {at(1, `,"lat":3,"lng":4`)}}, "3 | 4 | auto"},
		{"pinned, the cache says", nil, [][]store.Entry{{pinned}}, "- | - | -"},
		{"pinned since", "manual", [][]store.Entry{{at(1, `,"lat":1,"lng":2`)}}, "8 | 9 | manual"},
		{"pinned by a word of theirs", "Surveyor", [][]store.Entry{{at(1, `,"lat":1,"lng":2`)}}, "8 | 9 | Surveyor"},
		{"not pinned", "GPS", [][]store.Entry{{at(1, `,"lat":1,"lng":2`)}}, "1 | 2 | auto"},
	} {
		t.exec(`TRUNCATE device_registry, device_state, crossfade_ledger`)
		t.exec(`INSERT INTO device_registry (tenant_id, device_id, latitude, longitude, location_source)
			VALUES ('t1', 'd1', CASE WHEN $1::text IS NOT NULL THEN 8 END, CASE WHEN $1::text IS NOT NULL THEN 9 END, $1), ('t2', 'd1', NULL, NULL, NULL), ('t1', 'd2', NULL, NULL, NULL)`, c.source)
		for _, batch := range c.batches {
			t.commit(batch...)
		}
		if got := t.row("latitude, longitude, location_source", "device_registry WHERE tenant_id = 't1' AND device_id = 'd1'"); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		t.wantCount(2, `SELECT count(*) FROM device_registry WHERE latitude IS NULL AND (tenant_id, device_id) <> ('t1', 'd1')`)
	}
}

// TestLocationPinnedMeanwhile: an operator sets the location while a batch waits for
// the row.
func TestLocationPinnedMeanwhile(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1')`)
	operator := t.begin()
	_, err := operator.Exec(t.Context(), `UPDATE device_registry SET latitude = 8, longitude = 9, location_source = 'manual'`)
	t.must(err)
	done := make(chan error)
	go func() {
		err := t.Commit(t.Context(), []store.Entry{news("d1", "telemetry", 1, `,"lat":1,"lng":2`)})
		for errors.Is(err, store.ErrLocked) {
			err = t.Commit(t.Context(), []store.Entry{news("d1", "telemetry", 1, `,"lat":1,"lng":2`)})
		}
		done <- err
	}()
	devstack.Await(tt, "it waits", func() bool {
		return t.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
	})
	t.must(operator.Commit(t.Context()))
	t.must(<-done)
	if got := t.row("latitude, longitude, location_source", "device_registry"); got != "8 | 9 | manual" {
		t.Errorf("got %s", got)
	}
}

// TestLocationGivesWay: a backend updates registered devices in another order than
// ingest. It must never be the one that a deadlock fails.
func TestLocationGivesWay(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) SELECT 't1', 'd' || n FROM generate_series(1, 3) AS n`)
	backend, err := pgx.Connect(t.Context(), t.url)
	t.must(err)
	defer func() { t.must(backend.Close(t.Context())) }()
	_, err = backend.Exec(t.Context(), `SET deadlock_timeout = '500ms'`) // it looks for deadlocks earlier than ingest
	t.must(err)
	for round := range 4 {
		var batch []store.Entry
		for d := 1; d <= 3; d++ {
			batch = append(batch, news(fmt.Sprint("d", d), "telemetry", round+1, fmt.Sprintf(`,"lat":%d,"lng":1`, round+1)))
		}
		tx, err := backend.Begin(t.Context())
		t.must(err)
		_, err = tx.Exec(t.Context(), `UPDATE device_registry SET site_id = 's1' WHERE device_id = 'd2'`)
		t.must(err)
		done, gaveWay := make(chan error), 0
		go func() {
			err := t.Commit(t.Context(), batch)
			for ; errors.Is(err, store.ErrLocked); gaveWay++ {
				err = t.Commit(t.Context(), batch)
			}
			done <- err
		}()
		var theirs string // the row that ingest has locked already
		devstack.Await(tt, "ingest waits for the backend", func() bool {
			free := t.strings(`SELECT device_id FROM device_registry WHERE device_id <> 'd2' FOR UPDATE SKIP LOCKED`)
			if len(free) == 1 {
				theirs = map[string]string{"d1": "d3", "d3": "d1"}[free[0]]
			}
			return theirs != ""
		})
		if _, err = tx.Exec(t.Context(), `UPDATE device_registry SET site_id = 's1' WHERE device_id = $1`, theirs); err != nil {
			t.Errorf("round %d: the backend's update failed: %v", round, err)
			t.must(tx.Rollback(t.Context()))
		} else {
			t.must(tx.Commit(t.Context()))
		}
		t.must(<-done)
		if gaveWay == 0 {
			t.Errorf("round %d: ingest never gave way", round)
		}
		t.wantCount(3, `SELECT count(*) FROM device_registry WHERE latitude = $1`, round+1)
	}
}

// TestWaitingForLocks: Commit and Provision of a store that waits briefly say that
// something is locked, and by whom; afterwards the connection is as patient as before.
func TestWaitingForLocks(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO subscriptions (subscription_id, tenant_id) VALUES ('s', 't1')`)
	at := func(n int) store.Entry { return news("d1", "telemetry", n, "") }
	t.wantFresh("first", 1, at(1))
	holder := t.begin()
	var pid int32
	t.must(holder.QueryRow(t.Context(), `WITH a AS MATERIALIZED (SELECT FROM device_state FOR UPDATE), b AS MATERIALIZED (SELECT FROM subscriptions FOR UPDATE)
		SELECT pg_backend_pid() + 0 * (SELECT count(*) FROM a)::int + 0 * (SELECT count(*) FROM b)::int`).Scan(&pid))
	brief := t.Waiting(20 * time.Millisecond)
	if err := brief.Commit(t.Context(), []store.Entry{at(2)}); !errors.Is(err, store.ErrLocked) || !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrData) {
		t.Errorf("commit: %v", err)
	}
	if _, _, err := brief.Provision(t.Context(), []store.NewDevice{newDevice("t1", "d9")}); !errors.Is(err, store.ErrLocked) {
		t.Errorf("provision: %v", err)
	}
	for device, what := range map[string]string{"d1": "its state", "d2": "its tenant's subscription"} {
		if got, err := t.LockHolder(t.Context(), pipeline.DeviceKey{Tenant: "t1", Device: device}); err != nil || got != pid {
			t.Errorf("%s: held by %d, %v; want %d", what, got, err, pid)
		}
	}
	t.must(holder.Rollback(t.Context()))
	if got, err := t.LockHolder(t.Context(), pipeline.DeviceKey{Tenant: "t1", Device: "d1"}); err != nil || got != 0 {
		t.Errorf("nothing is held: %d, %v", got, err)
	}
	t.wantFresh("afterwards", 1, at(2))
	t.wantCount(10_000, `SELECT setting::int FROM pg_settings WHERE name = 'lock_timeout'`)
}

// TestPatienceAfterLocations: what follows the locations in a transaction waits for
// locks as long as before.
func TestPatienceAfterLocations(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1');
		INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'x')`)
	holder := t.begin()
	_, err := holder.Exec(t.Context(), `SELECT FROM device_commands FOR UPDATE`)
	t.must(err)
	done := make(chan error)
	go func() {
		done <- t.Commit(t.Context(), []store.Entry{news("d1", "telemetry", 1, `,"lat":1,"lng":1`), entryOf(copyOf("tenant/t1/device/d1/commands/ack", `{"command_id":"c1"}`, noon))})
	}()
	devstack.Await(tt, "it waits for longer than for a location, or gives up", func() bool {
		select {
		case err := <-done:
			t.Fatalf("it gave up: %v", err)
		default:
		}
		return t.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '300 ms'`) == 1
	})
	t.must(holder.Rollback(t.Context()))
	t.must(<-done)
}
