package pipeline

import (
	"math"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// DefaultMessageIDMember is the payload member in which newer devices send an ID.
const DefaultMessageIDMember = "message_id"

// injectedTolerance is how close a numeric payload.ts must be to the envelope's
// own to have been added by the producer.
const injectedTolerance = 10.0 // milliseconds

// MaxDepth is how deep the objects and arrays of a payload may be nested; deeper
// ones are INVALID_JSON. PostgreSQL's parser runs out of stack at a few thousand
// levels. The level that an envelope adds does not count.
const MaxDepth = 512

// Decoder reads deliveries. It keeps scratch memory: one per goroutine.
type Decoder struct {
	// IDMember is the payload member that holds the device's own message ID; empty
	// means that no device sends one.
	IDMember string

	hash hasher
}

// NewDecoder returns a decoder that takes a message's ID from that payload member.
func NewDecoder(idMember string) *Decoder { return &Decoder{IDMember: idMember} }

// Decode reads d into m, whose memory it reuses. It never fails: what can't be
// read is said in m.Failed, and every message has an identity.
func (dec *Decoder) Decode(m *Message, d *Delivery) {
	m.reset(d)
	var env envelope
	if d.Path == PathJetStream {
		if !m.openEnvelope(&env) {
			dec.foreign(m)
			return
		}
	} else {
		m.setTopic(d.Topic)
		m.readPayload(text(d.Body))
	}
	if m.Payload.Kind() != canonical.KindObject {
		m.fail(InvalidJSON, "the payload is not a JSON object")
	}
	if m.Payload.DeeperThan(MaxDepth) {
		m.fail(InvalidJSON, "the payload is nested too deeply")
	}
	if m.MsgType == "" {
		m.fail(BadTopicFormat, "the topic is not tenant/{tenant}/device/{device}/{message type}")
	}
	if d.Path == PathJetStream {
		if why := env.disagrees(m); why != "" {
			m.fail(TenantMismatchEnvelope, why)
			dec.foreign(m)
			return
		}
	}
	m.readFields(dec.IDMember)
	m.setTime(&env)
	dec.identify(m, &env)
}

func (m *Message) reset(d *Delivery) {
	*m = Message{Delivery: d, Username: d.Username, doc: m.doc, inner: m.inner, metrics: m.metrics[:0]}
}

func (m *Message) fail(r Reason, detail string) {
	if m.Failed == Accepted {
		m.Failed, m.Detail = r, detail
	}
}

func (m *Message) setTopic(raw string) {
	m.RawTopic = raw
	var ok bool
	if m.Topic, ok = ParseTopic(raw); !ok {
		m.Topic = Topic{Tenant: TopicTenant(raw)}
	}
}

// envelope is what the JSON around a payload says.
type envelope struct {
	tenant, device canonical.Value
	ts             float64 // milliseconds since the epoch; 0 where absent
}

// openEnvelope reads the envelope in the body. It is false where there is none.
func (m *Message) openEnvelope(env *envelope) bool {
	m.Tenant = SubjectTenant(m.Delivery.Subject)
	if err := m.doc.Parse(m.Delivery.Body); err != nil {
		m.fail(InvalidJSON, "envelope: "+err.Error())
		return false
	}
	root := m.doc.Root()
	if root.Kind() != canonical.KindObject {
		m.fail(InvalidJSON, "the envelope is not a JSON object")
		return false
	}
	var topic, payload canonical.Value
	root.Each(func(name string, v canonical.Value) {
		switch name {
		case "topic":
			topic = v
		case "tenant_id":
			env.tenant = v
		case "device_id":
			env.device = v
		case "payload":
			payload = v
		case "username":
			m.Username, _ = v.Text()
		case "ts":
			env.ts, _ = v.Float()
		}
	})
	raw, _ := topic.Text()
	m.setTopic(raw)
	switch s, ok := payload.Text(); {
	case !ok:
		m.Payload = payload
	case strings.Contains(s, replacement):
		// A mirror had to replace bytes that are no UTF-8. With the replacement
		// the text may be JSON; what the device sent was not.
		m.fail(InvalidJSON, "payload: invalid JSON: invalid UTF-8")
		m.unreadable = s
	default:
		m.readPayload(s)
	}
	return true
}

// disagrees says in what the envelope, its subject and its topic differ, or "".
// A claim that the envelope doesn't make is no disagreement; the subject always
// makes one.
func (env *envelope) disagrees(m *Message) string {
	subject := SubjectTenant(m.Delivery.Subject)
	if m.Tenant != subject {
		return "the topic's tenant is not the subject's"
	}
	if s, ok := env.tenant.Text(); !env.tenant.IsNull() && (!ok || s != subject) {
		return "the envelope's tenant_id is not the subject's"
	}
	if s, ok := env.device.Text(); m.MsgType != "" && !env.device.IsNull() && (!ok || s != m.Device) {
		return "the envelope's device_id is not the topic's"
	}
	return ""
}

// readPayload parses the payload's text. A payload that is itself a string is
// opened again and again: a mirror may have wrapped it, so how often it is
// wrapped can't be allowed to matter. Each level of quoting doubles the escapes:
// the levels are few, and all together no longer than the text twice over.
func (m *Message) readPayload(s string) {
	doc := &m.inner
	for {
		if err := doc.Parse(unsafe.Slice(unsafe.StringData(s), len(s))); err != nil {
			m.fail(InvalidJSON, "payload: "+err.Error())
			m.Payload, m.unreadable = canonical.Value{}, s
			return
		}
		m.Payload = doc.Root()
		next, isString := m.Payload.Text()
		if !isString {
			return
		}
		s, doc = next, new(canonical.Doc)
	}
}

func (m *Message) readFields(idMember string) {
	f := &m.Fields
	m.Payload.Each(func(name string, v canonical.Value) {
		switch name {
		case "ts":
			f.TS = v
		case "seq":
			f.Seq = v
		case "site_id":
			f.SiteID = v
		case "tenant_id":
			f.TenantID = v
		case "provision_token":
			f.Token = v
		case "version":
			f.Version = v
		case "metrics":
			f.Metrics = v
		case "reported":
			f.Reported = v
		case "command_id":
			f.CommandID = v
		case "status":
			f.Status = v
		case "details":
			f.Details = v
		}
		if idMember != "" && name == idMember {
			f.MessageID = v
		}
	})
}

// setTime sets Time, and Occurred where there is no readable time in the payload.
func (m *Message) setTime(env *envelope) {
	if s, ok := m.Fields.TS.Text(); ok {
		if t, ok := ParseTimestamp(s); ok {
			m.Time = t
			return
		}
	}
	m.Occurred = env.occurred(m.Delivery)
	m.Time = m.Occurred
}

// occurred prefers the envelope's own time, since it is closer to the device than
// the stream's; one beyond the year 9999 is no time.
func (env *envelope) occurred(d *Delivery) time.Time {
	if env.ts > 0 && env.ts < 253402300800000 {
		return time.UnixMicro(int64(env.ts * 1000)).UTC()
	}
	return d.Receipt.Occurred().UTC().Truncate(time.Microsecond)
}

// injected reports whether a producer added payload.ts.
func (env *envelope) injected(ts canonical.Value) bool {
	seconds, ok := ts.Float()
	return ok && env.ts > 0 && math.Abs(seconds*1000-env.ts) <= injectedTolerance
}

// identify sets the ID and what belongs to it.
func (dec *Decoder) identify(m *Message, env *envelope) {
	h := &dec.hash
	without := ""
	hasTS := m.Occurred.IsZero()
	switch m.Fields.TS.Kind() {
	case canonical.KindNull: // a producer may take it for none and put its own there
		without = "ts"
	case canonical.KindNumber:
		if m.Delivery.Origin != OriginHTTP && env.injected(m.Fields.TS) {
			without = "ts"
		} else {
			hasTS = true
		}
	}
	m.without = without
	if m.Failed != Accepted {
		dec.identifyBroken(m, env, without)
		return
	}
	var ms int64
	if m.Occurred.IsZero() {
		ms = m.Time.UnixMilli()
	}
	if id, ok := explicitID(m.Fields.MessageID); ok {
		h.reset(hashContent)
		h.buf = m.Payload.AppendCanonicalWithout(h.buf, without)
		m.Size = len(h.buf) - 1
		m.Explicit, m.Digest = true, digest(h.buf)
		h.reset(hashExplicit)
		h.part(m.Tenant)
		h.part(m.Device)  // devices of a tenant may all count from 1,
		h.part(m.MsgType) // and so may a device for each type
		h.part(id)
		m.ID = h.id(ms)
		return
	}
	m.Anonymous = !hasTS && m.Fields.Seq.IsNull()
	kind := byte(hashContent)
	if m.Anonymous {
		kind = hashAnonymous
	}
	from := dec.content(kind, m.Tenant, m.Device, m.MsgType)
	h.buf = m.Payload.AppendCanonicalWithout(h.buf, without)
	m.Size = len(h.buf) - from
	if m.Anonymous {
		ms = slot(m.Occurred)
	}
	m.ID = h.id(ms)
}

// content begins the hash of a message without an ID of its own and returns
// where the payload begins in it.
func (dec *Decoder) content(kind byte, tenant, device, msgType string) int {
	h := &dec.hash
	h.reset(kind)
	h.part(tenant)
	h.part(device)
	h.part(msgType)
	return len(h.buf)
}

// identifyBroken gives an identity to a message whose payload is no object or too
// deep, or whose topic is none of ours. It is anonymous: the same rubbish within
// the window counts once.
func (dec *Decoder) identifyBroken(m *Message, env *envelope, without string) {
	h := &dec.hash
	var from int
	if m.MsgType == "" {
		from = dec.content(hashAnonymous, m.Tenant, "", m.RawTopic)
	} else {
		from = dec.content(hashAnonymous, m.Tenant, m.Device, m.MsgType)
	}
	if m.unreadable != "" {
		h.buf = append(h.buf, legible(m.unreadable)...)
	} else {
		h.buf = m.Payload.AppendCanonicalWithout(h.buf, without)
	}
	m.Size = len(h.buf) - from
	m.Anonymous = true
	if m.Occurred.IsZero() {
		m.Occurred = env.occurred(m.Delivery)
	}
	m.ID = h.id(slot(m.Occurred))
}

// foreign gives an identity to an envelope that does not belong to the tenant of
// its subject, or is none: over that tenant and the raw bytes, apart from all
// other identities, so that no forged envelope can take another tenant's ID.
func (dec *Decoder) foreign(m *Message) {
	subject := SubjectTenant(m.Delivery.Subject)
	dec.hash.reset(hashForeign)
	dec.hash.part(subject)
	dec.hash.buf = append(dec.hash.buf, m.Delivery.Body...)
	m.Tenant, m.Kind = subject, KindTelemetry // it is not even believed to be downlink
	m.Size = len(m.Delivery.Body)
	m.Anonymous = true
	m.Occurred = m.Delivery.Receipt.Occurred().UTC().Truncate(time.Microsecond)
	m.Time = m.Occurred
	m.ID = dec.hash.id(slot(m.Occurred))
}

func slot(t time.Time) int64 {
	w := AnonymousWindow.Milliseconds()
	return max(t.UnixMilli()/w*w, w)
}

// explicitID returns the device's own ID: a string that is not empty, or a number
// in canonical form.
func explicitID(v canonical.Value) (string, bool) {
	if s, ok := v.Text(); ok {
		return s, s != ""
	}
	if v.Kind() == canonical.KindNumber {
		return string(v.AppendCanonical(nil)), true
	}
	return "", false
}

// replacement stands for what is no UTF-8.
const replacement = string(utf8.RuneError)

// legible makes text that went through a JSON string and text that did not come
// out alike: a serializer replaces what is no UTF-8 by any number of U+FFFD.
func legible(s string) string {
	s = strings.ToValidUTF8(s, replacement)
	for strings.Contains(s, replacement+replacement) {
		s = strings.ReplaceAll(s, replacement+replacement, replacement)
	}
	return s
}

// text views bytes that nobody changes as a string.
func text(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b))
}
