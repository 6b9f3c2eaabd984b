package process_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/pipelinetest"
	"github.com/crossfade-io/crossfade/pipeline/process"
)

// attack is a hostile case as a delivery, and what it must come to.
type attack struct {
	name string
	pipeline.Delivery
	want pipeline.Reason
}

// attacksOf are the cases as they come by one path; each comes from a device of
// its own.
func attacksOf(path pipeline.Path) []attack {
	var list []attack
	for i, c := range pipelinetest.HostileCases() {
		topic := c.TopicOf(fmt.Sprintf("h%d", i))
		a := attack{c.Name, pipeline.Delivery{Path: path, Topic: topic, Body: []byte(c.Payload)}, c.Want}
		if path == pipeline.PathJetStream {
			if c.OnlyMQTT {
				continue
			}
			a.Subject, a.Topic = "telemetry."+pipeline.TopicTenant(topic), ""
			a.Body = pipelinetest.Mirror(topic, []byte(c.Payload), (&receipt{}).Occurred())
		}
		list = append(list, a)
	}
	return list
}

// attackers registers the devices of all attacks, and as many innocent ones.
func (r *rig) attackers(n int) {
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id, sensor_limit) SELECT 't1', k || i, 's1', 100 FROM generate_series(0, $1) AS i, (VALUES ('h'), ('n')) AS v(k)`, n)
}

// charge delivers every attack between two good messages: one of the innocent
// neighbour's, one of the attacker's own.
func (r *rig) charge(attacks []attack) {
	for i, a := range attacks {
		for _, device := range []string{fmt.Sprintf("n%d", i), fmt.Sprintf("h%d", i)} {
			r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/" + device + "/telemetry", Body: []byte(fmt.Sprintf(`{"seq":7000000,"site_id":"s1","metrics":{"good":%d}}`, i))}, nil)
		}
		r.deliver(a.Delivery, nil)
	}
	ctx, cancel := context.WithTimeout(r.Context(), 3*time.Minute)
	defer cancel()
	if err := r.Drain(ctx); err != nil {
		r.Fatalf("%v (health: %v)", err, r.Health())
	}
}

// aftermath checks what the attacks have come to.
func (r *rig) aftermath(attacks []attack) {
	r.Helper()
	r.wantCount(2*len(attacks), `SELECT count(*) FROM telemetry WHERE seq = 7000000 AND metrics ? 'good'`)
	if n := int(r.acked.Load()); n != 3*len(attacks) || r.released.Load() != 0 {
		r.Errorf("%d acknowledged and %d released of %d", n, r.released.Load(), 3*len(attacks))
	}
	if err := r.Health(); err != nil {
		r.Errorf("a hostile message is no trouble of PostgreSQL's: %v", err)
	}
	// The checks are to find it, not PostgreSQL: a batch that is refused is run again in halves.
	r.wantCount(0, `SELECT count(*) FROM quarantine_events WHERE detail LIKE '%PostgreSQL%'`)
	dec := pipeline.NewDecoder(pipeline.DefaultMessageIDMember)
	for _, a := range attacks {
		var m pipeline.Message
		a.Receipt = &receipt{}
		dec.Decode(&m, &a.Delivery)
		if a.want == pipeline.Accepted {
			if n := r.count(`SELECT count(*) FROM crossfade_ledger WHERE message_id = $1 AND outcome = 1`, [16]byte(m.ID)); n != 1 {
				r.Errorf("%s: written %d times, want once: %v", a.name, n, r.lines(`SELECT reason || ': ' || detail FROM quarantine_events WHERE message_id = $1`, [16]byte(m.ID)))
			}
			if m.Kind == pipeline.KindTelemetry {
				r.wantCount(1, `SELECT count(*) FROM telemetry WHERE device_id = $1 AND seq IS DISTINCT FROM 7000000`, m.Device)
			}
			continue
		}
		var raw []byte
		var reason string
		if err := r.db.QueryRow(r.Context(), `SELECT raw, reason FROM quarantine_events WHERE message_id = $1`, [16]byte(m.ID)).Scan(&raw, &reason); err != nil {
			r.Errorf("%s: not in quarantine: %v", a.name, err)
			continue
		}
		if reason != string(a.want) {
			r.Errorf("%s: quarantined as %s, want %s", a.name, reason, a.want)
		}
		if !bytes.Equal(raw, a.Body) {
			r.Errorf("%s: the raw bytes are %.200q, want %.200q", a.name, raw, a.Body)
		}
	}
}

func hostileSettings(o *process.Options) { o.Settings.RateLimit = 0 }

// TestHostile: every case comes to its end by either path, and none keeps another
// device's message, or its own device's next one, from being written.
func TestHostile(t *testing.T) {
	for _, path := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		t.Run(path.String(), func(t *testing.T) {
			attacks := attacksOf(path)
			r := newRig(t, database(t), hostileSettings)
			r.attackers(len(pipelinetest.HostileCases()))
			r.charge(attacks)
			r.aftermath(attacks)
		})
	}
}

// TestHostileOneByOne: the same, each case in a batch with its neighbours alone.
// Then the path that comes second finds everything in the ledger.
func TestHostileOneByOne(t *testing.T) {
	r := newRig(t, database(t), func(o *process.Options) { hostileSettings(o); o.BatchSize, o.RecentIDs = 3, 1 })
	r.attackers(len(pipelinetest.HostileCases()))
	attacks := attacksOf(pipeline.PathMQTT)
	r.charge(attacks)
	r.aftermath(attacks)
	before := r.count(`SELECT count(*) FROM crossfade_ledger`)
	again := attacksOf(pipeline.PathJetStream)
	for _, a := range again {
		r.deliver(a.Delivery, nil)
	}
	r.drain()
	r.wantCount(before, `SELECT count(*) FROM crossfade_ledger`)
	if n := r.metric("crossfade_messages_total", "duplicate"); int(n) != len(again) {
		t.Errorf("%v of the second path's %d copies were duplicates", n, len(again))
	}
}

// TestHostileEnvelopes: what only an envelope, or its subject, can get wrong.
func TestHostileEnvelopes(t *testing.T) {
	const topic, ok = "tenant/t1/device/h0/telemetry", `{"seq":1,"site_id":"s1"}`
	deep := strings.Repeat(`[`, 10_000) + strings.Repeat(`]`, 10_000)
	envelope := func(rest string) string { return `{"topic":"` + topic + `","payload":` + ok + rest + `}` }
	var attacks []attack
	for i, c := range []struct {
		name, subject, body string
		want                pipeline.Reason
	}{
		{"empty", "telemetry.t1", ``, pipeline.InvalidJSON},
		{"an empty object", "telemetry.t1", `{}`, pipeline.InvalidJSON},
		{"an array", "telemetry.t1", `[` + envelope(``) + `]`, pipeline.InvalidJSON},
		{"a string", "telemetry.t1", `"` + topic + `"`, pipeline.InvalidJSON},
		{"NUL bytes", "telemetry.t1", "\x00\x00", pipeline.InvalidJSON},
		{"no UTF-8", "telemetry.t1", envelope(`,"x":"` + "\xff" + `"`), pipeline.InvalidJSON},
		{"NaN beside the payload", "telemetry.t1", envelope(`,"x":NaN`), pipeline.InvalidJSON},
		{"cut off", "telemetry.t1", envelope(``)[:60], pipeline.InvalidJSON},
		{"10 MB of nothing", "telemetry.t1", strings.Repeat(" ", 10<<20), pipeline.InvalidJSON},
		{"a deep member", "telemetry.t1", envelope(`,"x":` + deep), pipeline.InvalidJSON},
		{"a payload twice", "telemetry.t1", envelope(`,"payload":[]`), pipeline.InvalidJSON},
		{"a payload of null", "telemetry.t1", envelope(`,"payload":null`), pipeline.InvalidJSON},
		{"a topic twice", "telemetry.t1", envelope(`,"topic":"tenant/t2/device/h0/telemetry"`), pipeline.TenantMismatchEnvelope},
		{"a topic that is no text", "telemetry.t1", envelope(`,"topic":{}`), pipeline.BadTopicFormat},
		{"a topic with NUL", "telemetry.t1", envelope(`,"topic":"tenant/t1/device/\u0000/telemetry"`), pipeline.BadTopicFormat},
		{"a topic with a lone surrogate", "telemetry.t1", envelope(`,"topic":"tenant/t1/device/\ud800/telemetry"`), pipeline.BadTopicFormat},
		{"a tenant that is no text", "telemetry.t1", envelope(`,"tenant_id":1`), pipeline.TenantMismatchEnvelope},
		{"a tenant with NUL", "telemetry.t1", envelope(`,"tenant_id":"t1\u0000"`), pipeline.TenantMismatchEnvelope},
		{"a device of another name", "telemetry.t1", envelope(`,"device_id":"H0"`), pipeline.TenantMismatchEnvelope},
		{"a subject without tenant", "telemetry", envelope(``), pipeline.TenantMismatchEnvelope},
		{"an empty subject", "", envelope(``), pipeline.TenantMismatchEnvelope},
		{"a subject with more tokens", "telemetry.t1.d1", envelope(``), pipeline.TenantMismatchEnvelope},
		{"a subject's tenant in capitals", "telemetry.T1", envelope(``), pipeline.TenantMismatchEnvelope},
		{"a subject's tenant with a wildcard", "telemetry.*", envelope(``), pipeline.TenantMismatchEnvelope},
		{"a subject of 60,000 bytes", "telemetry." + strings.Repeat("t", 60_000), envelope(``), pipeline.TenantMismatchEnvelope},
		{"a subject that is no UTF-8", "telemetry.\xff", envelope(``), pipeline.TenantMismatchEnvelope},
		{"the wrong stream", "shadow.t1", envelope(`,"n":0`), pipeline.Accepted},
		{"a time beyond doubles", "telemetry.t1", envelope(`,"ts":1e400`), pipeline.Accepted},
		{"a time in text", "telemetry.t1", envelope(`,"ts":"1767614400000"`), pipeline.Accepted},
		{"a time before time", "telemetry.t1", envelope(`,"ts":-1e300`), pipeline.Accepted},
		{"a user with NUL", "telemetry.t1", envelope(`,"username":"t1\u0000"`), pipeline.Accepted},
		{"a user that is no text", "telemetry.t1", envelope(`,"username":["\ud800"]`), pipeline.Accepted},
		{"a long user", "telemetry.t1", envelope(`,"username":"` + strings.Repeat("u", 1<<20) + `"`), pipeline.Accepted},
		{"duplicates of what does not matter", "telemetry.t1", envelope(strings.Repeat(`,"x":1`, 10_000)), pipeline.Accepted},
	} {
		own := fmt.Sprintf("/h%d/", i)
		attacks = append(attacks, attack{c.name, pipeline.Delivery{Path: pipeline.PathJetStream, Subject: c.subject, Body: []byte(strings.ReplaceAll(c.body, "/h0/", own))}, c.want})
	}
	r := newRig(t, database(t), hostileSettings)
	r.attackers(len(attacks))
	r.charge(attacks)
	r.aftermath(attacks)
	// None is laid at another tenant's door.
	r.wantCount(0, `SELECT count(*) FROM quarantine_events WHERE reason = 'TENANT_MISMATCH_TOPIC_VS_ENVELOPE' AND tenant_id = 't2'`)
}

// TestHundredMegabytes in one string, in a string that does not end, and in white
// space, between messages of others.
func TestHundredMegabytes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds and a gigabyte")
	}
	const n = 100 << 20
	attacks := []attack{
		{"a string", pipeline.Delivery{Body: wide(`{"seq":1,"site_id":"s1","metrics":{"a":"`, 'x', n, `"}}`)}, pipeline.PayloadTooLarge},
		{"a string without an end", pipeline.Delivery{Body: wide(`{"seq":1,"site_id":"`, 'x', n, ``)}, pipeline.InvalidJSON},
		{"white space", pipeline.Delivery{Body: wide(`{"seq":1,"site_id":"s1"`, ' ', n, `}`)}, pipeline.Accepted},
	}
	for i := range attacks {
		attacks[i].Path, attacks[i].Topic = pipeline.PathMQTT, fmt.Sprintf("tenant/t1/device/h%d/telemetry", i)
	}
	r := newRig(t, database(t), hostileSettings)
	r.attackers(len(attacks))
	r.charge(attacks)
	r.aftermath(attacks)
}

// wide is n times c between two texts.
func wide(before string, c byte, n int, after string) []byte {
	b := make([]byte, 0, len(before)+n+len(after))
	b = append(b, before...)
	b = append(b, bytes.Repeat([]byte{c}, n)...)
	return append(b, after...)
}
