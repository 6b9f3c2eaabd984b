package pipeline

import (
	"strings"
	"unicode/utf8"
)

// MaxTopic is the longest topic in bytes that MQTT can carry.
const MaxTopic = 65_535

// Kind is what a message is for, as its topic says.
type Kind uint8

// The kinds.
const (
	// KindTelemetry is every message type that is not one of the others.
	KindTelemetry Kind = iota
	// KindShadow is shadow/reported.
	KindShadow
	// KindCommandAck is commands/ack.
	KindCommandAck
	// KindDownlink is what we or others send to devices and hear again through a
	// wildcard subscription: ignored and counted on either path.
	KindDownlink
	// KindSentinel is everything on the topics of [SentinelDevice]: ours, or forged.
	// Like downlink it is ignored and counted wherever it gets to.
	KindSentinel
)

// Ignored reports whether messages of this kind have no effect and no outcome: they
// are acknowledged and counted.
func (k Kind) Ignored() bool { return k == KindDownlink || k == KindSentinel }

// Topic is a device topic taken apart.
type Topic struct {
	Tenant, Device, MsgType string
	Kind                    Kind
}

// ParseTopic takes tenant/{tenant}/device/{device}/{msg_type} apart; the message
// type is all the rest. It is false for what CONTRACT.md calls BAD_TOPIC_FORMAT:
// fewer than five levels, other words at the first and third, an empty tenant,
// device or message type, and whatever MQTT itself forbids in a topic's name
// (wildcards, U+0000, invalid UTF-8, more than MaxTopic bytes), which an envelope
// may still claim.
func ParseTopic(s string) (Topic, bool) {
	rest, ok := strings.CutPrefix(s, "tenant/")
	if !ok {
		return Topic{}, false
	}
	tenant, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return Topic{}, false
	}
	rest, ok = strings.CutPrefix(rest, "device/")
	if !ok {
		return Topic{}, false
	}
	device, msgType, _ := strings.Cut(rest, "/")
	if tenant == "" || device == "" || msgType == "" || len(s) > MaxTopic || !validName(s) {
		return Topic{}, false
	}
	t := Topic{Tenant: tenant, Device: device, MsgType: msgType}
	if device == SentinelDevice {
		t.Kind = KindSentinel
		return t, true
	}
	switch msgType {
	case "shadow/reported":
		t.Kind = KindShadow
	case "commands/ack":
		t.Kind = KindCommandAck
	case "commands", "commands/response", "shadow/desired":
		t.Kind = KindDownlink
	}
	return t, true
}

func validName(topic string) bool {
	ascii := true
	for i := range len(topic) {
		switch c := topic[i]; {
		case c == '+' || c == '#' || c == 0:
			return false
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return ascii || utf8.ValidString(topic)
}

// TopicTenant returns the tenant of an MQTT topic, or "" where it has none. It is
// all that deciding about a copy needs, and cheaper than ParseTopic.
func TopicTenant(topic string) string {
	rest, ok := strings.CutPrefix(topic, "tenant/")
	if !ok {
		return ""
	}
	tenant, _, ok := strings.Cut(rest, "/")
	if !ok {
		return ""
	}
	return tenant
}

// SubjectTenant returns the tenant of a NATS subject {stream}.{tenant}, or "".
func SubjectTenant(subject string) string {
	_, tenant, _ := strings.Cut(subject, ".")
	return tenant
}

// Tenant returns the tenant whose stage decides about this copy: the one its
// transport names, whatever its body claims.
func (d *Delivery) Tenant() string {
	if d.Path == PathJetStream {
		return SubjectTenant(d.Subject)
	}
	return TopicTenant(d.Topic)
}
