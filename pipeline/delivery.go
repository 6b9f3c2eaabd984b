package pipeline

import "time"

// Path names the way by which a copy of a message reached us. Its values are
// stored in the ledger and in quarantine_events: never renumber them.
type Path uint8

// The two paths.
const (
	PathMQTT      Path = 1
	PathJetStream Path = 2
)

// String returns the path's name as operators know it: mqtt or jetstream.
func (p Path) String() string {
	switch p {
	case PathMQTT:
		return "mqtt"
	case PathJetStream:
		return "jetstream"
	}
	return "unknown"
}

// Origin is who made an envelope. Its values are stored in quarantine_events: never
// renumber them.
type Origin uint8

// The origins that are told apart.
const (
	// OriginProducer: a mirror or another producer, which may have added a payload.ts
	// to what the device sent. On the MQTT path it means nothing.
	OriginProducer Origin = 0
	// OriginHTTP: Crossfade's own HTTP ingest, which adds no ts: the payload's is the
	// device's, however close it is to the envelope's.
	OriginHTTP Origin = 1
)

// Delivery is one copy of a message as a source handed it over, not yet
// acknowledged. The path decides how Body is read: by MQTT it is the device's
// payload and Topic says who sent it; by JetStream it is an envelope (CONTRACT.md)
// and Subject names the tenant.
type Delivery struct {
	Path    Path
	Topic   string // MQTT topic; empty on the JetStream path
	Subject string // NATS subject; empty on the MQTT path
	// Username is the broker's user name for the sender where the transport
	// itself carries it (an MQTT user property); usually empty.
	Username string
	// Sole says that no other path brings this message, or that its other copy may have
	// been dropped long ago: this one must never be dropped or held for another one's
	// sake, whatever the tenant's stage.
	Sole bool
	// Origin says who made the envelope of a JetStream copy, as far as it matters for
	// the message's identity. It is no synonym of Sole.
	Origin Origin
	// Body belongs to whoever holds the delivery: the source neither reuses
	// nor changes it.
	Body []byte
	// Receipt settles this copy with its source.
	Receipt Receipt
}

// Receipt is a source's hold on one copy. Exactly one of Ack and Release is
// called, once, from any goroutine, in any order relative to other copies.
// Neither blocks for longer than a write to a local buffer.
type Receipt interface {
	// Ack tells the source that the copy is dealt with for good. An error
	// (connection gone, session replaced) means that the source may deliver
	// the copy again; it needs no other reaction than counting it.
	Ack() error
	// Release gives the copy back untreated, to be delivered again: at once
	// where the transport can (JetStream), at the next session otherwise (MQTT).
	Release() error
	// Occurred is when this copy came into being, as far as its transport
	// knows: for JetStream the time the stream stored it, which a redelivery
	// keeps; for MQTT the time of arrival.
	Occurred() time.Time
}

// OrderedReceipt is the Receipt of a source that acknowledges in the order of arrival.
type OrderedReceipt interface {
	Receipt
	// AckThen is Ack, and has then called once everything that arrived before this copy
	// by the same session is settled too. It may be called before AckThen returns or
	// much later, by a goroutine with other work to do, so it must not block; it is never
	// called when the connection ends before, or where there is an error. The copy then
	// comes again.
	AckThen(then func()) error
}
