package pipelinetest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/crossfade-io/crossfade/pipeline"
)

// Hostile is a message that is meant to do harm, or looks so.
type Hostile struct {
	Name string
	// MsgType is what the topic ends in; telemetry where it is empty.
	MsgType string
	// Topic overrules the device's, where Elsewhere is set.
	Topic     string
	Elsewhere bool
	Payload   string
	// Want is the reason for which it is quarantined if it comes from a registered
	// device of site s1 that needs no token; Accepted for one that takes effect.
	Want pipeline.Reason
	// OnlyMQTT marks what no envelope can say.
	OnlyMQTT bool
}

// TopicOf is the case's topic if that device of tenant t1 sends it.
func (h Hostile) TopicOf(device string) string {
	if h.Elsewhere {
		return h.Topic
	}
	return "tenant/t1/device/" + device + "/" + cmp.Or(h.MsgType, "telemetry")
}

const tooLong = 100_000

// HostileCases is the table of them, by name. Each case is to be sent by a device of its
// own, of tenant t1: some have nothing else to tell them apart.
func HostileCases() []Hostile {
	var list []Hostile
	for _, part := range [][]Hostile{hostileStrings(), hostileNumbers(), hostileShapes(), hostileEncodings(), hostileEmptiness(), hostileTopics(), hostileKinds(), hostileTimes()} {
		list = append(list, part...)
	}
	slices.SortFunc(list, func(a, b Hostile) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func withMetrics(metrics string) string { return `{"seq":1,"site_id":"s1","metrics":` + metrics + `}` }

func withMember(name, value string) string {
	return fmt.Sprintf(`{"seq":1,"site_id":"s1",%q:%s}`, name, value)
}

// tellings are the members that mean something, with what becomes of a message in
// which one of them is a text that no column can hold, or a number beyond doubles.
var tellings = []struct {
	member string
	text   pipeline.Reason
	number pipeline.Reason
}{
	{"ts", pipeline.Accepted, pipeline.Accepted},
	{"seq", pipeline.SeqInvalid, pipeline.SeqInvalid},
	{"site_id", pipeline.SiteMismatch, pipeline.MissingSiteID},
	{"tenant_id", pipeline.TenantMismatchPayload, pipeline.TenantMismatchPayload},
	{"provision_token", pipeline.Accepted, pipeline.Accepted},
	{"version", pipeline.UnsupportedVersion, pipeline.UnsupportedVersion},
	{"message_id", pipeline.Accepted, pipeline.Accepted},
	{"lat", pipeline.Accepted, pipeline.Accepted},
	{"metrics", pipeline.MetricsInvalid, pipeline.MetricsInvalid},
	{"anything", pipeline.Accepted, pipeline.Accepted},
}

func hostileStrings() (list []Hostile) {
	for name, text := range map[string]string{"NUL": `"s1\u0000"`, "a lone high surrogate": `"s1\ud800"`, "a lone low surrogate": `"\udc00s1"`, "surrogates the wrong way round": `"\udc00\ud800"`} {
		list = append(list,
			Hostile{Name: name + " in a metric", Payload: withMetrics(`{"a":` + text + `}`), Want: pipeline.MetricValueInvalid},
			Hostile{Name: name + " deep in a metric", Payload: withMetrics(`{"a":[{"b":[` + text + `]}]}`), Want: pipeline.MetricValueInvalid},
			Hostile{Name: name + " in a metric's key", Payload: withMetrics(`{` + text + `:1}`), Want: pipeline.MetricKeyInvalid},
			Hostile{Name: name + " in a metric's inner key", Payload: withMetrics(`{"a":{` + text + `:1}}`), Want: pipeline.MetricValueInvalid},
			Hostile{Name: name + " in a member's name", Payload: `{"seq":1,"site_id":"s1",` + text + `:1}`},
			Hostile{Name: name + " in a metric that does not count", Payload: withMetrics(`{"a":` + text + `,"a":1}`)})
		for _, m := range tellings {
			list = append(list, Hostile{Name: name + " in " + m.member, Payload: withMember(m.member, text), Want: m.text})
		}
	}
	return append(list,
		Hostile{Name: "SQL", Payload: withMember("site_id", `"s1'; DROP TABLE telemetry; --"`), Want: pipeline.SiteMismatch},
		Hostile{Name: "COPY's end", Payload: withMetrics(`{"\\.":"\\.","a":"\\N","b":"PGCOPY\n"}`)},
		Hostile{Name: "a delimiter of arrays", Payload: withMetrics(`{"{,}":"{\"a\",NULL}"}`)},
		Hostile{Name: "control characters", Payload: withMetrics(`{"a":"\u0001\u001f\u007f\u0085\u2028\ufeff"}`)},
		Hostile{Name: "a control character in a key", Payload: withMetrics(`{"a\u0085":1}`), Want: pipeline.MetricKeyInvalid},
		Hostile{Name: "no characters", Payload: withMetrics(`{"a":"\uffff\ufffe\ufdd0"}`)},
		Hostile{Name: "an own U+FFFD", Payload: withMetrics(`{"a":"\ufffd"}`)},
		Hostile{Name: "an own U+FFFD in a key", Payload: withMetrics(`{"\ufffd":1}`), Want: pipeline.MetricKeyInvalid},
		Hostile{Name: "a key of 128 characters of 4 bytes", Payload: withMetrics(`{"` + strings.Repeat("😀", 128) + `":1}`)},
		Hostile{Name: "a key of 129", Payload: withMetrics(`{"` + strings.Repeat("😀", 129) + `":1}`), Want: pipeline.MetricKeyTooLong},
		Hostile{Name: "a string of 10 MB", Payload: withMetrics(`{"a":"` + strings.Repeat("x", 10<<20) + `"}`), Want: pipeline.PayloadTooLarge},
		Hostile{Name: "10 MB of escapes", Payload: withMetrics(`{"a":"` + strings.Repeat(`\u0000`, 10<<20/6) + `"}`), Want: pipeline.PayloadTooLarge},
		Hostile{Name: "a string of 10 MB that does not end", Payload: `{"a":"` + strings.Repeat("x", 10<<20), Want: pipeline.InvalidJSON},
	)
}

func hostileNumbers() (list []Hostile) {
	for _, literal := range []string{"1e400", "-1e400", "1e99999999999999999999", strings.Repeat("9", 400)} {
		list = append(list, Hostile{Name: literal + " in a metric", Payload: withMetrics(`{"a":` + literal + `}`), Want: pipeline.MetricValueInvalid})
		for _, m := range tellings {
			list = append(list, Hostile{Name: literal + " in " + m.member, Payload: withMember(m.member, literal), Want: m.number})
		}
	}
	for _, literal := range []string{"NaN", "-NaN", "Infinity", "-Infinity", "nan", "inf", "+1", "01", "1.", ".5", "1e", "0x10", "1_000", "--1", "1e+", "٣"} {
		list = append(list, Hostile{Name: literal, Payload: withMetrics(`{"a":` + literal + `}`), Want: pipeline.InvalidJSON})
	}
	for literal, seq := range map[string]pipeline.Reason{
		"9223372036854775808": pipeline.SeqInvalid, "9223372036854775807": pipeline.SeqInvalid, "-9223372036854775808": pipeline.Accepted,
		"-9223372036854777856": pipeline.SeqInvalid, "18446744073709551616": pipeline.SeqInvalid, "1e-400": pipeline.Accepted, "-0": pipeline.Accepted,
		"0." + strings.Repeat("0", tooLong) + "1": pipeline.Accepted, "1." + strings.Repeat("0", tooLong): pipeline.Accepted,
		"1" + strings.Repeat("0", 300): pipeline.SeqInvalid, "5e-324": pipeline.Accepted,
	} {
		list = append(list,
			Hostile{Name: "seq " + literal, Payload: `{"site_id":"s1","seq":` + literal + `}`, Want: seq},
			Hostile{Name: "metric " + literal, Payload: withMetrics(`{"a":` + literal + `,"b":[` + literal + `]}`)})
	}
	return list
}

func hostileShapes() []Hostile {
	nested := func(open, close string, n int) string { return strings.Repeat(open, n) + strings.Repeat(close, n) }
	many := make([]string, tooLong)
	for i := range many {
		many[i] = fmt.Sprintf(`"k%d":%d`, i, i)
	}
	wrapped := withMetrics(`{"a":1}`)
	for range 10 {
		b, _ := json.Marshal(wrapped) // a string always can be marshalled
		wrapped = string(b)
	}
	return []Hostile{
		{Name: "arrays 10,000 deep", Payload: withMetrics(`{"a":` + nested("[", "]", 10_000) + `}`), Want: pipeline.InvalidJSON},
		{Name: "objects 10,000 deep", Payload: nested(`{"a":`, "}", 9_999) + "", Want: pipeline.InvalidJSON},
		{Name: "objects 9,999 deep", Payload: strings.Repeat(`{"a":`, 9_998) + `{}` + strings.Repeat("}", 9_998), Want: pipeline.InvalidJSON},
		{Name: "a million levels", Payload: nested("[", "]", 1_000_000), Want: pipeline.InvalidJSON},
		{Name: "a million levels that do not end", Payload: strings.Repeat(`{"a":[`, 500_000), Want: pipeline.InvalidJSON},
		{Name: "as deep as allowed", Payload: withMetrics(`{"a":` + nested("[", "]", pipeline.MaxDepth-2) + `}`)},
		{Name: "a level deeper", Payload: withMetrics(`{"a":` + nested("[", "]", pipeline.MaxDepth-1) + `}`), Want: pipeline.InvalidJSON},
		{Name: "members twice", Payload: `{"site_id":"s2","site_id":"s1","seq":"x","seq":1,"metrics":[],"metrics":{"a":1,"a":2}}`},
		{Name: "members twice, the last wrong", Payload: `{"site_id":"s1","site_id":"s2"}`, Want: pipeline.SiteMismatch},
		{Name: "a member 100,000 times", Payload: withMetrics(`{` + strings.Repeat(`"a":0,`, tooLong) + `"a":1}`)},
		{Name: "a member twice by an escape", Payload: withMetrics(`{"a":1,"\u0061":2}`)},
		{Name: "names in capitals", Payload: `{"SITE_ID":"s1","Seq":"x"}`, Want: pipeline.MissingSiteID},
		{Name: "prototypes", Payload: withMetrics(`{"__proto__":{"a":1},"constructor":1}`)},
		{Name: "100,000 members", Payload: `{"seq":1,"site_id":"s1",` + strings.Join(many, ",") + `}`, Want: pipeline.PayloadTooLarge},
		{Name: "100,000 metrics", Payload: withMetrics(`{` + strings.Join(many, ",") + `}`), Want: pipeline.PayloadTooLarge},
		{Name: "white space", Payload: `{"seq":1,"site_id":"s1"` + strings.Repeat(" \t\r\n", tooLong) + `}`},
		{Name: "wrapped in strings", Payload: wrapped},
		{Name: "two documents", Payload: `{"seq":1,"site_id":"s1"}{}`, Want: pipeline.InvalidJSON},
		{Name: "a comment", Payload: `{"site_id":"s1"/**/}`, Want: pipeline.InvalidJSON},
		{Name: "a comma too many", Payload: `{"site_id":"s1",}`, Want: pipeline.InvalidJSON},
		{Name: "quotation marks of one stroke", Payload: `{'site_id':'s1'}`, Want: pipeline.InvalidJSON},
		{Name: "members of the wrong kinds", Payload: `{"site_id":["s1"],"seq":{},"metrics":[],"version":[]}`, Want: pipeline.UnsupportedVersion},
	}
}

func hostileEncodings() (list []Hostile) {
	for name, text := range map[string]string{
		"0xff": "\xff", "Latin-1": "\xb0C", "overlong NUL": "\xc0\x80", "overlong slash": "\xe0\x80\xaf", "a surrogate in UTF-8": "\xed\xa0\x80",
		"a pair in CESU-8": "\xed\xa0\xbd\xed\xb8\x80", "half a character": "\xf0\x9f\x98", "beyond U+10FFFF": "\xf4\x90\x80\x80", "a bare continuation": "\x80",
		"a bare NUL": "\x00", "a bare line end": "\n",
	} {
		list = append(list,
			Hostile{Name: name + " in a metric", Payload: withMetrics(`{"a":"` + text + `"}`), Want: pipeline.InvalidJSON},
			Hostile{Name: name + " in a name", Payload: `{"site_id":"s1","` + text + `":1}`, Want: pipeline.InvalidJSON},
			Hostile{Name: name + " for a body", Payload: text, Want: pipeline.InvalidJSON})
	}
	return append(list,
		Hostile{Name: "a byte order mark", Payload: "\ufeff" + withMetrics(`{}`), Want: pipeline.InvalidJSON},
		Hostile{Name: "UTF-16", Payload: "\xff\xfe{\x00}\x00", Want: pipeline.InvalidJSON},
		Hostile{Name: "gzip", Payload: "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff", Want: pipeline.InvalidJSON},
		Hostile{Name: "NULs", Payload: strings.Repeat("\x00", 1000), Want: pipeline.InvalidJSON},
		Hostile{Name: "every byte", Payload: everyByte(), Want: pipeline.InvalidJSON})
}

func everyByte() string {
	var b [256]byte
	for i := range b {
		b[i] = byte(i)
	}
	return string(b[:])
}

func hostileEmptiness() []Hostile {
	list := []Hostile{
		{Name: "an empty object", Payload: `{}`, Want: pipeline.MissingSiteID},
		{Name: "an empty site", Payload: `{"site_id":""}`, Want: pipeline.MissingSiteID},
		{Name: "empty metrics", Payload: withMetrics(`{}`)},
		{Name: "an empty metric's name", Payload: withMetrics(`{"":1}`)},
		{Name: "an empty metric", Payload: withMetrics(`{"a":"","b":null,"c":{},"d":[]}`)},
		{Name: "an empty member's name", Payload: withMember("", `{}`)},
		{Name: "an empty version", Payload: withMember("version", `""`), Want: pipeline.UnsupportedVersion},
		{Name: "an empty tenant", Payload: withMember("tenant_id", `""`), Want: pipeline.TenantMismatchPayload},
		{Name: "an empty ID", Payload: withMember("message_id", `""`)},
		{Name: "an empty time", Payload: withMember("ts", `""`)},
		{Name: "only nulls", Payload: `{"site_id":"s1","seq":null,"ts":null,"metrics":null,"version":null,"tenant_id":null,"message_id":null,"lat":null,"lng":null}`},
	}
	for _, payload := range []string{``, ` `, "\n", `null`, `""`, `"{}`, `[]`, `[{}]`, `0`, `false`, `"\"\""`} {
		list = append(list, Hostile{Name: fmt.Sprintf("the body %q", payload), Payload: payload, Want: pipeline.InvalidJSON})
	}
	return list
}

// incompressible is a text of n bytes that does not get shorter in PostgreSQL: an
// index takes 2,700 bytes, after compression.
func incompressible(n int) string {
	b := make([]byte, 0, n+64)
	for sum := sha256.Sum256(nil); len(b) < n; sum = sha256.Sum256(sum[:]) {
		b = hex.AppendEncode(b, sum[:])
	}
	return string(b[:n])
}

func hostileTopics() (list []Hostile) {
	long := func(prefix, suffix string, n int) string {
		return prefix + incompressible(n-len(prefix)-len(suffix)) + suffix
	}
	const most = pipeline.MaxTopic
	for topic, want := range map[string]pipeline.Reason{
		"": pipeline.BadTopicFormat, "/": pipeline.BadTopicFormat, "////": pipeline.BadTopicFormat, "tenant": pipeline.BadTopicFormat,
		"/tenant/t1/device/h/telemetry": pipeline.BadTopicFormat, "tenant//device/h/telemetry": pipeline.BadTopicFormat,
		"tenant/t1/device//telemetry": pipeline.BadTopicFormat, "tenant/t1/device/h/": pipeline.BadTopicFormat, "tenant/t1/device/h": pipeline.BadTopicFormat,
		"tenant/t1/Device/h/telemetry": pipeline.BadTopicFormat, "TENANT/t1/device/h/telemetry": pipeline.BadTopicFormat,
		"tenant /t1/device/h/telemetry": pipeline.BadTopicFormat, "$SYS/broker": pipeline.BadTopicFormat, "$share/g/tenant/t1/device/h/telemetry": pipeline.BadTopicFormat,
		"tenant/t1/device/+/telemetry": pipeline.BadTopicFormat, "tenant/t1/device/h/#": pipeline.BadTopicFormat, "tenant/+/device/h/telemetry": pipeline.BadTopicFormat,
		"tenant/t1/device/h\x00/telemetry": pipeline.BadTopicFormat,
		"tenant/t1/device/h 1/telemetry":   pipeline.UnregisteredDevice, "tenant/t1/device/ /telemetry": pipeline.UnregisteredDevice,
		"tenant/t1/device/h\n\t1/telemetry": pipeline.UnregisteredDevice, "tenant/t1/device/h'\"\\1/telemetry": pipeline.UnregisteredDevice,
		"tenant/t 1/device/h/telemetry": pipeline.UnregisteredDevice, "tenant/t1.t2/device/h/telemetry": pipeline.UnregisteredDevice,
		"tenant/*/device/>/telemetry": pipeline.UnregisteredDevice, "tenant/../device/../telemetry": pipeline.UnregisteredDevice,
		"tenant/😀/device/\ufeff/telemetry":            pipeline.UnregisteredDevice,
		long("tenant/t1/device/", "/telemetry", most): pipeline.UnregisteredDevice, long("tenant/", "/device/h/telemetry", most): pipeline.UnregisteredDevice,
		long("tenant/t1/device/unknown/", "", most): pipeline.UnregisteredDevice, long("tenant/t1/device/unknown/", "", most+1): pipeline.BadTopicFormat,
		long("tenant/", "", most): pipeline.BadTopicFormat, strings.Repeat("/", most): pipeline.BadTopicFormat,
	} {
		list = append(list, Hostile{Name: fmt.Sprintf("the topic %.24q…%q of %d bytes", topic, topic[max(0, len(topic)-12):], len(topic)), Topic: topic, Elsewhere: true, Payload: withMetrics(`{"a":1}`), Want: want})
	}
	for _, topic := range []string{"tenant/t1/device/h\xff/telemetry", "tenant/\xc0\x80/device/h/telemetry", "\xff"} {
		list = append(list, Hostile{Name: fmt.Sprintf("the topic %q", topic), Topic: topic, Elsewhere: true, Payload: `{"seq":1}`, Want: pipeline.BadTopicFormat, OnlyMQTT: true})
	}
	for _, msgType := range []string{" ", "a/b/c", "/", "//", incompressible(60_000), "commands/", "Commands", "shadow/reported/", "shadow", "°\n'"} {
		list = append(list, Hostile{Name: fmt.Sprintf("the message type %.20q", msgType), MsgType: msgType, Payload: withMetrics(`{"a":1}`)})
	}
	return list
}

func hostileKinds() (list []Hostile) {
	for member, values := range map[string][]string{
		"shadow/reported": {`{"site_id":"s1"}`, `{"reported":null}`, `{"reported":[]}`, `{"reported":"{}"}`, `{"reported":{"a":"\u0000"}}`, `{"reported":{"a":1e400}}`,
			`{"reported":{"\ud800":1}}`, `{"reported":{},"version":9223372036854775808}`, `{"reported":{},"version":1e400}`, `{"reported":{},"version":"1"}`, `{"reported":{},"version":{}}`},
		"commands/ack": {`{"site_id":"s1"}`, `{"command_id":null}`, `{"command_id":""}`, `{"command_id":1}`, `{"command_id":"\u0000"}`, `{"command_id":"\udfff"}`,
			`{"command_id":"c","details":[]}`, `{"command_id":"c","details":"x"}`, `{"command_id":"c","details":{"a":1e400}}`, `{"command_id":"c","details":{"a":"\u0000"}}`},
	} {
		want := map[string]pipeline.Reason{"shadow/reported": pipeline.ShadowInvalid, "commands/ack": pipeline.CommandAckInvalid}[member]
		for _, payload := range values {
			list = append(list, Hostile{Name: member + " " + payload, MsgType: member, Payload: payload, Want: want})
		}
	}
	return append(list,
		Hostile{Name: "a negative version", MsgType: "shadow/reported", Payload: `{"reported":{},"version":-9223372036854775808}`},
		Hostile{Name: "a report with NUL beside it", MsgType: "shadow/reported", Payload: `{"reported":{"":{}},"x":"\u0000"}`},
		Hostile{Name: "a status with NUL", MsgType: "commands/ack", Payload: `{"command_id":"c","status":"\u0000"}`},
		Hostile{Name: "a status that is no text", MsgType: "commands/ack", Payload: `{"command_id":"c","status":[1e400]}`},
		Hostile{Name: "a long command", MsgType: "commands/ack", Payload: `{"command_id":"` + incompressible(8000) + `"}`},
		Hostile{Name: "a report of 10 MB", MsgType: "shadow/reported", Payload: `{"reported":{"a":"` + strings.Repeat("x", 10<<20) + `"}}`, Want: pipeline.PayloadTooLarge})
}

func hostileTimes() (list []Hostile) {
	for _, ts := range []string{"9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-23:59", "0001-01-01", "0001-01-01T00:00:00+23:59", "0000-01-01", "-0001-01-01", "10000-01-01",
		"2026-02-30", "2026-13-01", "1969-12-31T23:59:59.999Z", "1970-01-01", "294277-01-01T00:00:00Z", "infinity", "now", "2026-02-09T25:00:00Z", "2026-02-09T23:59:60Z",
		"2026-02-09T00:00:00." + strings.Repeat("9", 5000) + "Z", strings.Repeat("2", 5000)} {
		list = append(list, Hostile{Name: fmt.Sprintf("the time %.40q", ts), Payload: `{"site_id":"s1","seq":1,"metrics":{"a":1},"ts":"` + ts + `","lat":1,"lng":1}`})
	}
	for _, place := range []string{`"lat":91,"lng":1`, `"lat":1e400,"lng":1`, `"lat":"1","lng":"2"`, `"lat":1`, `"lat":-90,"lng":180.0000001`, `"lat":{},"lng":[]`} {
		list = append(list, Hostile{Name: "the place " + place, Payload: `{"site_id":"s1","seq":1,` + place + `}`})
	}
	return list
}
