package store_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/route"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

var everything = store.QuarantineSpan{After: math.MinInt64, Upto: math.MaxInt64}

// quarantine commits messages with a reason and returns them as rows.
func (t storeTest) quarantine(payloads ...string) []store.Quarantined {
	t.Helper()
	var batch []store.Entry
	for _, p := range payloads {
		batch = append(batch, refuse(telemetry(p), pipeline.TokenInvalid))
	}
	t.wantFresh("quarantine", len(payloads), batch...)
	return t.page(store.QuarantineFilter{})
}

func (t storeTest) page(f store.QuarantineFilter) []store.Quarantined {
	t.Helper()
	rows, err := t.QuarantinedPage(t.Context(), f, everything, 100_000)
	t.must(err)
	return rows
}

// again makes messages of the rows that pass every check now.
func again(rows ...store.Quarantined) []store.Replayed {
	batch := make([]store.Replayed, len(rows))
	for i, row := range rows {
		e := entryOf(copyOf(row.Topic, string(row.Raw), row.EventTS))
		batch[i] = store.Replayed{Row: row, Entry: e}
	}
	return batch
}

// replay runs the batch and returns the fates in its order.
func (t storeTest) replay(batch []store.Replayed) string {
	t.Helper()
	t.must(t.Replay(t.Context(), batch, false))
	return fates(batch)
}

func fates(batch []store.Replayed) string {
	var list []string
	for i := range batch {
		list = append(list, string(batch[i].Fate))
	}
	return strings.Join(list, " ")
}

func (t storeTest) wantFates(what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

func TestReplayWrites(tt *testing.T) {
	t := newStoreTest(tt)
	rows := t.quarantine(timed(1), timed(2), timed(3))
	batch := again(rows...)
	batch[1].Entry.Reason, batch[1].Entry.Detail = pipeline.SiteMismatch, "of now"
	t.must(t.Replay(t.Context(), batch, true))
	t.wantFates("rehearsal", fates(batch), "written quarantined written")
	t.wantCount(0, `SELECT count(*) FROM telemetry`)
	t.wantCount(3, `SELECT count(*) FROM quarantine_events WHERE reason = 'TOKEN_INVALID'`)
	t.wantCount(3, `SELECT count(*) FROM crossfade_ledger WHERE outcome = 2`)
	t.wantFates("replay", t.replay(batch), "written quarantined written")
	t.wantCount(2, `SELECT count(*) FROM telemetry`)
	t.wantCount(1, `SELECT count(*) FROM device_state`)
	t.wantCount(2, `SELECT count(*) FROM crossfade_ledger WHERE outcome = 1`)
	if got := t.row("id, reason, detail", "quarantine_events"); got != fmt.Sprint(rows[1].ID)+" | SITE_MISMATCH_REGISTRY_VS_PAYLOAD | of now" {
		t.Errorf("what stays is %s", got)
	}
	t.wantCount(3, `SELECT sum(cnt) FROM quarantine_counters_minute`)
	t.wantFates("again", t.replay(again(rows...)), "already_written written already_written")
	t.wantFresh("late copies", 0, telemetry(timed(1)), telemetry(timed(2)), telemetry(timed(3)))
	t.wantCount(3, `SELECT count(*) FROM telemetry`)
	t.wantCount(0, `SELECT count(*) FROM quarantine_events`)
}

// timed is a payload with a time of its own.
func timed(n int) string {
	return fmt.Sprintf(`{"ts":"2026-11-23T12:%02d:%02dZ","site_id":"s1","seq":%d,"metrics":{"a":%d}}`, n/60%60, n%60, n, n)
}

// TestReplayOfForgotten: the ledger's retention is over. Telemetry tells whether a
// late copy was written; the replay enters the IDs anew.
func TestReplayOfForgotten(tt *testing.T) {
	t := newStoreTest(tt)
	rows := t.quarantine(timed(1), timed(2), `{"seq":3,"site_id":"s1"}`, `{"ts":"2026-11-23T12:00:00Z","seq":null,"site_id":"s1"}`)
	t.exec(`TRUNCATE crossfade_ledger`)
	t.wantFresh("late copies", 2, telemetry(timed(1)), telemetry(`{"ts":"2026-11-23T12:00:00Z","seq":null,"site_id":"s1"}`))
	t.exec(`TRUNCATE crossfade_ledger`)
	t.wantFates("replay", t.replay(again(rows...)), "already_written written written already_written")
	t.wantCount(4, `SELECT count(*) FROM telemetry`)
	t.wantCount(4, `SELECT count(*) FROM crossfade_ledger WHERE outcome = 1`)
	t.wantCount(0, `SELECT count(*) FROM quarantine_events`)
}

// TestReplayUnderTheOldID: the ID that a message was quarantined under counts, also where
// it would have another by now: in the ledger, for what routes publish, and in the search
// for a late copy of what the ledger has forgotten.
func TestReplayUnderTheOldID(tt *testing.T) {
	t := newStoreTest(tt)
	t.quarantine(timed(1), timed(2))
	t.exec(`UPDATE quarantine_events SET message_id = overlay(message_id::text PLACING '0123456789ab' FROM 25)::uuid`)
	t.exec(`UPDATE crossfade_ledger SET message_id = overlay(message_id::text PLACING '0123456789ab' FROM 25)::uuid`)
	t.exec(`DELETE FROM crossfade_ledger WHERE message_id = (SELECT max(message_id::text)::uuid FROM quarantine_events)`)
	t.wantFresh("a late copy", 1, telemetry(timed(2)))
	t.exec(`DELETE FROM crossfade_ledger WHERE message_id::text NOT LIKE '%0123456789ab'`)
	batch := again(t.page(store.QuarantineFilter{})...)
	for i := range batch {
		batch[i].Entry.Routes = []*route.Route{testRoute(tt, "1")}
	}
	t.wantFates("replay", t.replay(batch), "written already_written")
	t.wantCount(2, `SELECT count(*) FROM telemetry`)
	t.wantCount(2, `SELECT count(*) FROM crossfade_ledger WHERE message_id::text LIKE '%0123456789ab' AND outcome = 1`)
	t.wantCount(2, `SELECT count(*) FROM crossfade_ledger`)
	t.wantCount(1, `SELECT count(*) FROM crossfade_outbox WHERE message_id::text LIKE '%0123456789ab'`)
	t.wantCount(1, `SELECT count(*) FROM crossfade_outbox`)
	t.wantCount(0, `SELECT count(*) FROM quarantine_events`)
}

// TestReplayOfDoubleRows: a message may have several rows where the ledger forgot
// it in between, and rows of the predecessor have no ID.
func TestReplayOfDoubleRows(tt *testing.T) {
	t := newStoreTest(tt)
	t.quarantine(timed(1))
	t.exec(`TRUNCATE crossfade_ledger`)
	t.quarantine(timed(1))
	t.exec(`INSERT INTO quarantine_events (topic, reason, payload, tenant_id, device_id) SELECT topic, 'OLD', payload, tenant_id, device_id FROM quarantine_events LIMIT 1`)
	rows := t.page(store.QuarantineFilter{})
	if len(rows) != 3 || rows[2].MessageID != nil || rows[2].Raw != nil || rows[2].Payload == nil {
		t.Fatalf("rows %+v", rows)
	}
	rows[2].Raw = rows[2].Payload
	t.wantFates("one batch", t.replay(again(rows...)), "written already_written already_written")
	t.wantCount(1, `SELECT count(*) FROM telemetry`)
	t.wantCount(0, `SELECT count(*) FROM quarantine_events`)

	t.exec(`INSERT INTO quarantine_events (topic, reason, payload) VALUES ($1, 'OLD', $2), ($1, 'OLD', $2)`, telemetryTopic, timed(2))
	for i, row := range t.page(store.QuarantineFilter{}) {
		row.Raw = row.Payload
		t.wantFates("one by one", t.replay(again(row)), []string{"written", "already_written"}[i])
	}
	t.wantCount(2, `SELECT count(*) FROM telemetry`)
	t.wantCount(0, `SELECT count(*) FROM quarantine_events`)
}

func TestReplayOfVanished(tt *testing.T) {
	t := newStoreTest(tt)
	rows := t.quarantine(timed(1), timed(2))
	t.exec(`DELETE FROM quarantine_events WHERE id = $1`, rows[0].ID)
	t.exec(`TRUNCATE crossfade_ledger`)
	t.wantFates("replay", t.replay(again(rows...)), "vanished written")
	t.wantCount(1, `SELECT count(*) FROM crossfade_ledger`)
	t.wantCount(1, `SELECT count(*) FROM telemetry`)
}

// TestReplayOfRefusedData: nothing of the batch is changed.
func TestReplayOfRefusedData(tt *testing.T) {
	t := newStoreTest(tt)
	rows := t.quarantine(timed(1), timed(2))
	t.exec(`ALTER TABLE telemetry ADD CHECK (seq <> 2)`)
	if err := t.Replay(t.Context(), again(rows...), false); !errors.Is(err, store.ErrData) {
		t.Fatalf("got %v, want ErrData", err)
	}
	t.wantCount(2, `SELECT count(*) FROM quarantine_events`)
	t.wantCount(2, `SELECT count(*) FROM crossfade_ledger WHERE outcome = 2`)
	t.wantFates("the good one alone", t.replay(again(rows[0])), "written")
}

// TestReplaysBesideCommits: several replays of the same rows at once, while the
// messages' other copies arrive; of half of them the ledger remembers nothing.
func TestReplaysBesideCommits(tt *testing.T) {
	t := newStoreTest(tt)
	const n = 200
	var payloads []string
	for i := range n {
		payloads = append(payloads, timed(i))
	}
	rows := t.quarantine(payloads...)
	t.exec(`DELETE FROM crossfade_ledger WHERE message_id IN (SELECT message_id FROM quarantine_events WHERE id % 2 = 0)`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	until := func(f func() error) {
		for err := f(); err != nil; err = f() {
			if !errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
				t.Error(err)
				return
			}
		}
	}
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			for from := 0; from < n; from += 20 {
				batch := again(rows[from : from+20]...)
				rand.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
				until(func() error { return t.Replay(ctx, batch, false) })
			}
		})
		running.Go(func() {
			for _, from := range rand.Perm(n / 10) {
				var live []store.Entry
				for _, p := range payloads[from*10 : from*10+10] {
					live = append(live, telemetry(p))
				}
				rand.Shuffle(len(live), func(i, j int) { live[i], live[j] = live[j], live[i] })
				until(func() error { return t.Commit(ctx, live) })
			}
		})
	}
	running.Wait()
	t.wantCount(n, `SELECT count(*) FROM telemetry`)
	t.wantCount(n, `SELECT count(DISTINCT seq) FROM telemetry`)
	t.wantCount(0, `SELECT count(*) FROM quarantine_events`)
	t.wantCount(n, `SELECT count(*) FROM crossfade_ledger WHERE outcome = 1`)
}

// TestReplayWaitsForAnother: the second to come finds the first's work done, also
// where each has a row of its own for the message.
func TestReplayWaitsForAnother(tt *testing.T) {
	for _, c := range []struct {
		name  string
		again bool
	}{{"one row", false}, {"two rows of one message", true}} {
		tt.Run(c.name, func(tt *testing.T) {
			t := newStoreTest(tt)
			rows := t.quarantine(timed(1))
			second := rows[0]
			if c.again {
				t.exec(`INSERT INTO quarantine_events (topic, reason, raw, message_id, path, event_ts) SELECT topic, reason, raw, message_id, path, event_ts FROM quarantine_events`)
				second = t.page(store.QuarantineFilter{})[1]
			}
			t.replayAtOnce(rows[0], second)
		})
	}
}

func (t storeTest) replayAtOnce(rows ...store.Quarantined) {
	t.Helper()
	block, err := t.pool.Begin(t.Context())
	t.must(err)
	defer func() { _ = block.Rollback(context.Background()) }()
	_, err = block.Exec(t.Context(), `LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE`)
	t.must(err)
	results := make(chan string, len(rows))
	for _, row := range rows {
		go func() {
			batch := again(row)
			if err := t.Replay(t.Context(), batch, false); err != nil {
				t.Error(err)
			}
			results <- fates(batch)
		}()
	}
	for deadline := time.Now().Add(time.Minute); t.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) < len(rows); {
		if time.Now().After(deadline) {
			t.Fatal("the replays do not wait")
		}
	}
	t.must(block.Rollback(t.Context()))
	got := map[string]int{}
	for range rows {
		got[<-results]++
	}
	if got["written"] != 1 || got["already_written"] != 1 {
		t.Errorf("got %v", got)
	}
	t.wantCount(1, `SELECT count(*) FROM telemetry`)
	t.wantCount(0, `SELECT count(*) FROM quarantine_events`)
}

func TestReplayShadowAndAck(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, status) VALUES ('t1', 'c1', 'd1', 'x', 'queued')`)
	t.wantFresh("quarantine", 2,
		refuse(entryOf(copyOf("tenant/t1/device/d1/shadow/reported", `{"reported":{"a":1},"version":3}`, noon)), pipeline.UnregisteredDevice),
		refuse(entryOf(copyOf("tenant/t1/device/d1/commands/ack", `{"command_id":"c1"}`, noon)), pipeline.UnregisteredDevice))
	t.wantFates("replay", t.replay(again(t.page(store.QuarantineFilter{})...)), "written written")
	t.wantCount(1, `SELECT count(*) FROM device_state WHERE reported_version = 3`)
	t.wantCount(1, `SELECT count(*) FROM device_commands WHERE status = 'delivered'`)
}
