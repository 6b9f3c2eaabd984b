package store_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// anonymous is a message with nothing of its own, that occurred at the time.
func anonymous(at time.Time) store.Entry {
	return entryOf(copyOf("tenant/t1/device/d1/heartbeat", `{"site_id":"s1"}`, at))
}

// TestAnonymousWindow: copies up to 30 s apart are one message, wherever the
// boundaries of slots are and in whatever order they come.
func TestAnonymousWindow(tt *testing.T) {
	t := newStoreTest(tt)
	slot := noon // a boundary
	if noon.UnixMilli()%pipeline.AnonymousWindow.Milliseconds() != 0 {
		t.Fatal("noon is no boundary between slots")
	}
	const ms = time.Millisecond
	for _, c := range []struct {
		name  string
		at    []time.Duration
		fresh string // one letter a copy: + took effect, - did not
	}{
		{"at once", []time.Duration{0, 0}, "+-"},
		{"29.9 s in one slot", []time.Duration{0, 29_900 * ms}, "+-"},
		{"29.9 s across slots", []time.Duration{15_000 * ms, 44_900 * ms}, "+-"},
		{"29.9 s across slots, backwards", []time.Duration{44_900 * ms, 15_000 * ms}, "+-"},
		{"30.0 s", []time.Duration{0, 30_000 * ms}, "+-"},
		{"30.1 s", []time.Duration{0, 30_100 * ms}, "++"},
		{"30.1 s, backwards", []time.Duration{30_100 * ms, 0}, "++"},
		{"30.1 s across two boundaries", []time.Duration{29_950 * ms, 60_050 * ms}, "++"},
		{"a microsecond over", []time.Duration{1, 30_000*ms + 2*time.Microsecond}, "++"},
		{"an hour", []time.Duration{0, time.Hour}, "++"},
		{"a day, then its copy", []time.Duration{0, 24 * time.Hour, 24*time.Hour + 5*time.Second}, "++-"},
		{"every 10 s: the window is counted from the one that took effect", []time.Duration{0, 10_000 * ms, 20_000 * ms, 30_000 * ms, 40_000 * ms, 50_000 * ms, 80_000 * ms}, "+---+-+"},
		{"both paths, half a second apart", []time.Duration{0, 500 * ms, 60_000 * ms, 60_500 * ms, 120_500 * ms, 120_000 * ms}, "+-+-+-"},
	} {
		for _, together := range []bool{false, true} {
			t.exec(`TRUNCATE crossfade_ledger, telemetry`)
			var entries []store.Entry
			for _, at := range c.at {
				entries = append(entries, anonymous(slot.Add(at)))
			}
			if together {
				t.commit(entries...)
			} else {
				for i := range entries {
					t.commit(entries[i : i+1]...)
				}
			}
			got := ""
			for _, e := range entries {
				got += map[bool]string{true: "+", false: "-"}[e.Fresh]
			}
			// In one batch the earlier slot decides first: who took effect may differ, how many may not.
			if got != c.fresh && !(together && count(got) == count(c.fresh)) {
				t.Errorf("%s (one batch: %v): %s, want %s", c.name, together, got, c.fresh)
			}
			t.wantCount(count(c.fresh), `SELECT count(*) FROM telemetry`)
		}
	}
}

func count(fresh string) (n int) {
	for _, c := range fresh {
		if c == '+' {
			n++
		}
	}
	return n
}

// TestAnonymousRace: many writers bring copies of the same anonymous messages,
// scattered over the window's slots. Each message takes effect once.
func TestAnonymousRace(tt *testing.T) {
	t := newStoreTest(tt)
	const messages, writers = 60, 8
	var fresh atomic.Int64
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range 4 {
				var batch []store.Entry
				for _, n := range rand.Perm(messages) {
					// 25 s to either side of a boundary: up to 25 s apart, in two slots.
					at := noon.Add(time.Duration(n)*time.Hour + time.Duration(rand.IntN(25_000)-12_500)*time.Millisecond)
					batch = append(batch, anonymous(at))
				}
				if err := t.Commit(t.Context(), batch); err != nil {
					t.Errorf("a batch failed: %v", err)
					return
				}
				for i := range batch {
					if batch[i].Fresh {
						fresh.Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	if n := fresh.Load(); n != messages {
		t.Errorf("%d took effect, want %d", n, messages)
	}
	t.wantCount(messages, `SELECT count(*) FROM telemetry`)
	t.wantCount(messages, `SELECT count(*) FROM crossfade_ledger`)
}

// TestAnonymousRaceUnderOtherDefaults: the database's default isolation must not
// let two writers decide by snapshots that don't hold each other.
func TestAnonymousRaceUnderOtherDefaults(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(fmt.Sprintf(`ALTER DATABASE %s SET default_transaction_isolation = 'repeatable read'`, t.strings(`SELECT current_database()::text`)[0]))
	t = openStoreTest(tt, t.url)
	t.wantCount(1, `SELECT count(*) WHERE current_setting('transaction_isolation') = 'read committed'`)

	holder := t.begin()
	// Another instance that has decided about the same content, and not committed.
	first, second := anonymous(noon.Add(-time.Second)), anonymous(noon.Add(time.Second))
	_, err := holder.Exec(t.Context(), `SELECT pg_advisory_xact_lock(2019975524, $1)`, int32(first.Msg.ID[15])%64)
	t.must(err)
	_, err = holder.Exec(t.Context(), `INSERT INTO crossfade_ledger (message_id, path, outcome, occurred_at) VALUES ($1, 2, 1, $2)`, [16]byte(first.Msg.ID), first.Msg.Occurred)
	t.must(err)
	entries := []store.Entry{second}
	done := make(chan error, 1)
	go func() { done <- t.Commit(t.Context(), entries) }()
	devstack.Await(tt, "the batch waits", func() bool {
		return t.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
	})
	t.must(holder.Commit(t.Context()))
	if err := <-done; err != nil || entries[0].Fresh {
		t.Errorf("%v; a copy took effect twice: %v", err, entries[0].Fresh)
	}
}

// TestKnown: what a copy that stands by is told.
func TestKnown(tt *testing.T) {
	t := newStoreTest(tt)
	t.commit(telemetry(`{"ts":"2026-11-23T12:00:00Z"}`), telemetry(`{"seq":1}`), telemetry(`{"message_id":"x1"}`),
		refuse(telemetry(`{"seq":2}`), pipeline.TokenInvalid), anonymous(noon))
	var copies []pipeline.Identity
	var want []bool
	ask := func(e store.Entry, known bool) {
		copies, want = append(copies, e.Msg.Identity), append(want, known)
	}
	ask(telemetry(`{"seq":9}`), false)
	ask(telemetry(`{"seq":1}`), true)
	ask(telemetry(`{"ts":"2026-11-23T12:00:00Z"}`), true)
	ask(telemetry(`{"ts":"2026-11-23T12:00:00.001Z"}`), false)
	ask(telemetry(`{"message_id":"x1","other":"content"}`), true)
	ask(telemetry(`{"seq":2}`), true)
	ask(telemetry(`{"seq":1}`), true)
	ask(entryOf(copyOf("tenant/t2/device/d1/telemetry", `{"seq":1}`, noon)), false)
	ask(anonymous(noon.Add(-29*time.Second)), true)
	ask(anonymous(noon.Add(29*time.Second)), true)
	ask(anonymous(noon.Add(31*time.Second)), false)
	ask(anonymous(noon.Add(-31*time.Second)), false)
	got, err := t.Known(t.Context(), copies)
	t.must(err)
	for i := range want {
		if got[i].Durable != want[i] {
			t.Errorf("copy %d is known: %v, want %v", i, got[i].Durable, want[i])
		}
	}
	for i, c := range copies {
		differs := c.Explicit && got[i].Durable // the one that is asked about with other content
		if got[i].Differs != differs || got[i].Age < 0 || got[i].Age > time.Minute {
			t.Errorf("copy %d: %+v", i, got[i])
		}
	}
	counted := telemetry(`{"message_id":"x1"}`).Msg.Identity
	same, err := t.Known(t.Context(), []pipeline.Identity{counted})
	t.must(err)
	if !same[0].Durable || same[0].Differs || same[0].Digest != counted.Digest {
		t.Errorf("the copy that counted: %+v", same[0])
	}
	if none, err := t.Known(t.Context(), nil); err != nil || len(none) != 0 {
		t.Errorf("about no copies: %v, %v", none, err)
	}
}
