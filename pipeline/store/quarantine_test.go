package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

func TestQuarantine(tt *testing.T) {
	t := newStoreTest(tt)
	long := strings.Repeat("x", 60_000)
	const columns = "event_ts, topic, tenant_id, site_id, device_id, msg_type, reason, payload, path, detail"
	const at = "2026-11-23 12:30:00+00"
	for _, c := range []struct {
		name string
		e    store.Entry
		want string
	}{
		{"all there", refuse(telemetry(`{"ts":"2026-11-23T12:30:00Z","site_id":"s9","a":1.50}`), pipeline.TokenInvalid),
			at + ` | ` + telemetryTopic + ` | t1 | s9 | d1 | telemetry | TOKEN_INVALID | {"a": 1.5, "ts": "2026-11-23T12:30:00Z", "site_id": "s9"} | 1 | for the test`},
		{"not JSON", telemetry(`{"a":`), at + ` | ` + telemetryTopic + ` | t1 | - | d1 | telemetry | INVALID_JSON | - | 1 | payload: invalid JSON: unexpected end at byte 5`},
		{"empty", telemetry(``), at + ` | ` + telemetryTopic + ` | t1 | - | d1 | telemetry | INVALID_JSON | - | 1 | payload: invalid JSON: unexpected end at byte 0`},
		{"no object", telemetry(`[1]`), at + ` | ` + telemetryTopic + ` | t1 | - | d1 | telemetry | INVALID_JSON | [1] | 1 | the payload is not a JSON object`},
		{"no UTF-8", telemetry("{\"\xff\":1}"), at + ` | ` + telemetryTopic + ` | t1 | - | d1 | telemetry | INVALID_JSON | - | 1 | payload: invalid JSON: invalid UTF-8 at byte 2`},
		{"jsonb can't hold a value", refuse(telemetry(`{"a":"\u0000","site_id":"s\u0000\ud800"}`), pipeline.MetricValueInvalid),
			at + ` | ` + telemetryTopic + " | t1 | s\ufffd\ufffd | d1 | telemetry | METRIC_VALUE_INVALID | - | 1 | for the test"},
		{"jsonb can't hold a number", refuse(telemetry(`{"a":1e999}`), pipeline.MetricValueInvalid), at + ` | ` + telemetryTopic + ` | t1 | - | d1 | telemetry | METRIC_VALUE_INVALID | - | 1 | for the test`},
		{"too deep", telemetry(strings.Repeat(`{"a":`, 9_000) + "1" + strings.Repeat("}", 9_000)), at + ` | ` + telemetryTopic + ` | t1 | - | d1 | telemetry | INVALID_JSON | - | 1 | the payload is nested too deeply`},
		{"bad topic", entryOf(copyOf("tenant/t1/x", `{}`, noon)), at + ` | tenant/t1/x | t1 | - | - | - | BAD_TOPIC_FORMAT | {} | 1 | the topic is not tenant/{tenant}/device/{device}/{message type}`},
		{"topic without a tenant", entryOf(copyOf("x", `{}`, noon)), at + ` | x | - | - | - | - | BAD_TOPIC_FORMAT | {} | 1 | the topic is not tenant/{tenant}/device/{device}/{message type}`},
		{"hostile topic", entryOf(copyOf("tenant/t\x001/device/\xff/x", `{}`, noon)), at + " | tenant/t\ufffd1/device/\ufffd/x | t\ufffd1 | - | - | - | BAD_TOPIC_FORMAT | {} | 1 | the topic is not tenant/{tenant}/device/{device}/{message type}"},
		{"long topic", refuse(entryOf(copyOf("tenant/"+long[:20_000]+"/device/"+long[:20_000]+"/"+long[:20_000], `{"site_id":"`+long+`"}`, noon)), pipeline.PayloadTooLarge),
			at + " | tenant/" + long[:20_000] + "/device/" + long[:20_000] + "/" + long[:20_000] + " | " + long[:256] + " | " + long[:256] + " | " + long[:256] + " | " + long[:256] + ` | PAYLOAD_TOO_LARGE | {"site_id": "` + long + `"} | 1 | for the test`},
	} {
		t.exec(`TRUNCATE quarantine_events`)
		t.wantFresh(c.name, 1, c.e)
		if got := t.row(columns, "quarantine_events"); got != c.want {
			t.Errorf("%s:\n got %.500s\nwant %.500s", c.name, got, c.want)
		}
		var raw []byte
		var id [16]byte
		t.must(t.pool.QueryRow(t.Context(), `SELECT raw, message_id FROM quarantine_events WHERE ingested_at > now() - interval '1 minute'`).Scan(&raw, &id))
		if raw == nil || !bytes.Equal(raw, c.e.Msg.Delivery.Body) || id != [16]byte(c.e.Msg.ID) {
			t.Errorf("%s: raw %.100q (nil: %v), ID %x", c.name, raw, raw == nil, id)
		}
	}
}

// TestQuarantineForgedEnvelope: it stands under the subject's tenant.
func TestQuarantineForgedEnvelope(tt *testing.T) {
	t := newStoreTest(tt)
	t.wantFresh("forged", 1, entryOf(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t2", Receipt: receipt(noon), Body: []byte(`{"topic":"` + telemetryTopic + `","payload":{}}`)}))
	t.wantFresh("no envelope", 1, entryOf(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t2", Receipt: receipt(noon), Body: []byte("\x00\xff")}))
	if got := t.row("tenant_id, reason, path", "quarantine_events ORDER BY reason DESC"); got != "t2 | TENANT_MISMATCH_TOPIC_VS_ENVELOPE | 2\nt2 | INVALID_JSON | 2" {
		t.Errorf("got %s", got)
	}
}

func TestQuarantineCounters(tt *testing.T) {
	t := newStoreTest(tt)
	var batch []store.Entry
	for n := range 10 {
		batch = append(batch, refuse(telemetry(fmt.Sprintf(`{"seq":%d}`, n)), pipeline.TokenInvalid),
			refuse(entryOf(copyOf("tenant/t2/device/d1/x", fmt.Sprintf(`{"seq":%d}`, n), noon)), pipeline.SeqInvalid), telemetry(fmt.Sprintf(`{"seq":%d}`, n)))
	}
	batch = append(batch, entryOf(copyOf("x", `{}`, noon)))
	t.wantFresh("batch", 21, batch...)
	t.wantFresh("again", 0, batch...)
	t.wantFresh("one more", 1, refuse(telemetry(`{"seq":99}`), pipeline.TokenInvalid))
	if got := t.row("tenant_id, reason, n", "(SELECT tenant_id, reason, sum(cnt) AS n FROM quarantine_counters_minute GROUP BY 1, 2) AS c ORDER BY tenant_id"); !strings.HasSuffix(got, "t1 | TOKEN_INVALID | 11\nt2 | SEQ_INVALID | 10") {
		t.Errorf("got %s", got)
	}
	t.wantCount(1, `SELECT sum(cnt) FROM quarantine_counters_minute WHERE tenant_id = ''`)
	t.wantCount(0, `SELECT count(*) FROM quarantine_counters_minute WHERE bucket_minute <> date_trunc('minute', bucket_minute)`)
}

// TestQuarantineOfLargeMessages: a batch of refused messages may be larger than
// what one statement can carry.
func TestQuarantineOfLargeMessages(tt *testing.T) {
	t := newStoreTest(tt)
	var batch []store.Entry
	for n := range 12 {
		batch = append(batch, refuse(telemetry(fmt.Sprintf(`{"seq":%d,"pad":%q}`, n, strings.Repeat("x", 4<<20))), pipeline.PayloadTooLarge))
	}
	t.wantFresh("48 MB", 12, batch...)
	t.wantCount(12, `SELECT count(*) FROM quarantine_events WHERE length(raw) > 4194304 AND payload IS NOT NULL`)
	t.wantCount(12, `SELECT sum(cnt) FROM quarantine_counters_minute`)
}

// TestQuarantineInPredecessorsTables: narrow columns refuse a full row and take a
// bare one.
func TestQuarantineInPredecessorsTables(tt *testing.T) {
	predecessor, err := os.ReadFile("../../migrations/testdata/predecessor.sql")
	if err != nil {
		tt.Fatal(err)
	}
	url := devstack.TestDatabase(tt)
	schemaExec(tt, schemaConn(tt, url), string(predecessor))
	schemaExec(tt, schemaConn(tt, url), `ALTER TABLE quarantine_events ADD COLUMN username varchar(16)`)
	migrate(tt, url)
	t := openStoreTest(tt, url)
	name := strings.Repeat("ü", 100)
	e := refuse(entryOf(copyOf("tenant/"+name+"/device/"+name+"/"+name, `{"seq":1,"site_id":"`+name+`"}`, noon)), pipeline.UnregisteredDevice)
	e.Msg.Username = name
	if err := t.Commit(t.Context(), []store.Entry{e}); !errors.Is(err, store.ErrData) {
		t.Fatalf("the full row: %v, want ErrData", err)
	}
	e.Bare = true
	t.wantFresh("the bare row", 1, e)
	t.wantCount(1, `SELECT count(*) FROM quarantine_events WHERE raw = $1 AND reason = 'UNREGISTERED_DEVICE' AND payload IS NULL AND username IS NULL`, e.Msg.Delivery.Body)
	if cut := t.strings(`SELECT tenant_id FROM quarantine_counters_minute`)[0]; !strings.HasPrefix(name, cut) || !utf8.ValidString(cut) {
		t.Errorf("counted under %q", cut)
	}
}
