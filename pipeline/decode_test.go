package pipeline_test

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// TestIdentity: which copies are the same message, and on what its identity rests.
func TestIdentity(t *testing.T) {
	const (
		explicit = "the device's own ID"
		content  = "its content"
		anon     = "its content within a window"
	)
	type row struct {
		name string
		a, b pipeline.Delivery
		same bool
		kind string // of a
	}
	withTS := `{"site_id":"s1","ts":"2026-11-23T12:00:00Z","metrics":{"a":1}}`
	for _, c := range []row{
		{"explicit string", mqtt(`{"message_id":"x1","a":1}`), jetstream(`{"a":1,"message_id":"x1"}`), true, explicit},
		{"explicit string, other content", mqtt(`{"message_id":"x1","a":1}`), jetstream(`{"message_id":"x1","a":2}`), true, explicit},
		{"explicit number", mqtt(`{"message_id":17}`), jetstream(`{"message_id":1.7e1}`), true, explicit},
		{"explicit number beyond 2^53", mqtt(`{"message_id":9007199254740993}`), jetstream(`{"message_id":9007199254740992}`), true, explicit},
		{"explicit, another", mqtt(`{"message_id":"x1"}`), jetstream(`{"message_id":"x2"}`), false, explicit},
		{"explicit, empty is none", mqtt(`{"message_id":"","seq":1}`), jetstream(`{"message_id":"","seq":2}`), false, content},
		{"explicit, null is none", mqtt(`{"message_id":null,"seq":1}`), jetstream(`{"message_id":null,"seq":2}`), false, content},
		{"explicit, an object is none", mqtt(`{"message_id":{"a":1},"seq":1}`), jetstream(`{"message_id":{"a":1},"seq":1}`), true, content},
		{"explicit, ts injected", mqtt(`{"message_id":"x1"}`), jetstream(`{"message_id":"x1","ts":1795435200.004}`), true, explicit},
		{"explicit, another readable ts", mqtt(`{"message_id":"x1","ts":"2026-11-23"}`), mqtt(`{"message_id":"x1","ts":"2026-11-24"}`), false, explicit},
		{"explicit, another unreadable ts", mqtt(`{"message_id":"x1","ts":"soon"}`), mqtt(`{"message_id":"x1","ts":7}`), true, explicit},
		{"explicit is no content", mqtt(`{"message_id":"x1"}`), mqtt(`{"seq":1}`), false, explicit},

		{"ts", mqtt(withTS), jetstream(withTS), true, content},
		{"ts, other order, spacing, numbers and escapes", mqtt(withTS), jetstream(` { "metrics" : { "\u0061" : 1.0e0 }, "ts" : "2026-11-23T12:00:00\u005a" , "site_id" : "s1" } `), true, content},
		{"ts, as a string", mqtt(withTS), quoted(withTS), true, content},
		{"ts, as a string twice", mqtt(withTS), quoted(string(quoted(withTS).Body[len(`{"topic":"`+topic+`","tenant_id":"t1","device_id":"d1","msg_type":"telemetry","username":"","payload":`):bytes.LastIndex(quoted(withTS).Body, []byte(`,"ts":`))])), true, content},
		{"ts, other value", mqtt(withTS), jetstream(strings.Replace(withTS, `"a":1`, `"a":2`, 1)), false, content},
		{"ts, an hour apart", mqtt(withTS), atTime(mqtt(withTS), noon.Add(time.Hour)), true, content},
		{"same instant, other text", mqtt(withTS), jetstream(strings.Replace(withTS, "00Z", "00+00:00", 1)), false, content},
		{"another device", mqtt(withTS), overMQTT("tenant/t1/device/d2/telemetry", withTS), false, content},
		{"another message type", mqtt(withTS), overMQTT("tenant/t1/device/d1/heartbeat", withTS), false, content},
		{"another tenant", mqtt(withTS), overMQTT("tenant/t2/device/d1/telemetry", withTS), false, content},
		{"another tenant, explicit", mqtt(`{"message_id":"x1"}`), overMQTT("tenant/t2/device/d1/telemetry", `{"message_id":"x1"}`), false, explicit},
		{"another device, explicit", mqtt(`{"message_id":"x1"}`), overMQTT("tenant/t1/device/d2/telemetry", `{"message_id":"x1"}`), false, explicit},
		{"another type, explicit", mqtt(`{"message_id":"x1"}`), overMQTT("tenant/t1/device/d1/heartbeat", `{"message_id":"x1"}`), false, explicit},
		{"names cannot run into each other", overMQTT("tenant/t1/device/d12/x", `{"seq":1}`), overMQTT("tenant/t1/device/d1/2x", `{"seq":1}`), false, content},
		{"duplicate members", mqtt(`{"seq":1,"a":1,"seq":2}`), jetstream(`{"a":1,"seq":2}`), true, content},
		{"names by case", mqtt(`{"SEQ":1}`), jetstream(`{"seq":1}`), false, anon},

		{"seq", mqtt(`{"seq":1}`), jetstream(`{"seq":1}`), true, content},
		{"seq, an hour apart", mqtt(`{"seq":1}`), atTime(mqtt(`{"seq":1}`), noon.Add(time.Hour)), true, content},
		{"seq, ts injected", mqtt(`{"seq":1}`), jetstream(`{"seq":1,"ts":1795435200.0}`), true, content},
		{"seq, ts injected 9 ms late", mqtt(`{"seq":1}`), jetstream(`{"seq":1,"ts":1795435200.009}`), true, content},
		{"seq, ts injected 9 ms early", mqtt(`{"seq":1}`), jetstream(`{"seq":1,"ts":1795435199.991}`), true, content},
		{"seq, ts of the device, 11 ms off", mqtt(`{"seq":1}`), jetstream(`{"seq":1,"ts":1795435200.011}`), false, content},
		{"ts null is none", mqtt(`{"seq":1,"ts":null}`), jetstream(`{"seq":1,"ts":1795435200.0}`), true, content},
		{"numeric ts of the device's own", mqtt(`{"ts":12.5}`), jetstream(`{"ts":12.5}`), true, content},
		{"numeric ts of the device's own, other", mqtt(`{"ts":12.5}`), jetstream(`{"ts":13.5}`), false, content},
		{"ts injected, envelope without a time", mqtt(`{"seq":1}`), overJetStream("telemetry.t1", `{"topic":"`+topic+`","payload":{"seq":1,"ts":1795435200.0}}`), false, content},
		{"ts injected, in a string", mqtt(`{"seq":1}`), quoted(`{"seq":1,"ts":1795435200.0}`), true, content},

		{"by HTTP, ts of the device close to the envelope's", mqtt(`{"ts":1795435200.004,"a":1}`), byHTTP(jetstream(`{"ts":1795435200.004,"a":1}`)), true, content},
		{"by HTTP, two readings posted at once each", byHTTP(jetstream(`{"ts":1795435200.001,"a":1}`)), byHTTP(overJetStream("telemetry.t1", envelope(topic, `{"ts":1795435205.001,"a":1}`, noonMS+5000))), false, content},
		{"by HTTP, posted again a second later", byHTTP(jetstream(`{"ts":1795435200.001,"seq":7}`)), byHTTP(overJetStream("telemetry.t1", envelope(topic, `{"ts":1795435200.001,"seq":7}`, noonMS+1000))), true, content},
		{"by HTTP, ts null is none", mqtt(`{"ts":null,"seq":1}`), byHTTP(jetstream(`{"ts":null,"seq":1}`)), true, content},
		{"sole, but by a mirror: ts injected", mqtt(`{"seq":1}`), sole(jetstream(`{"seq":1,"ts":1795435200.004}`)), true, content},

		{"neither", mqtt(`{"site_id":"s1"}`), jetstream(`{"site_id":"s1"}`), true, anon},
		{"neither, ts injected", mqtt(`{"site_id":"s1"}`), jetstream(`{"site_id":"s1","ts":1795435200.001}`), true, anon},
		{"seq null is none", mqtt(`{"seq":null}`), jetstream(`{"seq":null}`), true, anon},
		{"ts null alone is none", mqtt(`{"ts":null}`), jetstream(`{"ts":1795435200.001}`), true, anon},
		{"ts unreadable", mqtt(`{"ts":"noon"}`), jetstream(`{"ts":"noon"}`), true, anon},
		{"ts unreadable, other", mqtt(`{"ts":"noon"}`), jetstream(`{"ts":"one"}`), false, anon},
		{"neither, an hour apart", mqtt(`{}`), atTime(mqtt(`{}`), noon.Add(time.Hour)), false, anon},
		{"neither, an envelope an hour apart", jetstream(`{}`), overJetStream("telemetry.t1", envelope(topic, `{}`, noonMS+3600_000)), false, anon},
		{"neither, other stream time", jetstream(`{}`), atTime(jetstream(`{}`), noon.Add(time.Hour)), true, anon},

		{"foreign, another subject", overJetStream("telemetry.t2", `{"topic":"tenant/t1/x"}`), overJetStream("telemetry.t3", `{"topic":"tenant/t1/x"}`), false, anon},
		{"foreign, made up to be another's", mqtt(`{}`), overJetStream("telemetry.t1", "\x02d1\x09telemetry{}"), false, anon},
		{"not JSON", mqtt(`{"a":`), quoted(`{"a":`), true, anon},
		{"empty", mqtt(``), quoted(``), true, anon},
		{"not an object", mqtt(`[1,2]`), jetstream(`[1.0,2]`), true, anon},
		{"a string that is no JSON", mqtt(`"abc"`), jetstream(`"abc"`), true, anon},
		{"text with control characters", mqtt("a\x00b\x01\n"), jetstream(`"a\u0000b\u0001\n"`), true, anon},
		{"no UTF-8, one U+FFFD a byte", mqtt("{\"a\":\"\xf0\x9f\x98\"}"), jetstream(`"{\"a\":\"\ufffd\ufffd\ufffd\"}"`), true, anon},
		{"no UTF-8, one U+FFFD a run", mqtt("{\"a\":\"\xf0\x9f\x98\"}"), jetstream(`"{\"a\":\"\ufffd\"}"`), true, anon},
		{"other rubbish", mqtt(`{"a":`), quoted(`{"b":`), false, anon},
		{"same rubbish, another tenant", mqtt(`{"a":`), overMQTT("tenant/t2/device/d1/telemetry", `{"a":`), false, anon},
		{"rubbish within JSON", mqtt(`{"a":"x`), jetstream(`"{\"a\":\"x"`), true, anon},
		{"nested too deeply", mqtt(deep(pipeline.MaxDepth + 1)), jetstream(deep(pipeline.MaxDepth + 1)), true, anon},
		{"nested too deeply, as a string", mqtt(deep(pipeline.MaxDepth + 1)), quoted(deep(pipeline.MaxDepth + 1)), true, anon},
		{"bad topic", overMQTT("tenant/t1/device/d1", `{"seq":1}`), overJetStream("telemetry.t1", envelope("tenant/t1/device/d1", `{"seq":1}`, noonMS)), true, anon},
		{"bad topic, ts injected", overMQTT("tenant/t1/x", `{"seq":1}`), overJetStream("telemetry.t1", envelope("tenant/t1/x", `{"seq":1,"ts":1795435200.0}`, noonMS)), true, anon},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := decode(t, c.a), decode(t, c.b)
			if (a.ID == b.ID) != c.same {
				t.Errorf("IDs %s and %s: same is %v, want %v", a.ID, b.ID, a.ID == b.ID, c.same)
			}
			kind := content
			if a.Explicit {
				kind = explicit
			} else if a.Anonymous {
				kind = anon
			}
			if kind != c.kind {
				t.Errorf("identity rests on %s, want %s", kind, c.kind)
			}
			if c.same && (a.Anonymous != b.Anonymous || a.Explicit != b.Explicit || a.Failed != b.Failed) {
				t.Errorf("copies of one message differ: %+v, %+v", a.Identity, b.Identity)
			}
		})
	}
}

func deep(levels int) string {
	return strings.Repeat(`{"a":`, levels-1) + "{}" + strings.Repeat("}", levels-1)
}

// TestIdentityPage: the IDs that docs/identity.md shows are those of its first example.
func TestIdentityPage(t *testing.T) {
	page, err := os.ReadFile("../docs/identity.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []pipeline.Delivery{
		mqtt(`{"ts":"2026-02-09T09:15:23.045Z","seq":123,"metrics":{"t":22.50}}`),
		jetstream(`{"metrics": {"t": 22.5}, "seq": 123.0, "ts": "2026-02-09T09:15:23.045Z"}`),
	} {
		id := decode(t, d).ID.String()
		if !strings.Contains(string(page), string(d.Body)) && d.Path == pipeline.PathMQTT || !strings.Contains(string(page), id[:12]+" | "+id[12:]) {
			t.Errorf("the page does not show %s as the ID of %s", id, d.Body)
		}
	}
}

// TestTimeInID: the message's own time leads its ID; an anonymous one's carries
// its window; without a time it is zero.
func TestTimeInID(t *testing.T) {
	window := noon.UnixMilli() / pipeline.AnonymousWindow.Milliseconds() * pipeline.AnonymousWindow.Milliseconds()
	for payload, want := range map[string]int64{
		`{"ts":"2026-11-23T12:00:00.123456Z"}`: noonMS + 123,
		`{"message_id":"x","ts":"2026-11-23"}`: noonMS - 12*3600_000,
		`{"ts":"9999-12-31T23:59:59Z"}`:        253402300799000,
		`{"ts":"1970-01-01T00:00:00.001Z"}`:    1,
		`{"ts":"1969-12-31T23:59:59.999Z"}`:    0,
		`{"ts":"0001-01-01"}`:                  0,
		`{"seq":1}`:                            0,
		`{"seq":1,"ts":"x"}`:                   0,
		`{"message_id":"x"}`:                   0,
		`{"ts":5}`:                             0,
		`{}`:                                   window,
		`broken`:                               window,
	} {
		m := decode(t, mqtt(payload))
		if got := m.ID.Millis(); got != want {
			t.Errorf("ID of %s carries %d ms, want %d", payload, got, want)
		}
		if content := m.ID.Content(); content.Millis() != 0 || !bytes.Equal(content[6:], m.ID[6:]) {
			t.Errorf("Content of %s is %s", m.ID, content)
		}
	}
}

// TestNeighboursCoverTheWindow: copies up to a window apart find each other's IDs,
// wherever the slots' boundaries are.
func TestNeighboursCoverTheWindow(t *testing.T) {
	for _, at := range []time.Time{noon, noon.Add(pipeline.AnonymousWindow - 1), noon.Add(17 * time.Second), time.UnixMilli(0), time.UnixMilli(1), time.UnixMilli(-5), time.UnixMilli(29_999)} {
		a := decode(t, atTime(mqtt(`{}`), at))
		for _, apart := range []time.Duration{-pipeline.AnonymousWindow, -time.Second, 0, time.Millisecond, 29_900 * time.Millisecond, pipeline.AnonymousWindow} {
			b := decode(t, atTime(mqtt(`{}`), at.Add(apart)))
			if !pipeline.SameOccurrence(a.Occurred, b.Occurred) {
				t.Errorf("%v and %v are not within the window", a.Occurred, b.Occurred)
			}
			if n := a.ID.Neighbours(); b.ID != n[0] && b.ID != n[1] && b.ID != n[2] {
				t.Errorf("the copy %v after %v has ID %s, none of %v", apart, at, b.ID, n)
			}
		}
		if pipeline.SameOccurrence(at, at.Add(pipeline.AnonymousWindow+time.Microsecond)) {
			t.Error("a microsecond beyond the window is another message")
		}
	}
}

func TestTimes(t *testing.T) {
	second := noon.Add(time.Second)
	for _, c := range []struct {
		name           string
		d              pipeline.Delivery
		time, occurred time.Time
	}{
		{"own time", mqtt(`{"ts":"2026-11-23 13:00:01.5+01:00"}`), second.Add(500 * time.Millisecond), time.Time{}},
		{"MQTT arrival", atTime(mqtt(`{"ts":"x"}`), second.Add(1999)), second.Add(time.Microsecond), second.Add(time.Microsecond)},
		{"envelope's time", atTime(jetstream(`{}`), second), noon, noon},
		{"envelope with a fraction", atTime(overJetStream("telemetry.t1", strings.Replace(envelope(topic, `{}`, noonMS), `00}`, `00.25}`, 1)), second), noon.Add(250 * time.Microsecond), noon.Add(250 * time.Microsecond)},
		{"stream's time", atTime(overJetStream("telemetry.t1", envelope(topic, `{}`, 0)), second), second, second},
		{"envelope beyond year 9999", atTime(overJetStream("telemetry.t1", envelope(topic, `{}`, 253402300800000)), second), second, second},
		{"envelope's time is text", atTime(overJetStream("telemetry.t1", strings.Replace(envelope(topic, `{}`, 1), `"ts":1`, `"ts":"1795435200000"`, 1)), second), second, second},
		{"no envelope", atTime(overJetStream("telemetry.t1", `rubbish`), second), second, second},
		{"injected", atTime(jetstream(`{"ts":1795435200.005}`), second), noon, noon},
	} {
		m := decode(t, c.d)
		if !m.Time.Equal(c.time) || !m.Occurred.Equal(c.occurred) {
			t.Errorf("%s: time %v, occurred %v; want %v, %v", c.name, m.Time, m.Occurred, c.time, c.occurred)
		}
	}
}

// TestFailed: what reading itself finds, first one first.
func TestFailed(t *testing.T) {
	const ok = pipeline.Accepted
	env := func(subject, body string) pipeline.Delivery { return overJetStream(subject, body) }
	wraps := `{"seq":1}`
	for range 12 {
		wraps = string(canonicalString(t, wraps))
	}
	for _, c := range []struct {
		name string
		d    pipeline.Delivery
		want pipeline.Reason
	}{
		{"good", mqtt(`{}`), ok},
		{"good envelope", jetstream(`{}`), ok},
		{"good, bare envelope", env("telemetry.t1", `{"topic":"`+topic+`","payload":{}}`), ok},
		{"good, null claims", env("telemetry.t1", `{"topic":"`+topic+`","tenant_id":null,"device_id":null,"payload":{},"ts":null}`), ok},
		{"wrapped often", mqtt(wraps), ok},
		{"wrapped often, in an envelope", jetstream(wraps), ok},
		{"as deep as allowed", mqtt(deep(pipeline.MaxDepth)), ok},
		{"as deep as allowed, in an envelope", jetstream(deep(pipeline.MaxDepth)), ok},
		{"too deep", jetstream(deep(pipeline.MaxDepth + 1)), pipeline.InvalidJSON},
		{"far too deep", mqtt(deep(canonical.MaxDepth * 2)), pipeline.InvalidJSON},
		{"broken", mqtt(`{`), pipeline.InvalidJSON},
		{"array", mqtt(`[]`), pipeline.InvalidJSON},
		{"null", mqtt(`null`), pipeline.InvalidJSON},
		{"two", mqtt(`{}{}`), pipeline.InvalidJSON},
		{"BOM", mqtt("\ufeff{}"), pipeline.InvalidJSON},
		{"NaN", mqtt(`{"a":NaN}`), pipeline.InvalidJSON},
		{"Latin-1", mqtt("{\"unit\":\"\xb0C\"}"), pipeline.InvalidJSON},
		{"Latin-1, mirrored", jetstream(`"{\"unit\":\"` + "\ufffd" + `C\"}"`), pipeline.InvalidJSON},
		{"payload missing", env("telemetry.t1", `{"topic":"`+topic+`"}`), pipeline.InvalidJSON},
		{"payload a number", jetstream(`1`), pipeline.InvalidJSON},
		{"payload broken text", quoted(`{`), pipeline.InvalidJSON},
		{"envelope broken", env("telemetry.t1", `{"topic":`), pipeline.InvalidJSON},
		{"envelope an array", env("telemetry.t1", `[]`), pipeline.InvalidJSON},
		{"envelope no UTF-8", env("telemetry.t1", "{\"topic\":\"\xff\"}"), pipeline.InvalidJSON},
		{"bad topic", overMQTT("tenant/t1/device", `{}`), pipeline.BadTopicFormat},
		{"bad topic in the envelope", env("telemetry.t1", envelope("tenant/t1/device", `{}`, 1)), pipeline.BadTopicFormat},
		{"broken before bad topic", overMQTT("tenant/t1/device", `{`), pipeline.InvalidJSON},
		{"bad topic before mismatch", env("telemetry.t2", envelope("tenant/t1/device", `{}`, 1)), pipeline.BadTopicFormat},
		{"broken before mismatch", env("telemetry.t2", envelope(topic, `1`, 1)), pipeline.InvalidJSON},
		{"topic missing", env("telemetry.t1", `{"payload":{}}`), pipeline.BadTopicFormat},
		{"subject's tenant", env("telemetry.t2", envelope(topic, `{}`, 1)), pipeline.TenantMismatchEnvelope},
		{"subject without a tenant", env("telemetry", envelope(topic, `{}`, 1)), pipeline.TenantMismatchEnvelope},
		{"topic's tenant", env("telemetry.t1", envelope("tenant/t2/device/d1/telemetry", `{}`, 1)), pipeline.TenantMismatchEnvelope},
		{"envelope's tenant", env("telemetry.t1", `{"topic":"`+topic+`","tenant_id":"t2","payload":{}}`), pipeline.TenantMismatchEnvelope},
		{"envelope's tenant a number", env("telemetry.1", `{"topic":"tenant/1/device/d1/x","tenant_id":1,"payload":{}}`), pipeline.TenantMismatchEnvelope},
		{"envelope's device", env("telemetry.t1", `{"topic":"`+topic+`","device_id":"d2","payload":{}}`), pipeline.TenantMismatchEnvelope},
		{"envelope's device empty", env("telemetry.t1", `{"topic":"`+topic+`","device_id":"","payload":{}}`), pipeline.TenantMismatchEnvelope},
		{"names by case", env("telemetry.t1", `{"topic":"`+topic+`","DEVICE_ID":"d2","Tenant_Id":"t2","payload":{}}`), ok},
		{"last duplicate counts", env("telemetry.t1", `{"topic":"tenant/t2/device/d1/x","topic":"`+topic+`","tenant_id":"t2","tenant_id":"t1","payload":1,"payload":{}}`), ok},
	} {
		m := decode(t, c.d)
		if m.Failed != c.want || (m.Detail == "") != (c.want == ok) {
			t.Errorf("%s: %q (%s), want %q", c.name, m.Failed, m.Detail, c.want)
		}
	}
}

func canonicalString(t *testing.T, s string) []byte {
	t.Helper()
	b := []byte{'"'}
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

// TestForgedEnvelope: an envelope that does not belong to its subject's tenant
// cannot take the ID of a message that does, nor pass as downlink.
func TestForgedEnvelope(t *testing.T) {
	for _, payload := range []string{`{"message_id":"x1"}`, `{"seq":1}`, `{}`, `broken`, `1`} {
		true1 := decode(t, mqtt(payload))
		forms := []string{payload, string(canonicalString(t, payload))}
		for _, form := range forms {
			for _, d := range []pipeline.Delivery{
				overJetStream("telemetry.t2", envelope(topic, form, noonMS)),
				overJetStream("telemetry.t2", strings.Replace(envelope(topic, form, noonMS), `"tenant_id":"t1"`, `"tenant_id":"t2"`, 1)),
				overJetStream("telemetry.t1", strings.Replace(envelope(topic, form, noonMS), `"device_id":"d1"`, `"device_id":"d2"`, 1)),
				overJetStream("telemetry.t1", strings.Replace(envelope(topic, form, noonMS), `"tenant_id":"t1"`, `"tenant_id":"t2"`, 1)),
			} {
				m := decode(t, d)
				if m.Failed == pipeline.Accepted || m.ID.Content() == true1.ID.Content() || !m.Anonymous {
					t.Errorf("%s as %s: %q, ID %s, the true message's is %s", d.Subject, d.Body, m.Failed, m.ID, true1.ID)
				}
				if m.Tenant != pipeline.SubjectTenant(d.Subject) {
					t.Errorf("%s is laid at the door of %q", d.Body, m.Tenant)
				}
			}
		}
	}
	for _, payload := range []string{`{}`, `1`} {
		m := decode(t, overJetStream("telemetry.t2", envelope("tenant/t1/device/d1/commands", payload, noonMS)))
		if m.Kind == pipeline.KindDownlink {
			t.Errorf("a forged envelope with payload %s passes as downlink", payload)
		}
	}
	if m := decode(t, overJetStream("telemetry.t1", envelope("tenant/t1/device/d1/commands", `{}`, noonMS))); m.Kind != pipeline.KindDownlink || m.Failed != pipeline.Accepted {
		t.Errorf("an honest downlink envelope is %v, %q", m.Kind, m.Failed)
	}
}

func TestDecoderWithoutIDMember(t *testing.T) {
	var m pipeline.Message
	for _, member := range []string{"", "uid"} {
		dec := pipeline.NewDecoder(member)
		for payload, want := range map[string]bool{`{"":"x"}`: false, `{"message_id":"x"}`: false, `{"uid":"x"}`: member == "uid"} {
			d := mqtt(payload)
			if dec.Decode(&m, &d); m.Explicit != want {
				t.Errorf("member %q, payload %s: explicit is %v", member, payload, m.Explicit)
			}
		}
	}
}

// TestSeqAndMetrics as the writer and the checks see them.
func TestSeqAndMetrics(t *testing.T) {
	for seq, want := range map[string]struct {
		n        int64
		null, ok bool
	}{
		``: {0, false, true}, `"seq":null,`: {0, true, true}, `"seq":7,`: {7, false, true}, `"seq":-7.9,`: {-7, false, true}, `"seq":1e3,`: {1000, false, true},
		`"seq":-0,`: {0, false, true}, `"seq":999999999999999,`: {999999999999999, false, true},
		`"seq":9007199254740993,`: {9007199254740992, false, true}, `"seq":-9223372036854775808,`: {-9223372036854775808, false, true},
		`"seq":9223372036854774784,`: {9223372036854774784, false, true},
		`"seq":9223372036854775807,`: {}, `"seq":9223372036854775808,`: {}, `"seq":-9223372036854779000,`: {}, `"seq":1e400,`: {}, `"seq":"7",`: {}, `"seq":true,`: {}, `"seq":[],`: {}, `"seq":{},`: {},
	} {
		m := decode(t, mqtt(`{`+seq+`"a":1}`))
		if n, null, ok := m.Seq(); ok != want.ok || ok && (n != want.n || null != want.null) {
			t.Errorf("%s: %d, %v, %v", seq, n, null, ok)
		}
	}
	for metrics, want := range map[string]string{
		`{}`: `{}`, `{"metrics":null}`: `{}`, `{"metrics":{}}`: `{}`, `{"metrics":{"b":1.50,"a":[true,null,"x"]}}`: `{"a":[true,null,"x"],"b":1.5}`,
	} {
		m := decode(t, mqtt(metrics))
		for range 2 {
			if got, ok := m.Metrics(); string(got) != want || !ok {
				t.Errorf("metrics of %s: %s, %v", metrics, got, ok)
			}
		}
	}
}
