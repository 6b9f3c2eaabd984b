package store_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// ack is an ack by a device of t1.
func ack(device, payload string) store.Entry {
	return entryOf(copyOf("tenant/t1/device/"+device+"/commands/ack", payload, noon))
}

// TestCommandAcks: an ack moves the device's own queued command, and nothing else.
func TestCommandAcks(tt *testing.T) {
	t := newStoreTest(tt)
	for _, c := range []struct {
		name, status string
		acks         []store.Entry
		want         string // status | acked | details
	}{
		{"details", "queued", []store.Entry{ack("d1", `{"command_id":"c1","status":"ok","details":{"b":1.0,"a":"x"}}`)}, `delivered | true | {"a": "x", "b": 1}`},
		{"no details, no status", "queued", []store.Entry{ack("d1", `{"command_id":"c1"}`)}, `delivered | true | -`},
		{"status alone", "queued", []store.Entry{ack("d1", `{"command_id":"c1","status":"failed"}`)}, `delivered | true | {"status": "failed"}`},
		{"status that jsonb can't hold", "queued", []store.Entry{ack("d1", `{"command_id":"c1","status":"\u0000"}`)}, `delivered | true | -`},
		{"details null", "queued", []store.Entry{ack("d1", `{"command_id":"c1","details":null}`)}, `delivered | true | -`},
		{"of several the first", "queued", []store.Entry{ack("d1", `{"command_id":"c1","details":{"n":1}}`), ack("d1", `{"command_id":"c1","details":{"n":2}}`)}, `delivered | true | {"n": 1}`},
		{"another device's", "queued", []store.Entry{ack("d2", `{"command_id":"c1"}`)}, `queued | - | -`},
		{"another device's, and its own", "queued", []store.Entry{ack("d2", `{"command_id":"c1","details":{"n":1}}`), ack("d1", `{"command_id":"c1","details":{"n":2}}`)}, `delivered | true | {"n": 2}`},
		{"another tenant's", "queued", []store.Entry{entryOf(copyOf("tenant/t2/device/d1/commands/ack", `{"command_id":"c1"}`, noon))}, `queued | - | -`},
		{"another command's", "queued", []store.Entry{ack("d1", `{"command_id":"c2"}`)}, `queued | - | -`},
		{"delivered", "delivered", []store.Entry{ack("d1", `{"command_id":"c1","details":{}}`)}, `delivered | - | -`},
		{"missed", "missed", []store.Entry{ack("d1", `{"command_id":"c1"}`)}, `missed | - | -`},
		{"expired", "expired", []store.Entry{ack("d1", `{"command_id":"c1"}`)}, `expired | - | -`},
		{"refused", "queued", []store.Entry{refuse(ack("d1", `{"command_id":"c1"}`), pipeline.CommandAckInvalid)}, `queued | - | -`},
	} {
		t.exec(`TRUNCATE device_commands, crossfade_ledger`)
		t.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, status) VALUES ('t1', 'c1', 'd1', 'reboot', $1), ('t3', 'c1', 'd1', 'x', 'queued')`, c.status)
		t.commit(c.acks...)
		if got := t.row("status, acked_at > now() - interval '1 minute', ack_details", "device_commands WHERE tenant_id = 't1'"); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		t.wantCount(1, `SELECT count(*) FROM device_commands WHERE tenant_id = 't3' AND status = 'queued'`)
	}
}

// responses are the answers to acks, in their order.
func (t storeTest) responses() string {
	t.Helper()
	return t.row("device_id, command_id, body ->> 'command_id', body ->> 'status', body ->> 'reason', body - '{command_id,status,reason}'::text[]",
		"crossfade_downlink WHERE kind = 'response' AND lane = crossfade_lane(tenant_id, device_id) ORDER BY id")
}

// TestAckResponses: every ack that takes effect is answered by what became of it.
func TestAckResponses(tt *testing.T) {
	t := newStoreTest(tt)
	plain := func(device, command string, n int) store.Entry {
		return ack(device, fmt.Sprintf(`{"command_id":%q,"details":{"n":%d}}`, command, n))
	}
	for _, c := range []struct {
		name    string
		batches [][]store.Entry
		want    []string // device | command | of the body: command, status, reason
	}{
		{"accepted", [][]store.Entry{{plain("d1", "queued", 1)}}, []string{"d1 | queued | queued | accepted | -"}},
		{"each reason", [][]store.Entry{{plain("d1", "missed", 1), plain("d1", "expired", 1), plain("d1", "delivered", 1), plain("d1", "none", 1), plain("d1", "strange", 1)}}, []string{
			"d1 | missed | missed | rejected | missed", "d1 | expired | expired | rejected | expired", "d1 | delivered | delivered | rejected | already_acknowledged",
			"d1 | none | none | rejected | unknown_command", "d1 | strange | strange | rejected | unknown_command"}},
		{"two acks in a batch", [][]store.Entry{{plain("d1", "queued", 1), plain("d1", "queued", 2), plain("d1", "missed", 1), plain("d1", "missed", 2)}}, []string{
			"d1 | queued | queued | accepted | -", "d1 | queued | queued | rejected | already_acknowledged", "d1 | missed | missed | rejected | missed", "d1 | missed | missed | rejected | missed"}},
		{"two acks in two batches", [][]store.Entry{{plain("d1", "queued", 1)}, {plain("d1", "queued", 2)}}, []string{
			"d1 | queued | queued | accepted | -", "d1 | queued | queued | rejected | already_acknowledged"}},
		{"another device's", [][]store.Entry{{plain("d2", "queued", 1), plain("d1", "queued", 2)}}, []string{
			"d2 | queued | queued | rejected | unknown_command", "d1 | queued | queued | accepted | -"}},
		{"the same ack again, in a batch and later", [][]store.Entry{{plain("d1", "queued", 1), plain("d1", "queued", 1)}, {plain("d1", "queued", 1)}}, []string{"d1 | queued | queued | accepted | -"}},
		{"quarantined", [][]store.Entry{{refuse(plain("d1", "queued", 1), pipeline.CommandAckInvalid)}}, nil},
		{"an ID that jsonb and MQTT can hold", [][]store.Entry{{ack("d1", `{"command_id":"é\"\\'"}`)}}, []string{`d1 | é"\' | é"\' | rejected | unknown_command`}},
		{"an ID too long for MQTT", [][]store.Entry{{plain("d1", strings.Repeat("x", 65_536), 1), plain("d1", "none", 1)}}, []string{"d1 | none | none | rejected | unknown_command"}},
		{"no ack", [][]store.Entry{{telemetry(`{"seq":1}`), shadow("d1", `{"reported":{}}`)}}, nil},
	} {
		t.exec(`ALTER TABLE device_commands DROP CONSTRAINT IF EXISTS device_commands_status_check; TRUNCATE device_commands, crossfade_ledger, crossfade_downlink`)
		t.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, status)
			SELECT 't1', s, 'd1', 'x', s FROM unnest('{queued,delivered,missed,expired,strange}'::text[]) AS s`)
		for _, batch := range c.batches {
			t.commit(batch...)
		}
		for i := range c.want {
			c.want[i] += " | {}"
		}
		if got, want := t.responses(), strings.Join(c.want, "\n"); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, want)
		}
	}
}

// TestAckResponsesByBothPaths: the copies of one ack are one ack.
func TestAckResponsesByBothPaths(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'x')`)
	const payload = `{"command_id":"c1","status":"ok","ts":"2026-11-23T12:00:00Z"}`
	stream := entryOf(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "commands.t1", Receipt: receipt(noon),
		Body: []byte(`{"topic":"tenant/t1/device/d1/commands/ack","payload":` + payload + `}`)})
	t.wantFresh("by JetStream", 1, stream)
	t.wantFresh("by MQTT, twice", 0, ack("d1", payload), ack("d1", payload))
	if got := t.responses(); got != "d1 | c1 | c1 | accepted | - | {}" {
		t.Errorf("got %s", got)
	}
}

// TestAckResponsesOff: where nothing sends responses none are written.
func TestAckResponsesOff(tt *testing.T) {
	t := newStoreTest(tt)
	c := store.DefaultConfig(t.url)
	c.Responses = false
	s, err := store.Open(t.Context(), c)
	t.must(err)
	t.Cleanup(s.Close)
	t.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'x')`)
	t.exec(`TRUNCATE crossfade_downlink`)
	t.must(s.Waiting(5*time.Second).Commit(t.Context(), []store.Entry{ack("d1", `{"command_id":"c1"}`)}))
	t.wantCount(1, `SELECT count(*) FROM device_commands WHERE status = 'delivered'`)
	t.wantCount(0, `SELECT count(*) FROM crossfade_downlink`)
	t.must(t.Waiting(5*time.Second).Commit(t.Context(), []store.Entry{ack("d1", `{"command_id":"c2"}`)}))
	t.wantCount(1, `SELECT count(*) FROM crossfade_downlink`)
}

// TestAckRace: different acks of the same commands on many instances, while a sender
// writes the commands' rows too: one of each is accepted, all others are told that it
// was, and nothing is lost when a row has changed while its lock was waited for.
func TestAckRace(tt *testing.T) {
	t := newStoreTest(tt)
	const commands, writers = 40, 8
	t.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) SELECT 't1', 'c' || n, 'd' || n % 3, 'x' FROM generate_series(0, $1 - 1) AS n`, commands)
	ctx, stop := context.WithCancel(t.Context())
	var sender, wg sync.WaitGroup
	sender.Go(func() {
		for ctx.Err() == nil {
			_, _ = t.pool.Exec(ctx, `UPDATE device_commands AS c SET published_at = now()
				FROM (SELECT tenant_id, command_id FROM device_commands ORDER BY 1, 2 FOR UPDATE) AS l WHERE l.tenant_id = c.tenant_id AND l.command_id = c.command_id`)
		}
	})
	for w := range writers {
		wg.Go(func() {
			for from := 0; from < commands; from += 10 {
				var batch []store.Entry
				for i := range 10 {
					n := from + (i*7+w)%10
					batch = append(batch, ack(fmt.Sprintf("d%d", n%3), fmt.Sprintf(`{"command_id":"c%d","details":{"by":%d}}`, n, w)))
				}
				if err := t.Commit(t.Context(), batch); err != nil {
					t.Errorf("a batch failed: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	stop()
	sender.Wait()
	t.wantCount(commands, `SELECT count(*) FROM device_commands WHERE status = 'delivered' AND ack_details IS NOT NULL`)
	t.wantCount(commands, `SELECT count(DISTINCT command_id) FROM crossfade_downlink WHERE body ->> 'status' = 'accepted'`)
	t.wantCount(commands, `SELECT count(*) FROM crossfade_downlink WHERE body ->> 'status' = 'accepted'`)
	t.wantCount(commands*(writers-1), `SELECT count(*) FROM crossfade_downlink WHERE body ->> 'reason' = 'already_acknowledged'`)
}

// TestAckWaits: two instances wait for the row of a command while somebody else holds
// it. What they then do goes by what that one has left, and only one is accepted.
func TestAckWaits(tt *testing.T) {
	t := newStoreTest(tt)
	for change, want := range map[string]string{
		`published_at = now()`: "accepted, already_acknowledged",
		`status = 'expired'`:   "expired, expired",
		`status = 'delivered'`: "already_acknowledged, already_acknowledged",
		`device_id = 'd2'`:     "unknown_command, unknown_command",
	} {
		t.exec(`TRUNCATE device_commands, crossfade_ledger, crossfade_downlink`)
		t.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'x')`)
		holder := t.begin()
		_, err := holder.Exec(t.Context(), `UPDATE device_commands SET `+change)
		t.must(err)
		var wg sync.WaitGroup
		for w := range 2 {
			wg.Go(func() {
				if err := t.Commit(t.Context(), []store.Entry{ack("d1", fmt.Sprintf(`{"command_id":"c1","details":{"by":%d}}`, w))}); err != nil {
					t.Errorf("%s: %v", change, err)
				}
			})
		}
		t.eventually("both wait for the row", func() bool {
			return t.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 2
		})
		t.must(holder.Commit(t.Context()))
		wg.Wait()
		got := t.strings(`SELECT coalesce(body ->> 'reason', body ->> 'status') FROM crossfade_downlink WHERE kind = 'response' ORDER BY body ->> 'status', 1`)
		if got := strings.Join(got, ", "); got != want {
			t.Errorf("%s: %s, want %s", change, got, want)
		}
	}
}
