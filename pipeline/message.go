package pipeline

import (
	"time"

	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// Message is what one delivery says, read once and then looked at by the checks
// and the writer. Strings and values in it share memory with the delivery's body
// and with the message itself: they live until [Decoder.Decode] fills the same
// Message again, so clone what outlives the batch.
type Message struct {
	Delivery *Delivery

	// Topic is taken from the MQTT topic, in an envelope from its "topic". Where it
	// could not be read, Tenant is the one that the transport names and the rest
	// is empty.
	Topic
	RawTopic string
	Username string

	Identity

	// Time is the device's own time (payload "ts"), or Occurred where there is none
	// that can be read. Microseconds, UTC.
	Time time.Time

	// Payload is the device's payload; anything but an object means InvalidJSON.
	Payload canonical.Value
	Fields  Fields
	// Size is the payload's length in bytes in canonical form, less what a
	// producer added: the same for every copy.
	Size int

	// Failed is the first of the reasons InvalidJSON, BadTopicFormat and
	// TenantMismatchEnvelope that applies, found while reading; Detail says more
	// for the people who look at the quarantine.
	Failed Reason
	Detail string

	doc        canonical.Doc
	inner      canonical.Doc
	metrics    []byte
	measured   bool   // metrics is set,
	storable   bool   // and jsonb can hold it
	unreadable string // the payload's text where it is no JSON
	without    string // the payload's member that a producer added; "" for none
}

// Fields are the payload's members that mean something, each the zero Value
// where it is absent.
type Fields struct {
	TS, Seq, SiteID, TenantID, Token, Version, Metrics canonical.Value
	Reported                                           canonical.Value // shadow/reported, with Version
	CommandID, Status, Details                         canonical.Value // commands/ack
	MessageID                                          canonical.Value // the configured member
}

// Seq returns the payload's sequence number: 0 where absent, null where it is
// null, cut to an integer where it has a fraction. It is not ok for what is no
// 64-bit integer.
func (m *Message) Seq() (n int64, null, ok bool) {
	switch m.Fields.Seq.Kind() {
	case canonical.KindNone:
		return 0, false, true
	case canonical.KindNull:
		return 0, true, true
	}
	n, ok = m.Fields.Seq.Int()
	return n, false, ok
}

// Metrics returns the metrics as canonical JSON, {} where they are absent or
// null, and whether jsonb can hold them. The bytes live as long as the message.
func (m *Message) Metrics() (json []byte, ok bool) {
	if !m.measured {
		m.measured, m.storable = true, true
		if m.Fields.Metrics.IsNull() {
			m.metrics = append(m.metrics[:0], "{}"...)
		} else {
			m.metrics, m.storable = m.Fields.Metrics.AppendStorable(m.metrics[:0])
		}
	}
	return m.metrics, m.storable
}

// AppendPayload appends the payload in canonical form, less what a producer added:
// the same bytes for every copy of the message.
func (m *Message) AppendPayload(dst []byte) []byte {
	return m.Payload.AppendCanonicalWithout(dst, m.without)
}

// Member returns the payload's member of that name, the zero Value where the device
// sent none, whatever a producer added.
func (m *Message) Member(name string) canonical.Value {
	if m.without != "" && name == m.without {
		return canonical.Value{}
	}
	return m.Payload.Get(name)
}

// EachMember walks the payload's members that the device sent, as they are written:
// of duplicates the last one counts.
func (m *Message) EachMember(visit func(name string, v canonical.Value)) {
	m.Payload.Each(func(name string, v canonical.Value) {
		if m.without == "" || name != m.without {
			visit(name, v)
		}
	})
}

// Forget lets go of the delivery and of the memory that only a huge message needs.
// The message says nothing afterwards.
func (m *Message) Forget() {
	m.doc.Forget()
	m.inner.Forget()
	if cap(m.metrics) > maxKeptMetrics {
		m.metrics = nil
	}
	*m = Message{doc: m.doc, inner: m.inner, metrics: m.metrics[:0]}
}

// maxKeptMetrics bounds the bytes that a Message keeps for the next one's metrics.
const maxKeptMetrics = 64 << 10
