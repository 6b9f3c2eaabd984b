package pipeline

import (
	"bytes"
	"strconv"
	"strings"
)

// SentinelDevice is the reserved device of every tenant on whose topics sentinels
// travel: marked messages which show that a path has brought all that was published
// before them. Whatever is published for this device is no message of a device: it
// is never written, quarantined, routed or held.
const SentinelDevice = "crossfade-sentinel"

// SentinelFilter is the MQTT topic filter for the sentinels of all tenants.
const SentinelFilter = "tenant/+/device/" + SentinelDevice + "/#"

// sentinelMember is the payload's member that holds the nonce.
const sentinelMember = "crossfade_sentinel"

// sentinelTrace is the part of the device's name that is looked for in every envelope.
// It begins with a letter that is rare there, which makes the search six times faster.
const sentinelTrace = "fade-sentinel"

// Bounds in bytes of what can be a sentinel; ours stay far below.
const (
	maxNonce    = 64
	maxSentinel = 4096
)

// The message types by which a sentinel travels, one for each stream that a mirror
// maps them to.
const (
	SentinelTelemetry = "telemetry"
	SentinelShadow    = "shadow/reported"
	SentinelCommands  = "commands/ack"
)

// SentinelTypes lists the message types of a sentinel, in the order of publishing.
func SentinelTypes() []string {
	return []string{SentinelTelemetry, SentinelShadow, SentinelCommands}
}

// Sentinel is what a copy on the reserved device says. The zero Nonce means that it
// is no sentinel of ours, but somebody's attempt at one.
type Sentinel struct {
	Tenant, Type, Nonce string // Type is one of SentinelTypes where there is a nonce
}

// SentinelTopic returns the topic of a tenant's sentinel of that message type.
func SentinelTopic(tenant, msgType string) string {
	return "tenant/" + tenant + "/device/" + SentinelDevice + "/" + msgType
}

// SentinelPayload returns the payload that carries a nonce, which consists of up to
// 64 letters, digits, - and _.
func SentinelPayload(nonce string) []byte {
	return append(strconv.AppendQuote([]byte(`{"`+sentinelMember+`":`), nonce), '}')
}

// SentinelOf reports whether a copy came for the reserved device, and what it says.
// It agrees with [Decoder.Decode] about what is meant for that device, except that it
// overlooks an envelope that names its topic twice, or the device in escapes; what it
// overlooks the decoder shows as [KindSentinel].
//
// It is cheap for every other copy: it looks for the device's name first, and reads
// what has it no further than to the topic. What it returns lives longer than d.
func SentinelOf(d *Delivery) (Sentinel, bool) {
	if d.Path == PathJetStream && !bytes.Contains(d.Body, []byte(sentinelTrace)) {
		return Sentinel{}, false
	}
	hint := TopicHint(d)
	if !strings.Contains(hint, SentinelDevice) {
		return Sentinel{}, false
	}
	if topic, ok := ParseTopic(hint); !ok || topic.Kind != KindSentinel {
		return Sentinel{}, false
	}
	if d.Path == PathMQTT && len(d.Body) > maxSentinel {
		return Sentinel{Tenant: strings.Clone(TopicTenant(hint))}, true
	}
	// Now it is worth reading: what is taken for a sentinel here must be nothing
	// that a worker would have written.
	var m Message
	NewDecoder("").Decode(&m, d)
	if m.Kind != KindSentinel {
		return Sentinel{}, false
	}
	s := Sentinel{Tenant: strings.Clone(m.Tenant)}
	nonce, ok := m.Payload.Get(sentinelMember).Text()
	if !ok || !validNonce(nonce) {
		return s, true
	}
	for _, t := range SentinelTypes() {
		if m.MsgType == t {
			s.Type, s.Nonce = t, strings.Clone(nonce)
		}
	}
	return s, true
}

// validNonce accepts letters, digits, - and _, as our own nonces are.
func validNonce(s string) bool {
	if s == "" || len(s) > maxNonce {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}
