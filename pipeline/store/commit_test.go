package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// receipt is when a copy occurred; nobody settles here.
type receipt time.Time

func (receipt) Ack() error            { return nil }
func (receipt) Release() error        { return nil }
func (r receipt) Occurred() time.Time { return time.Time(r) }

const telemetryTopic = "tenant/t1/device/d1/telemetry"

// copyOf is a copy by MQTT, arrived at the given time.
func copyOf(topic, payload string, at time.Time) pipeline.Delivery {
	return pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(payload), Receipt: receipt(at)}
}

// entryOf decodes a copy into an entry that passed the checks.
func entryOf(d pipeline.Delivery) store.Entry {
	m := new(pipeline.Message)
	pipeline.NewDecoder(pipeline.DefaultMessageIDMember).Decode(m, &d)
	return store.Entry{Msg: m, Reason: m.Failed, Detail: m.Detail, Device: &pipeline.Device{Site: "s1"}}
}

func telemetry(payload string) store.Entry { return entryOf(copyOf(telemetryTopic, payload, noon)) }

func refuse(e store.Entry, r pipeline.Reason) store.Entry {
	e.Reason, e.Detail = r, "for the test"
	return e
}

// storeTest is a Store on a migrated database of its own, with partitions around
// noon, and a pool to look at it with.
type storeTest struct {
	partitionTest
	*store.Store
	url string
}

func newStoreTest(t *testing.T) storeTest {
	t.Helper()
	url := devstack.TestDatabase(t)
	migrate(t, url)
	return openStoreTest(t, url)
}

func openStoreTest(t *testing.T, url string) storeTest {
	t.Helper()
	c := store.DefaultConfig(url)
	c.MaxConns = 12
	s, err := store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	pt := partitionTest{t, s.Pool()}
	pt.must(pt.partitions(nil).Ensure(t.Context(), noon))
	return storeTest{pt, s, url}
}

// commit commits and returns how many of the entries took effect.
func (t storeTest) commit(entries ...store.Entry) (fresh int) {
	t.Helper()
	if err := t.Commit(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if entries[i].Fresh {
			fresh++
		}
	}
	return fresh
}

// wantFresh commits the entries one batch each.
func (t storeTest) wantFresh(what string, want int, entries ...store.Entry) {
	t.Helper()
	if got := t.commit(entries...); got != want {
		t.Errorf("%s: %d of %d took effect, want %d", what, got, len(entries), want)
	}
}

func (t storeTest) count(sql string, args ...any) int {
	t.Helper()
	var n int
	if err := t.pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (t storeTest) wantCount(want int, sql string, args ...any) {
	t.Helper()
	if got := t.count(sql, args...); got != want {
		t.Errorf("%s is %d, want %d", sql, got, want)
	}
}

// row returns the columns of the query's only row as text; NULL is "-".
func (t storeTest) row(columns, rest string, args ...any) string {
	t.Helper()
	var parts []string
	for _, c := range strings.Split(columns, ", ") {
		parts = append(parts, fmt.Sprintf("coalesce((%s)::text, '-')", c))
	}
	all := t.strings(fmt.Sprintf(`SELECT concat_ws(' | ', %s) FROM %s`, strings.Join(parts, ", "), rest), args...)
	return strings.Join(all, "\n")
}

func TestCommitTelemetry(tt *testing.T) {
	t := newStoreTest(tt)
	const columns = "time, tenant_id, device_id, site_id, msg_type, seq, metrics"
	for _, c := range []struct{ topic, payload, want string }{
		{telemetryTopic, `{"ts":"2026-11-23T12:30:00.123456789Z","site_id":"s1","seq":123,"metrics":{"temp_c":22.50,"door_open":true,"mode":"eco","n":null}}`,
			`2026-11-23 12:30:00.123456+00 | t1 | d1 | s1 | telemetry | 123 | {"n": null, "mode": "eco", "temp_c": 22.5, "door_open": true}`},
		{"tenant/t1/device/d1/heartbeat", `{"ts":"2026-11-23T12:30:00Z","site_id":"s1"}`, `2026-11-23 12:30:00+00 | t1 | d1 | s1 | heartbeat | 0 | {}`},
		{telemetryTopic, `{"ts":"2026-11-23T12:30:00Z","site_id":"s1","seq":null}`, `2026-11-23 12:30:00+00 | t1 | d1 | s1 | telemetry | - | {}`},
		{telemetryTopic, `{"ts":"2026-11-23T12:30:00Z","site_id":"s1","seq":-9223372036854775808,"metrics":null}`, `2026-11-23 12:30:00+00 | t1 | d1 | s1 | telemetry | -9223372036854775808 | {}`},
		{telemetryTopic, `{"ts":"2026-11-23T12:30:00Z","site_id":"s1","seq":2.9}`, `2026-11-23 12:30:00+00 | t1 | d1 | s1 | telemetry | 2 | {}`},
		{telemetryTopic, `{"ts":"0001-01-01","site_id":"s1"}`, `0001-01-01 00:00:00+00 | t1 | d1 | s1 | telemetry | 0 | {}`},
		{telemetryTopic, `{"ts":"9999-12-31T23:59:59.999999Z","site_id":"s1"}`, `9999-12-31 23:59:59.999999+00 | t1 | d1 | s1 | telemetry | 0 | {}`},
		{telemetryTopic, `{"ts":"1999-12-31T23:59:59.999999Z","site_id":"s1"}`, `1999-12-31 23:59:59.999999+00 | t1 | d1 | s1 | telemetry | 0 | {}`},
		{telemetryTopic, `{"seq":7,"site_id":"s1"}`, `2026-11-23 12:30:00+00 | t1 | d1 | s1 | telemetry | 7 | {}`},
		{"tenant/t 1/device/дев/a/b", `{"seq":1,"site_id":"Zürich \\ \"\t","metrics":{"°😀":1e300,"é":["\u00e9",{"a":1e-7}]}}`,
			"2026-11-23 12:30:00+00 | t 1 | дев | Zürich \\ \"\t | a/b | 1 | {\"é\": [\"é\", {\"a\": 0.0000001}], \"°😀\": 1" + strings.Repeat("0", 300) + "}"},
		{telemetryTopic, `{"seq":1,"site_id":"s1","metrics":{"x":` + strings.Repeat("[", pipeline.MaxDepth-2) + strings.Repeat("]", pipeline.MaxDepth-2) + `}}`,
			`2026-11-23 12:30:00+00 | t1 | d1 | s1 | telemetry | 1 | {"x": ` + strings.Repeat("[", pipeline.MaxDepth-2) + strings.Repeat("]", pipeline.MaxDepth-2) + `}`},
	} {
		t.exec(`TRUNCATE telemetry`)
		t.wantFresh(c.payload, 1, entryOf(copyOf(c.topic, c.payload, noon)))
		if got := t.row(columns, "telemetry"); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.payload, got, c.want)
		}
	}
}

func TestCommitNothing(tt *testing.T) {
	t := newStoreTest(tt)
	t.wantFresh("no entries", 0)
}

// TestCommitLedger: what the ledger keeps of each kind of message.
func TestCommitLedger(tt *testing.T) {
	t := newStoreTest(tt)
	const columns = "path, outcome, digest, occurred_at, tableoid::regclass"
	stream := pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t1", Receipt: receipt(noon),
		Body: []byte(`{"topic":"` + telemetryTopic + `","payload":{"ts":"2026-11-23T12:30:00Z","site_id":"s1"}}`)}
	for _, c := range []struct {
		e    store.Entry
		want string
	}{
		{telemetry(`{"ts":"2026-11-23T13:30:00Z"}`), "1 | 1 | - | - | crossfade_ledger_20261123t120000"},
		{entryOf(stream), "2 | 1 | - | - | crossfade_ledger_20261123t120000"},
		{refuse(telemetry(`{"ts":"2026-11-23T13:30:00Z","a":1}`), pipeline.TokenInvalid), "1 | 2 | - | - | crossfade_ledger_20261123t120000"},
		{telemetry(`{"seq":1}`), "1 | 1 | - | - | crossfade_ledger_untimed"},
		{telemetry(`{"ts":"0001-01-01"}`), "1 | 1 | - | - | crossfade_ledger_untimed"},
		{telemetry(`{"ts":"9999-12-31"}`), "1 | 1 | - | - | crossfade_ledger_other"},
		{telemetry(`{}`), "1 | 1 | - | 2026-11-23 12:30:00+00 | crossfade_ledger_20261123t120000"},
	} {
		t.wantFresh("message", 1, c.e)
		if got := t.row(columns, "crossfade_ledger WHERE message_id = $1", [16]byte(c.e.Msg.ID)); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.e.Msg.Delivery.Body, got, c.want)
		}
	}
	e := telemetry(`{"message_id":"x1"}`)
	t.wantFresh("explicit", 1, e)
	if got := t.row("digest", "crossfade_ledger WHERE message_id = $1", [16]byte(e.Msg.ID)); got != fmt.Sprint(e.Msg.Digest) {
		t.Errorf("digest %s, want %d", got, e.Msg.Digest)
	}
}

// TestCommitOnce (promise P2): however often and in whatever company a message
// comes, it takes effect once.
func TestCommitOnce(tt *testing.T) {
	t := newStoreTest(tt)
	a, b, c := `{"ts":"2026-11-23T12:00:00Z"}`, `{"ts":"2026-11-23T12:00:01Z"}`, `{"seq":3}`
	twice := []store.Entry{telemetry(b), telemetry(a), telemetry(b), telemetry(a), telemetry(b)}
	t.wantFresh("within a batch", 2, twice...)
	if err := t.Commit(t.Context(), twice); err != nil || twice[0].Fresh || twice[1].Fresh {
		t.Errorf("the same entries again: %v, fresh %v %v", err, twice[0].Fresh, twice[1].Fresh)
	}
	t.wantFresh("across batches", 1, telemetry(a), telemetry(c), telemetry(b))
	t.wantFresh("quarantined after written", 0, refuse(telemetry(a), pipeline.TokenInvalid))
	t.wantFresh("quarantined", 1, refuse(telemetry(`{"seq":4}`), pipeline.TokenInvalid))
	t.wantFresh("written after quarantined", 0, telemetry(`{"seq":4}`))
	t.wantFresh("the same in another tenant", 1, entryOf(copyOf("tenant/t2/device/d1/telemetry", a, noon)))

	t.wantFresh("explicit", 1, telemetry(`{"message_id":"x1","a":1}`))
	t.wantFresh("explicit, other content", 0, telemetry(`{"message_id":"x1","a":2}`))
	t.wantFresh("explicit, another tenant's", 1, entryOf(copyOf("tenant/t2/device/d1/telemetry", `{"message_id":"x1"}`, noon)))

	t.wantCount(6, `SELECT count(*) FROM telemetry`)
	t.wantCount(1, `SELECT count(*) FROM quarantine_events`)
	t.wantCount(7, `SELECT count(*) FROM crossfade_ledger`)
}

// TestCommitRace: eight writers with overlapping batches in orders of their own.
// Every message takes effect once, and no batch fails: not even by a deadlock.
func TestCommitRace(tt *testing.T) {
	t := newStoreTest(tt)
	const messages, writers, size = 600, 8, 150
	t.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) SELECT 't1', 'c' || n, 'd' || (6 * n + 3) % 7, 'x' FROM generate_series(0, 99) AS n`)
	message := func(n int) store.Entry {
		device := fmt.Sprintf("tenant/t1/device/d%d/", n%7)
		switch n % 6 {
		case 0:
			return entryOf(copyOf(device+"telemetry", fmt.Sprintf(`{"seq":%d,"site_id":"s1"}`, n), noon))
		case 1:
			return entryOf(copyOf(device+"heartbeat", fmt.Sprintf(`{"n":%d}`, n), noon.Add(time.Duration(rand.IntN(20))*time.Second)))
		case 2:
			return entryOf(copyOf(device+"shadow/reported", fmt.Sprintf(`{"reported":{"n":%d},"version":%d}`, n, n), noon))
		case 3:
			return entryOf(copyOf(device+"commands/ack", fmt.Sprintf(`{"command_id":"c%d"}`, n/6), noon))
		case 4:
			return refuse(entryOf(copyOf(device+"telemetry", fmt.Sprintf(`{"seq":%d}`, n), noon)), []pipeline.Reason{pipeline.TokenInvalid, pipeline.SeqInvalid}[n%2])
		}
		return entryOf(copyOf(device+"telemetry", fmt.Sprintf(`{"ts":"2026-11-23T12:00:00Z","site_id":"s1","message_id":%d}`, n), noon))
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	fresh := map[pipeline.ID]int{}
	for range writers {
		wg.Go(func() {
			order := append(rand.Perm(messages), rand.Perm(messages)...)
			for len(order) > 0 {
				n := min(size, len(order))
				batch := make([]store.Entry, n)
				for i := range batch {
					batch[i] = message(order[i])
				}
				order = order[n:]
				if err := t.Commit(t.Context(), batch); err != nil {
					t.Errorf("a batch failed: %v", err)
					return
				}
				mu.Lock()
				for i := range batch {
					if batch[i].Fresh {
						id := batch[i].Msg.ID
						if batch[i].Msg.Anonymous {
							id = id.Content() // its slot depends on the copy
						}
						fresh[id]++
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for id, n := range fresh {
		if n != 1 {
			t.Errorf("%s took effect %d times", id, n)
		}
	}
	if len(fresh) != messages {
		t.Errorf("%d of %d messages took effect", len(fresh), messages)
	}
	t.wantCount(messages, `SELECT count(*) FROM crossfade_ledger`)
	t.wantCount(messages/2, `SELECT count(*) FROM telemetry`)
	t.wantCount(messages/6, `SELECT count(*) FROM quarantine_events`)
	t.wantCount(messages/6, `SELECT sum(cnt) FROM quarantine_counters_minute`)
	// The highest version of each device's reports has won.
	t.wantCount(0, `SELECT count(*) FROM device_state WHERE (reported_state ->> 'n')::int <> reported_version`)
	t.wantCount(7, `SELECT count(*) FROM device_state WHERE reported_version > 550`)
	t.wantCount(messages/6, `SELECT count(*) FROM device_commands WHERE status = 'delivered'`)
}

// TestCommitOnceInEveryExecMode: connection poolers need other ways to execute
// statements. The modes in which IDs could not be sent are refused at once.
func TestCommitOnceInEveryExecMode(tt *testing.T) {
	url := devstack.TestDatabase(tt)
	migrate(tt, url)
	for _, mode := range []string{"exec", "simple_protocol"} {
		if _, err := store.Open(tt.Context(), store.DefaultConfig(url+"&default_query_exec_mode="+mode)); err == nil || !strings.Contains(err.Error(), mode) {
			tt.Errorf("%s: %v, want an error that names it", mode, err)
		}
	}
	for i, mode := range []string{"cache_statement", "cache_describe", "describe_exec"} {
		c := store.DefaultConfig(url + "&default_query_exec_mode=" + mode)
		s, err := store.Open(tt.Context(), c)
		if err != nil {
			tt.Fatal(err)
		}
		t := storeTest{partitionTest{tt, s.Pool()}, s, url}
		payload := fmt.Sprintf(`{"seq":%d}`, i)
		t.wantFresh(mode, 1, telemetry(payload), telemetry(payload))
		t.wantFresh(mode+", again", 0, telemetry(payload))
		t.wantCount(i+1, `SELECT count(*) FROM telemetry`)
		s.Close()
	}
}

// TestCommitKilled: a connection that dies in the middle of the transaction, and
// just before its commit: the error says to run again, which has one effect.
func TestCommitKilled(tt *testing.T) {
	for name, lock := range map[string]string{
		"waiting for the ledger":     `LOCK TABLE crossfade_ledger IN ACCESS EXCLUSIVE MODE`,
		"between ledger and effects": `LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE`,
		"between effects":            `LOCK TABLE quarantine_counters_minute IN ACCESS EXCLUSIVE MODE`,
	} {
		tt.Run(name, func(tt *testing.T) {
			t := newStoreTest(tt)
			entries := []store.Entry{telemetry(`{"seq":1}`), telemetry(`{}`), refuse(telemetry(`{"seq":2}`), pipeline.TokenInvalid)}
			holder := t.begin()
			_, err := holder.Exec(t.Context(), lock)
			t.must(err)
			done := make(chan error, 1)
			go func() { done <- t.Commit(t.Context(), entries) }()
			t.killWaiter()
			if err := <-done; !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("got %v, want ErrUnavailable", err)
			}
			t.must(holder.Rollback(t.Context()))
			t.wantCount(0, `SELECT count(*) FROM crossfade_ledger`)
			t.wantFresh("run again", 3, entries...)
			t.wantFresh("and again", 0, entries...)
			t.wantCount(2, `SELECT count(*) FROM telemetry`)
			t.wantCount(1, `SELECT count(*) FROM quarantine_events`)
		})
	}
}

// begin opens a transaction that ends with the test at the latest.
func (t storeTest) begin() pgx.Tx {
	t.Helper()
	tx, err := t.pool.Begin(t.Context())
	t.must(err)
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) }) // mostly it has ended by then
	return tx
}

// killWaiter ends the session that waits for a lock, once there is one.
func (t storeTest) killWaiter() {
	t.Helper()
	devstack.Await(t.T, "a session waits for a lock", func() bool {
		return t.count(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
	})
}

// TestCommitEnds: with its context, and without leaving a transaction open.
func TestCommitEnds(tt *testing.T) {
	t := newStoreTest(tt)
	holder := t.begin()
	_, err := holder.Exec(t.Context(), `LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE`)
	t.must(err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- t.Commit(ctx, []store.Entry{telemetry(`{"seq":1}`)}) }()
	devstack.Await(tt, "the batch waits", func() bool {
		return t.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	t.must(holder.Rollback(t.Context()))
	t.wantFresh("afterwards", 1, telemetry(`{"seq":1}`))
}
