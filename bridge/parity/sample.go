package parity

import (
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/internal/redact"
	"github.com/crossfade-io/crossfade/pipeline"
)

// Sample is a copy that counted as mismatched.
type Sample struct {
	Tenant string
	At     time.Time
	ID     pipeline.ID
	Path   pipeline.Path // of this copy, which stood by
	Digest int64         // of its payload
	Other  int64         // of the one that counted
	// Topic and Payload are for people: valid UTF-8 without U+0000, cut at MaxTopic
	// and MaxPayload bytes. The payload is in canonical form, unless it is longer
	// than that: then it has its beginning.
	Topic, Payload string
	// Size is the payload's length in bytes, before it was cut.
	Size int
}

const (
	// MaxPayload is how many bytes of a payload a sample has at most.
	MaxPayload = 4 << 10
	// MaxTopic is how many bytes of a topic a sample has at most.
	MaxTopic = 512
	// MaxPerHour is how many samples are kept per tenant and hour.
	MaxPerHour = 20
	// maxSamples bounds those that are not yet written.
	maxSamples = 1000
	// maxRead is the longest payload, in bytes, that is read for a sample.
	maxRead = 1 << 20
)

// NewSample makes a sample of a message that stood by. It copies what it keeps. The
// device's provision_token is replaced, however deep it is.
func NewSample(m *pipeline.Message, tenant string, other int64, at time.Time) Sample {
	s := Sample{
		Tenant: strings.Clone(tenant), At: at, ID: m.ID, Path: m.Delivery.Path,
		Digest: m.Digest, Other: other, Topic: legible(m.RawTopic, MaxTopic), Size: m.Size,
	}
	if m.Size > maxRead {
		s.Payload = "(not read: too long)"
		return s
	}
	s.Payload = legible(redacted(m.AppendPayload(nil)), MaxPayload)
	return s
}

// legible is text that PostgreSQL can hold, of n bytes at most.
func legible(s string, n int) string {
	s = strings.ToValidUTF8(s[:min(len(s), n)], "") // the cut may go through a character
	return strings.ReplaceAll(strings.Clone(s), "\x00", "")
}

// redacted is the payload without the device's secret. What is no JSON is left out.
func redacted(src []byte) string {
	v, ok := redact.JSON(src, redact.Whole)
	if !ok {
		return redact.Mark
	}
	return string(redact.Encode(v, ""))
}

// sampled bounds the samples by tenant and hour.
type sampled struct {
	hour int64
	n    map[string]int
}

func (s *sampled) room(tenant string, at time.Time) bool {
	if hour := at.Unix() / 3600; hour != s.hour {
		s.hour, s.n = hour, make(map[string]int)
	}
	return s.n[tenant] < MaxPerHour && (len(s.n) < maxCells || s.n[tenant] > 0)
}

func (s *sampled) note(tenant string, at time.Time) {
	if s.room(tenant, at) {
		s.n[tenant]++
	}
}
