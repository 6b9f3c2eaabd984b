package process_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/pipelinetest"
	"github.com/crossfade-io/crossfade/pipeline/process"
)

// twin is one message, and its copies as both paths carry them.
type twin struct {
	pipelinetest.Copies
	topic, username string
	at              time.Time
}

func (w *twin) overMQTT() pipeline.Delivery {
	return pipeline.Delivery{Path: pipeline.PathMQTT, Topic: w.topic, Username: w.username, Body: w.Raw}
}

func (w *twin) overJetStream() pipeline.Delivery {
	return pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t1", Body: pipelinetest.Envelope(w.topic, w.username, w.Payload, w.at)}
}

// dated is a receipt of a copy that came into being at a time of its own.
type dated struct {
	*receipt
	at time.Time
}

func (d dated) Occurred() time.Time { return d.at }

// deliverAt submits a copy that occurred then.
func (r *rig) deliverAt(d pipeline.Delivery, at time.Time) {
	c := &receipt{rig: r, body: d.Body}
	r.receipts = append(r.receipts, c)
	d.Receipt = dated{c, at}
	r.Submit(d)
}

// registered is what the registry says of a device.
type registered struct {
	device, status, site         string
	token, source, keyMap        any
	subscription, certificate    any // their status
	subject                      string
	sensors, latitude, longitude any
	expires                      any
}

// scene is some random devices, and the messages that they send.
type scene struct {
	prefix   string // of its devices' names, unlike all other scenes'
	devices  []registered
	messages map[string][]twin
}

// long ago is when these tests play: times ahead of the clock count as now, which
// differs from one database to the next.
var longAgo = time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)

// drawScene draws devices and their messages, each device's far enough apart that
// none is another's repeat for the time alone.
func drawScene(t *rapid.T, prefix string) *scene {
	f := &scene{prefix: prefix, messages: make(map[string][]twin)}
	for n := range rapid.IntRange(1, 24).Draw(t, "devices") {
		device := fmt.Sprintf("%s-%d", prefix, n)
		if rapid.IntRange(0, 9).Draw(t, "registered") != 5 {
			f.devices = append(f.devices, drawDevice(t, device))
		}
		for m := range rapid.IntRange(1, 3).Draw(t, "messages") {
			at := longAgo.Add(time.Duration(m)*10*time.Minute + time.Duration(rapid.IntRange(0, 60_000).Draw(t, "ms"))*time.Millisecond)
			f.messages[device] = append(f.messages[device], drawTwin(t, device, at))
		}
	}
	return f
}

func drawDevice(t *rapid.T, device string) registered {
	or := func(label string, often any, seldom ...any) any {
		if rapid.IntRange(0, 7).Draw(t, label) != 5 {
			return often
		}
		return rapid.SampledFrom(seldom).Draw(t, label+" is")
	}
	const tok = "0b2c5f3e2d0d9bd4fbf6c7bd0d1d1a1f" // no hash of anything
	return registered{
		device: device,
		status: or("status", "ACTIVE", "REVOKED", "active", "").(string),
		site:   or("site", "s1", "s2", "").(string),
		token:  or("token", tokenHash("tok"), tokenHash("other"), nil, "", strings.ToUpper(tokenHash("tok")), tokenHash("other"), tok),
		source: or("source", nil, "manual", "auto"),
		keyMap: or("map", nil, `{"old":"new","a":"b"}`, `{"k1":"k2","temp_c":"a\nb"}`, `{"a":"temp_c","b":"temp_c","":"x"}`),

		subscription: or("subscription", nil, "ACTIVE", "SUSPENDED", "EXPIRED"),
		certificate:  or("certificate", nil, "ACTIVE", "REVOKED"),
		subject:      or("subject", "t1/"+device, "t1/other", "t2/"+device).(string),
		expires:      or("expires", nil, longAgo, longAgo.AddDate(100, 0, 0)),
		sensors:      or("sensors", nil, 0, 1, 100),
		latitude:     or("latitude", nil, 1.5),
		longitude:    or("longitude", nil, 2.5),
	}
}

func drawTwin(t *rapid.T, device string, at time.Time) twin {
	w := twin{topic: pipelinetest.Topics(device).Draw(t, "topic"), at: at}
	w.username = rapid.SampledFrom([]string{"", "", "t1/" + device, "t1/" + device, "t1/other", "t2/" + device, device, "t1\x00", "t1/" + device + "/"}).Draw(t, "username")
	if rapid.IntRange(0, 9).Draw(t, "rubbish") == 5 {
		w.Copies = pipelinetest.Mirrored(t, pipelinetest.Rubbish.Draw(t, "payload"))
		return w
	}
	doc := pipelinetest.Payloads.Draw(t, "payload")
	for i, m := range doc { // a command's ID is one in its tenant
		if m.Name == "command_id" && m.Value == "c1" {
			doc[i].Value = "c1-" + device
		}
	}
	w.Copies = pipelinetest.Passed(t, doc, at)
	return w
}

// registerScene writes the scene's devices into a database.
func (r *rig) registerScene(f *scene) {
	r.Helper()
	var b pgx.Batch
	for _, d := range f.devices {
		var subscription any
		if d.subscription != nil {
			subscription = "sub-" + d.device
			b.Queue(`INSERT INTO subscriptions (subscription_id, tenant_id, status) VALUES ($1, 't1', $2)`, subscription, d.subscription)
		}
		b.Queue(`INSERT INTO device_registry (tenant_id, device_id, site_id, status, provision_token_hash, location_source, sensor_limit, latitude, longitude, subscription_id)
			VALUES ('t1', $1, $2, $3, $4, $5, $6, $7, $8, $9)`, d.device, d.site, d.status, d.token, d.source, d.sensors, d.latitude, d.longitude, subscription)
		if d.keyMap != nil {
			b.Queue(`INSERT INTO device_modules (tenant_id, device_id, metric_key_map) VALUES ('t1', $1, $2)`, d.device, d.keyMap)
		}
		if d.certificate != nil {
			b.Queue(`INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, common_name, status, not_after) VALUES ('t1', $1, $1, $2, $3, $4)`, d.device, d.subject, d.certificate, d.expires)
		}
		b.Queue(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1-' || $1::text, $1, 'x')`, d.device)
	}
	if err := r.db.SendBatch(r.Context(), &b).Close(); err != nil {
		r.Fatal(err)
	}
}

// left is all that a scene's messages leave in a database, as text, in an order of
// its own; what may differ between two copies (their path, bytes and an added
// payload.ts) is left out.
var left = map[string]string{
	"telemetry": `SELECT (time, tenant_id, device_id, site_id, msg_type, seq, metrics)::text FROM telemetry WHERE device_id LIKE $1 || '-%'`,
	"quarantine_events": `SELECT (event_ts, topic, tenant_id, site_id, device_id, msg_type, reason, message_id, CASE WHEN reason <> 'INVALID_JSON' THEN detail END,
		CASE WHEN jsonb_typeof(payload) <> 'object' OR jsonb_typeof(payload -> 'ts') NOT IN ('number', 'null') THEN payload ELSE payload - 'ts' END)::text
		FROM quarantine_events WHERE topic LIKE '%' || $1 || '-%'`,
	"quarantine_counters_minute": `SELECT (tenant_id, reason, sum(cnt))::text FROM quarantine_counters_minute WHERE $1 <> '' GROUP BY tenant_id, reason`,
	"device_state": `SELECT (device_id, site_id, status, ` + settled("last_seen_at") + `, ` + settled("last_telemetry_at") + `, ` + settled("last_heartbeat_at") + `,
		reported_state, reported_version, shadow_updated_at IS NULL)::text FROM device_state WHERE device_id LIKE $1 || '-%'`,
	"device_sensors":   `SELECT (device_id, metric_key, display_name, unit, status, source, last_value, last_value_text, ` + settled("last_seen_at") + `)::text FROM device_sensors WHERE device_id LIKE $1 || '-%'`,
	"device_registry":  `SELECT (device_id, site_id, status, latitude, longitude, location_source)::text FROM device_registry WHERE device_id LIKE $1 || '-%'`,
	"device_commands":  `SELECT (device_id, command_id, status, ack_details, acked_at IS NULL)::text FROM device_commands WHERE device_id LIKE $1 || '-%'`,
	"subscriptions":    `SELECT (subscription_id, active_device_count)::text FROM subscriptions WHERE subscription_id = 'main' AND $1 <> ''`,
	"crossfade_outbox": `SELECT (tenant_id, device_id, route_id, message_id, convert_from(body, 'UTF8'))::text FROM crossfade_outbox WHERE device_id LIKE $1 || '-%'`,
	"crossfade_ledger": `SELECT (message_id, outcome, digest, occurred_at)::text FROM crossfade_ledger WHERE $1 <> ''`,
}

// settled is the SQL for a time, unless the database's own clock was put in its place.
func settled(column string) string {
	return `CASE WHEN ` + column + ` > now() - interval '1 day' THEN 'now' ELSE ` + column + `::text END`
}

func (r *rig) lines(sql string, args ...any) []string {
	r.Helper()
	rows, err := r.db.Query(r.Context(), sql, args...)
	if err != nil {
		r.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
	slices.Sort(lines)
	return lines
}

// each scans every row into dst.
func (r *rig) each(sql string, dst []any, row func()) {
	r.Helper()
	rows, err := r.db.Query(r.Context(), sql)
	if err != nil {
		r.Fatal(err)
	}
	if _, err := pgx.ForEachRow(rows, dst, func() error { row(); return nil }); err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
}

// agreeOptions are four ways to run: tokens or certificates are demanded, nothing
// is, unknown devices are registered, and nothing is demanded of the first message of a
// device and no other may come. But for the last no message is refused for its rate,
// since the messages of TestOneOutcomeInAnyOrder come in any order.
var agreeOptions = []func(*process.Options){
	func(o *process.Options) {
		o.Settings.RateLimit, o.Settings.RequireToken, o.Settings.CertAuth, o.Routes = 0, true, true, true
	},
	func(o *process.Options) { o.Settings.RateLimit, o.Settings.RequireToken, o.Routes = 0, false, true },
	func(o *process.Options) {
		o.Settings.RateLimit, o.Settings.RequireToken, o.Settings.CertAuth, o.Settings.CertTrustTopic, o.AutoProvision = 0, true, true, true, true
	},
	func(o *process.Options) {
		o.Settings.RateLimit, o.Settings.RateBurst, o.Settings.RequireToken, o.Routes = 1e-6, 1, false, true
	},
}

// newAgreeRig has routes, one of them for what only a producer adds, and room for
// devices that are not registered.
func newAgreeRig(t *testing.T, change func(*process.Options)) *rig {
	r := newRig(t, database(t), change)
	r.exec(`INSERT INTO subscriptions (subscription_id, tenant_id) VALUES ('main', 't1')`)
	r.exec(`INSERT INTO message_routes (id, tenant_id, name, topic_filter, destination_type, payload_filter) VALUES
		(1, 't1', 'all', 'tenant/+/device/+/#', 'webhook', NULL),
		(2, 't1', 'warm', 'tenant/t1/device/+/telemetry', 'mqtt_republish', '{"temp_c": {"$gt": 0}}'),
		(3, 't1', 'added', '#', 'webhook', '{"ts": {"$gt": 0}}'),
		(4, 't1', 'as text', '+/+/+/+/+', 'webhook', '{"a": "1", "site_id": "s1"}'),
		(5, 't1', 'written', '#', 'postgresql', NULL)`)
	return r
}

// TestBothPathsLeaveTheSame (promise P3): random messages, valid, broken and
// hostile, of random devices, taken by MQTT into one database and as a producer
// passes them on into another, leave the same behind: outcome, reason, ID, row,
// and all that is kept of their devices.
func TestBothPathsLeaveTheSame(t *testing.T) {
	type pair struct{ mqtt, stream *rig }
	var pairs []pair
	for _, options := range agreeOptions {
		pairs = append(pairs, pair{newAgreeRig(t, options), newAgreeRig(t, options)})
	}
	pairs = append(pairs, pairs[0], pairs[2]) // tokens have the most ways to be wrong
	checks, outcomes := 0, map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom(pairs).Draw(t, "options")
		checks++
		f := drawScene(t, fmt.Sprintf("f%d", checks))
		p.mqtt.registerScene(f)
		p.stream.registerScene(f)
		// A device's messages go in batches of their own, since some effects
		// (which sensors are the first) depend on what comes together.
		for round := range 3 {
			for _, messages := range f.messages {
				if round < len(messages) {
					p.mqtt.deliverAt(messages[round].overMQTT(), messages[round].at)
					p.stream.deliverAt(messages[round].overJetStream(), messages[round].at)
				}
			}
			p.mqtt.drain()
			p.stream.drain()
		}
		for table, sql := range left {
			a, b := p.mqtt.lines(sql, f.prefix), p.stream.lines(sql, f.prefix)
			if !slices.Equal(a, b) {
				d := difference(a, b)
				t.Errorf("%s by MQTT (-), by JetStream (+):\n%s%s", table, d, f.named(d))
			}
		}
		for _, line := range p.mqtt.lines(`SELECT reason FROM quarantine_events WHERE topic LIKE '%' || $1 || '-%' UNION ALL SELECT 'written' FROM telemetry WHERE device_id LIKE $1 || '-%'
			UNION ALL SELECT 'routed' FROM crossfade_outbox WHERE device_id LIKE $1 || '-%'`, f.prefix) {
			outcomes[line]++
		}
		p.mqtt.forget()
		p.stream.forget()
	})
	t.Logf("outcomes: %v", outcomes)
	if checks < 50 {
		return // too few to tell
	}
	for _, want := range []string{"written", "routed", "SUBSCRIPTION_SUSPENDED", "INVALID_JSON", "BAD_TOPIC_FORMAT", "PAYLOAD_TOO_LARGE", "METRICS_INVALID", "TOO_MANY_METRICS", "UNREGISTERED_DEVICE", "DEVICE_REVOKED", "SITE_MISMATCH_REGISTRY_VS_PAYLOAD", "RATE_LIMITED", "UNSUPPORTED_ENVELOPE_VERSION", "SEQ_INVALID", "SHADOW_INVALID", "TENANT_MISMATCH_TOPIC_VS_PAYLOAD", "MISSING_SITE_ID", "TOKEN_INVALID", "TOKEN_MISSING", "TOKEN_NOT_SET_IN_REGISTRY"} {
		if outcomes[want] == 0 {
			t.Errorf("no message came to %s: the test does not test it", want)
		}
	}
}

// forget empties what grows with every check and is compared as a whole.
func (r *rig) forget() {
	r.exec(`TRUNCATE crossfade_ledger, crossfade_outbox, quarantine_events, quarantine_counters_minute`)
}

// difference lists what only one of two sorted lists has.
func difference(a, b []string) string {
	var s strings.Builder
	for _, line := range a {
		if !slices.Contains(b, line) {
			fmt.Fprintln(&s, "-", line)
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			fmt.Fprintln(&s, "+", line)
		}
	}
	return s.String()
}

// named describes the devices that a text names, and their messages.
func (f *scene) named(text string) string {
	var s strings.Builder
	named := func(device string) bool { return regexp.MustCompile(device + `\b`).MatchString(text) }
	for _, d := range f.devices {
		if named(d.device) {
			fmt.Fprintf(&s, "%+v\n", d)
		}
	}
	for device, messages := range f.messages {
		if !named(device) {
			continue
		}
		for _, w := range messages {
			fmt.Fprintf(&s, "%q %q\n  %.500q\n  %.500q\n", w.topic, w.username, w.Raw, w.Payload)
		}
	}
	return s.String()
}

func tokenHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}
