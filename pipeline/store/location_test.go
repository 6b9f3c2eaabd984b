package store_test

import (
	"testing"

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
