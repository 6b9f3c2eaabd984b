package flags

import (
	"net/http"
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzAnswer: whatever a flag service answers, a variant is only taken from an object whose
// members are text.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{`{"value":"mqtt","reason":"STATIC","variant":"mqtt"}`, `{"value":null}`, `{"Value":"mqtt"}`, `{"value":{}}`, `{"value":"mqtt","reason":7}`, `{"value":"a","value":"b"}`, `[]`, ``, `{"value":"\ud800"}`, "{\"value\":\"\xff\"}", `{} {}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		members, ok := object(body)
		if !ok {
			return
		}
		d := success(members)
		if err := d.Error(); err != nil && (d.Value != "" || d.Variant != "") {
			t.Fatalf("%q is refused (%v) and says %q", body, err, d.Value)
		}
		if !utf8.ValidString(d.Value) || !utf8.ValidString(string(d.Reason)) || !utf8.ValidString(d.Variant) {
			t.Fatalf("%q says %+v", body, d)
		}
		if _, known := members["value"]; !known && d.Value != "" {
			t.Fatalf("%q says %q", body, d.Value)
		}
	})
}

// FuzzEvent: whatever a stream of events brings is an event or an error.
func FuzzEvent(f *testing.F) {
	for _, s := range []string{`{"type":"configuration_change","data":{"flags":{"ingest-source":{}}}}`, `{"type":"configuration_change","data":{}}`, `{"type":"configuration_change","data":7}`, `{"type":"provider_shutdown"}`, `{}`, `[]`, ``, "\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		if ours, err := new(flagd).event(message); ours && err != nil {
			t.Fatalf("%q is both: %v", message, err)
		}
	})
}

// FuzzRetryAfter: a wait is never negative, and no longer than the header can say.
func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "5", "-1", "1e9", "2147483647", "2147483648", "Wed, 21 Oct 2099 07:28:00 GMT", "Wed, 21 Oct 1999 07:28:00 GMT", "\x00"} {
		f.Add(s)
	}
	now := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		if d := retryAfter(http.Header{"Retry-After": {s}}, now); d < 0 {
			t.Fatalf("%q is %v", s, d)
		}
	})
}
