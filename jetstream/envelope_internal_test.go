package jetstream

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func FuzzEnvelope(f *testing.F) {
	for _, s := range []struct{ topic, user, body string }{
		{"tenant/t1/device/d1/telemetry", "t1/d1", `{"a": 1.0e2, "a":2}`},
		{"tenant/\"/device/\\/x", "\x00\x1f", " {\"a\":\"\\ud800\"}\n"},
		{"a\xffb", "é\u2028", "\xf0\x9f\x98"},
		{"", "", "[]"},
		{"tenant/t/x", "u", "{"},
	} {
		f.Add(s.topic, s.user, []byte(s.body))
	}
	f.Fuzz(func(t *testing.T, topic, user string, body []byte) {
		original := bytes.Clone(body)
		got := appendEnvelope(nil, topic, parseTopic(topic), user, body, 1_760_000_000_000)
		var e struct {
			Topic    *string         `json:"topic"`
			Tenant   *string         `json:"tenant_id"`
			Device   *string         `json:"device_id"`
			MsgType  *string         `json:"msg_type"`
			Username *string         `json:"username"`
			Payload  json.RawMessage `json:"payload"`
			TS       int64           `json:"ts"`
		}
		if err := json.Unmarshal(got, &e); err != nil {
			t.Fatalf("%s: %v", got, err)
		}
		if !utf8.Valid(got) {
			t.Fatalf("no UTF-8: %q", got)
		}
		if !bytes.Equal(body, original) {
			t.Fatal("the body was changed")
		}
		if e.Tenant == nil || e.Device == nil || e.MsgType == nil || e.TS != 1_760_000_000_000 {
			t.Fatalf("a member is missing: %s", got)
		}
		if *e.Topic != replaced(topic) || *e.Username != replaced(user) {
			t.Fatalf("topic %q, username %q: %s", topic, user, got)
		}
		if e.Payload[0] == '{' {
			// RawMessage keeps the bytes, without the space around them.
			if want := bytes.Trim(body, " \t\r\n"); !bytes.Equal(e.Payload, want) {
				t.Fatalf("payload %q, want %q", e.Payload, want)
			}
			return
		}
		var text string
		if err := json.Unmarshal(e.Payload, &text); err != nil || text != replaced(string(body)) {
			t.Fatalf("payload %q (%v), want the text of %q", text, err, body)
		}
		if trimmed := bytes.Trim(body, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' && json.Valid(body) && utf8.Valid(body) && len(body) < maxRawBrackets {
			t.Fatalf("a JSON object went as a string: %q", body)
		}
	})
}

// encoding/json refuses more than 10,000 levels; the envelope adds one.
func TestDeepPayloadKeepsTheEnvelopeReadable(t *testing.T) {
	for _, depth := range []int{100, maxRawBrackets - 1, 9_999, 10_000, 50_000} {
		body := []byte(strings.Repeat(`{"a":`, depth) + "1" + strings.Repeat("}", depth))
		got := appendEnvelope(nil, "tenant/t/device/d/telemetry", origin{}, "", body, 0)
		if !json.Valid(got) {
			t.Errorf("depth %d: the envelope cannot be read", depth)
		}
	}
}

// replaced has U+FFFD for every byte that is no UTF-8, as the envelope has.
func replaced(s string) string { return string([]rune(s)) }

func FuzzSubject(f *testing.F) {
	for _, s := range []string{"tenant/t1/device/d1/telemetry", "tenant/a b/x", "tenant/>/device/d/shadow/reported", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		subject, ok := parseTopic(topic).subject()
		if !ok {
			return
		}
		tokens := strings.Split(subject, ".")
		if len(tokens) < 2 || len(subject) > 1024 {
			t.Fatalf("subject %q", subject)
		}
		for _, token := range tokens {
			if token == "" || strings.ContainsAny(token, " \t\r\n*>") {
				t.Fatalf("subject %q", subject)
			}
		}
	})
}

func TestParseReply(t *testing.T) {
	stored := time.Unix(0, 1760000000123456789)
	for _, c := range []struct {
		reply string
		ok    bool
		seq   uint64
	}{
		{"$JS.ACK.TELEMETRY.ingest-workers.1.42.7.1760000000123456789.3", true, 42},
		{"$JS.ACK.hub.ACC.TELEMETRY.ingest-workers.1.42.7.1760000000123456789.3", true, 42},
		{"$JS.ACK.hub.ACC.TELEMETRY.ingest-workers.1.42.7.1760000000123456789.3.x7", true, 42},
		{"$JS.ACK.TELEMETRY.ingest-workers.1", false, 0},
		{"$JS.ACK.TELEMETRY.ingest-workers.1.x.7.1760000000123456789.3", false, 0},
		{"_INBOX.abc", false, 0},
		{"", false, 0},
	} {
		got, ok := parseReply(c.reply)
		if ok != c.ok || got.sequence != c.seq || (ok && !got.stored.Equal(stored)) {
			t.Errorf("parseReply(%q) = %+v, %v", c.reply, got, ok)
		}
	}
}

// FuzzReply: a subject that is read names a sequence and a time, and no other shape
// is taken for one.
func FuzzReply(f *testing.F) {
	for _, s := range []string{"$JS.ACK.TELEMETRY.ingest-workers.1.42.7.1760000000123456789.3", "$JS.ACK.hub.ACC.TELEMETRY.ingest-workers.1.42.7.1760000000123456789.3.x7", "$JS.ACK.......", "$JS.ACK", "", "$JS.ACK.a.b.1.-1.1.1.1", "$JS.ACK.a.b.1.1.1.99999999999999999999.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, reply string) {
		m, ok := parseReply(reply)
		if !ok {
			if m != (replyMetadata{}) {
				t.Fatalf("%q is refused and read as %+v", reply, m)
			}
			return
		}
		tokens := strings.Split(reply, ".")
		if !slices.Contains(tokens, strconv.FormatUint(m.sequence, 10)) && !strings.Contains(reply, ".0") {
			t.Fatalf("%q has no sequence %d", reply, m.sequence)
		}
	})
}

// FuzzRedactURL: no part of the user's survives, nor in what validateURL says.
func FuzzRedactURL(f *testing.F) {
	f.Add("nats://", "", "@127.0.0.1:4222")
	f.Add("", ":", "@host")
	f.Add("tls://a:", "@", "@h/%zz")
	f.Add("", "://", "@h:x")
	f.Add("nats://u:p/", "?#", "@h,h2")
	f.Fuzz(func(t *testing.T, before, after, host string) {
		const secret = "S3cr3tP4ss"
		if !strings.HasPrefix(host, "@") {
			return
		}
		raw := before + secret + after + host
		if scheme, _, found := strings.Cut(raw, "://"); found && strings.Contains(scheme, secret) && !strings.ContainsAny(scheme, ":@/") {
			return // it stands where the scheme does
		}
		if shown := RedactURL(raw); strings.Contains(shown, secret) {
			t.Fatalf("%q is shown as %q", raw, shown)
		}
		if err := validateURL(raw); err != nil && strings.Contains(err.Error(), secret) {
			t.Fatalf("%q: %v", raw, err)
		}
	})
}

func TestWarnedTenantsAreBounded(t *testing.T) {
	var w warnedTenants
	warned, last := 0, 0
	for i := range 3 * maxWarnedTenants {
		for range 2 {
			warn, l := w.first(strings.Repeat("t", i%100) + time.Duration(i).String())
			if warn {
				warned++
			}
			if l {
				last++
			}
		}
	}
	if warned != maxWarnedTenants || last != 1 || len(w.names) != maxWarnedTenants {
		t.Errorf("warned %d times, %d times as the last, %d remembered", warned, last, len(w.names))
	}
}
