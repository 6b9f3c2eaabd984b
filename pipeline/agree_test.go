package pipeline_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
)

// A document as a device writes it: what a parser would keep, and what it would
// lose (the text of numbers, the order and repetition of members).
type (
	jsObject []jsMember
	jsMember struct {
		name  string
		value any // jsObject, []any, jsNumber, string, bool, nil
	}
	jsNumber string // the literal
)

// serializer is a way to write JSON.
type serializer struct {
	comma, colon string
	ascii        bool // \u escapes for all but ASCII
	html         bool // and for <, >, &
	number       func(jsNumber) string
	order        func([]jsMember) []jsMember
	dedupe       bool
}

func float(n jsNumber) float64 {
	f, err := strconv.ParseFloat(string(n), 64)
	if err != nil {
		panic(err) // the generator stays within range
	}
	return f
}

// inGo writes a number as Go and, but for details, JavaScript do.
func inGo(n jsNumber) string {
	b, err := json.Marshal(float(n))
	if err != nil {
		panic(err)
	}
	return string(b)
}

// inPython keeps integers exactly, however long, and writes floats as repr does.
func inPython(n jsNumber) string {
	if !strings.ContainsAny(string(n), ".eE") {
		if n == "-0" {
			return "0"
		}
		return string(n)
	}
	f := float(n)
	s := strconv.FormatFloat(f, 'e', -1, 64)
	if exp, _ := strconv.Atoi(s[strings.IndexByte(s, 'e')+1:]); exp >= -4 && exp < 16 {
		s = strconv.FormatFloat(f, 'f', -1, 64)
		if !strings.Contains(s, ".") {
			s += ".0"
		}
	}
	return s
}

func sorted(m []jsMember) []jsMember {
	m = slices.Clone(m)
	slices.SortStableFunc(m, func(a, b jsMember) int { return strings.Compare(a.name, b.name) })
	return m
}

// arrayIndexFirst is the order of a JavaScript object's properties.
func arrayIndexFirst(m []jsMember) []jsMember {
	m = slices.Clone(m)
	slices.SortStableFunc(m, func(a, b jsMember) int {
		x, errX := strconv.ParseUint(a.name, 10, 32)
		y, errY := strconv.ParseUint(b.name, 10, 32)
		switch {
		case errX == nil && errY == nil:
			return int(x) - int(y)
		case errX == nil:
			return -1
		case errY == nil:
			return 1
		}
		return 0
	})
	return m
}

func asIs(m []jsMember) []jsMember { return m }

var (
	asDevice = serializer{comma: ",", colon: ":", number: func(n jsNumber) string { return string(n) }, order: asIs}
	spaced   = serializer{comma: " ,\r\n\t", colon: " : ", ascii: true, number: asDevice.number, order: asIs}
	producer = map[string]serializer{
		"Go":         {comma: ",", colon: ":", html: true, number: inGo, order: sorted, dedupe: true},
		"JavaScript": {comma: ",", colon: ":", number: inGo, order: arrayIndexFirst, dedupe: true},
		"Python":     {comma: ", ", colon: ": ", ascii: true, number: inPython, order: asIs, dedupe: true},
		"verbatim":   asDevice,
	}
)

func (s serializer) append(dst []byte, v any) []byte {
	switch v := v.(type) {
	case jsObject:
		return s.object(dst, v)
	case []any:
		dst = append(dst, '[')
		for i, e := range v {
			if i > 0 {
				dst = append(dst, s.comma...)
			}
			dst = s.append(dst, e)
		}
		return append(dst, ']')
	case jsNumber:
		return append(dst, s.number(v)...)
	case string:
		return s.text(dst, v)
	case bool:
		return strconv.AppendBool(dst, v)
	}
	return append(dst, "null"...)
}

func (s serializer) object(dst []byte, members jsObject) []byte {
	kept := []jsMember(members)
	if s.dedupe {
		kept = nil
		for _, m := range members {
			if i := slices.IndexFunc(kept, func(k jsMember) bool { return k.name == m.name }); i >= 0 {
				kept[i].value = m.value
			} else {
				kept = append(kept, m)
			}
		}
	}
	dst = append(dst, '{')
	for i, m := range s.order(kept) {
		if i > 0 {
			dst = append(dst, s.comma...)
		}
		dst = append(s.text(dst, m.name), s.colon...)
		dst = s.append(dst, m.value)
	}
	return append(dst, '}')
}

func (s serializer) text(dst []byte, text string) []byte {
	dst = append(dst, '"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r < 0x20 || s.ascii && r > 0x7e && r <= 0xffff || s.html && (r == '<' || r == '>' || r == '&' || r == 0x2028):
			dst = fmt.Appendf(dst, `\u%04x`, r)
		case s.ascii && r > 0xffff:
			high, low := utf16.EncodeRune(r)
			dst = fmt.Appendf(dst, `\u%04X\u%04x`, high, low)
		default:
			dst = utf8.AppendRune(dst, r)
		}
	}
	return append(dst, '"')
}

var numbers = rapid.OneOf(
	rapid.SampledFrom([]jsNumber{"0", "-0", "-0.0", "1", "1.0", "1e0", "10E-1", "0.1", "100000000000000000000", "1e21", "1e-7", "0.000001", "9007199254740993", "9223372036854775807", "-9223372036854775808", "123456789012345678", "1.7976931348623157e308", "5e-324", "22.50", "2250e-2"}),
	rapid.Map(rapid.Int64(), func(n int64) jsNumber { return jsNumber(strconv.FormatInt(n, 10)) }),
	rapid.Map(rapid.Float64(), func(f float64) jsNumber { return jsNumber(strconv.FormatFloat(f, 'g', -1, 64)) }),
	rapid.Map(rapid.Float64Range(-1e6, 1e6), func(f float64) jsNumber { return jsNumber(strconv.FormatFloat(f, 'f', 3, 64)) }),
)

var texts = rapid.OneOf(
	rapid.SampledFrom([]string{"", "s1", "t1", "t2", "1", "a\x00b", "a\nb", "°C", "\ufb33", "😀", "</script>", "\u2028", `"\`, "\x7f", "\u0085"}),
	rapid.StringN(0, 8, 40),
	rapid.Map(rapid.IntRange(126, 130), func(n int) string { return strings.Repeat("ü", n) }),
)

func documents(depth int) *rapid.Generator[any] {
	leaf := []*rapid.Generator[any]{rapid.Just[any](nil), rapid.Bool().AsAny(), numbers.AsAny(), texts.AsAny()}
	if depth == 0 {
		return rapid.OneOf(leaf...)
	}
	return rapid.OneOf(append(leaf, rapid.SliceOfN(documents(depth-1), 0, 3).AsAny(), objects(rapid.OneOf(texts, rapid.StringMatching(`[a-c0-9]`)), depth-1, 4).AsAny())...)
}

func objects(names *rapid.Generator[string], depth, limit int) *rapid.Generator[jsObject] {
	return rapid.Custom(func(t *rapid.T) jsObject {
		var o jsObject
		for range rapid.IntRange(0, limit).Draw(t, "members") {
			o = append(o, jsMember{names.Draw(t, "name"), documents(depth).Draw(t, "value")})
		}
		return o
	})
}

// payloads are objects as devices may send them: most members mean something and
// many are right.
var payloads = rapid.Custom(func(t *rapid.T) jsObject {
	var o jsObject
	maybe := func(name string, good ...any) {
		switch rapid.IntRange(0, 9).Draw(t, name) {
		case 0, 1, 2, 3, 4, 5:
			o = append(o, jsMember{name, rapid.SampledFrom(good).Draw(t, "good")})
		case 6:
			o = append(o, jsMember{name, documents(2).Draw(t, "any")})
		}
	}
	maybe("ts", "2026-02-09T09:15:23.045Z", "20260209T091523+0200", "2026-02-09", "never", nil, "")
	maybe("site_id", "s1")
	maybe("seq", jsNumber("12"), jsNumber("12.0"), jsNumber("9007199254740993"), jsNumber("9223372036854775807"), jsNumber("-3.7"), nil)
	maybe("tenant_id", "t1", "t2")
	maybe("version", "1", jsNumber("1"), jsNumber("1.0"), "2", jsNumber("3"))
	if rapid.IntRange(0, 3).Draw(t, "explicit") == 0 {
		maybe("message_id", "m1", jsNumber("17"), jsNumber("17.0"), "", nil)
	}
	maybe("reported", jsObject{{"on", true}}, "x")
	maybe("command_id", "c1", "c\x00")
	switch rapid.IntRange(0, 5).Draw(t, "metrics") {
	case 0, 1, 2:
		o = append(o, jsMember{"metrics", objects(texts, 1, 6).Draw(t, "metrics")})
	case 3:
		var many jsObject
		for i := range rapid.IntRange(49, 51).Draw(t, "many") {
			many = append(many, jsMember{fmt.Sprintf("k%d", i), jsNumber("1.50")})
		}
		o = append(o, jsMember{"metrics", many})
	case 4:
		o = append(o, jsMember{"metrics", documents(2).Draw(t, "metrics")})
	}
	if rapid.IntRange(0, 5).Draw(t, "padding") == 0 {
		o = append(o, jsMember{"pad", strings.Repeat("é", rapid.IntRange(3900, 4200).Draw(t, "pad"))})
	}
	o = append(o, objects(rapid.SampledFrom([]string{"seq", "ts", "site_id", "metrics", "x", "TS", "1", "10", "9"}), 1, 2).Draw(t, "more")...)
	return o
})

// last is the value that counts of a name.
func (o jsObject) last(name string) any {
	var v any
	for _, m := range o {
		if m.name == name {
			v = m.value
		}
	}
	return v
}

var topics = rapid.SampledFrom([]string{
	topic, topic, topic, "tenant/t1/device/d1/heartbeat", "tenant/t1/device/d1/shadow/reported", "tenant/t1/device/d1/commands/ack",
	"tenant/t1/device/d1/commands", "tenant/t1/device/d1", "tenant/t1/rubbish",
})

func envelopeOf(topic string, payload []byte, ts int64) string {
	return fmt.Sprintf(`{"ts":%d,"payload":%s,"topic":%q,"msg_type":"?","username":"","tenant_id":"t1"}`, ts, payload, topic)
}

// ownReplacement is a case in which the paths don't agree.
const ownReplacement = "a device's own U+FFFD cannot be told from a replacement once it is quoted (docs/identity.md)"

// agree fails unless both copies are one message with one outcome.
func agree(t *rapid.T, a, b *pipeline.Message) {
	t.Helper()
	if a.ID != b.ID || a.Anonymous != b.Anonymous || a.Explicit != b.Explicit || a.Digest != b.Digest {
		t.Fatalf("identities differ: %+v explicit=%v, %+v explicit=%v", a.Identity, a.Explicit, b.Identity, b.Explicit)
	}
	settings := check.DefaultSettings()
	ra, _ := check.Content(a, &settings)
	rb, _ := check.Content(b, &settings)
	if ra != rb || a.Failed != b.Failed {
		t.Fatalf("outcomes differ: %q (%s), %q (%s)", ra, a.Detail, rb, b.Detail)
	}
	if a.Topic != b.Topic || a.RawTopic != b.RawTopic || a.Size != b.Size {
		t.Fatalf("topics or sizes differ: %+v %d, %+v %d", a.Topic, a.Size, b.Topic, b.Size)
	}
	na, nullA, okA := a.Seq()
	nb, nullB, okB := b.Seq()
	if na != nb || nullA != nullB || okA != okB {
		t.Fatalf("seq differs: %d %v %v, %d %v %v", na, nullA, okA, nb, nullB, okB)
	}
	ma, okA := a.Metrics()
	mb, okB := b.Metrics()
	if !bytes.Equal(ma, mb) || okA != okB {
		t.Fatalf("metrics differ: %s %v, %s %v", ma, okA, mb, okB)
	}
	if s, ok := a.Fields.TS.Text(); ok {
		if _, ok := pipeline.ParseTimestamp(s); ok && !a.Time.Equal(b.Time) {
			t.Fatalf("times differ: %v, %v", a.Time, b.Time)
		}
	}
	for i, va := range []interface{ Text() (string, bool) }{a.Fields.SiteID, a.Fields.Token, a.Fields.CommandID} {
		vb := []interface{ Text() (string, bool) }{b.Fields.SiteID, b.Fields.Token, b.Fields.CommandID}[i]
		sa, _ := va.Text()
		if sb, _ := vb.Text(); sa != sb {
			t.Fatalf("field %d differs: %q, %q", i, sa, sb)
		}
	}
}

// TestBothPathsAgree (promise P3): a device's message sent as it is by MQTT, and
// the same as producers pass it on, are one message with one outcome.
func TestBothPathsAgree(t *testing.T) {
	dec := pipeline.NewDecoder(pipeline.DefaultMessageIDMember)
	var a, b pipeline.Message
	rapid.Check(t, func(t *rapid.T) {
		doc := payloads.Draw(t, "payload")
		topic := topics.Draw(t, "topic")
		raw := rapid.SampledFrom([]serializer{asDevice, spaced}).Draw(t, "device").append(nil, doc)
		name := rapid.SampledFrom([]string{"Go", "JavaScript", "Python", "verbatim"}).Draw(t, "producer")
		ts := int64(noonMS) + rapid.Int64Range(0, 1e9).Draw(t, "ts")

		passed := slices.Clone(doc)
		if doc.last("ts") == nil && rapid.Bool().Draw(t, "inject") {
			seconds := float64(ts+rapid.Int64Range(-9, 9).Draw(t, "delay")) / 1000
			passed = append(passed, jsMember{"ts", jsNumber(strconv.FormatFloat(seconds, 'f', -1, 64))})
		}
		payload := producer[name].append(nil, passed)
		for range rapid.IntRange(0, 2).Draw(t, "quoted") {
			if bytes.Contains(payload, []byte("\ufffd")) {
				t.Skip(ownReplacement)
			}
			payload = producer[name].text(nil, string(payload))
		}
		body := envelopeOf(topic, payload, ts)
		if !json.Valid([]byte(body)) || !json.Valid(raw) {
			t.Fatalf("the test writes invalid JSON: %s\n%s", raw, body)
		}
		over := atTime(overMQTT(topic, string(raw)), timeOf(ts))
		stream := overJetStream("telemetry.t1", body)
		dec.Decode(&a, &over)
		dec.Decode(&b, &stream)
		agree(t, &a, &b)
	})
}

// TestBothPathsAgreeOnRubbish: what is no JSON object travels as text, with what
// is no UTF-8 replaced.
func TestBothPathsAgreeOnRubbish(t *testing.T) {
	dec := pipeline.NewDecoder(pipeline.DefaultMessageIDMember)
	var a, b pipeline.Message
	rubbish := rapid.OneOf(
		rapid.SliceOf(rapid.Byte()),
		rapid.Map(rapid.SliceOf(rapid.SampledFrom([]string{`{`, `}`, `[`, `]`, `"`, `\`, `:`, `,`, `1`, `-`, `e`, `.`, `null`, `\u0000`, `\ud800`, "\xff", "\xed\xa0\x80", "\xc2", " ", "a", "1e999", `"ts"`, `"seq"`})), func(s []string) []byte { return []byte(strings.Join(s, "")) }),
		rapid.Custom(func(t *rapid.T) []byte {
			b := asDevice.append(nil, payloads.Draw(t, "payload"))
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
	rapid.Check(t, func(t *rapid.T) {
		raw := rubbish.Draw(t, "payload")
		topic := topics.Draw(t, "topic")
		ts := int64(noonMS) + rapid.Int64Range(0, 1e9).Draw(t, "ts")
		if utf8.Valid(raw) && bytes.Contains(raw, []byte("\ufffd")) {
			t.Skip(ownReplacement)
		}
		var payload []byte
		switch rapid.IntRange(0, 2).Draw(t, "mirror") {
		case 0: // one U+FFFD a byte, as Go and our own mirror do
			payload, _ = json.Marshal(string(raw))
		case 1: // one a run
			payload, _ = json.Marshal(strings.ToValidUTF8(string(raw), "\ufffd"))
		default:
			if payload = raw; !json.Valid(raw) || !utf8.Valid(raw) {
				t.Skip("it cannot be embedded")
			}
		}
		over := atTime(overMQTT(topic, string(raw)), timeOf(ts))
		stream := overJetStream("telemetry.t1", envelopeOf(topic, payload, ts))
		dec.Decode(&a, &over)
		dec.Decode(&b, &stream)
		agree(t, &a, &b)
	})
}
