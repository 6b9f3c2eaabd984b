package jetstream

import (
	"strings"
	"testing"
	"time"
)

const advisoryText = `{"type":"io.nats.jetstream.advisory.v1.max_deliver","id":"x","timestamp":"2026-01-01T00:00:00Z",` +
	`"stream":"TELEMETRY","consumer":"ingest-workers","stream_seq":42,"deliveries":3}`

func FuzzAdvisory(f *testing.F) {
	for _, text := range []string{
		advisoryText, "", "{}", "null", "[]", `{"stream_seq":-1}`, strings.Replace(advisoryText, "42", "1e400", 1),
		strings.Replace(advisoryText, "42", "18446744073709551616", 1), strings.Replace(advisoryText, "42", "0", 1),
		strings.Replace(advisoryText, "TELEMETRY", "SHADOW", 1), strings.Repeat("[", 100_000), "{\"stream\":\"\xff\x00\"}",
	} {
		f.Add([]byte(text))
	}
	s, _ := specOfConsumer(ConsumerTelemetry)
	f.Fuzz(func(t *testing.T, data []byte) {
		sequence, ok := parseAdvisory(data, s)
		if ok != (sequence > 0) {
			t.Fatalf("sequence %d, %t", sequence, ok)
		}
		if !ok {
			return
		}
		if len(data) > maxAdvisory || !strings.Contains(string(data), "{") {
			t.Fatalf("taken for an advisory: %.100q", data)
		}
		// What is acknowledged is what was read.
		stored := time.Unix(0, int64(sequence))
		m, ok := parseReply(replyOf(s, sequence, stored))
		if !ok || m.sequence != sequence || !m.stored.Equal(stored) {
			t.Fatalf("the reply for %d says %+v", sequence, m)
		}
	})
}

func TestAdvisory(t *testing.T) {
	s, _ := specOfConsumer(ConsumerTelemetry)
	for text, want := range map[string]uint64{
		advisoryText: 42,
		strings.Replace(advisoryText, `"TELEMETRY"`, `"SHADOW"`, 1):                       0,
		strings.Replace(advisoryText, `"ingest-workers"`, `"others"`, 1):                  0,
		strings.Replace(advisoryText, "42", "0", 1):                                       0,
		strings.Replace(advisoryText, "42", "-42", 1):                                     0,
		strings.Replace(advisoryText, `"x"`, `"`+strings.Repeat("x", maxAdvisory)+`"`, 1): 0,
	} {
		if got, ok := parseAdvisory([]byte(text), s); got != want || ok != (want > 0) {
			t.Errorf("%.200s: %d, %t; want %d", text, got, ok, want)
		}
	}
}
