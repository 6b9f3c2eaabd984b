package process_test

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

var everything = store.QuarantineSpan{After: math.MinInt64, Upto: math.MaxInt64}

// replayer opens a store of its own on the rig's database, as the command does.
func (r *rig) replayer() *store.Store {
	r.Helper()
	s, err := store.Open(r.Context(), store.DefaultConfig(r.db.Config().ConnString()))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(s.Close)
	return s
}

func replayOptions() process.ReplayOptions {
	o := process.DefaultReplayOptions()
	o.Settings.RequireToken = false
	o.Logger = slog.New(slog.DiscardHandler)
	return o
}

// replay replays everything and returns one line per message: fate, reason and why
// it could not be read.
func (r *rig) replay(change func(*process.ReplayOptions)) string {
	r.Helper()
	var lines []string
	o := replayOptions()
	o.Each = func(m *store.Replayed) {
		line := string(m.Fate)
		if m.Fate == store.StillQuarantined {
			reason, _ := m.Verdict()
			line += " " + string(reason)
		}
		if m.Unreadable != "" {
			line += ": " + m.Unreadable
		}
		lines = append(lines, line)
	}
	if change != nil {
		change(&o)
	}
	if err := process.Replay(r.Context(), r.replayer(), store.QuarantineFilter{}, everything, o); err != nil {
		r.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func (r *rig) want(what, got, want string) {
	r.Helper()
	if got != want {
		r.Errorf("%s:\n%s\nwant\n%s", what, got, want)
	}
}

func (r *rig) text(sql string) (s string) {
	r.Helper()
	if err := r.db.QueryRow(r.Context(), sql).Scan(&s); err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
	return s
}

func (r *rig) expel() { r.exec(`DELETE FROM device_registry`) }
func (r *rig) enrol() {
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd1', 's1')`)
}

const anonymous = `{"site_id":"s1","metrics":{"a":1}}`

// TestReplayBothPaths: a message of either path, with and without a time or an ID
// of its own, takes effect as if it had been accepted at first.
func TestReplayBothPaths(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.expel()
	send := func() {
		r.mqtt(good(1))
		r.mqtt(anonymous)
		r.mqtt(`{"ts":"2026-11-23T10:00:00Z","site_id":"s1","message_id":"m"}`)
		r.jetstream("telemetry", good(2))
		r.jetstream("telemetry", `"{\"site_id\":\"s1\",\"metrics\":{\"b\":1}}"`)
		r.jetstream("shadow/reported", `{"reported":{"a":1},"version":2}`)
		r.drain()
	}
	send()
	const ids = `SELECT string_agg(message_id::text, ' ' ORDER BY message_id) FROM `
	before := r.text(ids + "quarantine_events")
	r.want("while it is unregistered", r.replay(nil), strings.TrimSpace(strings.Repeat("quarantined UNREGISTERED_DEVICE\n", 6)))
	r.enrol()
	r.want("dry run", r.replay(func(o *process.ReplayOptions) { o.DryRun = true }), strings.TrimSpace(strings.Repeat("written\n", 6)))
	r.wantCount(0, `SELECT count(*) FROM telemetry`)
	r.want("replay", r.replay(nil), strings.TrimSpace(strings.Repeat("written\n", 6)))
	r.want("IDs", r.text(ids+"crossfade_ledger WHERE outcome = 1"), before)
	r.want("telemetry", r.text(`SELECT string_agg(concat_ws(' ', time AT TIME ZONE 'UTC', seq, metrics), ', ' ORDER BY time, seq, metrics) FROM telemetry`),
		`2026-11-23 10:00:00 0 {}, 2026-11-23 12:00:00 0 {"a": 1}, 2026-11-23 12:00:00 0 {"b": 1}, 2026-11-23 12:00:00 1 {"a": 1}, 2026-11-23 12:00:00 2 {"a": 1}`)
	r.wantCount(1, `SELECT count(*) FROM device_state WHERE reported_version = 2`)
	r.wantCount(0, `SELECT count(*) FROM quarantine_events`)
	send()
	r.wantCount(5, `SELECT count(*) FROM telemetry`)
	r.want("with nothing left", r.replay(nil), "")
}

// TestReplayGivesNewReasons: what still fails tells why it does now.
func TestReplayGivesNewReasons(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.expel()
	r.mqtt(good(1))
	r.mqtt(`{"seq":2,"site_id":"elsewhere"}`)
	r.mqtt(`{"seq":3}`)
	r.mqtt(`{broken`)
	r.drain()
	r.enrol()
	const want = "written\nquarantined SITE_MISMATCH_REGISTRY_VS_PAYLOAD\nquarantined MISSING_SITE_ID\nquarantined INVALID_JSON"
	r.want("replay", r.replay(nil), want)
	r.want("reasons", r.text(`SELECT string_agg(reason, ' ' ORDER BY id) FROM quarantine_events WHERE detail <> ''`), "SITE_MISMATCH_REGISTRY_VS_PAYLOAD MISSING_SITE_ID INVALID_JSON")
	r.wantCount(4, `SELECT sum(cnt) FROM quarantine_counters_minute`)
	if err := process.Replay(t.Context(), r.replayer(), store.QuarantineFilter{Reasons: []pipeline.Reason{pipeline.InvalidJSON}}, everything, replayOptions()); err != nil {
		t.Error(err)
	}
}

// TestReplayKnowsNoRateLimit, whatever the settings say.
func TestReplayKnowsNoRateLimit(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { o.Settings.RateLimit, o.Settings.RateBurst = 0.001, 1 })
	for n := range 30 {
		r.mqtt(good(n))
	}
	r.drain()
	r.wantCount(29, `SELECT count(*) FROM quarantine_events WHERE reason = 'RATE_LIMITED'`)
	r.want("replay", r.replay(func(o *process.ReplayOptions) { o.Settings.RateLimit, o.Settings.RateBurst = 0.001, 1 }),
		strings.TrimSpace(strings.Repeat("written\n", 29)))
	r.wantCount(30, `SELECT count(DISTINCT seq) FROM telemetry`)
}

// TestReplayOfPredecessorsRows have a payload and a topic, and nothing else.
func TestReplayOfPredecessorsRows(t *testing.T) {
	r := newRig(t, database(t), nil)
	for _, row := range [][2]any{
		{"tenant/t1/device/d1/telemetry", good(1)},
		{"tenant/t1/device/d1/telemetry", good(1)}, // both paths' copies
		{"tenant/t1/device/d1/telemetry", anonymous},
		{"tenant/t1/device/d1/telemetry", nil},
		{"x", `{}`},
		{"tenant/t1/device/d1/commands", `{"command_id":"c"}`},
	} {
		r.exec(`INSERT INTO quarantine_events (topic, reason, payload, ingested_at, event_ts) VALUES ($1, 'OLD', $2, '2026-11-01Z', '2026-10-31Z')`, row[0], row[1])
	}
	r.want("replay", r.replay(nil), `written
already_written
written
quarantined OLD: the row holds no body
quarantined BAD_TOPIC_FORMAT
quarantined OLD: its topic is one of those that go to devices: there is nothing to write`)
	r.wantCount(2, `SELECT count(*) FROM telemetry WHERE time = '2026-10-31Z'`)
	r.wantCount(3, `SELECT count(*) FROM quarantine_events`)
}

// TestReplayDoesNotTrustCutNames: the row of a table with narrow columns holds the
// beginning of a name, which may be another device's.
func TestReplayDoesNotTrustCutNames(t *testing.T) {
	r := newRig(t, database(t), nil)
	cut := "tenant/t1/device/" + strings.Repeat("d", 256-len("tenant/t1/device//x")) + "/x"
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', $1, 's1'), ('t1', U&'\FFFD', 's1')`, strings.Split(cut, "/")[3])
	insert := `INSERT INTO quarantine_events (topic, tenant_id, reason, detail, path, raw) VALUES ($1, $2, 'X', $3, $4, $5)`
	r.exec(insert, cut, "t1", "d"+store.Shortened+"y", 1, []byte(good(1)))
	r.exec(insert, "tenant/t1/device/\ufffd/x", "t1", "d", 1, []byte(good(2)))
	r.exec(insert, "whatever", strings.Repeat("t", 64), "d"+store.Shortened+"y", 2, []byte(`{"topic":"tenant/t1/device/d1/x","payload":{"site_id":"s1"}}`))
	r.exec(insert, "tenant/t2/device/d1/x", "t1", "d"+store.Shortened+"y", 1, []byte(good(3)))
	for range 2 {
		r.want("replay", r.replay(nil), `quarantined X: the row does not hold the whole topic
quarantined X: the row does not hold the whole topic
quarantined X: the row does not hold the tenant's whole name
quarantined UNREGISTERED_DEVICE`)
	}
	r.wantCount(3, `SELECT count(*) FROM quarantine_events WHERE strpos(detail, $1) > 0`, store.Shortened+"y")
}

// TestReplayIsolatesPoison: what PostgreSQL refuses stays, the rest is written.
func TestReplayIsolatesPoison(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.expel()
	for n := range 40 {
		r.mqtt(good(n))
	}
	r.drain()
	r.enrol()
	r.exec(`ALTER TABLE telemetry ADD CHECK (seq NOT IN (7, 31))`)
	got := r.replay(nil)
	if strings.Count(got, "written") != 38 || strings.Count(got, "quarantined METRIC_VALUE_INVALID") != 2 {
		t.Errorf("got %s", got)
	}
	r.wantCount(38, `SELECT count(*) FROM telemetry`)
	r.wantCount(2, `SELECT count(*) FROM quarantine_events WHERE detail LIKE 'PostgreSQL refused the row%'`)

	r.exec(`ALTER TABLE quarantine_events ADD CHECK (reason <> 'SITE_MISMATCH_REGISTRY_VS_PAYLOAD')`)
	r.exec(`UPDATE device_registry SET site_id = 'elsewhere'`)
	got = r.replay(nil)
	if strings.Count(got, "quarantined METRIC_VALUE_INVALID: quarantine_events refuses its new reason") != 2 {
		t.Errorf("with a table that refuses the reason: %s", got)
	}
}

// TestReplayProvisionsDevices, but not in a dry run.
func TestReplayProvisionsDevices(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.expel()
	r.mqtt(good(1))
	r.drain()
	r.exec(`INSERT INTO subscriptions (subscription_id, tenant_id, device_limit) VALUES ('s', 't1', 1)`)
	provision := func(dry bool) func(*process.ReplayOptions) {
		return func(o *process.ReplayOptions) { o.AutoProvision, o.DryRun = true, dry }
	}
	r.want("dry run", r.replay(provision(true)), "quarantined UNREGISTERED_DEVICE")
	r.wantCount(0, `SELECT count(*) FROM device_registry`)
	r.want("replay", r.replay(provision(false)), "written")
}

// TestReplayRoutes: what is written late is routed all the same.
func TestReplayRoutes(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.expel()
	r.mqtt(good(1))
	r.mqtt(good(2))
	r.drain()
	r.enrol()
	r.exec(`INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type, payload_filter) VALUES ('t1', 'r', '#', 'webhook', '{"seq":2}')`)
	r.want("replay", r.replay(func(o *process.ReplayOptions) { o.Routes = true }), "written\nwritten")
	r.wantCount(1, `SELECT count(*) FROM crossfade_outbox`)
}

// TestReplaysThroughTrouble: two replays over and over, their connections killed at
// random, while other copies arrive: each message is written once, none is lost.
func TestReplaysThroughTrouble(t *testing.T) {
	r := newRig(t, database(t), nil)
	const n = 3000
	r.expel()
	for i := range n {
		r.mqtt(good(i))
	}
	r.drain()
	r.enrol()
	r.wantCount(n, `SELECT count(*) FROM quarantine_events`)
	// Of some messages the ledger remembers nothing; their copies race the replay.
	r.exec(`DELETE FROM crossfade_ledger WHERE message_id IN (SELECT message_id FROM quarantine_events WHERE id % 3 = 0)`)
	live := newRig(t, r.db.Config().ConnString(), nil) // remembers nothing either

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var running sync.WaitGroup
	left := func() int { return r.count(`SELECT count(*) FROM quarantine_events`) }
	for range 2 {
		s := r.replayer()
		running.Go(func() {
			for ctx.Err() == nil {
				err := process.Replay(ctx, s, store.QuarantineFilter{}, everything, replayOptions())
				if err == nil {
					return
				}
				if !errors.Is(err, store.ErrUnavailable) {
					t.Error(err)
					return
				}
			}
		})
	}
	running.Go(func() {
		for i := range n {
			live.jetstream("telemetry", good(i))
		}
	})
	for k := 0; k < 20 && left() > 0; k++ {
		r.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		         WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'crossfade' AND state = 'active' AND random() < 0.5`)
	}
	running.Wait()
	live.drain()
	if ctx.Err() != nil {
		t.Fatal("not done in time")
	}
	for range 3 { // a batch whose connection was killed may have been given up for its rows' sake
		r.replay(nil)
	}
	r.wantCount(0, `SELECT count(*) FROM quarantine_events`)
	r.wantCount(n, `SELECT count(*) FROM telemetry`)
	r.wantCount(n, `SELECT count(DISTINCT seq) FROM telemetry`)
}

// TestReplayForgets: huge messages of one batch do not keep their memory to the end.
func TestReplayForgets(t *testing.T) {
	r := newRig(t, database(t), nil)
	const rows = 520 // two batches
	r.exec(`INSERT INTO quarantine_events (topic, tenant_id, device_id, msg_type, reason, path, message_id, raw)
	 SELECT 'tenant/t1/device/d1/telemetry', 't1', 'd1', 'telemetry', 'PAYLOAD_TOO_LARGE', 1, gen_random_uuid(),
	        convert_to('{"a":[' || repeat('1,', CASE WHEN n <= 10 THEN 500000 ELSE 1 END) || '1]}', 'UTF8')
	   FROM generate_series(1, $1::int) AS n`, rows)
	var m runtime.MemStats
	n, kept := 0, uint64(0)
	r.replay(func(o *process.ReplayOptions) {
		o.Each = func(*store.Replayed) {
			if n++; n == 1 || n == rows {
				runtime.GC()
				runtime.GC()
				runtime.ReadMemStats(&m)
				kept = m.HeapAlloc - kept // at the end less what it was at the beginning
			}
		}
	})
	if n != rows || int64(kept) > -50<<20 {
		t.Errorf("after %d of %d messages the heap is %d MiB larger than while it held the huge ones", n, rows, int64(kept)>>20)
	}
}

func TestReplayStopsWithContext(t *testing.T) {
	r := newRig(t, database(t), nil)
	r.expel()
	for i := range 1200 {
		r.mqtt(good(i))
	}
	r.drain()
	r.enrol()
	ctx, cancel := context.WithCancel(t.Context())
	o, told := replayOptions(), 0
	o.Each = func(*store.Replayed) { told++; cancel() }
	if err := process.Replay(ctx, r.replayer(), store.QuarantineFilter{}, everything, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if written := r.count(`SELECT count(*) FROM telemetry`); written != told || told == 1200 {
		t.Errorf("told of %d messages, %d are written", told, written)
	}
}

func TestReplayOptionsValidate(t *testing.T) {
	for field, change := range map[string]func(*process.ReplayOptions){
		"MaxPayloadBytes": func(o *process.ReplayOptions) { o.Settings.MaxPayloadBytes = 0 },
		"Patience":        func(o *process.ReplayOptions) { o.Patience = -1 },
		"Logger":          func(o *process.ReplayOptions) { o.Logger = nil },
	} {
		o := replayOptions()
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	o := replayOptions()
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
}
