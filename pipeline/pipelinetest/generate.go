package pipelinetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// Numbers are literals that every producer can read: within a double's range.
var Numbers = rapid.OneOf(
	rapid.SampledFrom([]Number{"0", "-0", "-0.0", "1", "1.0", "1e0", "10E-1", "0.1", "100000000000000000000", "1e21", "1e-7", "0.000001", "9007199254740993", "9223372036854775807", "-9223372036854775808", "123456789012345678", "1.7976931348623157e308", "5e-324", "22.50", "2250e-2"}),
	rapid.Map(rapid.Int64(), func(n int64) Number { return Number(strconv.FormatInt(n, 10)) }),
	rapid.Map(rapid.Float64(), func(f float64) Number { return Number(strconv.FormatFloat(f, 'g', -1, 64)) }),
	rapid.Map(rapid.Float64Range(-1e6, 1e6), func(f float64) Number { return Number(strconv.FormatFloat(f, 'f', 3, 64)) }),
)

// Texts are strings of valid UTF-8.
var Texts = rapid.OneOf(
	rapid.SampledFrom([]string{"", "s1", "t1", "t2", "1", "a\x00b", "a\nb", "°C", "\ufb33", "😀", "</script>", "\u2028", `"\`, "\x7f", "\u0085"}),
	rapid.StringN(0, 8, 40),
	rapid.Map(rapid.IntRange(126, 130), func(n int) string { return strings.Repeat("ü", n) }),
)

// Documents are values of any kind, nested up to depth.
func Documents(depth int) *rapid.Generator[any] {
	leaf := []*rapid.Generator[any]{rapid.Just[any](nil), rapid.Bool().AsAny(), Numbers.AsAny(), Texts.AsAny()}
	if depth == 0 {
		return rapid.OneOf(leaf...)
	}
	return rapid.OneOf(append(leaf, rapid.SliceOfN(Documents(depth-1), 0, 3).AsAny(), Objects(rapid.OneOf(Texts, rapid.StringMatching(`[a-c0-9]`)), depth-1, 4).AsAny())...)
}

// Objects have up to limit members, which may have the same name.
func Objects(names *rapid.Generator[string], depth, limit int) *rapid.Generator[Object] {
	return rapid.Custom(func(t *rapid.T) Object {
		var o Object
		for range rapid.IntRange(0, limit).Draw(t, "members") {
			o = append(o, Member{names.Draw(t, "name"), Documents(depth).Draw(t, "value")})
		}
		return o
	})
}

// Payloads are objects as devices may send them: most members mean something and
// many are right. The right site is s1, the right tenant t1, the right token tok.
var Payloads = rapid.Custom(func(t *rapid.T) Object {
	var o Object
	maybe := func(name string, good ...any) {
		switch rapid.IntRange(0, 15).Draw(t, name) {
		case 0, 1, 2, 3, 4, 5, 6, 7, 8:
			o = append(o, Member{name, rapid.SampledFrom(good).Draw(t, "good")})
		case 9:
			o = append(o, Member{name, Documents(2).Draw(t, "any")})
		}
	}
	mostly := func(name string, good any) {
		if rapid.IntRange(0, 15).Draw(t, "mostly") != 5 {
			o = append(o, Member{name, good})
		} else {
			maybe(name, good)
		}
	}
	maybe("ts", "2026-02-09T09:15:23.045Z", "20260209T091523+0200", "2026-02-09", "never", nil, "")
	mostly("site_id", "s1")
	maybe("seq", Number("12"), Number("12.0"), Number("13"), Number("9007199254740993"), Number("9223372036854775807"), Number("-3.7"), nil)
	if rapid.Bool().Draw(t, "tenant") {
		maybe("tenant_id", "t1", "t1", "t1", "t1", "t1", "t2")
	}
	if rapid.Bool().Draw(t, "versioned") {
		maybe("version", "1", "1", "1", Number("1"), Number("1.0"), "2", Number("3"))
	}
	if rapid.IntRange(0, 9).Draw(t, "token") != 5 {
		mostly("provision_token", "tok")
	}
	if rapid.IntRange(0, 3).Draw(t, "explicit") == 0 {
		maybe("message_id", "m1", Number("17"), Number("17.0"), "", nil)
	}
	mostly("reported", Object{{"on", true}})
	mostly("command_id", "c1")
	if rapid.IntRange(0, 2).Draw(t, "place") == 0 {
		maybe("lat", Number("52.10"), Number("-90"), nil, "north")
		maybe("latitude", Number("1"), Number("91"))
		maybe("lng", Number("4.3e0"), Number("180.0"), nil)
		maybe("longitude", Number("-4"))
	}
	o = append(o, payloadMetrics(t)...)
	if rapid.IntRange(0, 11).Draw(t, "padding") == 1 {
		o = append(o, Member{"pad", strings.Repeat("é", rapid.IntRange(3900, 4200).Draw(t, "pad"))})
	}
	if rapid.IntRange(0, 2).Draw(t, "again") == 0 {
		o = append(o, Objects(rapid.SampledFrom([]string{"seq", "ts", "site_id", "metrics", "x", "TS", "1", "10", "9"}), 1, 2).Draw(t, "more")...)
	}
	return o
})

func payloadMetrics(t *rapid.T) Object {
	switch rapid.IntRange(0, 7).Draw(t, "metrics") {
	case 0, 1, 2:
		names := rapid.SampledFrom([]string{"a", "b", "temp_c", "hum_pct", "mode", "old", "new"})
		return Object{{"metrics", Objects(names, 1, 6).Draw(t, "metrics")}}
	case 3:
		return Object{{"metrics", Objects(Texts, 1, 6).Draw(t, "metrics")}}
	case 4:
		var many Object
		for i := range rapid.IntRange(49, 51).Draw(t, "many") {
			many = append(many, Member{fmt.Sprintf("k%d", i), Number("1.50")})
		}
		return Object{{"metrics", many}}
	case 5:
		return Object{{"metrics", Documents(2).Draw(t, "metrics")}}
	}
	return nil
}

// Topics are those of a device of tenant t1, most of them right.
func Topics(device string) *rapid.Generator[string] {
	root := "tenant/t1/device/" + device
	return rapid.SampledFrom([]string{
		root + "/telemetry", root + "/telemetry", root + "/telemetry", root + "/heartbeat", root + "/shadow/reported", root + "/commands/ack",
		root + "/commands", root, "tenant/t1/rubbish/" + device,
	})
}

// Rubbish is what is seldom JSON, and often nearly.
var Rubbish = rapid.OneOf(
	rapid.SliceOf(rapid.Byte()),
	rapid.Map(rapid.SliceOf(rapid.SampledFrom([]string{`{`, `}`, `[`, `]`, `"`, `\`, `:`, `,`, `1`, `-`, `e`, `.`, `null`, `\u0000`, `\ud800`, "\xff", "\xed\xa0\x80", "\xc2", " ", "a", "1e999", `"ts"`, `"seq"`})), func(s []string) []byte { return []byte(strings.Join(s, "")) }),
	rapid.Custom(func(t *rapid.T) []byte {
		b := AsDevice.Append(nil, Payloads.Draw(t, "payload"))
		switch at := rapid.IntRange(0, len(b)-1).Draw(t, "at"); rapid.IntRange(0, 2).Draw(t, "how") {
		case 0:
			return b[:at]
		case 1:
			b[at] = rapid.Byte().Draw(t, "byte")
			return b
		default:
			return slices.Insert(b, at, rapid.Byte().Draw(t, "byte"))
		}
	}),
)

// Copies are what two paths carry of one message: the device's own bytes, and the
// payload of an envelope, re-serialized.
type Copies struct{ Raw, Payload []byte }

// Passed draws a device's document both ways. A producer whose envelope says at
// may have added payload.ts. What holds U+FFFD is not passed on as a string: a
// device's own can't be told from a replacement then (docs/identity.md).
func Passed(t *rapid.T, doc Object, at time.Time) Copies {
	raw := rapid.SampledFrom([]Serializer{AsDevice, Spaced}).Draw(t, "device").Append(nil, doc)
	name := rapid.SampledFrom([]string{"Go", "JavaScript", "Python", "verbatim"}).Draw(t, "producer")
	passed := slices.Clone(doc)
	if doc.Last("ts") == nil && rapid.Bool().Draw(t, "inject") {
		seconds := float64(at.UnixMilli()+rapid.Int64Range(-9, 9).Draw(t, "delay")) / 1000
		passed = append(passed, Member{"ts", Number(strconv.FormatFloat(seconds, 'f', -1, 64))})
	}
	payload := Producers[name].Append(nil, passed)
	for range rapid.IntRange(0, 2).Draw(t, "quoted") {
		if !bytes.Contains(payload, []byte("\ufffd")) {
			payload = Producers[name].Quote(nil, string(payload))
		}
	}
	if !json.Valid(payload) || !json.Valid(raw) {
		t.Fatalf("the test writes invalid JSON: %s\n%s", raw, payload)
	}
	return Copies{raw, payload}
}

// Mirrored draws what is probably no JSON object both ways: it travels as text,
// with what is no UTF-8 replaced, or as it is where it can be part of an envelope.
// A device's own U+FFFD becomes a question mark, for the reason given at Passed.
func Mirrored(t *rapid.T, raw []byte) Copies {
	if utf8.Valid(raw) {
		raw = bytes.ReplaceAll(raw, []byte("\ufffd"), []byte("?"))
	}
	how := rapid.IntRange(0, 2).Draw(t, "mirror")
	if how == 2 && json.Valid(raw) && utf8.Valid(raw) {
		return Copies{raw, raw}
	}
	text := string(raw) // json.Marshal writes one U+FFFD a byte, as our own mirror does
	if how == 1 {
		text = strings.ToValidUTF8(text, "\ufffd") // one a run
	}
	payload, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return Copies{raw, payload}
}

// Envelope wraps a payload, given as JSON, as a producer does at that time.
func Envelope(topic, username string, payload []byte, at time.Time) []byte {
	b := fmt.Appendf(nil, `{"ts":%d,"payload":%s,"msg_type":"?","tenant_id":"t1","topic":`, at.UnixMilli(), payload)
	b = append(AsDevice.Quote(b, topic), `,"username":`...)
	return append(AsDevice.Quote(b, username), '}')
}

// Mirror wraps whatever a device sent as an honest mirror does: a JSON document as
// it is, anything else as a string, with U+FFFD for what is no UTF-8.
func Mirror(topic string, payload []byte, at time.Time) []byte {
	b := append(AsDevice.Quote([]byte(`{"topic":`), topic), `,"payload":`...)
	if json.Valid(payload) && utf8.Valid(payload) {
		b = append(b, payload...)
	} else {
		b = AsDevice.Quote(b, string(payload))
	}
	return fmt.Appendf(b, `,"ts":%d}`, at.UnixMilli())
}
