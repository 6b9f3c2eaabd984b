package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// hold has everybody else wait for what the statement locks until the returned
// function is called.
func (t storeTest) hold(sql string, args ...any) (release func()) {
	t.Helper()
	tx := t.begin()
	_, err := tx.Exec(t.Context(), sql, args...)
	t.must(err)
	return func() { t.Helper(); t.must(tx.Commit(t.Context())) }
}

func (t storeTest) waiting() int {
	t.Helper()
	return t.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`)
}

// replaying and purging run in the background and give a word on what came of them.
func (t storeTest) replaying(batch []store.Replayed) <-chan string {
	done := make(chan string, 1)
	go func() {
		if err := t.Replay(t.Context(), batch, false); err != nil {
			done <- err.Error()
			return
		}
		done <- fates(batch)
	}()
	return done
}

func (t storeTest) purging(f store.QuarantineFilter) <-chan string {
	done := make(chan string, 1)
	go func() {
		n, _, _, err := t.PurgeQuarantined(t.Context(), f, everything, 100)
		if err != nil {
			done <- err.Error()
			return
		}
		done <- fmt.Sprint(n)
	}()
	return done
}

// TestPurgeBesideReplay: what a replay has begun with is not deleted under its hands.
// Once it is done a purge deletes what is left, as far as its filter still applies.
func TestPurgeBesideReplay(tt *testing.T) {
	t := newStoreTest(tt)
	batch := again(t.quarantine(timed(1), timed(2), timed(3))...)
	batch[1].Entry.Reason, batch[1].Entry.Detail = pipeline.SiteMismatch, "of now"
	batch[2].Entry.Reason, batch[2].Entry.Detail = pipeline.TokenInvalid, "of now"
	release := t.hold(`LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE`)
	replay := t.replaying(batch)
	devstack.Await(tt, "the replay is in the middle", func() bool { return t.waiting() == 1 })
	purge := t.purging(store.QuarantineFilter{Reasons: []pipeline.Reason{pipeline.TokenInvalid}})
	devstack.Await(tt, "the purge waits, or does not", func() bool { return t.waiting() == 2 || len(purge) > 0 })
	release()
	t.wantFates("replay", <-replay, "written quarantined quarantined")
	t.wantFates("purge", <-purge, "1")
	t.wantCount(1, `SELECT count(*) FROM telemetry`)
	t.wantCount(1, `SELECT count(*) FROM quarantine_events`)
	t.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE reason = 'SITE_MISMATCH_REGISTRY_VS_PAYLOAD'`)
}

// TestReplayBesidePurge: what is being deleted is not written.
func TestReplayBesidePurge(tt *testing.T) {
	t := newStoreTest(tt)
	rows := t.quarantine(timed(1), timed(2))
	commit := t.hold(`DELETE FROM quarantine_events WHERE id = $1`, rows[0].ID)
	replay := t.replaying(again(rows...))
	devstack.Await(tt, "the replay waits", func() bool { return t.waiting() == 1 })
	commit()
	t.wantFates("replay", <-replay, "vanished written")
	t.wantCount(1, `SELECT count(*) FROM telemetry`)
	t.wantCount(1, `SELECT count(*) FROM crossfade_ledger WHERE outcome = 2`)
}

// TestPurgeLocksInOrder: PostgreSQL may come upon rows in another order than that of
// their IDs, as where older ones are in the default partition. A purge and a replay
// still do not each wait for the other.
func TestPurgeLocksInOrder(tt *testing.T) {
	t := newStoreTest(tt)
	t.must(t.partitions(nil).Ensure(t.Context(), time.Now()))
	t.quarantine(timed(1), timed(2))
	t.exec(`UPDATE quarantine_events SET ingested_at = '2000-01-01Z' WHERE id = (SELECT min(id) FROM quarantine_events)`)
	rows := t.page(store.QuarantineFilter{})
	release := t.hold(`SELECT FROM quarantine_events WHERE id = $1 FOR UPDATE`, rows[1].ID)
	purge := t.purging(store.QuarantineFilter{})
	devstack.Await(tt, "the purge waits", func() bool { return t.waiting() == 1 })
	replay := t.replaying(again(rows...))
	devstack.Await(tt, "the replay waits", func() bool { return t.waiting() == 2 })
	release()
	t.wantFates("purge", <-purge, "2")
	t.wantFates("replay", <-replay, "vanished vanished")
	t.wantCount(0, `SELECT count(*) FROM telemetry`)
}
